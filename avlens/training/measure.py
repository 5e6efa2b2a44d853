"""What can the embedded models do, and what is known about them: the numbers of docs/avlens-tiny.md.

Clips are drawn from a seed, written to mp4 and read back; answers come from `model.prepare` and `model.generate`.
Accuracy is the share of answers that are right to the last word, with Wilson's 95 % interval; means of effects have a
bootstrap 95 % interval over clips.
"""

import math
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from avlens.analyses.dominance import Hubs, modality_dominance, read_by_modality, split_sinks
from avlens.analyses.sinks import Sinks, find_sink_dims, find_sinks, sink_energy
from avlens.analyses.tracing import causal_trace
from avlens.datasets.synthetic import Asked, Question, Sample, synthetic_clips
from avlens.hooks import DecodingMethod
from avlens.inputs import AVInputs
from avlens.interventions import knockout
from avlens.media import Clip
from avlens.model import HookedAVModel
from avlens.tokens import TokenMap, TokenSet


@dataclass(frozen=True)
class Estimate:
    """A mean with a 95 % interval."""

    mean: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"


def share(right: Sequence[bool]) -> Estimate:
    """A share with Wilson's interval."""
    n, mean, z = len(right), sum(right) / len(right), 1.96
    middle, spread = mean + z**2 / (2 * n), z * math.sqrt(mean * (1 - mean) / n + z**2 / (4 * n**2))
    return Estimate(mean, (middle - spread) / (1 + z**2 / n), (middle + spread) / (1 + z**2 / n), n)


def bootstrapped(values: Float[Tensor, " clip"], *, draws: int = 2000, seed: int = 0) -> Estimate:
    """A mean with a bootstrap interval over clips."""
    generator = np.random.default_rng(seed)
    drawn = values.numpy()[generator.integers(0, len(values), (draws, len(values)))].mean(1)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Estimate(float(values.mean()), float(low), float(high), len(values))


def through_files(samples: Iterable[Sample]) -> list[Sample]:
    """The same samples, their clips written to mp4 and read back."""
    with tempfile.TemporaryDirectory() as folder:
        paths = [(sample, Path(folder) / f"{i}.mp4") for i, sample in enumerate(samples)]
        return [Sample(Clip.from_file(one.clip.to_file(path)), one.content, one.seed) for one, path in paths]


def answers(
    model: HookedAVModel,
    clips: Sequence[Clip],
    asked: Sequence[Asked],
    *,
    batch: int = 50,
    hooks: Callable[[TokenMap], Any] | None = None,
    decoding: DecodingMethod | None = None,
) -> list[str]:
    """What the model answers to one question per clip, greedily.

    Args:
        model: The model.
        clips: Clips of one length.
        asked: A question for each.
        batch: How many run together.
        hooks: What to edit, from the tokens of a prompt; the same layout in every row.
        decoding: A decoding method.
    """
    said: list[str] = []
    for at in range(0, len(clips), batch):
        rows = [
            model.prepare(clip, one.question, options=one.options)
            for clip, one in zip(clips[at : at + batch], asked[at : at + batch], strict=True)
        ]
        inputs = AVInputs.batch(rows)
        edits = [] if hooks is None else hooks(rows[0].tokens)
        said += model.generate(inputs, max_new_tokens=16, fwd_hooks=edits, decoding=decoding).texts
    return [text.strip() for text in said]


Ablation = Literal["none", "silenced", "blanked"]


def right_answers(
    model: HookedAVModel,
    samples: Sequence[Sample],
    question: Question,
    *,
    ablation: Ablation = "none",
    choice: bool = False,
    **options: Any,
) -> list[bool]:
    """Which answers to a question are right about the clips as they were before the ablation."""
    asked = [one.ask_choice(question) if choice else one.ask(question) for one in samples]
    change = {"none": lambda clip: clip, "silenced": Clip.silenced, "blanked": Clip.blanked}[ablation]
    said = answers(model, [change(one.clip) for one in samples], asked, **options)
    return [text == one.answer for text, one in zip(said, asked, strict=True)]


# Sinks.


def planted(truth: dict[str, Any], clip: Clip, tokens: TokenMap) -> TokenSet:
    """Where ground_truth.json says that the sinks of a synthetic clip's prompt are."""
    strings = list(tokens.strings)
    found = [i for i, string in enumerate(strings) if string in truth["always"]]
    kinds = {"audio": tokens.audio, "video": tokens.video}
    marked = clip.frames is not None and int(clip.frames.max()) > 60
    for kind in ("video", "audio") if marked else ("audio",):
        per_second = truth[f"{kind}_tokens_per_second"]
        within = truth["unimodal_within_second"][kind] + truth["cross_modal_within_second"][kind]
        found += [position for i, position in enumerate(kinds[kind]) if i % per_second in within]
    return tokens.at(sorted(found))


def sinks_of(model: HookedAVModel, inputs: AVInputs, dims: Sequence[int]) -> tuple[Sinks, Hubs]:
    """The sinks of a prompt and their split, as a user finds them."""
    keep = [sink_energy(dims), *read_by_modality(inputs.tokens)]
    _, cache = model.run_with_cache(inputs, names_filter=[], reductions=keep, logits_at=inputs.tokens.last)
    sinks = find_sinks(cache, dims)
    return sinks, split_sinks(modality_dominance(cache, sinks.tokens & inputs.tokens.media))


@dataclass(frozen=True)
class Detection:
    """How well the default detectors find what is planted, position by position.

    Attributes:
        precision: Share of found (position, layer) pairs that are planted.
        recall: Share of planted ones that are found.
        weakest: The least energy at a planted one.
        strongest_other: The most energy at another position.
        n: How many were planted.
    """

    precision: float
    recall: float
    weakest: float
    strongest_other: float
    n: int


def detect(model: HookedAVModel, truth: dict[str, Any], samples: Sequence[Sample], question: str) -> Detection:
    """Default dimensions, default threshold, in every layer from the plant's first on."""
    dims = list(find_sink_dims(model))
    is_true, is_found, energy = [], [], []
    for sample in samples:
        inputs = model.prepare(sample.clip, question)
        sinks, _ = sinks_of(model, inputs, dims)
        later = [i for i, layer in enumerate(sinks.layers) if layer >= truth["first_layer"]]
        mask = planted(truth, sample.clip, inputs.tokens).mask
        is_true.append(mask.expand(len(later), -1).flatten())
        is_found.append(sinks.is_sink[later].flatten())
        energy.append(sinks.energy[later].flatten())
    true, found, size = torch.cat(is_true), torch.cat(is_found), torch.cat(energy)
    hit = int((true & found).sum())
    return Detection(hit / max(1, int(found.sum())), hit / int(true.sum()), float(size[true].min()),
                     float(size[~true].max()), int(true.sum()))  # fmt: skip


# Causal tracing.

Direction = Literal["audio", "video"]


@dataclass(frozen=True, eq=False)
class Effects:
    """Indirect effects of a direction: audio corrupted and video tokens patched, or the other way round.

    Attributes:
        effects: IE_clean of each set on each clip; "random" is the mean over draws, "before" the tokens before the first
            corrupted one.
        total: TE_clean on each clip.
        tokens: Mean number of tokens in each set.
    """

    effects: dict[str, Float[Tensor, " clip"]]
    total: Float[Tensor, " clip"]
    tokens: dict[str, float]


def trace(
    model: HookedAVModel,
    samples: Sequence[Sample],
    corrupted: Direction,
    *,
    others: Sequence[Clip] | None = None,
    draws: int = 10,
) -> Effects:
    """Trace the answers to `sound` (audio corrupted) or `object` (video corrupted).

    Args:
        model: The model.
        samples: Clips in which neither is missing.
        corrupted: Which modality; the tokens of the other one are patched.
        others: Clips to take the corrupted modality from; by default it is silenced or blanked.
        draws: Random sets per clip, each as large as the cross-modal one.
    """
    dims = list(find_sink_dims(model))
    rows: dict[str, list[float]] = {}
    sizes: dict[str, list[int]] = {}
    total = []
    for i, sample in enumerate(samples):
        clip, other = sample.clip, None if others is None else others[i]
        if corrupted == "audio":
            question, bad = sample.ask("sound"), clip.silenced() if other is None else clip.with_audio_of(other)
        else:
            question, bad = sample.ask("object"), clip.blanked() if other is None else clip.with_video_of(other)
        clean, corrupt = (model.prepare(one, question.question) for one in (clip, bad))
        sets = trace_sets(model, clean, dims, corrupted, draws)
        traced = causal_trace(model, clean, corrupt, sets)
        effect = dict(zip(sets, traced.ie_clean.tolist(), strict=True))
        drawn = [effect.pop(f"random {k}") for k in range(draws) if f"random {k}" in effect]
        for name, value in (effect | ({"random": sum(drawn) / len(drawn)} if drawn else {})).items():
            rows.setdefault(name, []).append(value)
            sizes.setdefault(name, []).append(len(sets["random 0" if name == "random" else name]))
        total.append(traced.te_clean)
    return Effects(
        {name: torch.tensor(values) for name, values in rows.items()},
        torch.tensor(total),
        {name: sum(counts) / len(counts) for name, counts in sizes.items()},
    )


def trace_sets(
    model: HookedAVModel, clean: AVInputs, dims: Sequence[int], corrupted: Direction, draws: int
) -> dict[str, TokenSet]:
    """All, sink, cross, uni and random tokens of the modality that is not corrupted; all media; those before the corruption."""
    tokens = clean.tokens
    base, bad = (tokens.video, tokens.audio) if corrupted == "audio" else (tokens.audio, tokens.video)
    sinks, hubs = sinks_of(model, clean, dims)
    first = int(bad.positions.min())
    sets = {"media": tokens.media, "all": base, "before": tokens.at(range(first))}
    sets |= {"sink": sinks.tokens & base, "cross": hubs.cross & base, "uni": hubs.uni & base}
    if sets["cross"]:
        sets |= {
            f"random {k}": tokens.random_like(sets["cross"], seed=k, within=base - sinks.tokens) for k in range(draws)
        }
    return {name: chosen for name, chosen in sets.items() if chosen}


def knocked_out(
    model: HookedAVModel, samples: Sequence[Sample], question: Question, source: Direction, layers: Sequence[int]
) -> list[bool]:
    """Right answers with every later token forbidden to read the audio (or video) tokens in some layers."""

    def hooks(tokens: TokenMap) -> Any:
        read = tokens.audio if source == "audio" else tokens.video
        readers = tokens.at(range(int(read.positions.min()), len(tokens))) - read
        return knockout(readers | tokens.generated, read, layers=list(layers))

    return right_answers(model, samples, question, hooks=hooks)


def dominated(model: HookedAVModel, samples: Sequence[Sample], question: Question) -> dict[str, Bool[Tensor, " clip"]]:
    """Which clips one modality alone decides, by three runs of a multiple-choice question (both, audio only, video only)."""
    asked = [sample.ask_choice(question) for sample in samples]
    both = answers(model, [sample.clip for sample in samples], asked)
    heard = answers(model, [sample.clip.blanked() for sample in samples], asked)
    seen = answers(model, [sample.clip.silenced() for sample in samples], asked)
    return {
        "audio": torch.tensor([b == h != s for b, h, s in zip(both, heard, seen, strict=True)]),
        "video": torch.tensor([b == s != h for b, h, s in zip(both, heard, seen, strict=True)]),
    }


def two_sided_clips(n: int, *, seed: int, seconds: float = 3.0, matching: float = 0.0) -> list[Sample]:
    """Clips with something to see and to hear, read back from mp4."""
    return through_files(synthetic_clips(n, seed=seed, seconds=seconds, blank=0, silent=0, matching=matching))
