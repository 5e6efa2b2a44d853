"""Which position of a prompt is what, when and where?

A `TokenMap` holds, for each position, its modality, clip, time, place and part of the prompt. A `TokenSet` is a
set of positions of one such map, made by saying what is meant, and combined as sets are:

    tokens.video & tokens.seconds(1.0, 2.0)      tokens.audio - sinks      tokens.random_like(sinks, seed=0)

Times are seconds from the start of the clip: `start` and `end` are true; `nominal_start` and `nominal_end` are what
the model's position ids say, which differ where a family assumes a frame rate.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from enum import IntEnum
from functools import cached_property
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from avlens import display
from avlens.errors import PositionError

_MOST_SECONDS = 12  # marks below a bar of tokens


class Modality(IntEnum):
    """What a position carries. Special: template markers such as `<|im_start|>` and begin or end of media."""

    TEXT = 0
    AUDIO = 1
    VIDEO = 2
    IMAGE = 3
    SEPARATOR = 4
    SPECIAL = 5


class Segment(IntEnum):
    """Which part of the prompt a position belongs to. Context: text given among the media."""

    TEMPLATE = 0
    SYSTEM = 1
    MEDIA = 2
    CONTEXT = 3
    QUESTION = 4
    OPTION = 5
    ANSWER = 6


@dataclass(frozen=True, eq=False)
class TokenMap:
    """What each position of one prompt is. -1 and NaN stand where a column has no meaning.

    Attributes:
        ids: Token ids; -1 where the position has none.
        modality: `Modality` codes.
        segment: `Segment` codes.
        clip: Which clip or image of the prompt, from 0.
        start: True second at which the token's content begins.
        end: True second at which it ends.
        nominal_start: The same as the model's position ids tell it.
        nominal_end: The same.
        frame: Index in time of a video token's patch (a family may put two frames in one).
        row: Row of the patch, from the top.
        col: Column of the patch, from the left.
        audio_frame: Index of an audio token in its sound.
        is_pad: Whether an audio or video token covers padding rather than content.
        strings: The text of each token.
        offsets: First and last-plus-one character in `prompt` of each text token.
        prompt: The text of the prompt.
    """

    ids: Int[Tensor, " pos"]
    modality: Int[Tensor, " pos"]
    segment: Int[Tensor, " pos"]
    clip: Int[Tensor, " pos"]
    start: Float[Tensor, " pos"]
    end: Float[Tensor, " pos"]
    nominal_start: Float[Tensor, " pos"]
    nominal_end: Float[Tensor, " pos"]
    frame: Int[Tensor, " pos"]
    row: Int[Tensor, " pos"]
    col: Int[Tensor, " pos"]
    audio_frame: Int[Tensor, " pos"]
    is_pad: Bool[Tensor, " pos"]
    strings: tuple[str, ...]
    offsets: Int[Tensor, "pos 2"]
    prompt: str = ""

    @classmethod
    def of(
        cls, ids: Int[Tensor, " pos"], strings: Sequence[str], modality: Modality, segment: Segment, **columns: Tensor
    ) -> "TokenMap":
        """A run of tokens of one modality and segment; columns that are not given have no meaning for it."""
        n = len(ids)
        whole: dict[str, Any] = {name: torch.full((n,), -1) for name in ("clip", "frame", "row", "col", "audio_frame")}
        whole |= {name: torch.full((n,), torch.nan, dtype=torch.float64) for name in _TIMES}
        whole |= {"is_pad": torch.zeros(n, dtype=torch.bool), "offsets": torch.full((n, 2), -1)}
        whole |= {"modality": torch.full((n,), int(modality)), "segment": torch.full((n,), int(segment))}
        return cls(ids=ids, strings=tuple(strings), **(whole | columns))

    @classmethod
    def join(cls, runs: Sequence["TokenMap"], prompt: str = "") -> "TokenMap":
        """The runs one after another."""
        columns = {name: torch.cat([getattr(run, name) for run in runs]) for name in _COLUMNS}
        return cls(strings=sum((run.strings for run in runs), ()), prompt=prompt, **columns)

    def __getitem__(self, index: slice) -> "TokenMap":
        """A run of the map, as a map of its own."""
        columns = {name: getattr(self, name)[index] for name in _COLUMNS}
        return replace(self, strings=self.strings[index], **columns)

    def take(self, order: Int[Tensor, " taken"]) -> "TokenMap":
        """The positions of `order`, in its order, as a map of its own."""
        columns = {name: getattr(self, name)[order] for name in _COLUMNS}
        return replace(self, strings=tuple(self.strings[i] for i in order.tolist()), **columns)

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        counts = [(kind.name.lower(), int((self.modality == kind).sum())) for kind in Modality]
        return f"TokenMap({len(self)} tokens: " + ", ".join(f"{n} {name}" for name, n in counts if n) + ")"

    def _repr_html_(self) -> str:
        kinds = [Modality(code).name.lower() for code in self.modality.tolist()]
        return display.framed(f"<b>TokenMap</b>, {len(self):,} tokens{display.runs(kinds, self._seconds_begin())}")

    def _seconds_begin(self) -> dict[int, str]:
        """The first media token of each second of the first clip; of fewer seconds where they would be too many to read."""
        timed = (self.media & self.clips(0)).positions
        begun: dict[int, int] = {}
        for position, start in zip(timed.tolist(), self.start[timed].tolist(), strict=True):
            begun.setdefault(int(start + 1e-6), position)
        every = -(-len(begun) // _MOST_SECONDS) or 1
        return {position: f"{second} s" for second, position in begun.items() if second % every == 0}

    # Sets by modality.

    @property
    def text(self) -> "TokenSet":
        """Words: all text but special tokens."""
        return self._of_modality(Modality.TEXT)

    @property
    def audio(self) -> "TokenSet":
        """Audio tokens."""
        return self._of_modality(Modality.AUDIO)

    @property
    def video(self) -> "TokenSet":
        """Video tokens."""
        return self._of_modality(Modality.VIDEO)

    @property
    def image(self) -> "TokenSet":
        """Image tokens."""
        return self._of_modality(Modality.IMAGE)

    @property
    def separator(self) -> "TokenSet":
        """Learned separators among media tokens, such as the newline after a row of patches."""
        return self._of_modality(Modality.SEPARATOR)

    @property
    def special(self) -> "TokenSet":
        """Template markers, and begin and end of media."""
        return self._of_modality(Modality.SPECIAL)

    @property
    def media(self) -> "TokenSet":
        """Audio, video and image tokens."""
        return self.audio | self.video | self.image

    # Sets by part of the prompt.

    @property
    def system(self) -> "TokenSet":
        """The system message's words."""
        return self._of_segment(Segment.SYSTEM)

    @property
    def context(self) -> "TokenSet":
        """Text given among the media of an interleaved prompt."""
        return self._of_segment(Segment.CONTEXT)

    @property
    def question(self) -> "TokenSet":
        """The question, without its options."""
        return self._of_segment(Segment.QUESTION)

    @property
    def option(self) -> "TokenSet":
        """The answer options of a multiple-choice question."""
        return self._of_segment(Segment.OPTION)

    @property
    def answer(self) -> "TokenSet":
        """The beginning of the answer that the prompt already gives."""
        return self._of_segment(Segment.ANSWER)

    @property
    def last(self) -> "TokenSet":
        """The last position of the prompt, which predicts the first generated token."""
        return self.at([len(self) - 1])

    @property
    def generated(self) -> "TokenSet":
        """Every position after the prompt."""
        return TokenSet(torch.empty(0, dtype=torch.long), self, open_ended=True)

    @property
    def all(self) -> "TokenSet":
        """Every position of the prompt."""
        return self.at(range(len(self)))

    # Sets by what is said of them.

    def at(self, positions: Iterable[int]) -> "TokenSet":
        """These positions, in this order.

        Raises:
            PositionError: If one is outside the prompt or comes twice. Negative ones count from the end.
        """
        wanted = [int(position) for position in positions]
        found = [position + len(self) if position < 0 else position for position in wanted]
        if outside := [w for w, f in zip(wanted, found, strict=True) if not 0 <= f < len(self)]:
            raise PositionError(
                f"position {outside[0]} is outside the prompt, which has {len(self)} tokens (0 to {len(self) - 1})."
            )
        if len(set(found)) < len(found):
            raise PositionError(
                f"{len(found) - len(set(found))} of {len(found)} positions come twice. Pass each position once."
            )
        return TokenSet(torch.tensor(found, dtype=torch.long), self)

    def seconds(self, start: float, end: float, *, time: Literal["true", "nominal"] = "true") -> "TokenSet":
        """Media tokens whose content overlaps the seconds from `start` to `end`."""
        if not start < end:
            raise PositionError(f"seconds({start}, {end}) is an empty span. Pass a start before the end.")
        first, last = (self.start, self.end) if time == "true" else (self.nominal_start, self.nominal_end)
        return self._where((first < end) & (last > start))

    def frames(self, *frames: int) -> "TokenSet":
        """Video tokens of these frames (indices as in `frame`)."""
        return self._where(torch.isin(self.frame, torch.tensor(frames)) & (self.modality == Modality.VIDEO))

    def clips(self, *clips: int) -> "TokenSet":
        """Media tokens of these clips, counted from 0 in the order of the prompt."""
        return self._where(torch.isin(self.clip, torch.tensor(clips)) & (self.clip >= 0))

    def region(self, mask: Bool[Tensor, "*frame row col"], *, frame: int | None = None, clip: int = 0) -> "TokenSet":
        """Video or image tokens whose patch is True in `mask`, in one frame or in all; a mask per frame is taken too.

        Raises:
            PositionError: If the mask does not have the patch grid's shape.
        """
        inside = (self.clip == clip) & (self.row >= 0) & (True if frame is None else self.frame == frame)
        if not inside.any():
            raise PositionError(
                f"clip {clip} has no patches{'' if frame is None else f' in frame {frame}'} in this prompt."
            )
        of_clip = (self.clip == clip) & (self.row >= 0)
        grid = tuple(int(column[of_clip].max()) + 1 for column in (self.frame, self.row, self.col))
        if tuple(mask.shape) not in (grid, grid[1:]):
            raise PositionError(
                f"the mask has shape {list(mask.shape)}, but the patches are {list(grid)} (frame, row, "
                f"column). Pass one of that shape, or {list(grid[1:])} for every frame."
            )
        per_frame = mask.bool().cpu().expand(grid)
        index = inside.nonzero()[:, 0]
        return self.at(index[per_frame[self.frame[index], self.row[index], self.col[index]]].tolist())

    def find(self, text: str) -> "TokenSet":
        """Text tokens that overlap an occurrence of `text` in the prompt.

        Raises:
            PositionError: If the prompt does not contain it.
        """
        spans, at = [], self.prompt.find(text) if text else -1
        while at >= 0:
            spans.append((at, at + len(text)))
            at = self.prompt.find(text, at + 1)
        if not spans:
            raise PositionError(f"the prompt does not contain {text!r}. It reads: {self.prompt!r}")
        first, last = self.offsets[:, 0], self.offsets[:, 1]
        hit = torch.zeros(len(self), dtype=torch.bool)
        for begin, stop in spans:
            hit |= (first < stop) & (last > begin)
        return self._where(hit)

    def random_like(
        self,
        like: "TokenSet",
        *,
        seed: int,
        match: Literal["count", "chunk"] = "count",
        within: "TokenSet | None" = None,
    ) -> "TokenSet":
        """As many random positions as `like` has, of each modality (`match="count"`) or of each chunk.

        A chunk is a run of neighbours of one modality and clip. Drawn from `within`, by default from all positions
        of the prompt; `like` itself is not left out, so pass `within=tokens.video - sinks` to do that.

        Raises:
            PositionError: If a modality or chunk has too few positions to draw from.
        """
        self.check_own(like)
        pool = self.all if within is None else within
        kinds = self.modality if match == "count" else self.chunk
        generator = torch.Generator().manual_seed(seed)
        drawn: list[int] = []
        for kind in kinds[like.positions].unique().tolist():
            need, have = int((kinds[like.positions] == kind).sum()), pool.positions[kinds[pool.positions] == kind]
            if need > len(have):
                raise PositionError(
                    f"{need} positions were asked of {match} group {kind}, which has {len(have)} to draw from. "
                    "Widen `within`, or pass match='count'."
                )
            drawn += have[torch.randperm(len(have), generator=generator)[:need]].tolist()
        return self.at(sorted(drawn))

    @cached_property
    def chunk(self) -> Int[Tensor, " pos"]:
        """Which run of neighbours of one modality and clip each position is in, from 0."""
        changed = (self.modality[1:] != self.modality[:-1]) | (self.clip[1:] != self.clip[:-1])
        return torch.cat([torch.zeros(1, dtype=torch.long), changed.long().cumsum(0)])

    @cached_property
    def labels(self) -> tuple[str, ...]:
        """A short name of each position: `v3[2,5]`, `a1.24s`, `i[0,1]`, or the token's text. No spaces."""
        return tuple(self._label(position) for position in range(len(self)))

    @cached_property
    def layout(self) -> str:
        """A fingerprint of what is where: equal for prompts that differ in content only."""
        digest = hashlib.sha256()
        for name in ("modality", "segment", "clip", "frame", "row", "col", "audio_frame", "nominal_start"):
            digest.update(np.ascontiguousarray(getattr(self, name).numpy()).tobytes())
        return digest.hexdigest()[:16]

    def to_frame(self) -> pd.DataFrame:
        """One row per position."""
        columns = {name: getattr(self, name).numpy() for name in _COLUMNS if name != "offsets"}
        columns["modality"] = np.array([Modality(code).name.lower() for code in self.modality.tolist()])
        columns["segment"] = np.array([Segment(code).name.lower() for code in self.segment.tolist()])
        frame = pd.DataFrame({"position": range(len(self)), "label": self.labels} | columns)
        return frame.set_index("position")

    def _label(self, position: int) -> str:
        kind = self.modality[position]
        clip = "" if self.clip[position] <= 0 else f"c{int(self.clip[position])}."
        if kind in (Modality.VIDEO, Modality.IMAGE):
            name = f"v{int(self.frame[position])}" if kind == Modality.VIDEO else "i"
            return f"{clip}{name}[{int(self.row[position])},{int(self.col[position])}]"
        if kind == Modality.AUDIO:
            return f"{clip}a{float(self.start[position]):.2f}s"
        return self.strings[position].strip(" ").replace("\n", "\\n").replace(" ", "_") or "_"

    def _of_modality(self, modality: Modality) -> "TokenSet":
        return self._where(self.modality == modality)

    def _of_segment(self, segment: Segment) -> "TokenSet":
        return self._where(self.segment == segment)

    def _where(self, chosen: Bool[Tensor, " pos"]) -> "TokenSet":
        return TokenSet(chosen.nonzero()[:, 0], self)

    def check_own(self, tokens: "TokenSet") -> None:
        """Refuse a set of another layout.

        Raises:
            PositionError: If it belongs to a prompt of another layout.
        """
        if tokens.layout != self.layout:
            raise PositionError(
                f"{tokens!r} belongs to a prompt of another layout. Take the set from this prompt's tokens."
            )


_TIMES = ("start", "end", "nominal_start", "nominal_end")
_COLUMNS = tuple(field.name for field in fields(TokenMap) if field.name not in ("strings", "prompt"))


@dataclass(frozen=True, eq=False)
class TokenSet:
    """Positions of one prompt, each once, in the order they were given.

    Positions are those of the row's own prompt: 0 is its first token, also in a padded batch. Sets combine by
    `&`, `|`, `-`, `^` and `~`; the order is that of the left operand.

    Attributes:
        positions: 0-based.
        tokens: The prompt they belong to.
        open_ended: Whether every position after the prompt is in the set too.
    """

    positions: Int[Tensor, " token"]
    tokens: TokenMap
    open_ended: bool = False

    @property
    def layout(self) -> str:
        """The fingerprint of the prompt's layout."""
        return self.tokens.layout

    @property
    def labels(self) -> list[str]:
        """The short name of each position."""
        return [self.tokens.labels[position] for position in self]

    @property
    def mask(self) -> Bool[Tensor, " pos"]:
        """True at the prompt's positions that are in the set."""
        mask = torch.zeros(len(self.tokens), dtype=torch.bool)
        mask[self.positions] = True
        return mask

    def holds(self, positions: Int[Tensor, "*shape"]) -> Bool[Tensor, "*shape"]:
        """Whether each of `positions` is in the set."""
        inside = torch.isin(positions, self.positions.to(positions.device))
        return inside | (positions >= len(self.tokens)) if self.open_ended else inside

    def sorted(self) -> "TokenSet":
        """The same set, in the order of the prompt."""
        return replace(self, positions=self.positions.sort().values)

    def __len__(self) -> int:
        return len(self.positions)

    def __iter__(self) -> Iterator[int]:
        return iter(self.positions.tolist())

    def __contains__(self, position: int) -> bool:
        return bool(self.holds(torch.tensor(position)))

    def __bool__(self) -> bool:
        return len(self) > 0 or self.open_ended

    def __and__(self, other: "TokenSet") -> "TokenSet":
        return self._keep(other.holds(self._joined(other)), self.open_ended and other.open_ended)

    def __sub__(self, other: "TokenSet") -> "TokenSet":
        return self._keep(~other.holds(self._joined(other)), self.open_ended and not other.open_ended)

    def __or__(self, other: "TokenSet") -> "TokenSet":
        added = other.positions[~torch.isin(other.positions, self._joined(other))]
        positions = torch.cat([self.positions, added])
        in_order = bool((self.positions.diff() > 0).all() and (other.positions.diff() > 0).all())
        positions = positions.sort().values if in_order else positions
        return TokenSet(positions, self.tokens, self.open_ended or other.open_ended)

    def __xor__(self, other: "TokenSet") -> "TokenSet":
        return (self - other) | (other - self)

    def __invert__(self) -> "TokenSet":
        return TokenSet((~self.mask).nonzero()[:, 0], self.tokens, not self.open_ended)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, TokenSet):
            return NotImplemented
        same = self.layout == other.layout and self.open_ended == other.open_ended
        return same and set(self) == set(other)

    def __hash__(self) -> int:
        return hash((self.layout, self.open_ended, frozenset(self)))

    def __repr__(self) -> str:
        named = [f"{label}@{position}" for label, position in zip(self.labels[:3], self, strict=False)]
        more = ["..."] if len(self) > 3 else []
        after = ["every later position"] if self.open_ended else []
        return (
            f"TokenSet({len(self)} of {len(self.tokens)}" + "".join(f", {name}" for name in named + more + after) + ")"
        )

    def _repr_html_(self) -> str:
        rows = self.tokens.to_frame().loc[list(self), ["label", "modality", "segment", "start", "end"]]
        return display.table(repr(self), rows)

    def _joined(self, other: "TokenSet") -> Int[Tensor, " token"]:
        if self.layout != other.layout:
            raise PositionError(
                f"{self!r} and {other!r} belong to prompts of different layouts. Sets combine within one prompt."
            )
        return self.positions

    def _keep(self, keep: Bool[Tensor, " token"], open_ended: bool) -> "TokenSet":
        return TokenSet(self.positions[keep], self.tokens, open_ended)


def word_spans(word: str, strings: Sequence[str]) -> tuple[tuple[int, ...], ...]:
    """Which of the strings hold each occurrence of a whole word in the text that they make, whatever its case."""
    strings = [string.lower() for string in strings]
    text, starts = "".join(strings), [sum(map(len, strings[:i])) for i in range(len(strings))]
    spans, at = [], text.find(word.lower())
    while at >= 0:
        end = at + len(word)
        if not (at and text[at - 1].isalnum()) and not (end < len(text) and text[end].isalnum()):
            held = enumerate(zip(starts, strings, strict=True))
            spans.append(tuple(i for i, (start, string) in held if start < end and start + len(string) > at))
        at = text.find(word.lower(), at + 1)
    return tuple(spans)
