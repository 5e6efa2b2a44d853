"""ALOHa: how far is the object of a caption that is farthest from anything in the references?

Objects are taken from the caption (targets) and from its references. With s(t, r) the similarity of their embeddings,
targets and references are matched one to one so that the sum of s is largest, and

    ALOHa = min over targets t of s(t, its match)           in [-1, 1], higher is better; or their mean

A target without a match (more targets than references) scores 0. An object may have alternatives ("dog or cat"): the score is
the largest over all choices of one alternative per object. A corpus scores 100 * the mean over its captions.

Source: Petryk et al. 2024, "ALOHa: A New Measure for Hallucination in Captioning Models", arXiv:2404.02904; its released code,
DavidMChan/aloha, src/aloha/metrics/aloha.py.

Differs from the source: (1) unmatched targets score 0, as the paper says (there, :182-184, a product of a list and an array
adds nothing, so surplus objects cost nothing); (2) a caption without objects scores NaN and one whose references have none 0
(there: both -inf). `released=True` does as the code does. (3) Too many choices are refused (there: all are tried). (4) The
default extractor is a vocabulary and the default embedder compares words and letters, both offline (there: GPT-3.5 and MPNet);
`LanguageModelExtractor` asks for audible objects too (there: only visible ones), and `sentence_embedder` gives MPNet.
"""

import itertools
import math
import re
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol, runtime_checkable

import numpy as np
import pandas as pd
from jaxtyping import Float

from avlens import display
from avlens.errors import MetricError
from avlens.metrics.effects import Interval, bootstrap_mean
from avlens.metrics.vocabulary import Vocabulary, words

Aggregate = Literal["min", "mean"]
Alternatives = tuple[str, ...]


@runtime_checkable
class Extractor(Protocol):
    """Takes the objects out of a text; each object as its alternatives, usually one."""

    def __call__(self, text: str, *, reference: bool) -> Sequence[Alternatives]:
        """The objects of a caption, or of a reference."""
        ...


@runtime_checkable
class Embedder(Protocol):
    """Gives each text a vector of length 1, so that dot products are similarities."""

    def __call__(self, texts: Sequence[str]) -> Float[np.ndarray, "text d"]:
        """One row per text."""
        ...


@dataclass(frozen=True, eq=False)
class Aloha:
    """ALOHa of a corpus, in percent.

    Attributes:
        scores: Of each caption, as a similarity; NaN where it has none.
        targets: The objects of each caption.
        references: The objects of its references.
        problems: Why a caption has no score; empty where it has one.
        mean: 100 * the mean over captions that have a score, with its interval.
        aggregate: `min` or `mean` over a caption's objects.
        released: Whether the released code's errors are in it.
    """

    scores: Float[np.ndarray, " caption"]
    targets: tuple[tuple[Alternatives, ...], ...]
    references: tuple[tuple[Alternatives, ...], ...]
    problems: tuple[str, ...]
    mean: Interval
    aggregate: Aggregate
    released: bool

    def to_frame(self) -> pd.DataFrame:
        """One row per caption."""
        columns = {"ALOHa": 100 * self.scores, "targets": self.targets, "references": self.references}
        return pd.DataFrame({**columns, "problem": self.problems})

    def __repr__(self) -> str:
        return f"Aloha({self.mean!r}, {sum(map(bool, self.problems))} of {len(self.scores)} captions without a score)"

    def _repr_html_(self) -> str:
        return display.table(repr(self), self.to_frame())


def aloha(
    captions: Sequence[str],
    references: Sequence[Sequence[str]],
    *,
    extract: Extractor | None = None,
    embed: Embedder | None = None,
    aggregate: Aggregate = "min",
    released: bool = False,
    max_choices: int = 4096,
    seed: int = 0,
) -> Aloha:
    """Score captions against reference captions, or labels, of their clips.

    Args:
        captions: One per clip.
        references: For each, one or more texts.
        extract: Takes objects out of texts; by default those of `Vocabulary.sounding()`.
        embed: Compares objects; by default `OverlapEmbedder()`.
        aggregate: Whether a caption is as good as its worst object, or as its mean one.
        released: Whether to repeat the released code's errors.
        max_choices: With more choices of alternatives than this, a caption has no score.
        seed: Of the interval's draws.

    Raises:
        MetricError: If there are not as many references as captions, or a reference is a text instead of a list.
    """
    _check(captions, references)
    take = VocabularyExtractor() if extract is None else extract
    compare = OverlapEmbedder() if embed is None else embed
    targets = tuple(tuple(take(caption, reference=False)) for caption in captions)
    refs = tuple(tuple(one for text in texts for one in take(text, reference=True)) for texts in references)
    known = _embedded_once(compare, [*targets, *refs])
    scored = [_scored(t, r, known, aggregate, released, max_choices) for t, r in zip(targets, refs, strict=True)]
    scores = np.array([score for score, _problem in scored], dtype=np.float64)
    mean = bootstrap_mean(100 * scores, seed=seed)
    return Aloha(scores, targets, refs, tuple(problem for _score, problem in scored), mean, aggregate, released)


def aloha_score(
    targets: Sequence[Alternatives],
    references: Sequence[Alternatives],
    embed: Embedder,
    *,
    aggregate: Aggregate = "min",
    released: bool = False,
    max_choices: int = 4096,
) -> float:
    """ALOHa of one caption's objects; NaN where the caption has none.

    Args:
        targets: Its objects, each with its alternatives.
        references: The objects of its references.
        embed: Compares objects.
        aggregate: Whether a caption is as good as its worst object, or as its mean one.
        released: Whether to repeat the released code's errors.
        max_choices: How many choices of alternatives to try at most.

    Raises:
        MetricError: If there are more choices.
    """
    if not targets or not references:
        return _without_objects(targets, released=released)
    n_choices = math.prod(len(set(one)) for one in (*targets, *references))
    if n_choices > max_choices:
        raise MetricError(
            f"{len(targets)} objects and {len(references)} of the references have {n_choices} choices of alternatives. "
            f"Raise max_choices (now {max_choices}), or extract fewer alternatives."
        )
    names = sorted({name for one in (*targets, *references) for name in one})
    vectors = embed(names)
    similarity = np.asarray(vectors @ vectors.T, dtype=np.float64)
    number = {name: i for i, name in enumerate(names)}
    rows, columns = (list(map(dict.fromkeys, objects)) for objects in (targets, references))
    return max(
        _matched(similarity, [number[n] for n in row], [number[n] for n in column], aggregate, released=released)
        for row in {tuple(sorted(set(choice))) for choice in itertools.product(*rows)}
        for column in {tuple(sorted(set(choice))) for choice in itertools.product(*columns)}
    )


def best_matching(gain: Float[np.ndarray, "row column"]) -> list[tuple[int, int]]:
    """Pairs (row, column), each used once, whose gains have the largest sum: min(rows, columns) of them.

    The Hungarian algorithm with potentials, exact, in O(rows^2 columns).
    """
    if gain.shape[0] > gain.shape[1]:
        return sorted((row, column) for column, row in best_matching(gain.T))
    n, m = gain.shape
    cost = -gain
    u, v = np.zeros(n + 1), np.zeros(m + 1)
    row_of = np.zeros(m + 1, dtype=np.int64)  # 1-based; 0: no row yet. Column 0 holds the row being placed.
    for row in range(1, n + 1):
        row_of[0], column = row, 0
        least, before = np.full(m + 1, np.inf), np.zeros(m + 1, dtype=np.int64)
        used = np.zeros(m + 1, dtype=bool)
        while row_of[column]:
            used[column] = True
            reduced = cost[row_of[column] - 1] - u[row_of[column]] - v[1:]
            closer = ~used[1:] & (reduced < least[1:])
            least[1:][closer], before[1:][closer] = reduced[closer], column
            nearest = 1 + int(np.where(used[1:], np.inf, least[1:]).argmin())
            step = least[nearest]
            u[row_of[used]] += step
            v[used] -= step
            least[~used] -= step
            column = nearest
        while column:
            row_of[column] = row_of[before[column]]
            column = int(before[column])
    return sorted((int(row_of[j]) - 1, j - 1) for j in range(1, m + 1) if row_of[j])


@dataclass(frozen=True, eq=False)
class VocabularyExtractor:
    """The objects of a vocabulary that a text mentions, each as the text calls it; offline."""

    vocabulary: Vocabulary = field(default_factory=Vocabulary.sounding)

    def __call__(self, text: str, *, reference: bool) -> list[Alternatives]:  # noqa: ARG002
        """Each mention once."""
        return list(dict.fromkeys((mention.words,) for mention in self.vocabulary.mentions(text)))


@dataclass(frozen=True, eq=False)
class LanguageModelExtractor:
    """Objects that a language model finds; it answers with lines "- object".

    Attributes:
        ask: Sends a prompt to a model, and returns its answer.
    """

    ask: Callable[[str], str]

    def __call__(self, text: str, *, reference: bool) -> list[Alternatives]:
        """Objects of the answer's lines; of references with their last word, the root noun, as an alternative."""
        return parse_objects(self.ask(OBJECTS_PROMPT.format(text=text)), reference=reference)


OBJECTS_PROMPT = """List every object in the caption below that could be seen or heard: animals, people, instruments, vehicles,
machines, things. Name what makes a sound rather than the sound. Write one object per line, as "- object", in the singular, with
the adjectives that belong to it. Write "- a or b" if the caption leaves open which it is, and "possibly" after an object
that the caption is not sure of. Write nothing else. List no place, event, action or feeling.

Caption: {text}
"""


def parse_objects(answer: str, *, reference: bool) -> list[Alternatives]:
    """The objects of a language model's lines "- object".

    Parentheses are cut; "," and " or " separate alternatives. Uncertain objects ("possibly") count in references only, which
    also get their root noun as an alternative.
    """
    objects = []
    for line in (line.strip() for line in answer.splitlines()):
        if not line.startswith("-") or len(line) < 3 or ("possibly" in line.lower() and not reference):
            continue
        plain = re.sub(r"\(.*?\)|\bpossibly\b", " ", line[1:], flags=re.IGNORECASE)
        names = [" ".join(words(piece)) for piece in re.split(r",|\bor\b", plain, flags=re.IGNORECASE)]
        names = [name for name in names if name]
        roots = [name.split()[-1] for name in names] if reference else []
        if names:
            objects.append(tuple(dict.fromkeys(names + roots)))
    return objects


@dataclass(frozen=True, eq=False)
class OverlapEmbedder:
    """Similar where words, or letters of words, are shared; synonyms of the vocabulary are equal. In [0, 1], offline.

    Attributes:
        vocabulary: Whose names of one object are one.
        d: Length of the vectors; words and triples of letters are hashed into it.
    """

    vocabulary: Vocabulary = field(default_factory=Vocabulary.sounding)
    d: int = 4096

    def __call__(self, texts: Sequence[str]) -> Float[np.ndarray, "text d"]:
        """Counts of words and of triples of letters, scaled to length 1."""
        counts = np.zeros((len(texts), self.d))
        for row, text in enumerate(texts):
            for piece in _pieces(self._canonical(text)):
                counts[row, zlib.crc32(piece.encode()) % self.d] += 1
        return counts / np.maximum(np.linalg.norm(counts, axis=1, keepdims=True), 1e-12)

    def _canonical(self, text: str) -> list[str]:
        named = [mention.object for mention in self.vocabulary.mentions(text)]
        return words(named[0]) if len(named) == 1 else [self.vocabulary.lemmatise(word) for word in words(text)]


def sentence_embedder(name: str = "all-mpnet-base-v2") -> Embedder:
    """A sentence-transformers model, ALOHa's own by default; a name that is no local folder is downloaded.

    Raises:
        MetricError: If sentence-transformers is not installed, or there is no such model.
    """
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise MetricError(
            f"the embedder {name!r} needs sentence-transformers, which is not installed. Install avlens[metrics]."
        ) from error
    try:
        model = SentenceTransformer(name)
    except (OSError, ValueError) as error:
        raise MetricError(
            f"there is no sentence-transformers model {name!r} here, and none could be downloaded ({error}). Pass the folder of "
            "one, or a name of the hub."
        ) from error

    def embed(texts: Sequence[str]) -> Float[np.ndarray, "text d"]:
        vectors = model.encode(list(texts), normalize_embeddings=True, show_progress_bar=False)
        return np.asarray(vectors, dtype=np.float64)

    return embed


def _check(captions: Sequence[str], references: Sequence[Sequence[str]]) -> None:
    if len(captions) != len(references):
        raise MetricError(
            f"{len(captions)} captions cannot be scored against {len(references)} references. Pass a list for each."
        )
    for one in references:
        if isinstance(one, str):
            raise MetricError(f"a reference is the text {one!r}. Pass a list of texts, such as [{one!r}].")


def _embedded_once(embed: Embedder, texts: Sequence[Sequence[Alternatives]]) -> Embedder:
    """The same for the names in these texts, all embedded in one call."""
    names = sorted({name for objects in texts for one in objects for name in one})
    vectors = dict(zip(names, embed(names), strict=True)) if names else {}
    return lambda some: np.stack([vectors[name] for name in some])


def _scored(
    targets: Sequence[Alternatives],
    references: Sequence[Alternatives],
    embed: Embedder,
    aggregate: Aggregate,
    released: bool,
    max_choices: int,
) -> tuple[float, str]:
    """A caption's score and, where it has none, why."""
    try:
        score = aloha_score(targets, references, embed, aggregate=aggregate, released=released, max_choices=max_choices)
    except MetricError as error:
        return math.nan, str(error)
    return score, "the caption mentions no object" if math.isnan(score) else ""


def _without_objects(targets: Sequence[Alternatives], *, released: bool) -> float:
    if released:
        return -math.inf
    return 0.0 if targets else math.nan


def _matched(
    similarity: Float[np.ndarray, "name name"],
    targets: Sequence[int],
    references: Sequence[int],
    aggregate: Aggregate,
    *,
    released: bool,
) -> float:
    between = similarity[np.ix_(targets, references)]
    scores = [float(between[pair]) for pair in best_matching(between)]
    if not released:
        scores += [0.0] * (len(targets) - len(scores))
    return min(scores) if aggregate == "min" else sum(scores) / len(scores)


def _pieces(named: list[str]) -> list[str]:
    padded = [f"<{word}>" for word in named]
    return padded * 2 + [word[i : i + 3] for word in padded for i in range(len(word) - 2)]
