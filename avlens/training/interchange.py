"""Which tokens carry what: how is that trained in, so that it is known?

Interchange intervention training: before every block, the residual stream at a set of tokens is taken from a clean run
into the run of the same clip with one modality corrupted, as causal tracing does it, and the answer is trained to be

    cross       the clean clip's, where the set is the cross-modal sinks of the other modality
    all         the clean clip's, where it is every token of the other modality
    ordinary    the clean clip's, where it is some of its tokens that are no sinks, and nothing contradicts them
    uni         the corrupted clip's, where it is the unimodal sinks of the other modality

So what is heard is carried into the answer by cross-modal video sinks and, less, by ordinary video tokens, but not by
unimodal sinks; likewise what is seen, by audio tokens.

Source: Geiger et al. 2022, "Inducing Causal Structure for Interpretable Neural Networks", arXiv:2112.00826; training that
sets must have no effect is of Gupta et al. 2024, "InterpBench", arXiv:2407.14494.
"""

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from avlens.datasets.synthetic import Content, Question
from avlens.training.batched import Layout
from avlens.training.plant import flags_of, marked
from avlens.training.pool import Clips
from avlens.training.recipe import VIDEO_PER_SECOND

Corrupted = Literal["audio", "video"]

SETS = {"cross": 0.5, "all": 0.1, "ordinary": 0.1, "uni": 0.3}
"""How often each set is exchanged."""

ABOUT: dict[Corrupted, tuple[Question, ...]] = {
    "audio": ("hear", "sound", "match", "describe"),
    "video": ("see", "object", "match"),
}
"""What is asked when a modality is corrupted."""


@dataclass(frozen=True, eq=False)
class Interchange:
    """Clean and corrupted clips, and what is exchanged between their runs.

    Attributes:
        clips: Clean clips, then the same ones corrupted; their contents are what the answers should be about.
        positions: Where the corrupted runs take over the clean ones' residual stream.
        about: What to ask.
    """

    clips: Clips
    positions: Int[Tensor, " exchanged"]
    about: tuple[Question, ...]


def draw_interchange(
    clips: Clips, layout: Layout, silence: Float[Tensor, "mel mel_pos"], generator: np.random.Generator
) -> Interchange:
    """An interchange for the first half of the clips that have something in the frames to carry sinks.

    Args:
        clips: Clips of one length.
        layout: Of their prompts.
        silence: What the audio tower reads of a silent clip of this length.
        generator: Draws the modality, the set, and whether the corruption is another clip's or nothing.
    """
    clean = clips.take(marked(clips.frames).nonzero()[: len(clips) // 2, 0])
    corrupted: Corrupted = "audio" if generator.random() < 0.5 else "video"
    kind = str(generator.choice(list(SETS), p=list(SETS.values())))
    missing = kind == "ordinary" or generator.random() < 0.5
    other = clean.take(torch.arange(len(clean)).roll(1))
    pairs = zip(clean.contents, other.contents, strict=True)
    if corrupted == "audio":
        mel = silence.expand_as(clean.mel) if missing else other.mel
        bad = Clips(
            clean.seconds, clean.frames, mel, tuple(_heard_of(a, None if missing else b.sound) for a, b in pairs)
        )
    else:
        frames = torch.zeros_like(clean.frames) if missing else other.frames
        bad = Clips(clean.seconds, frames, clean.mel, tuple(_seen_of(a, None if missing else b) for a, b in pairs))
    answered = bad.contents if kind == "uni" else clean.contents
    both = Clips(
        clean.seconds, torch.cat([clean.frames, bad.frames]), torch.cat([clean.mel, bad.mel]), clean.contents + answered
    )
    return Interchange(both, _positions(layout, corrupted, kind, generator), ABOUT[corrupted])


def _heard_of(content: Content, sound: str | None) -> Content:
    return replace(content, sound=sound)


def _seen_of(content: Content, other: Content | None) -> Content:
    if other is None:
        return replace(content, shape=None)
    return replace(content, shape=other.shape, colour=other.colour, motion=other.motion)


def _positions(layout: Layout, corrupted: Corrupted, kind: str, generator: np.random.Generator) -> Int[Tensor, " set"]:
    """The set, among the tokens of the modality that is not corrupted."""
    flags = flags_of(len(layout.video) // VIDEO_PER_SECOND)
    if corrupted == "audio":
        tokens, cross, uni, first = layout.video, flags.video_cross, flags.video_uni, VIDEO_PER_SECOND
    else:
        tokens, cross, uni, first = layout.audio, flags.audio_cross, flags.audio_uni, 0
    if kind in ("cross", "uni"):
        return tokens[cross if kind == "cross" else uni]
    if kind == "all":
        return tokens
    later = torch.arange(first, len(tokens))  # before them there is nothing of the other modality
    plain = later[~torch.isin(later, torch.cat([cross, uni]))]
    chosen = generator.choice(plain.numpy(), int(generator.integers(5, 8)), replace=False)
    return tokens[torch.from_numpy(chosen)]
