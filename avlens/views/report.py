"""How does one show a finding to someone who has nothing installed: a page with the clip inside?

One HTML file: the clip and a timeline of its tokens, on which a click plays the clip from there; then sections of
text, tables and figures, each with a clip of its own if it has one. A file that several of them play is in the page once. It
loads nothing from anywhere, and is the same for the same content.
"""

import html
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import plotly.graph_objects as go
from jaxtyping import Shaped
from torch import Tensor

from avlens.errors import ViewError
from avlens.media import Clip
from avlens.tokens import Modality, TokenMap, TokenSet
from avlens.version import __version__
from avlens.views.coloured_tokens import ColouredTokens
from avlens.views.frames import smallest_every
from avlens.views.packing import figure_fragment
from avlens.views.page import View, page
from avlens.views.player import Recording, media, player, recording, synced
from avlens.views.style import COLOURS, counted, question_of
from avlens.views.timeline import timeline

_MOST_ROWS = 100


@dataclass(frozen=True, eq=False)
class Section:
    """A part of a report; whatever is given is shown, in this order.

    Attributes:
        heading: What it is about.
        text: What to see in it; an empty line begins a new paragraph.
        generated: What a model wrote.
        figures: Plotly figures.
        view: A CircuitsVis view, or coloured tokens.
        table: Its first 100 rows are shown.
        clip: A clip of its own, played and drawn under the text as the report's is at its top, with these for it alone:
        tokens: The prompt that was prepared from it.
        value: A number for each position of the prompt.
        name: What the number is, with its unit.
        sinks: Positions to mark.
        clip_index: Which clip of the prompt it is, from 0.
    """

    heading: str
    text: str = ""
    generated: str | None = None
    figures: Sequence[go.Figure] = ()
    view: View | ColouredTokens | None = None
    table: pd.DataFrame | None = None
    clip: Clip | None = None
    tokens: TokenMap | None = None
    value: Shaped[Tensor, "..."] | None = None
    name: str = "value"
    sinks: TokenSet | None = None
    clip_index: int = 0


def report(
    path: str | Path,
    *,
    title: str,
    clip: Clip | None = None,
    tokens: TokenMap | None = None,
    sections: Sequence[Section] = (),
    value: Shaped[Tensor, "..."] | None = None,
    name: str = "value",
    sinks: TokenSet | None = None,
    clip_index: int = 0,
) -> Path:
    """Write a page and return its path.

    Args:
        path: Where to, as a rule ending in .html; its folder must exist.
        title: What it is about.
        clip: What was seen and heard; leave it out where only sections have clips.
        tokens: The prompt that was prepared from it.
        sections: What follows the timeline.
        value: A number for each position of the prompt, shown on the timeline.
        name: What the number is, with its unit.
        sinks: Positions to mark on the timeline.
        clip_index: Which clip of the prompt it is, from 0.

    Raises:
        ViewError: If a clip or its timeline is too big for a page, or a clip comes without its tokens.
        PositionError: If `sinks` belongs to a prompt of another layout.
    """
    path, played = Path(path), _Played()
    first = Section(
        title, clip=clip, tokens=tokens, value=value, name=name, sinks=sinks, clip_index=clip_index
    )  # fmt: skip
    body = [
        f"<div id='avlens-first'><header><h1 class='avlens-title'>{html.escape(title)}</h1></header>"
        f"{played.html(first)}</div>",
        *(_section(section, i, played) for i, section in enumerate(sections)),
        f"<footer>avlens {__version__}</footer>",
    ]
    has_views = any(isinstance(section.view, View) for section in sections)
    whole = page(title, f"<main>{''.join(body)}</main>", style=_STYLE, views=has_views, plotly=True)
    path.write_text(whole, encoding="utf-8")
    return path


class _Played:
    """The clips of a page, each file in it once."""

    def __init__(self) -> None:
        self.carried: dict[Recording, str] = {}

    def html(self, section: Section, key: str = "") -> str:
        """The section's clip: player, facts and timeline; nothing if it has none."""
        clip, tokens = section.clip, section.tokens
        if clip is None and tokens is None:
            return ""
        if clip is None or tokens is None:
            lacks, has = ("clip", "tokens") if clip is None else ("tokens", "clip")
            raise ViewError(
                f"{section.heading!r} has {has} but no {lacks}. Pass both: clip=clip, tokens=inputs.tokens."
            )
        video = tokens.video & tokens.clips(section.clip_index)
        drawn = timeline(
            clip, tokens, value=section.value, name=section.name, sinks=section.sinks,
            every=smallest_every(video) if video else 1, clip_index=section.clip_index,
        )  # fmt: skip
        file, plot_id = recording(clip), f"avlens-timeline{key}"
        new = "" if file in self.carried else media(file, f"avlens-media{key}")
        media_id = self.carried.setdefault(file, f"avlens-media{key}")
        return (
            f"<div class='avlens-top'><div>{player(file, key)}{new}</div>{_facts(clip, tokens)}</div>"
            f"{synced(figure_fragment(drawn, plot_id), plot_id, media_id, key)}"
        )


def _facts(clip: Clip, tokens: TokenMap) -> str:
    counts = [(kind, int((tokens.modality == kind).sum())) for kind in Modality]
    kinds = "".join(
        f"<li><span style='background:{COLOURS[kind]}'></span>{counted(n, f'{kind.name.lower()} token')}</li>"
        for kind, n in counts
        if n
    )
    question = question_of(tokens)
    asked = f"<p class='avlens-question'>{html.escape(question)}</p>" if question else ""
    return (
        f"<div class='avlens-facts'>{asked}<p>{html.escape(repr(clip))}</p><ul>{kinds}</ul>"
        "<p class='avlens-hint'>Click on anything in the picture below: the clip plays from there.</p></div>"
    )


def _section(section: Section, number: int, played: _Played) -> str:
    parts = [f"<h2 class='avlens-heading'>{html.escape(section.heading)}</h2>"]
    parts += [
        f"<p>{html.escape(paragraph.strip())}</p>" for paragraph in section.text.split("\n\n") if paragraph.strip()
    ]
    parts.append(played.html(section, f"-{number}"))
    if section.generated is not None:
        parts.append(f"<blockquote>{html.escape(section.generated)}</blockquote>")
    parts += [_wide(figure_fragment(figure, f"figure-{number}-{i}")) for i, figure in enumerate(section.figures)]
    if section.view is not None:
        parts.append(section.view.fragment(f"view-{number}"))
    if section.table is not None:
        parts.append(_table(section.table))
    return f"<section>{''.join(parts)}</section>"


def _table(table: pd.DataFrame) -> str:
    left_out = len(table) - _MOST_ROWS
    note = f"<p class='avlens-hint'>The first {_MOST_ROWS} of {len(table):,} rows.</p>" if left_out > 0 else ""
    named, numbered = table.index.name is not None, isinstance(table.index, pd.RangeIndex)
    shown = (
        (table.reset_index() if named else table)
        .head(_MOST_ROWS)
        .to_html(
            index=not named and not numbered,
            escape=True,
            border=0,
            classes="avlens-table",
            na_rep="–",
            float_format=lambda x: f"{x:.4g}",
        )
    )
    return _wide(shown) + note


def _wide(held: str) -> str:
    """What is scrolled where a window is too narrow for it."""
    return f"<div class='avlens-wide'>{held}</div>"


_STYLE = """
body { margin: 0; line-height: 1.55; font-size: 16px; }
main { max-width: 1232px; margin: 0 auto; padding: 24px; }
.avlens-title { font-size: 28px; line-height: 1.25; margin: 8px 0 20px; font-weight: 650; }
.avlens-heading { font-size: 20px; margin: 48px 0 8px; padding-top: 20px; border-top: 1px solid var(--line); font-weight: 600; }
section > p { max-width: 46em; }
.avlens-top { display: flex; flex-wrap: wrap; gap: 28px; align-items: flex-start; margin-bottom: 12px; }
.avlens-player { display: block; background: #000; border-radius: 6px; }
video.avlens-player { width: 440px; max-width: 100%; max-height: 330px; }
audio.avlens-player { width: 440px; max-width: 100%; background: none; }
.avlens-facts { flex: 1; min-width: 260px; font-size: 14px; color: var(--soft); }
.avlens-facts ul { list-style: none; padding: 0; margin: 8px 0; }
.avlens-facts li span { display: inline-block; width: 11px; height: 11px; border-radius: 2px; margin-right: 8px; }
.avlens-question { font-size: 18px; color: var(--ink); margin: 0 0 4px; }
.avlens-hint, footer { font-size: 13px; color: var(--soft); }
.avlens-synced { position: relative; overflow-x: auto; }
.avlens-cursor { position: absolute; width: 2px; margin-left: -1px; background: #00c853; pointer-events: none; }
blockquote {
  margin: 12px 0; padding: 12px 18px; background: var(--panel); border-left: 4px solid #009e73; white-space: pre-wrap;
}
.avlens-wide { overflow-x: auto; }
.avlens-table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums; }
.avlens-table th, .avlens-table td { padding: 4px 14px 4px 0; border-bottom: 1px solid var(--line); text-align: right; }
.avlens-table th { font-weight: 600; }
.avlens-table tbody th { font-weight: 500; } .avlens-table :is(th, td):first-child { text-align: left; }
footer { margin-top: 56px; padding-top: 12px; border-top: 1px solid var(--line); }
"""
