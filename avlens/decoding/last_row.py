"""What does the row that predicts the next token attend to?

Methods read it from a stream while it runs, averaged over heads, and nothing else of the pattern is kept.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from avlens import names
from avlens.hooks import FwdHook, HookPoint


@dataclass(eq=False)
class LastRow:
    """The last query's attention, as the latest pass left it.

    Attributes:
        layers: The blocks looked at, 0-based.
    """

    layers: Sequence[int]
    _seen: dict[str, Float[Tensor, "batch key_pos"]] = field(default_factory=dict)

    def hooks(self) -> list[FwdHook]:
        """What to run the model with."""
        return [(names.at("pattern", layer), _Watch(self._seen)) for layer in self.layers]

    def of(self, row: int, padding: Int[Tensor, " batch"]) -> Float[Tensor, "layer key_pos"]:
        """Attention to each position of a row's own prompt and of what was written after it, mean over heads."""
        pad = int(padding[row])
        return torch.stack([self._seen[names.at("pattern", layer)][row, pad:] for layer in self.layers])


@dataclass(frozen=True, eq=False)
class _Watch:
    """Works row by row: of several chunks the last one is kept."""

    seen: dict[str, Float[Tensor, "batch key_pos"]]
    row_wise: bool = True

    def __call__(self, pattern: Float[Tensor, "batch head query_pos key_pos"], hook: HookPoint) -> None:
        self.seen[str(hook.name)] = pattern[:, :, -1].float().mean(1)
