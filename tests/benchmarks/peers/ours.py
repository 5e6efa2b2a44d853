"""avlens, as its analyses run it."""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from avlens.analyses.dominance import modality_dominance, read_by_modality
from avlens.analyses.sinks import find_sinks, sink_energy
from avlens.engine import sweep
from avlens.hooks import FwdHook
from avlens.interventions import discard, knockout, patch
from tests.benchmarks.tasks import Timed
from tests.benchmarks.workload import DIMS, Weights, Workload, leaving_at


class Ours:
    """A HookedAVModel."""

    def __init__(self, weights: Weights) -> None:
        self.model = weights.hooked()

    def tasks(self, work: Workload) -> dict[str, Timed]:
        """All of them."""
        model, inputs, clean = self.model, work.inputs(self.model), work.inputs(self.model, clean=True)
        tokens, last = inputs.tokens, inputs.tokens.last

        def forward() -> Tensor:
            return model(inputs)[0, -1:]

        def resid_pre() -> Tensor:
            _, cache = model.run_with_cache(inputs, names_filter=["resid_pre"], logits_at=last)
            return torch.stack([cache["resid_pre", layer][0, -1] for layer in range(model.cfg.n_layers)])

        def dominance() -> Tensor:
            keep = [sink_energy(DIMS), *read_by_modality(tokens)]
            _, cache = model.run_with_cache(inputs, names_filter=[], reductions=keep, logits_at=last)
            find_sinks(cache, DIMS)
            return modality_dominance(cache, tokens.media).score.nan_to_num()

        def swept(edits: Sequence[Sequence[FwdHook]]) -> Tensor:
            return sweep(model, inputs, {str(i): edit for i, edit in enumerate(edits)}, logits_at=last)[:, 0]

        def trace(kind: str) -> Tensor:
            _, cache = model.run_with_cache(clean, names_filter=["resid_pre"], logits_at=last)
            return swept([patch(cache, tokens.at(at.tolist())) for at in work.sets[kind]])

        def knockouts(groups: Sequence[Tensor]) -> Tensor:
            keys = [tokens.at(group.tolist()) for group in groups]
            return swept([knockout(last, key, layers=window) for key in keys for window in work.windows])

        def grid() -> Tensor:
            _, cache = model.run_with_cache(clean, names_filter=["resid_pre"], logits_at=last)
            return swept([patch(cache, tokens.at([at]), layers=[layer]) for layer, at in work.cells])

        def discards() -> Tensor:
            return swept([discard(tokens.media, layer=layer) for layer in range(1, model.cfg.n_layers)])

        def prompt(layer: int | None) -> Tensor:
            hooks = [] if layer is None else discard(tokens.media, layer=layer)
            return model.run_with_hooks(inputs, hooks, logits_at=last)[0]

        tasks = {
            "forward": forward,
            "every `resid_pre`": resid_pre,
            "sinks and dominance": dominance,
            "knockouts, 1 group": partial(knockouts, work.groups[:1]),
            "knockouts, 3 groups": partial(knockouts, work.groups),
            "patch grid": grid,
            **{f"trace, {kind}": partial(trace, kind) for kind in work.sets},
            "discards": discards,
            "prompt": partial(prompt, None),
            **{
                f"prompt, media leave at {part}": partial(prompt, layer)
                for part, layer in leaving_at(work.shape).items()
            },
        }
        return {name: Timed(run) for name, run in tasks.items()}
