"""Caption fidelity: how much of what is heard, and of what is seen, does a caption tell?

A judge scores a caption against what a clip's sound is said to be, and apart from that against what its video is said to be,
each in [0, 1]. On *counterfactual* clips, whose sound is another clip's, a model that does not listen tells the sound that would
fit the video:

    relative drop = (mean over counterfactual clips - mean over factual clips) / mean over factual clips

A judge that fails gives no score: NaN, counted apart, in no mean.

Source: "Do Audio-Visual Large Language Models Really See and Hear?", its released code, evaluation/caption_fidelity_eval.py.

Differs from the source: (1) failures count apart (there: as 0; `as_released` does so); (2) two judges work offline, by words; (3)
the prompts are our own, since its few-shot example for video has a reference of sound by mistake.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol, get_args, runtime_checkable

import numpy as np
import pandas as pd
from jaxtyping import Float

from avlens import display
from avlens.errors import MetricError
from avlens.metrics.effects import Interval, bootstrap_mean, draws, percentiles
from avlens.metrics.vocabulary import Vocabulary, words

Heard = Literal["audio", "video"]


@dataclass(frozen=True)
class Verdict:
    """What a judge says of a caption.

    Attributes:
        score: In [0, 1]; NaN where the judge failed.
        reason: Why, or why it failed.
    """

    score: float
    reason: str = ""


@runtime_checkable
class Judge(Protocol):
    """Scores a caption against a reference of one modality, whatever it says of the other."""

    def __call__(self, caption: str, reference: str, *, modality: Heard) -> Verdict:
        """The verdict; a NaN score if there is none."""
        ...


@dataclass(frozen=True)
class ExactMatch:
    """1 if the caption is the reference, but for case, accents and punctuation; with `anywhere`, if it holds it word for word.

    Attributes:
        anywhere: Whether the reference may be a part of the caption.
    """

    anywhere: bool = False

    def __call__(self, caption: str, reference: str, *, modality: Heard) -> Verdict:  # noqa: ARG002
        """The verdict; none without a reference."""
        said, meant = words(caption), words(reference)
        if not meant:
            return Verdict(float("nan"), "there is no reference")
        same = said == meant
        if self.anywhere:
            same = any(said[i : i + len(meant)] == meant for i in range(len(said) - len(meant) + 1))
        return Verdict(float(same), "the reference is said" if same else "the reference is not said")


@dataclass(frozen=True, eq=False)
class KeywordMatch:
    """The share of the reference's objects that the caption mentions, by whatever name the vocabulary knows them.

    It tells nothing of objects that are said too much; `chair` counts those.

    Attributes:
        vocabulary: The objects that count; by default everyday things that sound.
    """

    vocabulary: Vocabulary = field(default_factory=Vocabulary.sounding)

    def __call__(self, caption: str, reference: str, *, modality: Heard) -> Verdict:  # noqa: ARG002
        """The verdict; none where the reference mentions no object of the vocabulary."""
        meant = self.vocabulary.objects(reference)
        if not meant:
            return Verdict(float("nan"), f"the vocabulary knows nothing of {reference!r}")
        missed = sorted(meant - self.vocabulary.objects(caption))
        return Verdict(1 - len(missed) / len(meant), f"misses {', '.join(missed)}" if missed else "mentions all")


@dataclass(frozen=True, eq=False)
class LanguageModelJudge:
    """A language model that answers with JSON, `{"score": 0.8, "reason": "..."}`.

    Attributes:
        ask: Sends a prompt to a model, and returns its answer.
        prompts: What it is asked of each modality; `{caption}` and `{reference}` are filled in.
    """

    ask: Callable[[str], str]
    prompts: Mapping[Heard, str] = field(default_factory=lambda: PROMPTS)

    def __call__(self, caption: str, reference: str, *, modality: Heard) -> Verdict:
        """The verdict; none where the answer holds no score from 0 to 1."""
        filled = self.prompts[modality].replace("{caption}", caption).replace("{reference}", reference)
        return parse_verdict(self.ask(filled))


_TASK = """You judge how well a caption tells {what} in a clip. The reference says it rightly; compare the caption with it.

Rules:
- Judge {what} only. Ignore all that the caption says of {other}, right or wrong.
- Give 1.0 if the caption tells every event of the reference, 0.0 if it tells none of them or says nothing of {what}.
- In between, give the share of the events that it tells. Another word for the same thing is right.
- Take away for each event of {what} that the caption makes up.

Answer with one JSON object and nothing else: {{"score": a number from 0 to 1, "reason": "one sentence"}}

{examples}
Reference ({what}): {{reference}}
Caption: {{caption}}
"""
_AUDIO_EXAMPLES = """Example. Reference: "a dog barks while rain falls". Caption: "A dog is barking in a garden under a blue sky."
{{"score": 0.5, "reason": "The barking is told, the rain is not."}}

Example. Reference: "church bells ring". Caption: "A man plays the guitar and people applaud."
{{"score": 0.0, "reason": "No bells are told, and a guitar and applause are made up."}}
"""
_VIDEO_EXAMPLES = """Example. Reference: "a woman rides a white horse on a beach". Caption: "Someone rides; hooves clatter."
{{"score": 0.5, "reason": "The ride is told, the woman and the beach are not."}}

Example. Reference: "a red car drives past". Caption: "Birds sing in a forest."
{{"score": 0.0, "reason": "No car is told, and a forest is made up."}}
"""
PROMPTS: Mapping[Heard, str] = {
    "audio": _TASK.format(what="what is heard", other="what is seen", examples=_AUDIO_EXAMPLES.format()),
    "video": _TASK.format(what="what is seen", other="what is heard", examples=_VIDEO_EXAMPLES.format()),
}
"""What a language model is asked of each modality."""


def parse_verdict(answer: str) -> Verdict:
    """The last JSON object with a score from 0 to 1 in a language model's answer, after its thoughts if it thinks aloud."""
    spoken, decoder = answer.rsplit("</think>", 1)[-1], json.JSONDecoder()
    for found in reversed(list(re.finditer(r"\{", spoken))):
        try:
            read, _end = decoder.raw_decode(spoken, found.start())
            score = float(read["score"])
        except (ValueError, KeyError, TypeError):
            continue
        if 0 <= score <= 1:
            return Verdict(score, str(read.get("reason", "")))
    return Verdict(float("nan"), f"no score from 0 to 1 in the answer {spoken.strip()[:200]!r}")


@dataclass(frozen=True, eq=False)
class Fidelity:
    """Scores of captions.

    Attributes:
        captions: What was judged.
        verdicts: Of each modality, one per caption.
        means: Mean scores with their intervals, over captions that have one.
    """

    captions: tuple[str, ...]
    verdicts: Mapping[Heard, tuple[Verdict, ...]]
    means: Mapping[Heard, Interval]

    def scores(self, modality: Heard) -> Float[np.ndarray, " caption"]:
        """The scores of a modality; NaN where the judge failed."""
        return np.array([verdict.score for verdict in self.verdicts[modality]], dtype=np.float64)

    @property
    def failures(self) -> dict[Heard, int]:
        """How many captions have no score."""
        return {modality: int(np.isnan(self.scores(modality)).sum()) for modality in self.verdicts}

    def as_released(self, modality: Heard) -> float:
        """The mean as the released code takes it, with failures as 0."""
        return float(np.nan_to_num(self.scores(modality)).mean()) if self.captions else float("nan")

    def to_frame(self) -> pd.DataFrame:
        """One row per caption."""
        columns: dict[str, object] = {"caption": self.captions}
        for modality, verdicts in self.verdicts.items():
            columns[modality] = [verdict.score for verdict in verdicts]
            columns[f"{modality} reason"] = [verdict.reason for verdict in verdicts]
        return pd.DataFrame(columns)

    def __repr__(self) -> str:
        said = ", ".join(f"{modality} {mean!r}" for modality, mean in self.means.items())
        return f"Fidelity({said}; failures {sum(self.failures.values())})"

    def _repr_html_(self) -> str:
        return display.table(repr(self), self.to_frame())


def caption_fidelity(
    captions: Sequence[str],
    references: Mapping[Heard, Sequence[str]],
    judge: Judge,
    *,
    n_draws: int = 10_000,
    level: float = 0.95,
    seed: int = 0,
) -> Fidelity:
    """Let a judge score captions.

    Args:
        captions: One per clip.
        references: For `audio`, `video` or both, what each clip's sound or video is said to be. Of a counterfactual clip the
            sound is the one that it has now.
        judge: `ExactMatch`, `KeywordMatch`, `LanguageModelJudge`, or your own.
        n_draws: Bootstrap draws.
        level: Of the intervals.
        seed: Of the draws.

    Raises:
        MetricError: If a modality has not as many references as there are captions, or is none.
    """
    for modality, texts in references.items():
        if modality not in get_args(Heard) or isinstance(texts, str) or len(texts) != len(captions):
            raise MetricError(
                f"{len(texts)} references of {modality!r} were given for {len(captions)} captions. Pass a list with one for "
                "each, for 'audio', 'video' or both."
            )
    if not references:
        raise MetricError("there are no references. Pass some for 'audio', 'video' or both.")
    verdicts: dict[Heard, tuple[Verdict, ...]] = {
        modality: tuple(_checked(judge(c, r, modality=modality)) for c, r in zip(captions, texts, strict=True))
        for modality, texts in references.items()
    }
    means = {
        modality: bootstrap_mean([v.score for v in its], n_draws=n_draws, level=level, seed=seed)
        for modality, its in verdicts.items()
    }
    return Fidelity(tuple(captions), verdicts, means)


def relative_drop(
    factual: Fidelity, counterfactual: Fidelity, modality: Heard = "audio", *, n_draws: int = 10_000, level: float = 0.95,
    seed: int = 0,
) -> Interval:  # fmt: skip
    """How much less is told of a modality on counterfactual clips, as a share of what is told on factual ones.

    Negative where less is told. The clips of both kinds are drawn apart; NaN where nothing is told on factual ones.
    """
    x, y = (one.scores(modality) for one in (factual, counterfactual))
    missing = int(np.isnan(x).sum() + np.isnan(y).sum())
    x, y = x[~np.isnan(x)], y[~np.isnan(y)]
    low = high = float("nan")
    if len(x) > 1 and len(y) > 1:
        drawn = [
            np.concatenate([one[i].mean(1) for i in draws(len(one), n_draws, seed + k)]) for k, one in enumerate((x, y))
        ]
        low, high = percentiles(_drop(*drawn), level)
    estimate = float(_drop(x.mean(keepdims=True), y.mean(keepdims=True))[0]) if len(x) and len(y) else float("nan")
    return Interval(estimate, low, high, level, len(x) + len(y), len(x) + len(y), missing)


def _drop(x: Float[np.ndarray, " draw"], y: Float[np.ndarray, " draw"]) -> Float[np.ndarray, " draw"]:
    return np.divide(y - x, x, out=np.full_like(x, np.nan), where=x > 0)


def _checked(verdict: Verdict) -> Verdict:
    if np.isnan(verdict.score) or 0 <= verdict.score <= 1:
        return verdict
    raise MetricError(f"the judge gave the score {verdict.score}. Give one from 0 to 1, or NaN where there is none.")
