"""Ablation: replace activations at some positions by ones that say nothing about them.

    zero      0
    mean      the mean over the positions of a reference run
    resample  the activations of positions drawn from a reference run, the same draw in every layer

The reference is a cache of another prompt or, by default, the run itself; mean and resample use its positions of the
same modality as each ablated one. Only the prompt is ablated.

Source: Wang et al. 2022, "Interpretability in the Wild", arXiv:2211.00593 (mean); Chan et al. 2022, "Causal
Scrubbing" (resample).
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from avlens import names
from avlens.cache import AVCache
from avlens.errors import HookError, PositionError
from avlens.hooks import FwdHook, HookPoint, query_positions, rows_of
from avlens.tokens import Modality, TokenMap, TokenSet

Method = Literal["zero", "mean", "resample"]


@dataclass(frozen=True, eq=False)
class Ablate:
    """Replaces the activation at `tokens`.

    Attributes:
        tokens: Where.
        method: By what.
        source: For each token, the reference positions it may take from (mean) or the one it takes (resample).
        reference: The reference run, or None for the run itself.
        name: Short name of the activation.
    """

    tokens: TokenSet
    method: Method
    source: tuple[Int[Tensor, " _source"], ...]
    reference: AVCache | None
    name: str

    def __call__(self, x: Float[Tensor, "batch pos *rest"], hook: HookPoint) -> Float[Tensor, "batch pos *rest"] | None:
        """A copy of `x` with the positions replaced; None where the run computes none of them."""
        positions, rows = query_positions(hook, x), rows_of(hook, self.tokens).tolist()
        edited = x.clone()
        for row in range(x.shape[0]):
            own = positions[min(row, len(positions) - 1)]
            if rows[min(row, len(rows) - 1)] and bool((own < len(self.tokens.tokens)).any()):
                self._edit(edited[row], x[row], own, hook)
        return edited

    def _edit(self, out: Tensor, x: Tensor, own: Int[Tensor, " pos"], hook: HookPoint) -> None:
        where = {position: i for i, position in enumerate(own.tolist())}
        reference = x if self.reference is None else self.reference[str(hook.name)][0].to(x.device, x.dtype)
        for token, source in zip(self.tokens, self.source, strict=True):
            if token not in where:
                continue
            if self.method == "zero":
                out[where[token]] = 0
            elif self.reference is None:
                out[where[token]] = reference[[where[s] for s in source.tolist() if s in where]].mean(0)
            else:
                out[where[token]] = reference[source.to(x.device)].mean(0)

    def __repr__(self) -> str:
        return f"Ablate({self.name} at {self.tokens!r} by {self.method})"


def ablate(
    tokens: TokenSet,
    *,
    by: Method = "zero",
    layers: names.Layers = "all",
    site: str = "resid_pre",
    reference: AVCache | None = None,
    seed: int = 0,
) -> list[FwdHook]:
    """Hooks that replace the activation at `tokens` in `layers`.

    Args:
        tokens: Positions to ablate, in the prompt.
        by: `zero`, `mean` or `resample`.
        layers: Blocks to edit, 0-based.
        site: Short name of an activation with positions second.
        reference: Another run to take means or samples from, which holds `site` in those layers.
        seed: For `resample`.

    Raises:
        HookError: If `site` has no position axis, or `by` is none of the three.
        PositionError: If the reference has no position of a modality that is ablated, or `tokens` goes beyond the prompt.
    """
    if site in ("attn_scores", "pattern"):
        raise HookError(f"{site} has no axis of positions. Use knockout or reweight for attention.")
    if by not in ("zero", "mean", "resample"):
        raise HookError(f"by is {by!r}. Ablate by 'zero', 'mean' or 'resample'.")
    if tokens.open_ended:
        raise PositionError(
            "a set with positions that are not yet generated cannot be ablated: only the prompt is. Subtract them: "
            "tokens - inputs.tokens.generated."
        )
    pool = tokens.tokens if reference is None else reference.tokens
    edit = Ablate(tokens, by, _sources(tokens, pool, by, seed), reference, site)
    return [(name, edit) for name in names.hook_names(site, layers)]


def _sources(tokens: TokenSet, pool: TokenMap, by: Method, seed: int) -> tuple[Int[Tensor, " _source"], ...]:
    if by == "zero":
        return (torch.empty(0, dtype=torch.long),) * len(tokens)
    generator = torch.Generator().manual_seed(seed)
    alike = {kind: (pool.modality == kind).nonzero()[:, 0] for kind in Modality}
    sources = []
    for position in tokens:
        kind = Modality(int(tokens.tokens.modality[position]))
        if len(alike[kind]) == 0:
            raise PositionError(
                f"the reference has no {kind.name.lower()} position to take from, but position {position} is one."
            )
        drawn = torch.randint(len(alike[kind]), (1,), generator=generator)
        sources.append(alike[kind] if by == "mean" else alike[kind][drawn])
    return tuple(sources)
