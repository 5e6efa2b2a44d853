"""How does one show a finding to someone who has nothing installed: a page with the clip inside?

One HTML file: the clip and a timeline of its tokens, on which a click plays the clip from there; then sections of
text, tables and figures. It loads nothing from anywhere, and is the same for the same content.
"""

import html
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import plotly.graph_objects as go
from jaxtyping import Shaped
from torch import Tensor

from avlens.media import Clip
from avlens.tokens import Modality, TokenMap, TokenSet
from avlens.version import __version__
from avlens.views.coloured_tokens import ColouredTokens
from avlens.views.frames import smallest_every
from avlens.views.packing import figure_fragment
from avlens.views.page import View, page
from avlens.views.player import player, recording, synced
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
    """

    heading: str
    text: str = ""
    generated: str | None = None
    figures: Sequence[go.Figure] = ()
    view: View | ColouredTokens | None = None
    table: pd.DataFrame | None = None


def report(
    path: str | Path,
    *,
    title: str,
    clip: Clip,
    tokens: TokenMap,
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
        clip: What was seen and heard.
        tokens: The prompt that was prepared from it.
        sections: What follows the timeline.
        value: A number for each position of the prompt, shown on the timeline.
        name: What the number is, with its unit.
        sinks: Positions to mark on the timeline.
        clip_index: Which clip of the prompt it is, from 0.

    Raises:
        ViewError: If the clip or its timeline is too big for a page.
        PositionError: If `sinks` belongs to a prompt of another layout.
    """
    path, video = Path(path), tokens.video & tokens.clips(clip_index)
    every = smallest_every(video) if video else 1
    drawn = timeline(clip, tokens, value=value, name=name, sinks=sinks, every=every, clip_index=clip_index)
    body = [
        f"<div id='avlens-first'><header><h1 class='avlens-title'>{html.escape(title)}</h1></header>",
        f"<div class='avlens-top'><div>{player(recording(clip))}</div>{_facts(clip, tokens)}</div>",
        f"{synced(figure_fragment(drawn, 'avlens-timeline'), 'avlens-timeline')}</div>",
        *(_section(section, i) for i, section in enumerate(sections)),
        f"<footer>avlens {__version__}</footer>",
    ]
    has_views = any(isinstance(section.view, View) for section in sections)
    whole = page(title, f"<main>{''.join(body)}</main>", style=_STYLE, views=has_views, plotly=True)
    path.write_text(whole, encoding="utf-8")
    return path


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
        "<p class='avlens-hint'>Click on anything below: the clip plays from there.</p></div>"
    )


def _section(section: Section, number: int) -> str:
    parts = [f"<h2 class='avlens-heading'>{html.escape(section.heading)}</h2>"]
    parts += [
        f"<p>{html.escape(paragraph.strip())}</p>" for paragraph in section.text.split("\n\n") if paragraph.strip()
    ]
    if section.generated is not None:
        parts.append(f"<blockquote>{html.escape(section.generated)}</blockquote>")
    parts += [figure_fragment(figure, f"figure-{number}-{i}") for i, figure in enumerate(section.figures)]
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
    return f"<div class='avlens-wide'>{shown}</div>{note}"


_STYLE = """
body { margin: 0; line-height: 1.55; font-size: 16px; }
main { max-width: 1232px; margin: 0 auto; padding: 24px; }
.avlens-title { font-size: 28px; line-height: 1.25; margin: 8px 0 20px; font-weight: 650; }
.avlens-heading { font-size: 20px; margin: 48px 0 8px; padding-top: 20px; border-top: 1px solid var(--line); font-weight: 600; }
section > p { max-width: 46em; }
.avlens-top { display: flex; flex-wrap: wrap; gap: 28px; align-items: flex-start; margin-bottom: 12px; }
#avlens-player { display: block; background: #000; border-radius: 6px; }
video#avlens-player { width: 440px; max-width: 100%; max-height: 330px; }
audio#avlens-player { width: 440px; max-width: 100%; background: none; }
.avlens-facts { flex: 1; min-width: 260px; font-size: 14px; color: var(--soft); }
.avlens-facts ul { list-style: none; padding: 0; margin: 8px 0; }
.avlens-facts li span { display: inline-block; width: 11px; height: 11px; border-radius: 2px; margin-right: 8px; }
.avlens-question { font-size: 18px; color: var(--ink); margin: 0 0 4px; }
.avlens-hint, footer { font-size: 13px; color: var(--soft); }
#avlens-synced { position: relative; }
#avlens-cursor { position: absolute; width: 2px; margin-left: -1px; background: #00c853; pointer-events: none; }
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
