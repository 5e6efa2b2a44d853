"""TransformerLens's bridge over the stock model, which always computes explicit attention."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from tests.benchmarks.tasks import Timed, grid, knockouts, traces
from tests.benchmarks.workload import Weights, Workload

Hook = tuple[str, Callable[..., Any]]


class Bridge:
    """One run per edit."""

    def __init__(self, weights: Weights) -> None:
        self.bridge = TransformerBridge.boot_transformers(
            str(weights.folder), device=weights.device, dtype=torch.float32
        )
        self.layers = range(weights.shape.n_layers)

    @torch.no_grad()
    def run(self, ids: Tensor, hooks: Sequence[Hook] = ()) -> Tensor:
        """Logits: [pos, d_vocab]."""
        return self.bridge.run_with_hooks(ids, fwd_hooks=list(hooks), return_type="logits")[0]

    @torch.no_grad()
    def resid_pre(self, ids: Tensor) -> list[Tensor]:
        """What enters each block."""
        names = [_resid_pre(layer) for layer in self.layers]
        _, cache = self.bridge.run_with_cache(ids, names_filter=names.__contains__, return_type="logits")
        return [cache[name] for name in names]

    def patched(self, ids: Tensor, kept: list[Tensor], at: Tensor, layers: Iterable[int]) -> Tensor:
        """Logits with what enters some blocks at some positions taken from another run."""

        def put(x, hook, layer):
            x = x.clone()
            x[:, at] = kept[layer][:, at]
            return x

        return self.run(ids, [(_resid_pre(layer), partial(put, layer=layer)) for layer in layers])[-1]

    def knocked_out(self, ids: Tensor, keys: Tensor, layers: Iterable[int]) -> Tensor:
        """Logits with keys that the last position may not read in some blocks."""

        def forbid(scores, hook):
            scores = scores.clone()
            scores[:, :, -1, keys] = -torch.inf
            return scores

        return self.run(ids, [(f"blocks.{layer}.attn.hook_attn_scores", forbid) for layer in layers])[-1]

    def dominance(self, work: Workload) -> Tensor:
        """Each layer's pattern is summed as it comes."""
        found: list[Tensor] = []

        def energy(x, hook):
            work.energy(x)

        def read(x, hook):
            found.append(work.dominance(x))

        names = [(_resid_pre(layer), energy) for layer in self.layers]
        self.run(work.ids, names + [(f"blocks.{layer}.attn.hook_pattern", read) for layer in self.layers])
        return torch.stack(found)

    def tasks(self, work: Workload) -> dict[str, Timed]:
        """All but those that discard."""
        tasks = {
            "forward": Timed(lambda: self.run(work.ids)[-1:]),
            "every `resid_pre`": Timed(lambda: torch.stack([one[0, -1] for one in self.resid_pre(work.ids)])),
            "sinks and dominance": Timed(lambda: self.dominance(work)),
        }
        return tasks | knockouts(work, self) | grid(work, self) | traces(work, self)


def _resid_pre(layer: int) -> str:
    return f"blocks.{layer}.hook_resid_pre"
