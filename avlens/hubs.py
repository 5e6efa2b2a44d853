"""Which sinks of a prompt are cross-modal hubs? Sinks, modality dominance and the split, in one pass that keeps no pattern.

Source: the first half of Adaptive Sink-guided Decoding, and the tables' sets, in Jung et al. 2026, arXiv:2605.10815.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import pandas as pd

from avlens import display
from avlens.analyses.dominance import Hubs, ModalityDominance, modality_dominance, read_by_modality, split_sinks
from avlens.analyses.sinks import SinkDims, Sinks, find_sink_dims, find_sinks, sink_energy
from avlens.cache import AVCache, Reduction
from avlens.engine.estimate import watched_run
from avlens.inputs import AVInputs
from avlens.model import HookedAVModel


@dataclass(frozen=True, eq=False)
class PromptHubs:
    """A prompt's sinks, their scores, and their split by median.

    Attributes:
        sinks: Every sink, text included.
        dominance: Scores of the audio and video sinks.
        hubs: Their split.
    """

    sinks: Sinks
    dominance: ModalityDominance
    hubs: Hubs

    def to_frame(self) -> pd.DataFrame:
        """One row per sink of audio or video: its part, its score, and its largest energy."""
        frame = self.hubs.to_frame()
        at = frame.index.to_numpy()
        frame["mds"] = self.dominance.to_frame()["mds"].loc[at]
        frame["energy"] = self.sinks.energy.amax(0).numpy()[at]
        return frame

    def __repr__(self) -> str:
        return f"PromptHubs({self.sinks!r}, {self.hubs!r})"

    def _repr_html_(self) -> str:
        return display.table(repr(self), self.to_frame(), self.sinks.made_by)


def find_hubs(
    model: HookedAVModel,
    inputs: AVInputs,
    dims: Iterable[int] | SinkDims | None = None,
    *,
    n: float | int | None = None,
    progress: bool = False,
) -> PromptHubs:
    """Run one prompt and split its sinks.

    Args:
        model: A HookedAVModel.
        inputs: One prompt.
        dims: Sink dimensions; by default found in the model's text-only pass.
        n: The N of the paper's sink(N); by default every sink counts.
        progress: Whether to show a bar, and what it is going to take.

    Raises:
        TooLargeError: If the free memory cannot hold the run; before it starts.
    """
    dims = tuple(find_sink_dims(model) if dims is None else dims)
    keep = hub_reductions(inputs, dims)
    says, last = "sinks" if progress else None, inputs.tokens.last
    with watched_run(model, inputs, says, reductions=keep, logits_at=last) as ticks:
        _, cache = model.run_with_cache(inputs, names_filter=[], reductions=keep, fwd_hooks=ticks, logits_at=last)
    return hubs_of(cache, dims, n=n)


def hub_reductions(inputs: AVInputs, dims: Iterable[int]) -> list[Reduction]:
    """What `hubs_of` needs of a run over one prompt: energies, and attention received by each token."""
    return [sink_energy(dims), *read_by_modality(inputs.tokens)]


def hubs_of(cache: AVCache, dims: Iterable[int], *, n: float | int | None = None) -> PromptHubs:
    """Split the sinks of a prompt that ran already; arguments as `find_hubs`.

    Raises:
        MissingActivationError: If the cache holds no `hub_reductions`, nor `resid_pre` and `pattern`.
    """
    sinks = find_sinks(cache, dims)
    chosen = sinks.tokens & cache.tokens.media if n is None else sinks.top(n)
    dominance = modality_dominance(cache, chosen)
    return PromptHubs(sinks, dominance, split_sinks(dominance))
