"""How do experiments ask: a clip, two prompts that differ in one modality, what a clip is called, how much at once?"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from avlens.analyses.selection import Judgement, answer_of, judge, prompt_of, three_clips
from avlens.data import truth_of
from avlens.errors import PromptError
from avlens.experiments.experiment import SWAP, Condition
from avlens.hub_table import Dominant
from avlens.inputs import AVInputs
from avlens.media import Clip
from avlens.metrics.vocabulary import Vocabulary
from avlens.samples import Opened
from avlens.tokens import TokenSet

Row = dict[str, Any]
T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Decided:
    """A clip that one modality decides, and the same with that modality corrupted.

    Attributes:
        clean: The prompt.
        corrupt: The corrupted one.
        answers: What the model says to either.
        dominant: The modality that decides, `audio` or `video`.
        carriers: The other modality's tokens, in which what the first says can be looked for.
    """

    clean: AVInputs
    corrupt: AVInputs
    answers: tuple[str, str]
    dominant: Dominant
    carriers: TokenSet


def clip_of(opened: Opened) -> Clip:
    """The clip, which workers open before they measure."""
    assert opened.clip is not None
    return opened.clip


def judged(model: Any, opened: Opened, condition: Condition) -> tuple[Judgement, Row]:
    """Which modality decides, and what rows say of it.

    Raises:
        PromptError: If the question could not be asked.
    """
    one = judge(model, opened, corrupt=condition["corrupt"], ask=condition["ask"], seed=condition["seed"])
    if one.problem:
        raise PromptError(one.problem)
    swapped = {"other": opened.other.sample.id} if condition["corrupt"] == SWAP and opened.other else {}
    return one, {"dominant": one.dominant, "correct": one.to_row()["correct"]} | swapped


def decided(model: Any, opened: Opened, condition: Condition) -> tuple[Decided | None, Row]:
    """Both prompts of a clip that one modality decides, or None; and what rows say of it."""
    one, about = judged(model, opened, condition)
    if one.dominant == "neither":
        return None, about
    ask, sample = condition["ask"], opened.sample
    clips = three_clips(opened, condition["corrupt"], condition["seed"])
    broken = clips["video" if one.dominant == "audio" else "audio"]
    clean, corrupt = (prompt_of(model, clip, sample, ask) for clip in (clips["both"], broken))
    answers = (answer_of(sample, one.o_clean, ask), answer_of(sample, one.o_corrupt, ask))
    carriers = clean.tokens.video if one.dominant == "audio" else clean.tokens.audio
    return Decided(clean, corrupt, answers, one.dominant, carriers), about


def vocabulary_of(condition: Condition) -> Vocabulary:
    """The objects that count: those of the data set's own, or everyday things that sound."""
    own: Mapping[str, list[str]] | None = condition["objects"]
    return Vocabulary.sounding() if own is None else Vocabulary(own)


def truth(opened: Opened, vocabulary: Vocabulary) -> frozenset[str]:
    """The objects of a clip, as far as the vocabulary knows them.

    Raises:
        PromptError: If the data set does not say what the clip holds, or the vocabulary knows nothing of it.
    """
    held = truth_of(opened.sample)
    if not held:
        raise PromptError(f"{opened.sample.id!r} does not say what its clip holds. Give samples with labels.")
    known = frozenset().union(*map(vocabulary.objects, held))
    if not known:
        raise PromptError(
            f"the vocabulary of {len(vocabulary.names)} objects knows nothing of {', '.join(held)!r}, which {opened.sample.id!r} "
            "holds. Give the experiment's conditions `objects` of your own."
        )
    return known


def label_and_others(opened: Opened) -> tuple[str, list[str]]:
    """What the clip is labelled with, and the options it is not.

    Raises:
        PromptError: If it has no label.
    """
    sample = opened.sample
    if not sample.label:
        raise PromptError(f"{sample.id!r} has no label, so that nothing can name it. Give samples with labels.")
    if not sample.options:
        return sample.label, []
    right = sample.letters.index(sample.label)
    return sample.options[right], [option for i, option in enumerate(sample.options) if i != right]


def right(model: Any, answer: str, opened: Opened, condition: Condition) -> float:
    """Whether an answer's first token begins the right one; NaN where that is not known."""
    label = answer_of(opened.sample, opened.sample.label, condition["ask"])
    if not label:
        return float("nan")
    begins = {model.tokenizer.decode([token]).strip() for token in model.to_first_tokens(label)}
    return float(answer.strip() in begins)


def in_parts(all_of_them: Sequence[T], at_once: int | None) -> Iterator[list[T]]:
    """Some at a time; all, where it is not said how many."""
    n = at_once or len(all_of_them) or 1
    for start in range(0, len(all_of_them), n):
        yield list(all_of_them[start : start + n])
