"""What do all pictures share: a colour for each modality, scales, titles, and no way out of the page?

Colours are those of Okabe and Ito, which colour-blind readers can tell apart. Scales of signed values are centred at
zero. Whatever text comes from a prompt, a clip or a caller goes through `escaped`, since plotly reads titles, ticks,
legends and hover labels as a kind of HTML. Figures carry their settings: nobody has to set a renderer.

Source: Okabe and Ito 2008, "Color Universal Design", https://jfly.uni-koeln.de/color/.
"""

import html
import math
import re
import textwrap
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import cycle
from types import MappingProxyType
from typing import Any

import plotly.graph_objects as go

from avlens import display
from avlens.tokens import Modality, TokenMap, TokenSet

COLOURS: Mapping[Modality, str] = MappingProxyType(
    {kind: display.MODALITY_COLOURS[kind.name.lower()] for kind in Modality}
)
"""The colour of each modality, everywhere."""

CROSS_MODAL = "#009E73"
"""The colour of what audio and video share."""

CLEAN, CORRUPT = "#332288", "#D55E00"
"""The colours of a clean and of a corrupted run's answer."""

SINK = "#00E5FF"
"""The colour that marks sinks on pictures."""

DIVERGING = ((0.0, "#2166AC"), (0.5, "#F7F7F7"), (1.0, "#B2182B"))
"""From negative to positive; give it a range that is symmetric around 0."""

OVERLAY = ((0.0, "rgba(33,102,172,0.95)"), (0.5, "rgba(255,255,255,0)"), (1.0, "rgba(178,24,43,0.95)"))
"""The same to lay over a picture: 0 is transparent."""

SEQUENTIAL = ((0.0, "#F7F7F7"), (1.0, "#B2182B"))
"""For what is never negative; give it a range from 0."""

OVERLAY_SEQUENTIAL = ((0.0, "rgba(255,255,255,0)"), (1.0, "rgba(178,24,43,0.95)"))
"""The same to lay over a picture: 0 is transparent."""

CONFIG: Mapping[str, Any] = MappingProxyType(
    {"modeBarButtonsToRemove": ["sendChartToCloud"], "displaylogo": False, "responsive": True}
)
"""Plotly's settings for a page: no button that uploads the figure, no link to a site."""

FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
"""What the reader's system has."""


_LINE, _SUBLINE = 70, 96  # characters of title and subtitle that fit into 700 pixels, a notebook's static picture
_ACROSS = 100  # characters of names of columns that do, side by side
_LINE_HEIGHT, _SUBLINE_HEIGHT = 21, 16  # pixels
_ABOVE = 104  # pixels above the plot, with one line of each


def figure(
    title: str, *, note: str = "", height: int = 420, width: int | None = None, flush: bool = False
) -> go.Figure:
    """An empty figure in the common style, as wide as its place unless told; both texts are plain text.

    Long texts are broken into lines, and the figure grows by them. They begin above the plot or, with `flush`, at the figure's
    left edge: for a plot that names of rows make narrow, so that texts would leave the figure on its right.
    """
    fig, heads, notes = go.Figure(), _lines([title], _LINE), _lines(note.split(" · "), _SUBLINE)
    extra = max(0, len(heads) - 1) * _LINE_HEIGHT + max(0, len(notes) - 1) * _SUBLINE_HEIGHT
    height += extra
    fig.update_layout(
        template="plotly_white",
        title={
            "text": "<br>".join(map(escaped, heads)), "x": 0, "xref": "container" if flush else "paper",
            "pad": {"l": 16 if flush else 0}, "xanchor": "left", "y": 1 - 16 / height,
            "yanchor": "top", "font": {"size": 16, "color": "#1A1A1A"},
            "subtitle": {"text": "<br>".join(map(escaped, notes)), "font": {"size": 12, "color": "#666666"}},
        },
        font={"family": FONT, "size": 12, "color": "#333333"},
        height=height, width=width, margin={"l": 64, "r": 24, "t": _ABOVE + extra, "b": 52},
        hoverlabel={"font": {"family": FONT, "size": 12}, "align": "left"},
        legend={"orientation": "h", "x": 1, "xanchor": "right", "y": 1, "yanchor": "bottom"},
        modebar={"remove": ["sendChartToCloud"]},
    )  # fmt: skip
    return fig


def dark(fig: go.Figure) -> go.Figure:
    """The same figure for a dark page: greys are exchanged, and colours too dark to be seen there are lighter."""
    turned = go.Figure(_in_the_dark(fig.to_dict()))
    unknown = turned.layout.plot_bgcolor or NIGHT
    return turned.update_layout(template="plotly_dark", paper_bgcolor=NIGHT, plot_bgcolor=unknown)


NIGHT = "#14171C"
"""The ground of dark pages."""

DARK: Mapping[str, str] = MappingProxyType(
    {
        "#1A1A1A": "#F2F2F2", "#333333": "#DADADA", "#555555": "#BDBDBD", "#666666": "#A3A3A3", "#888888": "#8A8A8A",
        "#999999": "#8A8A8A", "#BBBBBB": "#555B66", "#CCCCCC": "#4A4F59", "#DDDDDD": "#3A3F48", "#F7F7F7": "#22262E",
        "#000000": "#FFFFFF", CLEAN: "#9C8CFF", "#117733": "#4FB36E", "#882255": "#D0649A", "#AA4499": "#D373C4",
        "#999933": "#C4C45A", "#0072B2": "#3D9BD6", "#2166AC": "#5B9BD9", "#B2182B": "#E05A67",
        "#FEFEFE": NIGHT, "#C6DBEF": "#16304F", "#6BAED6": "#2A6FA8", "#08519C": "#74B4E0", "#08123F": "#E6F3FF",
        "rgba(255,255,255,0.85)": "rgba(20,23,28,0.85)",
    }
)  # fmt: skip
"""What becomes of colours of figures on dark pages."""


def _in_the_dark(value: Any) -> Any:
    if isinstance(value, str):
        return DARK.get(value) or DARK.get(value.upper(), value)
    if isinstance(value, Mapping):
        return {name: _in_the_dark(one) for name, one in value.items() if name != "template"}
    if isinstance(value, list | tuple):
        return [_in_the_dark(one) for one in value]
    return value


def _lines(parts: Iterable[str], width: int) -> list[str]:
    """Parts put together with dots between them, a new line where the next would not fit; a part that never fits is broken."""
    lines: list[str] = []
    for part in parts:
        if lines and len(lines[-1]) + len(part) + 3 <= width:
            lines[-1] += f" · {part}"
        else:
            lines += textwrap.wrap(part, width, break_on_hyphens=False)
    return lines


def column_names(names: Sequence[str], told: Sequence[Sequence[str]]) -> tuple[list[str], dict[str, Any]]:
    """Names of columns, each with lines that tell of it, and settings of their axis: level where they fit, else steep."""
    width = _ACROSS // max(1, len(names))
    lines = [
        textwrap.wrap(name, width, break_long_words=False, break_on_hyphens=False) + list(more)
        for name, more in zip(names, told, strict=True)
    ]
    axis = {"type": "category", "automargin": True}
    if all(len(line) <= width for column in lines for line in column):
        return ["<br>".join(map(escaped, column)) for column in lines], axis | {"tickangle": 0}
    steep = [joined([name, ", ".join(more)]) for name, more in zip(names, told, strict=True)]
    return [escaped(name) for name in steep], axis | {"tickangle": -60}


def add_level(fig: go.Figure, y: float, colour: str) -> None:
    """A dotted line across the plot at a value, where it is known."""
    if math.isfinite(y):
        fig.add_hline(y=y, line={"color": colour, "width": 1.5, "dash": "dot"}, layer="below")


def without_data(fig: go.Figure, text: str) -> go.Figure:
    """A figure of which nothing can be drawn: a line that says so, in place of axes without meaning."""
    fig.update_xaxes(visible=False).update_yaxes(visible=False)
    fig.add_annotation(text=text, x=0.5, y=0.5, xref="paper", yref="paper", showarrow=False, font={"size": 14})
    return fig.update_layout(height=260)


def escaped(text: str) -> str:
    """Plain text as plotly and HTML show it."""
    return html.escape(text, quote=False)


def joined(parts: Iterable[str]) -> str:
    """The parts that say something, with a dot between them."""
    return " · ".join(part for part in parts if part)


def origin(made_by: Mapping[str, Any], tokens: TokenMap | None = None) -> str:
    """What a picture's subtitle says of where the numbers come from: model, number type, clip, question."""
    return display.origin(made_by, "" if tokens is None else question_of(tokens))


def question_of(tokens: TokenMap) -> str:
    """The question as it stands in the prompt; empty where there is none."""
    asked = tokens.offsets[tokens.question.positions]
    asked = asked[asked[:, 0] >= 0]
    return tokens.prompt[int(asked[:, 0].min()) : int(asked[:, 1].max())].strip() if len(asked) else ""


def told_apart(names: Sequence[str]) -> list[tuple[str, str]]:
    """A colour and a dash for each line: a modality's colour for what begins with its name, such as `audio -> last`.

    Where a colour comes again, the dash is another.
    """
    others, used = cycle(_OTHERS), Counter[str]()
    found = []
    for name in names:
        colour = colour_of(name) or next(others)
        found.append((colour, _DASHES[used[colour] % len(_DASHES)]))
        used[colour] += 1
    return found


def colour_of(name: str) -> str | None:
    """The colour of a group or an edge that is called after a modality; None for any other name."""
    kinds = dict.fromkeys(re.findall(r"video|audio|image", name.split(" -> ")[0]))
    if len(kinds) > 1 or re.match(r"media\b", name):
        return CROSS_MODAL
    first = re.match(r"[\W_]*(text|audio|video|image|separator|special)\b", name)
    return display.MODALITY_COLOURS[first[1]] if first else None


def colours_of(sets: Mapping[str, TokenSet]) -> list[str]:
    """A colour for each set: that of its modality for the first of it, and others for the rest."""
    others, used, found = cycle(_OTHERS), set[int](), []
    for tokens in sets.values():
        kinds = tokens.tokens.modality[tokens.positions].unique().tolist()
        own = len(kinds) == 1 and kinds[0] not in used
        used |= set(kinds) if own else set()
        found.append(COLOURS[Modality(kinds[0])] if own else next(others))
    return found


_OTHERS = ("#332288", "#D55E00", "#AA4499", "#117733", "#999933", "#882255", "#44AA99", "#CC6677")
_DASHES = ("solid", "dash", "longdash", "dashdot")


def counted(n: int, noun: str) -> str:
    """`1 sink`, `3 sinks`."""
    return f"{n:,} {noun}{'' if n == 1 else 's'}"
