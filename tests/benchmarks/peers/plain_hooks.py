"""Forward hooks on the stock decoder, as a careful user writes them: fused attention, except where its pattern is read."""

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor

from tests.benchmarks.tasks import Timed, grid, knockouts, traces
from tests.benchmarks.workload import Weights, Workload

Hooked = tuple[Any, Callable[..., Any]]
"""A module, and what runs before it: (module, args, kwargs) -> (args, kwargs) or None."""


class PlainHooks:
    """One run per edit, with only the last position unembedded."""

    def __init__(self, weights: Weights) -> None:
        self.model = weights.stock()
        self.layers = self.model.model.layers

    @torch.no_grad()
    def run(self, ids: Tensor, hooks: Iterable[Hooked] = ()) -> Tensor:
        """Logits of the last position."""
        with ExitStack() as stack:
            for module, fn in hooks:
                stack.callback(module.register_forward_pre_hook(fn, with_kwargs=True).remove)
            return self.model(ids, use_cache=False, logits_to_keep=1).logits[0, -1]

    def resid_pre(self, ids: Tensor) -> list[Tensor]:
        """What enters each block."""
        kept: list[Tensor] = []
        self.run(ids, [(layer, lambda module, args, kwargs: kept.append(args[0])) for layer in self.layers])
        return kept

    def patched(self, ids: Tensor, kept: list[Tensor], at: Tensor, layers: Iterable[int]) -> Tensor:
        """Logits with what enters some blocks at some positions taken from another run."""

        def put(module, args, kwargs, layer):
            x = args[0].clone()
            x[:, at] = kept[layer][:, at]
            return (x, *args[1:]), kwargs

        return self.run(ids, [(self.layers[layer], partial(put, layer=layer)) for layer in layers])

    def knocked_out(self, ids: Tensor, keys: Tensor, layers: Iterable[int]) -> Tensor:
        """Logits with keys that the last position may not read in some blocks."""
        mask = torch.full((ids.shape[1], ids.shape[1]), -torch.inf, device=ids.device).triu(1)
        mask[-1, keys] = -torch.inf

        def put(module, args, kwargs):
            return args, kwargs | {"attention_mask": mask[None, None]}

        return self.run(ids, [(self.layers[layer].self_attn, put) for layer in layers])

    def dominance(self, work: Workload) -> Tensor:
        """Each layer's pattern is summed as it comes, then forgotten."""
        found: list[Tensor] = []

        def read(module, args, output):
            found.append(work.dominance(output[1]))
            return output[0], None

        def energy(module, args, kwargs):
            work.energy(args[0])

        self.model.set_attn_implementation("eager")
        with ExitStack() as stack:
            stack.callback(self.model.set_attn_implementation, "sdpa")
            for layer in self.layers:
                stack.callback(layer.self_attn.register_forward_hook(read).remove)
            self.run(work.ids, [(layer, energy) for layer in self.layers])
        return torch.stack(found)

    def tasks(self, work: Workload) -> dict[str, Timed]:
        """All but those that discard."""
        tasks = {
            "every `resid_pre`": Timed(lambda: torch.stack([one[0, -1] for one in self.resid_pre(work.ids)])),
            "sinks and dominance": Timed(lambda: self.dominance(work)),
        }
        return tasks | knockouts(work, self) | grid(work, self) | traces(work, self)
