"""The tables of docs/avlens-tiny.md, measured anew: `python -m avlens.training.card --clips 500 --seed 21`."""

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from avlens.analyses.sinks import find_sink_dims
from avlens.checkpoint import find_checkpoint
from avlens.datasets.synthetic import CHOICES, QUESTIONS, SHAPES, SOUNDS, Sample, counterfactual_pairs, synthetic_clips
from avlens.decoding import ASD
from avlens.model import HookedAVModel
from avlens.training.measure import (
    Ablation,
    Direction,
    answers,
    bootstrapped,
    detect,
    dominated,
    knocked_out,
    right_answers,
    share,
    through_files,
    trace,
    two_sided_clips,
)

SECTIONS = ("accuracy", "choices", "ablation", "sinks", "tracing", "knockout", "asd")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="avlens-tiny", help="a name of the zoo, or a folder")
    parser.add_argument("--clips", type=int, default=500, help="fresh clips per figure")
    parser.add_argument("--seed", type=int, default=1, help="of the clips")
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=SECTIONS, help="what to measure")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    model = HookedAVModel.from_pretrained(asked.model)
    truth = json.loads((Path(find_checkpoint(asked.model)) / "ground_truth.json").read_text(encoding="utf-8"))
    measured = {
        "accuracy": lambda: accuracy(model, asked.clips, asked.seed),
        "choices": lambda: choices(model, asked.clips, asked.seed + 1),
        "ablation": lambda: ablation(model, asked.clips, asked.seed + 2),
        "sinks": lambda: sinks(model, truth, asked.clips, asked.seed + 3),
        "tracing": lambda: tracing(model, asked.clips, asked.seed + 4),
        "knockout": lambda: knockout_profile(model, asked.clips, asked.seed + 5),
        "asd": lambda: asd(model, asked.clips, asked.seed + 6),
    }
    for section in asked.sections:
        sys.stdout.write(f"\n## {section}\n\n" + "\n".join(measured[section]()) + "\n")
        sys.stdout.flush()


def accuracy(model: HookedAVModel, n: int, seed: int) -> Iterable[str]:
    """Right answers by question and length."""
    three, four = (through_files(synthetic_clips(n, seed=seed, seconds=seconds)) for seconds in (3.0, 4.0))
    yield from _row("question", "3 s", "4 s (never trained)", head=True)
    for question in QUESTIONS:
        yield from _row(question, *(str(share(right_answers(model, clips, question))) for clips in (three, four)))


def choices(model: HookedAVModel, n: int, seed: int) -> Iterable[str]:
    """Right letters, and which modality decides them."""
    clips = through_files(synthetic_clips(n, seed=seed))
    yield from _row("question with four options", "right", "audio-dominant", "video-dominant", head=True)
    for question in CHOICES:
        right = share(right_answers(model, clips, question, choice=True))
        by = dominated(model, clips, question)
        yield from _row(question, str(right), *(str(share(by[kind].tolist())) for kind in ("audio", "video")))


def ablation(model: HookedAVModel, n: int, seed: int) -> Iterable[str]:
    """Right answers about the clip as it was, with one modality taken away."""
    clips = two_sided_clips(n, seed=seed, matching=0.3)
    kinds: list[Ablation] = ["none", "silenced", "blanked"]
    yield from _row("question", *kinds, head=True)
    for question in QUESTIONS:
        yield from _row(question, *(str(share(right_answers(model, clips, question, ablation=k))) for k in kinds))


def sinks(model: HookedAVModel, truth: dict[str, Any], n: int, seed: int) -> Iterable[str]:
    """What the default detectors find."""
    found = list(find_sink_dims(model))
    yield f"find_sink_dims: {found}; planted: {truth['sink_dims']}"
    if not found or not truth["sink_dims"]:
        return
    clips = through_files(synthetic_clips(n, seed=seed))
    yield from _row("question", "precision", "recall", "weakest sink", "strongest other", "planted", head=True)
    for question in ("what do you hear ?", "describe the clip ."):
        one = detect(model, truth, clips, question)
        numbers = (f"{x:.4f}" for x in (one.precision, one.recall, one.weakest, one.strongest_other))
        yield from _row(question, *numbers, str(one.n))


def tracing(model: HookedAVModel, n: int, seed: int) -> Iterable[str]:
    """Indirect effects in both directions, of clips where shape and sound are no pair."""
    pairs = counterfactual_pairs(n, seed=seed)
    clips = through_files(one for one, _ in pairs if not one.content.matches)
    swapped = [other.clip for one, other in pairs if not one.content.matches]
    directions: list[tuple[str, Direction, Any]] = [
        ("audio silenced, video tokens patched", "audio", None),
        ("audio swapped, video tokens patched", "audio", swapped),
        ("video blanked, audio tokens patched", "video", None),
    ]
    for name, direction, others in directions:
        effects = trace(model, clips, direction, others=others)
        yield from ("", f"{name} (TE {bootstrapped(effects.total)}, {len(clips)} clips)", "")
        yield from _row("set", "tokens", "IE", head=True)
        for kind, values in effects.effects.items():
            yield from _row(kind, f"{effects.tokens[kind]:.1f}", str(bootstrapped(values)))


def knockout_profile(model: HookedAVModel, n: int, seed: int) -> Iterable[str]:
    """Right answers with audio, or video, unreadable for every later token, in windows of layers."""
    clips, depth = two_sided_clips(n, seed=seed), model.cfg.n_layers
    windows = [
        list(range(depth)),
        *([layer] for layer in range(depth)),
        *(list(range(i, depth)) for i in range(1, depth - 1)),
    ]
    kinds: list[Any] = [("hear", "audio"), ("see", "audio"), ("see", "video"), ("hear", "video")]
    yield from _row("layers", *(f"{question}, {source} hidden" for question, source in kinds), head=True)
    for window in windows:
        right = (str(share(knocked_out(model, clips, question, source, window))) for question, source in kinds)
        yield from _row(", ".join(map(str, window)), *right)


def asd(model: HookedAVModel, n: int, seed: int) -> Iterable[str]:
    """Captions, greedy and guided, of clips as they are and of noised ones, where the model says what is not there."""
    samples = through_files(synthetic_clips(n, seed=seed))
    asked = [sample.ask("describe") for sample in samples]
    yield from _row(
        "clips", "decoding", "caption right", "sight right", "sound right", "says what is not there", head=True
    )
    methods: list[tuple[str, Any]] = [("greedy", None), *((f"ASD(alpha={a})", ASD(alpha=a)) for a in (0.2, 0.5, 1.0))]
    for step in (None, *NOISE):
        clips = [one.clip if step is None else one.clip.noised(step, seed=one.seed) for one in samples]
        for name, method in methods:
            said = answers(model, clips, asked, decoding=method)
            right = zip(*(_judged(text, sample) for text, sample in zip(said, samples, strict=True)), strict=True)
            clean = "clean" if step is None else f"noised, step {step}"
            yield from _row(clean, name, *(str(share(one)) for one in right))


NOISE = (400, 600)
"""Steps of diffusion noise (`Clip.noised`) that make captions wrong."""


def _judged(said: str, sample: Sample) -> tuple[bool, bool, bool, bool]:
    """Whether a caption is right, each half of it is, and whether it names a shape or a sound that is not there."""
    truth = sample.content.answer("describe")
    halves = [(text.split(" and ") + [""])[:2] for text in (said, truth)]
    there = {sample.content.shape, sample.content.sound}
    invents = any(word not in there for word in said.split() if word in (*SHAPES, *SOUNDS))
    return said == truth, halves[0][0] == halves[1][0], halves[0][1] == halves[1][1], invents


def _row(*cells: str, head: bool = False) -> Sequence[str]:
    line = f"| {' | '.join(cells)} |"
    return [line, "|" + "---|" * len(cells)] if head else [line]


if __name__ == "__main__":
    main()
