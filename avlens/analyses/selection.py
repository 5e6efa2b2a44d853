"""Unimodal dominance: for which clips does one modality alone decide the answer?

A multiple-choice question is asked three times: with both modalities, with audio only (the video corrupted), and with video
only (the audio corrupted). With the three answers y,

    audio-dominant:  y_both == y_audio  and  y_video != y_both
    video-dominant:  y_both == y_video  and  y_audio != y_both

For causal tracing then o_clean = y_both, whether or not it is right, and o_corrupt = the answer of the run in which the dominant
modality is corrupted. P of an answer is the larger probability, after the prompt, of the first token of "K" and of " K".
Models that choose no letters can be asked openly (`ask="words"`): the options are not listed, an answer is the one that it
names, and P is that of the first token of the option's words; NaN where two answers begin alike.

Source: Jung et al. 2026, "Probing Cross-modal Information Hubs in Audio-Visual LLMs", arXiv:2605.10815; its released code,
preprocess/step1/output2input_*.py:28-53 (question), utils/logit.py:3-20 (P), infer_with_prob.py:71-87 (corruption).

Differs from the source: P is taken at the first step by default (there: its maximum over all steps; `step="max"`). A clip
with an answer that is no letter is neither (there: its first character counts, whatever it is). Corruption comes before the
encoders, so the prompts' layouts are equal, which is checked. Zeros are far from what models are trained on; hence `swap`,
`noise` and `mean`.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from avlens import display
from avlens.errors import DatasetError, MediaError, PromptError
from avlens.family import Order
from avlens.inputs import AVInputs
from avlens.media import Clip
from avlens.records import Record, RecordFolder, read_records
from avlens.samples import Opened, Sample, open_clip, read_clip

Corruption = Literal["zero", "swap", "noise", "mean"]
Dominant = Literal["audio", "video", "neither"]
Step = Literal["first", "max"]
Ask = Literal["letters", "words"]
RUNS = ("both", "audio", "video")


@dataclass(frozen=True)
class Judgement:
    """The three answers about one clip.

    Attributes:
        id: Of the sample.
        answers: The letter chosen with both modalities, audio only and video only; empty where the text has none.
        texts: What was written.
        dominant: Which modality alone decides.
        o_clean: The answer with both.
        o_corrupt: The answer with the dominant modality corrupted; empty where neither is dominant.
        p_clean: P of (o_clean, o_corrupt) with both; NaN where there is no such answer.
        p_corrupt: The same with the dominant modality corrupted.
        label: The right letter; empty where nobody knows.
        problem: Why there are no answers; empty where there are.
    """

    id: str
    answers: Mapping[str, str] = field(default_factory=dict)
    texts: Mapping[str, str] = field(default_factory=dict)
    dominant: Dominant = "neither"
    o_clean: str = ""
    o_corrupt: str = ""
    p_clean: tuple[float, float] = (float("nan"), float("nan"))
    p_corrupt: tuple[float, float] = (float("nan"), float("nan"))
    label: str = ""
    problem: str = ""

    @property
    def correct(self) -> bool | None:
        """Whether the answer with both modalities is the label; None where there is no label or no run."""
        return None if self.problem or not self.label else self.o_clean == self.label

    def to_row(self) -> dict[str, Any]:
        """What records hold of it."""
        answers = {f"answer {run}": letter for run, letter in self.answers.items()}
        texts = {f"text {run}": text for run, text in self.texts.items()}
        decided = {f"{modality}_dominant": float(self.dominant == modality) for modality in ("audio", "video")}
        correct = float("nan") if self.correct is None else float(self.correct)
        return {
            "dominant": self.dominant, **decided, "correct": correct, **answers, **texts, "o_clean": self.o_clean,
            "o_corrupt": self.o_corrupt, "p_clean": list(self.p_clean), "p_corrupt": list(self.p_corrupt), "label": self.label,
        }  # fmt: skip

    @classmethod
    def from_record(cls, record: Record) -> "Judgement":
        """The judgement that a record holds."""
        if record.problem or not record.rows:
            return cls(record.sample, problem=record.problem)
        row = record.rows[0]
        answers, texts = ({run: row[f"{kind} {run}"] for run in RUNS} for kind in ("answer", "text"))
        p_clean, p_corrupt = ((float(row[name][0]), float(row[name][1])) for name in ("p_clean", "p_corrupt"))
        said = {name: row[name] for name in ("dominant", "o_clean", "o_corrupt", "label")}
        return cls(record.sample, answers, texts, p_clean=p_clean, p_corrupt=p_corrupt, **said)


@dataclass(frozen=True, eq=False)
class Selection:
    """Clips by which modality decides.

    Attributes:
        judgements: Of every sample, in order.
        require_correct: Whether only clips answered correctly are selected.
        made_by: What made it.
    """

    judgements: tuple[Judgement, ...]
    require_correct: bool
    made_by: Mapping[str, Any]

    @property
    def audio_dominant(self) -> tuple[Judgement, ...]:
        """The clips that audio alone decides."""
        return self._selected("audio")

    @property
    def video_dominant(self) -> tuple[Judgement, ...]:
        """The clips that video alone decides."""
        return self._selected("video")

    @property
    def skipped(self) -> tuple[Judgement, ...]:
        """The samples that could not be asked about; each says why."""
        return tuple(one for one in self.judgements if one.problem)

    def to_frame(self) -> pd.DataFrame:
        """One row per sample; dominance and correctness side by side, whatever is required."""
        rows = [
            {
                "dominant": one.dominant, **{f"y_{run}": one.answers.get(run, "") for run in RUNS}, "label": one.label,
                "correct": one.correct, "o_clean": one.o_clean, "o_corrupt": one.o_corrupt,
                "TE_clean": one.p_clean[0] - one.p_corrupt[0], "TE_corrupt": one.p_corrupt[1] - one.p_clean[1],
                "problem": one.problem,
            }
            for one in self.judgements
        ]  # fmt: skip
        columns = list(rows[0]) if rows else ["dominant", "correct", "problem"]
        return pd.DataFrame(rows, columns=columns, index=pd.Index([one.id for one in self.judgements], name="id"))

    def _selected(self, dominant: Dominant) -> tuple[Judgement, ...]:
        chosen = (one for one in self.judgements if one.dominant == dominant)
        return tuple(one for one in chosen if one.correct or not self.require_correct)

    def __repr__(self) -> str:
        counts = f"{len(self.audio_dominant)} audio-dominant, {len(self.video_dominant)} video-dominant"
        correct = " and correct" if self.require_correct else ""
        return f"Selection({counts}{correct} of {len(self.judgements)} samples, {len(self.skipped)} skipped)"

    def _repr_html_(self) -> str:
        return display.table(repr(self), self.to_frame(), self.made_by)


def unimodal_dominance(
    model: Any,
    samples: Iterable[Sample],
    *,
    corrupt: Corruption = "zero",
    ask: Ask = "letters",
    require_correct: bool = False,
    step: Step = "first",
    max_new_tokens: int = 4,
    seed: int = 0,
    save_to: str | Path | None = None,
    read: Callable[[Sample], Clip] = read_clip,
    progress: bool = False,
) -> Selection:
    """Ask three times about each sample, and say which modality decides.

    Args:
        model: A HookedAVModel.
        samples: With options. A clip that cannot be read, or lacks a modality, is skipped with its reason.
        corrupt: `zero`: silence, black frames. `swap`: sound or frames of the nearest sample before that has another label,
            or after. `noise`: VCD's at step 500. `mean`: one colour, the clip's mean, and its mean sample, which is close to
            silence.
        ask: Whether options are listed with letters, or asked for openly.
        require_correct: Whether to select only clips that are answered correctly; the paper does not.
        step: Whether P is taken at the first step, or is its maximum over all steps.
        max_new_tokens: How much to write at most.
        seed: Of the noise.
        save_to: A folder of records to add each judgement to. What it holds already is not asked again, but what was skipped is.
        read: Opens a sample's clip.
        progress: Whether to show a bar.

    Raises:
        DatasetError: If a sample has no options, or two have one id.
        RecordError: If the folder was made with another model, other settings or other questions.
        PromptError: If there is no such corruption, or it changed the layout of a prompt.
    """
    listed = _checked(samples)
    made_by = model.made_by(corrupt=corrupt, ask=ask, step=step, max_new_tokens=max_new_tokens, seed=seed)
    settings = {"ask": ask, "step": step, "max_new_tokens": max_new_tokens}
    identity = {"experiment": "unimodal dominance", "model": made_by["model"], "dtype": made_by["dtype"]}
    judgements = []
    with (
        nullcontext()
        if save_to is None
        else RecordFolder(save_to, {**identity, "conditions": {corrupt: settings}}) as kept
    ):
        for index, sample in enumerate(tqdm(listed, desc="judging", unit="clip", disable=not progress)):
            before = None if kept is None else kept.find((sample.id, corrupt, seed), sample.asks)
            if before is not None and not before.problem:
                judgements.append(Judgement.from_record(before))
                continue
            opened = open_clip(sample, read)
            if corrupt == "swap" and opened.clip is not None:
                opened = replace(opened, other=partner_of(listed, index, read))
            one = judge(model, opened, corrupt=corrupt, ask=ask, step=step, max_new_tokens=max_new_tokens, seed=seed)
            judgements.append(one)
            if kept is not None:
                rows = () if one.problem else (one.to_row(),)
                kept.add(
                    Record(
                        sample.id,
                        corrupt,
                        seed,
                        rows,
                        one.problem,
                        asks=sample.asks,
                        settings=settings,
                        made_by=made_by,
                    )
                )
    return Selection(tuple(judgements), require_correct, made_by)


def judge(
    model: Any,
    opened: Opened,
    *,
    corrupt: Corruption = "zero",
    ask: Ask = "letters",
    step: Step = "first",
    max_new_tokens: int = 4,
    seed: int = 0,
) -> Judgement:
    """Ask three times about one sample.

    Args:
        model: A HookedAVModel.
        opened: A sample with its clip, or with the reason why it has none, which the judgement then repeats; for `swap` with
            another one, whose sound and frames it takes.
        corrupt: As in `unimodal_dominance`.
        ask: As in `unimodal_dominance`.
        step: Whether P is taken at the first step, or is its maximum over all steps.
        max_new_tokens: How much to write at most.
        seed: Of the noise.

    Raises:
        PromptError: If there is no such corruption, or it changed the layout of the prompt.
    """
    if corrupt not in ("zero", "swap", "noise", "mean"):
        raise PromptError(f"corrupt is {corrupt!r}. Pass 'zero', 'swap', 'noise' or 'mean'.")
    if ask not in ("letters", "words"):
        raise PromptError(f"ask is {ask!r}. Pass 'letters' or 'words'.")
    sample = opened.sample
    try:
        clips = three_clips(opened, corrupt, seed)
        prompts = {run: prompt_of(model, clip, sample, ask) for run, clip in clips.items()}
    except (MediaError, PromptError) as error:
        return Judgement(sample.id, label=sample.label, problem=str(error))
    _check_layouts(prompts)
    runs = {run: _asked(model, prompt, max_new_tokens) for run, prompt in prompts.items()}
    texts = {run: answer.text for run, answer in runs.items()}
    letters = {run: chosen_letter(text, sample.options, ask) for run, text in texts.items()}
    dominant = dominant_modality(letters["both"], letters["audio"], letters["video"])
    corrupted = {"audio": "video", "video": "audio"}.get(dominant)
    outcome = Judgement(sample.id, letters, texts, dominant, letters["both"], label=sample.label)
    if corrupted is None:
        return outcome
    pair = (letters["both"], letters[corrupted])
    said = (answer_of(sample, pair[0], ask), answer_of(sample, pair[1], ask))
    return replace(
        outcome, o_corrupt=pair[1], p_clean=_probabilities(model, runs["both"], said, step),
        p_corrupt=_probabilities(model, runs[corrupted], said, step),
    )  # fmt: skip


def prompt_of(
    model: Any, clip: Clip, sample: Sample, ask: Ask = "letters", *, order: Order = "media_first"
) -> AVInputs:
    """A sample's question about a clip, with its options listed or not, after the media or before them."""
    options = () if sample.lists_options or ask == "words" else sample.options
    inputs: AVInputs = model.prepare(clip, sample.question, options=options, order=order)
    return inputs


def answer_of(sample: Sample, letter: str, ask: Ask = "letters") -> str:
    """What the model says where it chooses this letter: the letter, or the option's words; nothing for none."""
    return sample.options[sample.letters.index(letter)] if letter and ask == "words" else letter


def dominant_modality(both: str, audio: str, video: str) -> Dominant:
    """Which modality decides, given the answers with both, audio only and video only; an empty one decides nothing."""
    if not (both and audio and video):
        return "neither"
    if both == audio and video != both:
        return "audio"
    return "video" if both == video and audio != both else "neither"


def chosen_letter(text: str, options: Sequence[str], ask: Ask = "letters") -> str:
    """The letter that an answer chooses: the one that it begins with, or else that of the only option it names; or none.

    Where options were not listed (`ask="words"`), an answer begins with no letter.
    """
    last = chr(ord("A") + len(options) - 1)
    if ask == "letters" and (found := re.match(rf"[\s\W]*([A-{last}])(?![\w'])", text)):
        return found.group(1)
    named = [i for i, option in enumerate(options) if re.search(rf"\b{re.escape(option)}\b", text, re.IGNORECASE)]
    return chr(ord("A") + named[0]) if len(named) == 1 else ""


def read_judgements(folder: str | Path) -> dict[str, Judgement]:
    """The judgements that `unimodal_dominance` saved, by sample; the last of a sample if it was judged in several ways.

    Raises:
        RecordError: If the folder holds no records.
    """
    return {record.sample: Judgement.from_record(record) for record in read_records(folder).records}


@dataclass(frozen=True, eq=False)
class _Answer:
    text: str
    steps: tuple[Float[Tensor, " d_vocab"], ...]


def _checked(samples: Iterable[Sample]) -> list[Sample]:
    listed, seen = list(samples), set()
    for sample in listed:
        if len(sample.options) < 2:
            raise DatasetError(
                f"{sample.id} has {len(sample.options)} options. Dominance needs two or more to choose from."
            )
        if sample.id in seen:
            raise DatasetError(f"two samples have the id {sample.id!r}. Give each its own, or results mix.")
        seen.add(sample.id)
    return listed


def partner_of(samples: Sequence[Sample], index: int, read: Callable[[Sample], Clip]) -> Opened | None:
    """The first of `others_of` that can be read and has both modalities."""
    return first_whole(others_of(samples, index), read)


def others_of(samples: Sequence[Sample], index: int) -> Iterator[Sample]:
    """The samples with another label: those before, nearest first, then those after. More at the end change no first one."""
    own = _event(samples[index])
    for i in chain(range(index - 1, -1, -1), range(index + 1, len(samples))):
        if not own or _event(samples[i]) != own:
            yield samples[i]


def first_whole(samples: Iterable[Sample], read: Callable[[Sample], Clip]) -> Opened | None:
    """The first sample whose clip can be read and has both modalities; None where there is none."""
    opened = (open_clip(sample, read) for sample in samples)
    return next((one for one in opened if one.clip is not None and one.clip.has_audio and one.clip.has_video), None)


def _event(sample: Sample) -> str:
    """What the label stands for, since samples list their options in different orders."""
    return sample.options[sample.letters.index(sample.label)] if sample.label and sample.options else sample.label


def three_clips(opened: Opened, corrupt: Corruption = "zero", seed: int = 0) -> dict[str, Clip]:
    """The clip with both, with audio only (its video corrupted), and with video only; arguments as in `judge`.

    Raises:
        MediaError: If there is no clip, it lacks a modality, or there is nothing to swap it with.
    """
    clip = opened.clip
    if clip is None:
        raise MediaError(opened.problem)
    if not (clip.has_audio and clip.has_video):
        raise MediaError(f"{clip!r} lacks a modality. Give a clip with frames and sound.")
    if corrupt == "zero":
        return {"both": clip, "audio": clip.blanked(), "video": clip.silenced()}
    if corrupt == "noise":
        sight, sound = clip.noised(500, seed=seed, audio=False), clip.noised(500, seed=seed, video=False)
        return {"both": clip, "audio": sight, "video": sound}
    if corrupt == "mean":
        return {"both": clip, "audio": _one_colour(clip), "video": _one_sample(clip)}
    other = None if opened.other is None else opened.other.clip
    if other is None:
        raise MediaError(f"nothing to swap {clip!r} with. Give another clip with frames and sound, and another label.")
    return {"both": clip, "audio": clip.with_video_of(other), "video": clip.with_audio_of(other)}


def _one_colour(clip: Clip) -> Clip:
    assert clip.frames is not None
    colour = torch.stack([clip.frames[:, c].float().mean() for c in range(3)]).round().to(torch.uint8)
    return replace(clip, frames=colour[None, :, None, None].expand_as(clip.frames).clone())


def _one_sample(clip: Clip) -> Clip:
    assert clip.waveform is not None
    return replace(clip, waveform=torch.full_like(clip.waveform, float(clip.waveform.mean())))


def _asked(model: Any, inputs: AVInputs, max_new_tokens: int) -> _Answer:
    out = model.generate(inputs, max_new_tokens, keep_logits=True)
    return _Answer(out.text.strip(), tuple(out.logits[0].float().cpu()))


def _check_layouts(prompts: Mapping[str, AVInputs]) -> None:
    clean = prompts["both"]
    for run, inputs in prompts.items():
        if inputs.tokens.layout != clean.tokens.layout or not torch.equal(inputs.ids, clean.ids):
            raise PromptError(
                f"the corrupted prompt of {run} only ({inputs.tokens!r}) has another layout than the clean one "
                f"({clean.tokens!r}). Corrupt with 'zero', which keeps lengths and sizes."
            )


def _probabilities(model: Any, answer: _Answer, said: tuple[str, str], step: Step) -> tuple[float, float]:
    """P of two answers; NaN where there is none, or both begin alike."""
    chosen = answer.steps[:1] if step == "first" else answer.steps
    spread = torch.stack(chosen).softmax(-1)
    ids = [list(model.to_first_tokens(text)) if text else [] for text in said]
    alike = set(ids[0]) & set(ids[1])
    first, second = (float(spread[:, one].max()) if one and not alike else float("nan") for one in ids)
    return first, second
