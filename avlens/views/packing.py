"""How does a page of many megabytes become a small one that is there at once?

Scripts and data stand in the page as compressed text, and the browser inflates them once it has painted: the words and the
clip are there first, then figures and views are drawn, one after the other. Figures follow the theme of the reader's system
or of the page's button; their colours are exchanged in the browser, as `style.dark` does.

13 bits of a compressed file become two of 91 characters that need no escape in HTML or JSON: 23% more, where base64 has 33%.
"""

import base64
import gzip
import html
import json
import math
from collections.abc import Iterable, Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
import plotly.io as pio
from plotly.offline import get_plotlyjs

from avlens.errors import ViewError
from avlens.views.style import CONFIG, DARK, NIGHT

LETTERS = "".join(chr(code) for code in range(33, 127) if chr(code) not in '"\\<')
"""The 91 characters."""

_BITS = 13


def packed(text: str | bytes) -> str:
    """Text, compressed, or bytes as they are: their number, a colon, and two characters for 13 bits each."""
    content = gzip.compress(text.encode("utf-8"), 9, mtime=0) if isinstance(text, str) else text
    bits = np.unpackbits(np.frombuffer(content, np.uint8))
    groups = np.pad(bits, (0, -len(bits) % _BITS)).reshape(-1, _BITS)
    numbers = groups @ (1 << np.arange(_BITS - 1, -1, -1))
    pairs = np.stack([numbers // len(LETTERS), numbers % len(LETTERS)], -1)
    letters = np.frombuffer(LETTERS.encode(), np.uint8)[pairs]
    return f"{len(content)}:{letters.tobytes().decode()}"


def figure_fragment(fig: go.Figure, element_id: str) -> str:
    """HTML for a page that has plotly's script; the id must be the only one of its name on the page."""
    spec = fig.to_dict()
    layout = spec["layout"]
    if fig.layout.template == pio.templates["plotly_white"]:
        layout.pop("template", None)  # the page has it, for both themes
    height = f" style='height:{layout['height']:.0f}px'" if "height" in layout else ""
    data = pio.json.to_json_plotly(_with_plain_integers({"data": spec["data"], "layout": layout}))
    told = html.escape(html.unescape((fig.layout.title.text or "").replace("<br>", " ")))
    return (
        f"<div id='{html.escape(element_id)}' class='avlens-figure' role='figure' aria-label='{told}'{height}></div>"
        f"<script type='text/plain' data-figure='{html.escape(element_id)}'>{packed(data)}</script>"
    )


def view_fragment(element_id: str, component: str, props: Mapping[str, Any], at_once: int) -> str:
    """The same for a component of CircuitsVis; where `at_once` is not 0, so many heads are drawn at a time."""
    data = json.dumps(without_nan(props), allow_nan=False, separators=(",", ":"))
    return (
        f"<div id='{html.escape(element_id)}'></div><script type='text/plain' data-view='{html.escape(element_id)}' "
        f"data-component='{html.escape(component)}' data-at-once='{at_once}'>{packed(data)}</script>"
    )


@cache
def script_fragment(name: str) -> str:
    """Plotly's or CircuitsVis's script, to be inflated when the first of its pictures is drawn."""
    script = {"Plotly": get_plotlyjs, "CircuitsVis": circuitsvis_js}[name]()
    return f"<script type='text/plain' data-script='{name}'>{packed(script)}</script>"


@cache
def drawing_script() -> str:
    """What inflates and draws, as a script of its own; `avlens.draw(element)` begins."""
    return (Path(__file__).parent / "page.js").read_text(encoding="utf-8")


@cache
def settings() -> str:
    """What figures of a page have in common: plotly's settings, and both themes."""
    said = {
        "config": dict(CONFIG), "night": dict(DARK), "ground": NIGHT,
        "light": pio.templates["plotly_white"].to_plotly_json(), "dark": pio.templates["plotly_dark"].to_plotly_json(),
    }  # fmt: skip
    return f"<script type='text/plain' id='avlens-settings'>{packed(pio.json.to_json_plotly(said))}</script>"


@cache
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
    return packaged.read_text(encoding="utf-8").replace("//# sourceMappingURL=iife.js.map", "")


def _with_plain_integers(value: Any) -> Any:
    """Arrays of integers as lists instead of base64, which compresses badly."""
    if isinstance(value, Mapping):
        if "bdata" in value and value["dtype"][0] in "iu":
            numbers = np.frombuffer(base64.b64decode(value["bdata"]), value["dtype"])
            return numbers.reshape([int(n) for n in str(value.get("shape", len(numbers))).split(",")]).tolist()
        return {name: _with_plain_integers(one) for name, one in value.items()}
    return [_with_plain_integers(one) for one in value] if isinstance(value, list | tuple) else value


def without_nan(value: Any) -> Any:
    """Numbers that are none become None, which JSON knows."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(name): without_nan(one) for name, one in value.items()}
    if isinstance(value, Iterable) and not isinstance(value, str):
        return [without_nan(one) for one in value]
    return value
