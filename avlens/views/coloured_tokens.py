"""Which words does a number belong to: the text of a prompt or of an answer, each token coloured by its value?

Text stands as it is written. Tokens of sound and pictures are shortened to groups (see `grouping`), each with the mean of
its known values; sinks stand alone, with a star. All of it is HTML without scripts, so that it shows wherever a
notebook is shown.
"""

import html
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Shaped
from torch import Tensor

from avlens.display import MODALITY_COLOURS
from avlens.errors import ViewError
from avlens.tokens import Modality, TokenMap, TokenSet
from avlens.views.grouping import Group, group
from avlens.views.page import page
from avlens.views.style import SINK

_LOSS, _GAIN = (33, 102, 172), (178, 24, 43)  # the ends of style.DIVERGING
_FULLEST = 0.6  # of a colour, so that text on it can be read on light and on dark pages
_MOST_STRINGS = 20_000


@dataclass(frozen=True, eq=False)
class ColouredTokens:
    """Text with a colour behind each token. A notebook shows it; `save` writes it as a page.

    Attributes:
        body: HTML.
        name: What the numbers are.
    """

    body: str
    name: str

    def fragment(self, element_id: str) -> str:
        """HTML for a page."""
        return f"<div id='{html.escape(element_id)}' class='avlens-tokens'>{self.body}</div>"

    def save(self, path: str | Path) -> Path:
        """Write it as a page of its own; returns the path."""
        path = Path(path)
        path.write_text(page(self.name, self.fragment("tokens"), style="body { margin: 24px; }"), encoding="utf-8")
        return path

    def _repr_html_(self) -> str:
        return self.fragment("avlens-tokens")

    def __repr__(self) -> str:
        return f"ColouredTokens({self.name})"


class _Piece(NamedTuple):
    """What is coloured as one: a token of text, or a group of media tokens, which stands where its first one does."""

    at: int
    text: str
    told: str
    value: float
    kind: Modality
    is_sink: bool


def coloured_tokens(
    tokens: TokenMap | Sequence[str],
    value: Shaped[Tensor, "..."],
    *,
    name: str = "value",
    sinks: TokenSet | None = None,
    audio_seconds: float | int = 1.0,
    frames_per_row: int = 1,
) -> ColouredTokens:
    """Text, coloured token by token: red for positive values, blue for negative ones, full at the 99.5th percentile.

    Args:
        tokens: A prompt, or the tokens of an answer as strings.
        value: A number for each, NaN where there is none.
        name: What the number is, with its unit.
        sinks: Positions of the prompt to mark; those of media stand alone.
        audio_seconds: How much sound is one group.
        frames_per_row: How many neighbouring frames are one group.

    Raises:
        ViewError: If `value` is of another length, or the text too long.
        PositionError: If `sinks` belongs to a prompt of another layout.
    """
    if tuple(value.shape) != (len(tokens),):
        raise ViewError(
            f"value has shape {list(value.shape)}, but there are {len(tokens)} tokens. Pass one number for each, NaN where "
            "there is none."
        )
    numbers = value.detach().double().cpu().numpy()
    numbers = np.where(np.isfinite(numbers), numbers, np.nan)
    if isinstance(tokens, TokenMap):
        groups = group(tokens, sinks=sinks, audio_seconds=audio_seconds, frames_per_row=frames_per_row)
        marked = frozenset(() if sinks is None else sinks)
        pieces = sorted(
            (piece for one in groups for piece in _pieces(tokens, one, numbers, marked)), key=lambda piece: piece.at
        )
    else:
        pieces = [_word(string, i, numbers[i], Modality.TEXT, False) for i, string in enumerate(tokens)]
    if len(pieces) > _MOST_STRINGS:
        raise ViewError(
            f"{len(pieces):,} pieces of text are more than the {_MOST_STRINGS:,} that a page shows. Pass fewer."
        )
    return ColouredTokens(_as_html(pieces, name), name)


def _pieces(
    tokens: TokenMap, one: Group, numbers: Float[np.ndarray, " pos"], sinks: frozenset[int]
) -> Iterator[_Piece]:
    """A group of media tokens as one piece, one of text token by token."""
    at = one.positions.tolist()
    if one.modality in (Modality.TEXT, Modality.SPECIAL):
        for position in at:
            kind = Modality(int(tokens.modality[position]))
            yield _word(tokens.strings[position], position, numbers[position], kind, position in sinks)
        return
    known = numbers[at][np.isfinite(numbers[at])]
    mean = float(known.mean()) if len(known) else float("nan")
    of = f"mean of {len(known):,} of {len(at):,} tokens" if len(at) > 1 else f"position {at[0]}"
    starred = len(at) == 1 and at[0] in sinks
    yield _Piece(at[0], one.label.lstrip("★"), f"{one.label}: {_said(mean)}, {of}", mean, one.modality, starred)


def _word(string: str, position: int, number: float, kind: Modality, is_sink: bool) -> _Piece:
    told = f"{string!r} @{position}: {_said(float(number))}"
    return _Piece(position, string, told, float(number), kind, is_sink)


def _said(number: float) -> str:
    return f"{number:.4g}" if np.isfinite(number) else "not known"


def _as_html(pieces: Sequence[_Piece], name: str) -> str:
    sizes = np.abs([piece.value for piece in pieces])
    sizes = sizes[np.isfinite(sizes)]
    limit = (float(np.percentile(sizes, 99.5)) or float(sizes.max()) or 1.0) if len(sizes) else 1.0
    signed = any(piece.value < 0 for piece in pieces)
    return (
        f"<style>{_STYLE}</style>{_legend(name, limit, signed=signed)}"
        f"<div class='avlens-text'>{''.join(_span(piece, limit) for piece in pieces)}</div>"
    )


def _span(piece: _Piece, limit: float) -> str:
    shade = f"background:{_colour(piece.value / limit)}" if np.isfinite(piece.value) else ""
    title = html.escape(f"{piece.told}{' ★ sink' if piece.is_sink else ''}")
    classes = "avlens-sink" if piece.is_sink else ""
    if piece.kind in (Modality.TEXT, Modality.SPECIAL):
        text = html.escape(piece.text, quote=False).replace("\n", "⏎\n")
        soft = " avlens-special" if piece.kind == Modality.SPECIAL else ""
        return f"<span class='{classes}{soft}' style='{shade}' title='{title}'>{text}</span>"
    edge = MODALITY_COLOURS[piece.kind.name.lower()]
    return (
        f"<span class='avlens-group {classes}' style='{shade};border-color:{edge}' title='{title}'>"
        f"{html.escape(piece.text, quote=False)}</span>"
    )


def _legend(name: str, limit: float, *, signed: bool) -> str:
    ends = [_colour(share) for share in ((-1.0, 0.0, 1.0) if signed else (0.0, 1.0))]
    low = f"−{limit:.3g}" if signed else "0"
    return (
        f"<div class='avlens-key'><b>{html.escape(name, quote=False)}</b> {low} "
        f"<i style='background:linear-gradient(to right,{','.join(ends)})'></i> {limit:.3g}</div>"
    )


def _colour(share: float) -> str:
    red, green, blue = _GAIN if share >= 0 else _LOSS
    return f"rgba({red},{green},{blue},{_FULLEST * min(1.0, abs(share)):.3f})"


_STYLE = f"""
.avlens-tokens {{ font: 14px/1.9 system-ui, -apple-system, 'Segoe UI', Roboto, Arial, sans-serif; max-width: 1000px; }}
.avlens-text {{ white-space: pre-wrap; overflow-wrap: anywhere; }}
.avlens-text span {{ border-radius: 3px; padding: 2px 0; }}
.avlens-text .avlens-special {{ color: color-mix(in srgb, currentColor 70%, transparent); font-size: 12px; }}
.avlens-text .avlens-group {{
  display: inline-block; line-height: 1.25; font-size: 11px; padding: 2px 5px; margin: 2px 3px 2px 0; border: 0 solid;
  border-left-width: 4px;
}}
.avlens-text .avlens-sink {{ box-shadow: inset 0 0 0 2px {SINK}; }}
.avlens-text .avlens-group.avlens-sink::before {{ content: "★"; }}
.avlens-key {{ font-size: 12px; opacity: 0.85; margin-bottom: 6px; }}
.avlens-key i {{ display: inline-block; width: 120px; height: 10px; margin: 0 2px; border: 1px solid rgba(128,128,128,.35); }}
"""
