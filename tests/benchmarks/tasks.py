"""What is timed, under which name, and how a peer that runs everything puts a sweep together from its runs."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from tests.benchmarks.workload import Workload

SAMPLE = 2
"""Of a sweep whose cost is that of its runs added up, how many edits are run."""

TASKS = {
    "forward": "logits of every position, nobody listening",
    "every `resid_pre`": "the stream before every block is kept; logits of the last position, as in all that follows",
    "sinks and dominance": "energy of sink dimensions and the modality dominance of every audio and video token, in all layers",
    "knockouts, 1 group": "the last position cannot read the audio, in every window of 3 layers",
    "knockouts, 3 groups": "the same of audio, of video and of text",
    "patch grid": "`resid_pre` of the clean run, at one layer and one of 4 positions, every layer",
    "trace, 20 %": "`resid_pre` of the clean run at all layers: 16 sets of a fifth of audio and video, windows and scattered",
    "trace, 80 %": "the same, 16 sets of four fifths",
    "trace, modalities": "the same, 8 times all video and 8 times all audio and video, each without 8 tokens",
    "discards": "audio and video leave, at every layer but the first",
    "prompt": "nothing else",
    "prompt, media leave at a quarter": "the same, with audio and video discarded after a quarter of the layers",
    "prompt, media leave at half": "after half of them",
    "prompt, media leave at three quarters": "after three quarters",
}


@dataclass(frozen=True)
class Timed:
    """A peer's piece of work.

    Attributes:
        run: Does it. Gives one row per edit, layer or prompt, of numbers on which all peers must agree.
        scale: How many times as much the whole is, where only a sample of its runs is made.
    """

    run: Callable[[], Tensor]
    scale: float = 1.0


def traces(work: Workload, peer: Any) -> dict[str, Timed]:
    """One clean run that is kept, and one patched run for each set."""

    def trace(sets: Sequence[Tensor]) -> Tensor:
        kept = peer.resid_pre(work.clean_ids)
        return torch.stack([peer.patched(work.ids, kept, at, range(work.shape.n_layers)) for at in sets[:SAMPLE]])

    return {f"trace, {kind}": Timed(partial(trace, sets), _scale(len(sets), 1)) for kind, sets in work.sets.items()}


def grid(work: Workload, peer: Any) -> dict[str, Timed]:
    """One clean run that is kept, and one patched run for each cell."""

    def run() -> Tensor:
        kept = peer.resid_pre(work.clean_ids)
        cells = [(layer, torch.tensor([at])) for layer, at in work.cells[:SAMPLE]]
        return torch.stack([peer.patched(work.ids, kept, at, [layer]) for layer, at in cells])

    return {"patch grid": Timed(run, _scale(len(work.cells), 1))}


def knockouts(work: Workload, peer: Any) -> dict[str, Timed]:
    """One run for each window and group."""

    def run() -> Tensor:
        return torch.stack([peer.knocked_out(work.ids, work.groups[0], window) for window in work.windows[:SAMPLE]])

    n = len(work.windows)
    return {"knockouts, 1 group": Timed(run, _scale(n, 0)), "knockouts, 3 groups": Timed(run, _scale(3 * n, 0))}


def _scale(edits: int, shared: int) -> float:
    return (edits + shared) / (min(edits, SAMPLE) + shared)
