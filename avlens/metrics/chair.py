"""CHAIR: how many captions, and how many mentions of objects, speak of objects that are not in the clip?

    Cs = captions with a hallucinated object / captions             in [0, 100], lower is better
    Ci = mentions of hallucinated objects / mentions of objects     in [0, 100], lower is better
    precision = 100 - Ci,   recall = true objects mentioned / true objects,   F1 = 2 P R / (P + R)

All are in percent, and of the corpus: sums over captions are divided, not ratios averaged, so a long caption counts for more.
Mentions count repeatedly, true objects once per caption. Fewer words mean fewer mistakes: read recall and length beside Cs, Ci.

Source: Rohrbach et al. 2018, "Object Hallucination in Image Captioning", arXiv:1809.02156; its released code,
utils/chair.py:190-275. Recall and length as in LALBJ/PAI's chair.py.

Differs from the source: a corpus that mentions no object at all has Ci = 0 (there: a division by zero). F1 is not in the
source; Jung et al. 2026, arXiv:2605.10815, report one whose definition is not published.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from jaxtyping import Float

from avlens import display
from avlens.errors import MetricError
from avlens.metrics.effects import Interval, draws, percentiles
from avlens.metrics.vocabulary import Vocabulary, words

Score = Literal["Cs", "Ci", "precision", "recall", "F1", "length"]
SCORES: tuple[Score, ...] = ("Cs", "Ci", "precision", "recall", "F1", "length")


@dataclass(frozen=True)
class CaptionObjects:
    """What one caption says of its clip.

    Attributes:
        caption: Its text.
        mentioned: The objects it mentions, in order, as often as it does.
        true: The objects of its clip.
        unknown: What the clip is said to hold, but the vocabulary does not know.
        n_words: Its length.
    """

    caption: str
    mentioned: tuple[str, ...]
    true: frozenset[str]
    unknown: tuple[str, ...]
    n_words: int

    @property
    def hallucinated(self) -> tuple[str, ...]:
        """The mentions of objects that are not in the clip."""
        return tuple(name for name in self.mentioned if name not in self.true)

    @property
    def found(self) -> frozenset[str]:
        """The objects of the clip that it mentions."""
        return self.true & frozenset(self.mentioned)


@dataclass(frozen=True, eq=False)
class Chair:
    """CHAIR of a corpus of captions, in percent; length in words.

    Attributes:
        captions: What each caption says.
        scores: The scores of the corpus; NaN where they cannot be computed.
        intervals: Their bootstrap intervals, over captions.
    """

    captions: tuple[CaptionObjects, ...]
    scores: Mapping[Score, float]
    intervals: Mapping[Score, Interval]

    @property
    def unknown(self) -> tuple[str, ...]:
        """What clips hold that the vocabulary does not know, and that no caption can be credited with."""
        return tuple(sorted({name for one in self.captions for name in one.unknown}))

    def to_frame(self) -> pd.DataFrame:
        """One row per caption; its Ci is NaN if it mentions nothing, its recall if its clip holds nothing known."""
        return pd.DataFrame(
            {
                "caption": [one.caption for one in self.captions],
                "mentioned": [one.mentioned for one in self.captions],
                "hallucinated": [one.hallucinated for one in self.captions],
                "missed": [tuple(sorted(one.true - one.found)) for one in self.captions],
                "Ci": [_percent(len(one.hallucinated), len(one.mentioned)) for one in self.captions],
                "recall": [_percent(len(one.found), len(one.true)) for one in self.captions],
                "length": [one.n_words for one in self.captions],
            }
        )

    def __repr__(self) -> str:
        said = ", ".join(f"{name} {value:.2f}" for name, value in self.scores.items())
        lost = f"; {len(self.unknown)} true objects unknown" if self.unknown else ""
        return f"Chair({len(self.captions)} captions: {said}{lost})"

    def _repr_html_(self) -> str:
        return display.table(repr(self), self.to_frame())


def chair(
    captions: Sequence[str],
    truths: Sequence[Iterable[str]],
    *,
    vocabulary: Vocabulary | None = None,
    n_draws: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> Chair:
    """Score captions against what their clips hold.

    Args:
        captions: One per clip.
        truths: For each, the names or labels of its objects, such as `["dog barking", "car"]`: a label holds every object
            that it mentions. Objects of another name are found by their synonyms.
        vocabulary: Objects that count; by default `Vocabulary.sounding()`.
        n_draws: How often captions are drawn for the intervals.
        level: Share of the draws that an interval holds.
        seed: Of the draws.

    Raises:
        MetricError: If there are not as many truths as captions, or a truth is a text instead of a list of them.
    """
    if len(captions) != len(truths):
        raise MetricError(f"{len(captions)} captions cannot be scored against {len(truths)} truths. Pass one for each.")
    known = Vocabulary.sounding() if vocabulary is None else vocabulary
    read = tuple(_caption_objects(*pair, known) for pair in zip(captions, truths, strict=True))
    counts = _counts(read)
    scores = {name: float(value[0]) for name, value in _scores(counts.sum(0, keepdims=True)).items()}
    return Chair(read, scores, _intervals(counts, scores, n_draws, level, seed))


def _caption_objects(caption: str, truth: Iterable[str], vocabulary: Vocabulary) -> CaptionObjects:
    if isinstance(truth, str):
        raise MetricError(f"a truth is the text {truth!r}. Pass a list of names or labels, such as [{truth!r}].")
    named = {label: vocabulary.objects(label) for label in truth}
    return CaptionObjects(
        caption=caption,
        mentioned=tuple(mention.object for mention in vocabulary.mentions(caption)),
        true=frozenset().union(*named.values()),
        unknown=tuple(label for label, objects in named.items() if not objects),
        n_words=len(words(caption)),
    )


def _counts(read: Sequence[CaptionObjects]) -> Float[np.ndarray, "caption 7"]:
    rows = [
        (1, bool(c.hallucinated), len(c.hallucinated), len(c.mentioned), len(c.found), len(c.true), c.n_words)
        for c in read
    ]
    return np.array(rows, dtype=np.float64).reshape(-1, 7)


def _scores(sums: Float[np.ndarray, "draw 7"]) -> dict[Score, Float[np.ndarray, " draw"]]:
    """The scores of the corpus, from the sums of the counts over its captions."""
    n, wrong_captions, wrong, mentions, found, true, n_words = sums.T
    cs, length, recall = 100 * _ratio(wrong_captions, n), _ratio(n_words, n), 100 * _ratio(found, true)
    ci = np.where((mentions == 0) & (n > 0), 0.0, 100 * _ratio(wrong, mentions))
    precision = 100 - ci
    both = precision + recall
    f1 = np.where(both == 0, 0.0, 2 * _ratio(precision * recall, both))
    return {"Cs": cs, "Ci": ci, "precision": precision, "recall": recall, "F1": f1, "length": length}


def _intervals(
    counts: Float[np.ndarray, "caption 7"], scores: Mapping[Score, float], n_draws: int, level: float, seed: int
) -> dict[Score, Interval]:
    n = len(counts)
    drawn = [_scores(counts[i].sum(1)) for i in draws(n, n_draws, seed)] if n > 1 else []
    ends = dict.fromkeys(SCORES, (np.nan, np.nan))
    if drawn:
        ends = {name: percentiles(np.concatenate([one[name] for one in drawn]), level) for name in SCORES}
    return {name: Interval(scores[name], *ends[name], level, n, n, 0) for name in SCORES}


def _ratio(above: Float[np.ndarray, " draw"], below: Float[np.ndarray, " draw"]) -> Float[np.ndarray, " draw"]:
    return np.divide(above, below, out=np.full_like(above, np.nan), where=below > 0)


def _percent(part: int, whole: int) -> float:
    return 100 * part / whole if whole else float("nan")
