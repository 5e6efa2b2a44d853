"""How does a picture get into a page that works offline and says nothing to anyone?

A page carries what it shows: scripts, data and media are inside, and its content security policy forbids the browser
to load anything else. CircuitsVis and plotly are put in once each. Whatever becomes part of a script goes through
`script_json`, since a token such as `</script>` would end the script.

Differs from circuitsvis's own HTML, which loads its script from a CDN whenever it is turned into text, asks
google.com on every display, and does not escape tokens: only its packaged script is used here.
"""

import functools
import html
import json
import math
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from plotly.offline import get_plotlyjs

from avlens.errors import ViewError
from avlens.views.style import FONT

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
        name, heads = json.dumps(element_id), self.props.get("attentionHeadNames", ())
        paged = self.component == "AttentionHeads" and len(heads) > self.at_once
        drawn = (
            f"({_PAGED})({name}, {script_json(self.props)}, {self.at_once})"
            if paged
            else f"CircuitsVis.render({name}, CircuitsVis.{self.component}, {script_json(self.props)})"
        )
        menu = _menu(element_id, heads, self.at_once) if paged else ""
        return (
            f"<div class='avlens-view'><style>{_VIEW_CSS}</style>{caption}{menu}<div id={name}></div>"
            f"<script>{drawn}</script></div>"
        )

    def save(self, path: str | Path) -> Path:
        """Write the view as a page of its own; returns the path."""
        path = Path(path)
        path.write_text(page(self.caption or self.component, self.fragment("view"), views=True), encoding="utf-8")
        return path

    def _repr_html_(self) -> str:
        load = f"<script>if (!window.CircuitsVis) {{{circuitsvis_js()}\nwindow.CircuitsVis = CircuitsVis;}}</script>"
        return load + self.fragment(f"avlens-{uuid.uuid4().hex[:12]}")

    def __repr__(self) -> str:
        return f"View({self.caption or self.component})"


def page(title: str, body: str, *, style: str = "", views: bool = False, plotly: bool = False) -> str:
    """A whole page around a body of HTML.

    Args:
        title: Plain text.
        body: HTML.
        style: CSS.
        views: Whether the body holds fragments of `View`s.
        plotly: Whether it holds plotly figures.
    """
    scripts = ([circuitsvis_js()] if views else []) + ([get_plotlyjs()] if plotly else [])
    return (
        "<!doctype html>\n<html lang='en'><head><meta charset='utf-8'>"
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<title>{html.escape(title)}</title><style>body {{ font-family: {FONT}; }}\n{style}</style>"
        + "".join(f"<script>{script}</script>\n" for script in scripts)
        + f"</head><body>\n{body}\n</body></html>\n"
    )


def script_json(value: Any) -> str:
    """JSON that can stand in a script: no `<`, no `&`, no line separators, and null for numbers that are none."""
    written = json.dumps(_without_nan(value), allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        written = written.replace(character, f"\\u{ord(character):04x}")
    return written


@functools.cache
def circuitsvis_js() -> str:
    """The script that circuitsvis ships.

    Raises:
        ViewError: If the installed circuitsvis has none.
    """
    packaged = files("circuitsvis") / "dist" / "cdn" / "iife.js"
    if not packaged.is_file():
        raise ViewError(
            f"{packaged} is not there, so that attention cannot be drawn offline. Install circuitsvis>=1.43,<2."
        )
    script = packaged.read_text(encoding="utf-8").replace("//# sourceMappingURL=iife.js.map", "")
    return script.replace("</script", "<\\/script")


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


def _without_nan(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(name): _without_nan(one) for name, one in value.items()}
    if isinstance(value, Iterable) and not isinstance(value, str):
        return [_without_nan(one) for one in value]
    return value


_PAGED = """(id, props, n) => {
  const menu = document.getElementById(id + "-heads"), box = document.getElementById(id);
  const draw = first => {
    const part = list => list.slice(first, first + n), drawn = document.createElement("div");
    drawn.id = `${id}-${first}`;
    box.replaceChildren(drawn);
    CircuitsVis.render(drawn.id, CircuitsVis.AttentionHeads,
      {...props, attention: part(props.attention), attentionHeadNames: part(props.attentionHeadNames)});
  };
  menu.addEventListener("change", () => draw(Number(menu.value)));
  draw(0);
}"""

# CircuitsVis leaves its headings to the page; a head's name would cover its thumbnail.
_VIEW_CSS = """
.avlens-view { font-family: system-ui, -apple-system, 'Segoe UI', Roboto, Arial, sans-serif; max-width: 1000px; }
.avlens-view h2 { font-size: 15px; border: 0; } .avlens-view h3 { font-size: 14px; font-weight: 600; }
.avlens-view h4 { font-size: 10px; line-height: 1.1; font-weight: 600; }
.avlens-caption { font-size: 13px; color: #555; margin: 4px 15px 12px; }
"""
