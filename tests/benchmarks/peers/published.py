"""The published procedure: what the released code of the first paper (arXiv:2605.10815) does for one prompt, in our own words.

Statistics come from one run that returns the attention and the hidden states of all layers (explicit attention). A trace makes,
for each set, a clean run that saves the set token by token in every layer, and a run that puts them back token by token; fused
attention, which is to its advantage. Its causal tracing acts on what enters attention, which at all layers is the same edit.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial

import torch
from torch import Tensor

from tests.benchmarks.tasks import SAMPLE, Timed
from tests.benchmarks.workload import Weights, Workload


class Published:
    """Two runs per set."""

    def __init__(self, weights: Weights) -> None:
        self.model = weights.stock()
        self.layers = self.model.model.layers

    @torch.no_grad()
    def dominance(self, work: Workload) -> Tensor:
        """Everything is returned, then summed."""
        self.model.set_attn_implementation("eager")
        out = self.model(work.ids, use_cache=False, output_attentions=True, output_hidden_states=True)
        self.model.set_attn_implementation("sdpa")
        for resid in out.hidden_states[:-1]:
            work.energy(resid)
        return torch.stack([work.dominance(pattern) for pattern in out.attentions])

    @torch.no_grad()
    def run(self, ids: Tensor, hook) -> Tensor:
        """Logits of the last position, with a hook before every block."""
        with ExitStack() as stack:
            for layer, block in enumerate(self.layers):
                stack.callback(block.register_forward_pre_hook(partial(hook, layer=layer)).remove)
            return self.model(ids, use_cache=False, logits_to_keep=1).logits[0, -1]

    def patched(self, work: Workload, at: Sequence[int]) -> Tensor:
        """Logits of the last position, with a set of positions from a clean run of its own."""
        kept: dict[tuple[int, int], Tensor] = {}

        def save(module, args, layer):
            for position in at:
                kept[layer, position] = args[0][0, position].clone()

        def put(module, args, layer):
            for position in at:
                args[0][0, position] = kept[layer, position]

        self.run(work.clean_ids, save)
        return self.run(work.ids, put)

    def tasks(self, work: Workload) -> dict[str, Timed]:
        """What the paper does."""

        def trace(sets: Sequence[Tensor]) -> Tensor:
            return torch.stack([self.patched(work, at.tolist()) for at in sets[:SAMPLE]])

        tasks = {
            f"trace, {kind}": Timed(partial(trace, sets), len(sets) / min(SAMPLE, len(sets)))
            for kind, sets in work.sets.items()
        }
        return {"sinks and dominance": Timed(lambda: self.dominance(work))} | tasks
