"""The unmodified transformers model, fused attention, with what it returns when it is asked."""

import torch
from torch import Tensor

from tests.benchmarks.tasks import Timed
from tests.benchmarks.workload import Weights, Workload


class Stock:
    """Logits, and the hidden states."""

    def __init__(self, weights: Weights) -> None:
        self.model = weights.stock()

    @torch.no_grad()
    def forward(self, ids: Tensor) -> Tensor:
        """Logits: [pos, d_vocab]."""
        return self.model(ids, use_cache=False).logits[0]

    @torch.no_grad()
    def resid_pre(self, ids: Tensor) -> tuple[Tensor, ...]:
        """What enters each block."""
        return self.model(ids, use_cache=False, logits_to_keep=1, output_hidden_states=True).hidden_states[:-1]

    def tasks(self, work: Workload) -> dict[str, Timed]:
        """What needs no hook."""
        return {
            "forward": Timed(lambda: self.forward(work.ids)[-1:]),
            "every `resid_pre`": Timed(lambda: torch.stack([one[0, -1] for one in self.resid_pre(work.ids)])),
        }
