"""Which tokens of a prompt mean what to its answer: the media, the question, its options, and what follows?

    video, audio, image      media tokens, by modality
    candidates, reference    media tokens of the items to choose from, and of the one they are compared with
    question                 the question without its options
    options                  the lettered options; with the right one known, `correct option` and `incorrect options`
    context, answer          text among the media; the beginning of the answer that the prompt gives
    tail                     what the chat template writes after all of these, but the last position
    last, generated          the position that predicts the first new token; every position after it

Groups are found by token ids and by the characters that tokens cover, never by contiguous ranges: audio and video take turns in
many prompts. A group that a prompt does not have is left out.

Source: groups of "From Senses to Decisions", arXiv:2606.10147, whose code is not public; which of an option's letter and text it
counts is not known, so both can be had (`part`).
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from jaxtyping import Int
from torch import Tensor

from avlens.errors import PositionError, PromptError
from avlens.tokens import Segment, TokenMap, TokenSet

OptionPart = Literal["all", "letter", "text"]
Across = Literal["tokens", "frames", "chunks", "clips"]
Piece = Literal["candidates", "question", "reference", "options"]


def token_groups(
    tokens: TokenMap,
    *,
    correct: str | None = None,
    part: OptionPart = "all",
    question: str = "",
    reference: int | None = None,
) -> dict[str, TokenSet]:
    """The groups of a prompt, by name; those without a token are left out.

    Args:
        tokens: The prompt's.
        correct: The letter of the right option, which tells it from the others.
        part: What of an option counts: its letter, its text, or all of its line.
        question: The question's text, where it was given among the media as text of its own.
        reference: Which clip or image the others are compared with, counted from 0.

    Raises:
        PositionError: If the prompt has no such option, question or clip.
    """
    options = find_options(tokens, part=part)
    listed = _union(tokens, find_options(tokens).values())
    asked = tokens.question | (tokens.find(question) & _asked(tokens) if question else tokens.at([]))
    groups = {"video": tokens.video, "audio": tokens.audio, "image": tokens.image}
    if reference is not None:
        groups |= _items(tokens, reference)
    groups |= {"question": asked - listed, "context": tokens.context - asked - listed, "answer": tokens.answer}
    groups["options"] = _union(tokens, options.values())
    if correct is not None:
        right = _chosen(correct, options)
        groups |= {"correct option": right, "incorrect options": groups["options"] - right}
    groups = {name: chosen - tokens.last for name, chosen in (groups | {"tail": _tail(tokens)}).items()}
    groups |= {"last": tokens.last, "generated": tokens.generated}
    return {name: chosen for name, chosen in groups.items() if chosen}


def find_options(tokens: TokenMap, *, part: OptionPart = "all") -> dict[str, TokenSet]:
    """The options of a multiple-choice question by letter, wherever it lists them; empty where it lists none.

    An option begins with a line `A. ...`, the next with `B. ...` and so on; it ends where the next begins, the last one with its
    line, or with the options that `prepare` was given. A token that covers the end of one and the beginning of the next belongs
    to the first.

    Raises:
        PositionError: If there is no such part.
    """
    if part not in get_args(OptionPart):
        raise PositionError(f"part is {part!r}. Pass 'all', 'letter' or 'text'.")
    asked = tokens.option or _asked(tokens)
    taken, found = tokens.at([]), {}
    for letter, begin, text, end in _listed(tokens.prompt, _stretches(tokens, asked), whole=bool(tokens.option)):
        first, last = {"all": (begin, end), "letter": (begin, begin + 1), "text": (text, end)}[part]
        found[letter] = (_covering(tokens, first, last) & asked) - taken
        taken = taken | found[letter]
    return found


def units(tokens: TokenMap, across: Across) -> Int[Tensor, " pos"]:
    """Which unit each position belongs to, so that edges within a unit can be told from those across units.

    A frame is one of one clip; a chunk a run of neighbours of one modality and clip, such as the sound of two seconds.

    Raises:
        PositionError: If there is no such unit.
    """
    if across == "tokens":
        return torch.arange(len(tokens))
    if across == "frames":
        return tokens.clip * (int(tokens.frame.max()) + 2) + tokens.frame
    if across == "chunks":
        return tokens.chunk
    if across == "clips":
        return tokens.clip
    raise PositionError(f"across is {across!r}. Pass one of {', '.join(get_args(Across))}.")


@dataclass(frozen=True, eq=False)
class Interleaved:
    """An interleaved prompt of several items, to be prepared: `model.prepare(laid.parts, options=laid.options)`.

    Attributes:
        parts: Clips, images and texts in order.
        options: Lettered options at the end; empty where they stand among the parts.
        question: The question's text.
        reference: Which of the clips and images is the reference; None where there is none.
    """

    parts: tuple[Any, ...]
    options: tuple[str, ...]
    question: str
    reference: int | None

    def groups(self, tokens: TokenMap, *, correct: str | None = None, part: OptionPart = "all") -> dict[str, TokenSet]:
        """The groups of the prompt that was prepared of it."""
        return token_groups(tokens, correct=correct, part=part, question=self.question, reference=self.reference)


def interleave(
    candidates: Sequence[Any],
    question: str,
    reference: Any = None,
    *,
    options: Sequence[str] = (),
    order: Sequence[Piece] = ("candidates", "question", "reference", "options"),
) -> Interleaved:
    """Several items and a question about them, in an order of your choice.

    Args:
        candidates: Clips and images to choose from, in order; texts such as labels may stand among them.
        question: What is asked.
        reference: The clip or image that they are compared with.
        options: Options, which get the letters A, B, ...
        order: In which order the pieces stand; every one that is given must be named once.

    Raises:
        PromptError: If a piece that is given has no place, or none that is known.
    """
    listed = "".join(f"\n{chr(65 + i)}. {option}" for i, option in enumerate(options))
    given: dict[str, list[Any]] = {"candidates": list(candidates), "question": [question]}
    given |= {} if reference is None else {"reference": [reference]}
    given |= {"options": [listed + "\n"]} if options else {}
    if not set(given) <= set(order) <= set(get_args(Piece)) or len(set(order)) != len(order):
        raise PromptError(f"order is {tuple(order)}, but the prompt has {', '.join(given)}. Name each of them once.")
    pieces: list[str] = [name for name in order if name in given]
    at_end = pieces[-1] == "options"
    parts = [one for name in pieces[: len(pieces) - at_end] for one in given[name]]
    before = (
        [one for name in pieces[: pieces.index("reference")] for one in given[name]] if "reference" in given else []
    )
    nth = sum(not isinstance(one, str) for one in before) if "reference" in given else None
    return Interleaved(tuple(parts), tuple(options) if at_end else (), question, nth)


def _items(tokens: TokenMap, reference: int) -> dict[str, TokenSet]:
    here = tokens.clips(reference)
    if not here:
        n = int(tokens.clip.max()) + 1
        raise PositionError(f"reference is {reference}, but the prompt holds {n} clips and images, counted from 0.")
    return {"candidates": tokens.media - here, "reference": tokens.media & here}


def _chosen(correct: str, options: dict[str, TokenSet]) -> TokenSet:
    if correct not in options:
        listed = f"its options are {', '.join(options)}" if options else "the prompt lists none"
        raise PositionError(f"the correct option is said to be {correct!r}, but {listed}. Pass the letter of one.")
    return options[correct]


def _tail(tokens: TokenMap) -> TokenSet:
    """What the template writes after the last position of the user's."""
    own = (tokens.segment != Segment.TEMPLATE) & (tokens.segment != Segment.ANSWER)
    after = int(own.nonzero().max()) + 1 if bool(own.any()) else 0
    return tokens.at(range(after, len(tokens))) - tokens.answer - tokens.last


def _asked(tokens: TokenMap) -> TokenSet:
    """The user's own words."""
    return tokens.question | tokens.option | tokens.context


def _stretches(tokens: TokenMap, chosen: TokenSet) -> list[tuple[int, int]]:
    """The stretches of the prompt's text that a set covers, neighbours joined."""
    stretches: list[tuple[int, int]] = []
    for first, last in tokens.offsets[chosen.sorted().positions].tolist():
        if stretches and first <= stretches[-1][1]:
            stretches[-1] = (stretches[-1][0], max(last, stretches[-1][1]))
        elif first >= 0:
            stretches.append((first, last))
    return stretches


def _listed(text: str, stretches: Sequence[tuple[int, int]], *, whole: bool) -> Iterator[tuple[str, int, int, int]]:
    """Letter, its character, the first of the option's text, and the end, of each option as long as the letters go on.

    `whole`: nothing follows the last option in its stretch.
    """
    lines, due = [], 0
    for first, last in stretches:
        for line in re.finditer(r"^[ \t]*([A-Z])\.[ \t]*", text[first:last], re.MULTILINE):
            if line.group(1) == chr(65 + due):
                due += 1
                lines.append((line.group(1), first + line.start(1), first + line.end(), last))
    for i, (letter, begin, start, last) in enumerate(lines):
        following = lines[i + 1][1] if i + 1 < len(lines) and lines[i + 1][3] == last else last
        close = text.find("\n", start, following)
        end = following if whole or following < last or close < 0 else close
        yield letter, begin, start, start + len(text[start:end].rstrip())


def _covering(tokens: TokenMap, first: int, last: int) -> TokenSet:
    """Text tokens that overlap some characters of the prompt."""
    begin, stop = tokens.offsets[:, 0], tokens.offsets[:, 1]
    return tokens.at(((begin < last) & (stop > first)).nonzero()[:, 0].tolist())


def _union(tokens: TokenMap, sets: Any) -> TokenSet:
    whole = tokens.at([])
    for one in sets:
        whole = whole | one
    return whole
