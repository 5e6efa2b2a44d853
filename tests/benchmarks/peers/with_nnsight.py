"""nnsight: traces of the stock model, fused attention, except where its pattern is read."""

from collections.abc import Iterable

import nnsight
import torch
from nnsight import LanguageModel
from torch import Tensor

from tests.benchmarks.tasks import Timed, grid, knockouts, traces
from tests.benchmarks.workload import Weights, Workload


class Nnsight:
    """One trace per edit, with only the last position unembedded."""

    def __init__(self, weights: Weights) -> None:
        place, options = str(weights.folder), {"device_map": weights.device, "dtype": torch.float32, "dispatch": True}
        self.fused = LanguageModel(place, attn_implementation="sdpa", **options)
        self.eager = LanguageModel(place, attn_implementation="eager", **options)
        self.layers = range(weights.shape.n_layers)

    @torch.no_grad()
    def forward(self, ids: Tensor) -> Tensor:
        """Logits: [pos, d_vocab]."""
        with self.fused.trace(ids, use_cache=False):
            logits = self.fused.output.logits.save()
        return logits[0]

    @torch.no_grad()
    def resid_pre(self, ids: Tensor) -> list[Tensor]:
        """What enters each block."""
        blocks = self.fused.model.layers
        with self.fused.trace(ids, use_cache=False, logits_to_keep=1):
            kept = nnsight.save([])
            for layer in self.layers:
                kept.append(blocks[layer].input)
        return kept

    @torch.no_grad()
    def patched(self, ids: Tensor, kept: list[Tensor], at: Tensor, layers: Iterable[int]) -> Tensor:
        """Logits with what enters some blocks at some positions taken from another run."""
        blocks = self.fused.model.layers
        with self.fused.trace(ids, use_cache=False, logits_to_keep=1):
            for layer in layers:
                x = blocks[layer].input.clone()
                x[:, at] = kept[layer][:, at]
                blocks[layer].input = x
            logits = self.fused.output.logits.save()
        return logits[0, -1]

    @torch.no_grad()
    def knocked_out(self, ids: Tensor, keys: Tensor, layers: Iterable[int]) -> Tensor:
        """Logits with keys that the last position may not read in some blocks."""
        blocks = self.fused.model.layers
        mask = torch.full((ids.shape[1], ids.shape[1]), -torch.inf, device=ids.device).triu(1)
        mask[-1, keys] = -torch.inf
        with self.fused.trace(ids, use_cache=False, logits_to_keep=1):
            for layer in layers:
                args, kwargs = blocks[layer].self_attn.inputs
                blocks[layer].self_attn.inputs = (args, dict(kwargs) | {"attention_mask": mask[None, None]})
            logits = self.fused.output.logits.save()
        return logits[0, -1]

    @torch.no_grad()
    def dominance(self, work: Workload) -> Tensor:
        """Each layer's pattern is summed as it comes."""
        blocks = self.eager.model.layers
        with self.eager.trace(work.ids, use_cache=False, logits_to_keep=1):
            found = nnsight.save([])
            for layer in self.layers:
                work.energy(blocks[layer].input)
                found.append(work.dominance(blocks[layer].self_attn.output[1]))
        return torch.stack(found)

    def tasks(self, work: Workload) -> dict[str, Timed]:
        """All but those that discard."""
        tasks = {
            "forward": Timed(lambda: self.forward(work.ids)[-1:]),
            "every `resid_pre`": Timed(lambda: torch.stack([one[0, -1] for one in self.resid_pre(work.ids)])),
            "sinks and dominance": Timed(lambda: self.dominance(work)),
        }
        return tasks | knockouts(work, self) | grid(work, self) | traces(work, self)
