"""pyvene: interchange interventions on the stock model, fused attention.

Its documented way gives the clean prompt as a source, which it then runs once for each layer that is patched. Here the clean
run's activations are given instead (`source_representations`), which is the faster way. It has no component for an attention
pattern or mask, so that knockouts and sums of attention are not measured.
"""

from collections.abc import Iterable

import pyvene
import torch
from torch import Tensor

from tests.benchmarks.tasks import Timed, grid, traces
from tests.benchmarks.workload import Weights, Workload


class Pyvene:
    """One run per edit."""

    def __init__(self, weights: Weights) -> None:
        self.model, self.device, self.n_layers = weights.stock(), weights.device, weights.shape.n_layers
        self.patching: dict[tuple[int, ...], pyvene.IntervenableModel] = {}

    def hooked(self, kind: type, layers: Iterable[int]) -> pyvene.IntervenableModel:
        """The model with interventions on what enters some blocks."""
        blocks = [f"model.layers[{layer}].input" for layer in layers]
        wanted = [
            {"layer": layer, "component": block, "intervention_type": kind}
            for layer, block in zip(layers, blocks, strict=True)
        ]
        model = pyvene.IntervenableModel(pyvene.IntervenableConfig(wanted), model=self.model)
        model.set_device(self.device)
        return model

    @torch.no_grad()
    def resid_pre(self, ids: Tensor) -> list[Tensor]:
        """What enters each block."""
        model = self.hooked(pyvene.CollectIntervention, range(self.n_layers))
        where = {"base": [[list(range(ids.shape[1]))]] * self.n_layers}
        (_, kept), _ = model({"input_ids": ids, "use_cache": False, "logits_to_keep": 1}, unit_locations=where)
        return [one.reshape(1, ids.shape[1], -1) for one in kept]

    @torch.no_grad()
    def patched(self, ids: Tensor, kept: list[Tensor], at: Tensor, layers: Iterable[int]) -> Tensor:
        """Logits with what enters some blocks at some positions taken from another run."""
        layers = tuple(layers)
        if layers not in self.patching:
            self.patching[layers] = self.hooked(pyvene.VanillaIntervention, layers)
        model = self.patching[layers]
        sources = {name: kept[layer][:, at] for name, layer in zip(model.interventions, layers, strict=True)}
        where = {"sources->base": (None, [[at.tolist()]] * len(layers))}
        base = {"input_ids": ids, "use_cache": False, "logits_to_keep": 1}
        _, out = model(base, unit_locations=where, source_representations=sources)
        return out.logits[0, -1]

    def tasks(self, work: Workload) -> dict[str, Timed]:
        """What collects or patches."""
        kept = Timed(lambda: torch.stack([one[0, -1] for one in self.resid_pre(work.ids)]))
        return {"every `resid_pre`": kept} | grid(work, self) | traces(work, self)
