"""How does a picture get into a page that works offline and says nothing to anyone?

A page carries what it shows: scripts, data and media are inside, and its content security policy forbids the browser
to load anything else. CircuitsVis and plotly are put in once each. Whatever becomes part of a script goes through
`script_json`, since a token such as `</script>` would end the script.

Differs from circuitsvis's own HTML, which loads its script from a CDN whenever it is turned into text, asks
google.com on every display, and does not escape tokens: only its packaged script is used here.
"""

import html
import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import plotly.graph_objects as go

from avlens.views.packing import (
    drawing_script,
    figure_fragment,
    script_fragment,
    settings,
    view_fragment,
    without_nan,
)
from avlens.views.style import FONT, NIGHT

_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline' 'wasm-unsafe-eval'; style-src 'unsafe-inline'; img-src data: blob:; "
    "media-src data: blob:; font-src data:"
)


@dataclass(frozen=True, eq=False)
class View:
    """A CircuitsVis component with its properties. A notebook shows it; `save` writes it as a page.

    Attributes:
        component: The component's name in CircuitsVis's script.
        props: Its properties: numbers, text, lists and mappings.
        caption: What it shows, as plain text.
        at_once: How many heads of `AttentionHeads` are drawn at a time, so that the page is there soon; the rest by a menu.
    """

    component: str
    props: Mapping[str, Any]
    caption: str = ""
    at_once: int = 8

    def fragment(self, element_id: str) -> str:
        """HTML for a page that has CircuitsVis's script; the id must be the only one of its name on the page."""
        caption = f"<p class='avlens-caption'>{html.escape(self.caption)}</p>" if self.caption else ""
        heads = self.props.get("attentionHeadNames", ())
        paged = self.component == "AttentionHeads" and len(heads) > self.at_once
        menu = _menu(element_id, heads, self.at_once) if paged else ""
        drawn = view_fragment(element_id, self.component, self.props, self.at_once if paged else 0)
        return f"<div class='avlens-view'><style>{_VIEW_CSS}</style>{caption}{menu}{drawn}</div>"

    def save(self, path: str | Path) -> Path:
        """Write the view as a page of its own; returns the path."""
        path = Path(path)
        path.write_text(page(self.caption or self.component, self.fragment("view"), views=True), encoding="utf-8")
        return path

    def _repr_html_(self) -> str:
        element_id = f"avlens-{uuid.uuid4().hex[:12]}"
        return (
            f"<div id='{element_id}-output'>{self.fragment(element_id)}{script_fragment('CircuitsVis')}</div>"
            f"<script>{drawing_script()}avlens.draw(document.getElementById('{element_id}-output'));</script>"
        )

    def __repr__(self) -> str:
        return f"View({self.caption or self.component})"


def save(figure: go.Figure, path: str | Path) -> Path:
    """Write a figure as a page of its own, a third of what plotly's `write_html` writes; returns the path.

    The page follows the reader's theme, and loads nothing.
    """
    title, path = str(figure.layout.title.text or "Figure").replace("<br>", " "), Path(path)
    path.write_text(page(html.unescape(title), figure_fragment(figure, "figure"), plotly=True), encoding="utf-8")
    return path


def page(title: str, body: str, *, style: str = "", views: bool = False, plotly: bool = False) -> str:
    """A whole page around a body of HTML.

    Args:
        title: Plain text.
        body: HTML.
        style: CSS; it may use `--ink`, `--soft`, `--line`, `--ground` and `--panel`, the colours of the theme.
        views: Whether the body holds fragments of `View`s.
        plotly: Whether it holds fragments of plotly figures.
    """
    scripts = [*(["Plotly"] if plotly else []), *(["CircuitsVis"] if views else [])]
    return (
        "<!doctype html>\n<html lang='en'><head><meta charset='utf-8'>"
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<title>{html.escape(title)}</title><style>{_PAGE_CSS}\n{style}</style>"
        + (f"<script>{drawing_script()}</script>" if scripts else "")
        + f"</head><body>\n{body}\n{f'{_THEME}{settings()}' if plotly else ''}{''.join(map(script_fragment, scripts))}"
        + ("<script>avlens.page();</script>" if scripts else "")
        + "</body></html>\n"
    )


def script_json(value: Any) -> str:
    """JSON that can stand in a script: no `<`, no `&`, no line separators, and null for numbers that are none."""
    written = json.dumps(without_nan(value), allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        written = written.replace(character, f"\\u{ord(character):04x}")
    return written


def _menu(element_id: str, heads: Sequence[str], at_once: int) -> str:
    """A choice of which heads are drawn."""
    firsts = range(0, len(heads), at_once)
    spans = [(first, heads[first], heads[min(first + at_once, len(heads)) - 1]) for first in firsts]
    options = "".join(
        f"<option value='{first}'>{html.escape(one if one == last else f'{one} to {last}')}</option>"
        for first, one, last in spans
    )
    return (
        f"<label class='avlens-caption'>heads <select id='{html.escape(element_id)}-heads'>{options}</select></label>"
    )


# CircuitsVis leaves its headings to the page; a head's name would cover its thumbnail. Its large picture is as wide as what is
# in it, so that without a width it would shrink with the window, or to nothing where a page is printed, and never grow again.
# It knows white grounds only: on a dark one lightness is turned, and hues stay.
_TURNED = "background: transparent; filter: invert(0.92) hue-rotate(180deg);"
_LIGHT = "--ink: #1a1a1a; --soft: #5c5c5c; --line: #e3e3e3; --ground: #fff; --panel: #f6f7f9;"
_DARK = f"--ink: #f2f2f2; --soft: #a3a3a3; --line: #353b45; --ground: {NIGHT}; --panel: #1e2229;"
_PAGE_CSS = f"""
:root {{ color-scheme: light; {_LIGHT} }} :root[data-theme=dark] {{ color-scheme: dark; {_DARK} }}
@media (prefers-color-scheme: dark) {{ :root:not([data-theme=light]) {{ color-scheme: dark; {_DARK} }} }}
:root[data-theme=dark] .avlens-view {{ {_TURNED} }}
@media (prefers-color-scheme: dark) {{ :root:not([data-theme=light]) .avlens-view {{ {_TURNED} }} }}
body {{ font-family: {FONT}; background: var(--ground); color: var(--ink); }}
.avlens-figure {{ min-width: 700px; }}
#avlens-theme {{
  position: absolute; top: 12px; right: 16px; font: 16px/1 sans-serif; color: var(--soft); background: none; border: 0;
  cursor: pointer;
}}
"""
_THEME = "<button id='avlens-theme' title='Light or dark' aria-label='Light or dark'>◐</button>"

_VIEW_CSS = f"""
.avlens-view {{
  font-family: system-ui, -apple-system, 'Segoe UI', Roboto, Arial, sans-serif; max-width: 1000px; border-radius: 8px;
  box-sizing: border-box; padding: 10px 6px; color: #1a1a1a; background: #fff; color-scheme: light;
}}
[data-jp-theme-light=false] .avlens-view, .vscode-dark .avlens-view {{ {_TURNED} }}
.avlens-view [style*="aspect-ratio"]:has(> canvas) {{ width: 100% !important; }}
.avlens-view h2 {{ font-size: 15px; border: 0; }} .avlens-view h3 {{ font-size: 14px; font-weight: 600; }}
.avlens-view h4 {{ font-size: 10px; line-height: 1.1; font-weight: 600; }}
.avlens-caption {{ font-size: 13px; color: #555; margin: 4px 15px 12px; }}
"""
