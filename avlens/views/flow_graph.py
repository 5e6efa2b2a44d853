"""Which groups of tokens does what the answer needs pass through, as a graph?"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import plotly.graph_objects as go

from avlens.analyses.flow import InformationFlow
from avlens.errors import ViewError
from avlens.tokens import Modality
from avlens.views.style import COLOURS, CROSS_MODAL, colour_of, counted, escaped, figure, joined, origin

_COLUMNS = (
    ("video", "audio", "image", "candidates", "media", "video + audio"),
    ("reference", "context"),
    ("question", "options", "correct option", "incorrect options", "answer"),
    ("tail",),
    ("text", "last", "all"),
)
"""From left to right, as information may go in a prompt whose media come first; groups of one's own stand in the middle."""

_MOST_WIDE = 12.0
_LOSS, _GAIN, _NONE = "#2166AC", "#B2182B", "#BBBBBB"
_TEXT = "#6A6A6A"  # text's grey, which dark pages would make lighter, behind names that are white


class _Arrow(NamedTuple):
    source: str
    target: str
    change: float
    layer: int
    told: str


def flow_graph(flow: InformationFlow, *, least: float | int = 1.0) -> go.Figure:
    """Groups as nodes and edges as arrows, as wide as the largest mean change that cutting them makes in any span of layers.

    Blue: the answer becomes less probable, red: more. Edges below `least` percent are thin and grey, and those that causality
    forbids are left out. A cut shows what the answer needs while all other edges remain.

    Args:
        flow: What was cut; edges within one group are told below its node.
        least: The smallest change that counts, in percent.

    Raises:
        ViewError: If no edge is left to draw.
    """
    arrows = [arrow for i in range(len(flow.edges)) for arrow in _arrows(flow, i)]
    if not arrows:
        raise ViewError("no edge that was cut is one that causality allows. Cut some, such as 'audio -> last'.")
    places = _places([name for arrow in arrows for name in (arrow.source, arrow.target)])
    fig = figure(
        "What the answer needs, between groups of tokens",
        note=joined(
            [
                "largest mean change of the answer's probability, and the layer of that cut",
                f"blue: less probable, red: more, grey: below {least:g}%",
                f"{flow.sweep} of {counted(flow.window, 'layer')}"
                if flow.sweep in ("window", "inverse")
                else flow.sweep,
                origin(flow.made_by),
            ]
        ),
        height=520,
    )
    most = max([abs(arrow.change) for arrow in arrows if math.isfinite(arrow.change)], default=1.0) or 1.0
    for nth, arrow in enumerate(arrows):
        _draw(fig, arrow, places, most, least, nth)
    fig.add_scatter(
        x=[x for x, _ in places.values()], y=[y for _, y in places.values()], mode="markers+text", hoverinfo="skip",
        text=[escaped(name).replace(" ", "<br>") for name in places], textfont={"size": 12, "color": "#FFFFFF"},
        marker={"size": 76, "color": [_colour(name) for name in places], "line": {"color": "#FFFFFF", "width": 2}},
        textposition="middle center",
    )  # fmt: skip
    nothing = {"visible": False, "fixedrange": False}
    return fig.update_layout(
        showlegend=False, xaxis=nothing | {"range": [-0.5, 4.5]}, yaxis=nothing | {"range": [-0.35, 1.35]}
    )


def _arrows(flow: InformationFlow, i: int) -> list[_Arrow]:
    """The arrows of an edge: one, two if it goes both ways, none if causality forbids it."""
    edge = flow.edges[i]
    if not int(flow.pairs[i].sum()):
        return []
    layer, change = flow.peak(edge)
    told = f"{edge}: {change:+.3g}% at layer {layer}"
    there = _Arrow(edge.source, edge.target, change, layer, told)
    return [there, there._replace(source=edge.target, target=edge.source)] if edge.both else [there]


def _places(names: Sequence[str]) -> dict[str, tuple[float, float]]:
    """Where each node stands."""
    known = {name: x for x, column in enumerate(_COLUMNS) for name in column}
    columns: dict[int, list[str]] = {}
    for name in dict.fromkeys(names):
        columns.setdefault(known.get(name, 1), []).append(name)
    return {
        name: (float(x), 0.5 if len(column) == 1 else 1 - i / (len(column) - 1))
        for x, column in sorted(columns.items())
        for i, name in enumerate(column)
    }


def _draw(
    fig: go.Figure, arrow: _Arrow, places: dict[str, tuple[float, float]], most: float, least: float | int, nth: int
) -> None:
    (x0, y0), (x1, y1) = places[arrow.source], places[arrow.target]
    counts = abs(arrow.change) >= least
    colour = _NONE if not counts else _LOSS if arrow.change < 0 else _GAIN
    said = f"{arrow.change:+.0f}% @{arrow.layer}"
    if arrow.source == arrow.target:
        fig.add_annotation(
            x=x0, y=y0, yshift=-52, text=f"within: {said}", showarrow=False, font={"size": 11, "color": colour}
        )
        return
    width = 1.0 + (_MOST_WIDE - 1.0) * abs(arrow.change) / most if counts else 1.0
    bend = _BEND if _passes_through(arrow, places) else 0.0
    if bend:
        way = [_along((x0, y0), (x1, y1), bend, i / 40) for i in range(7, 37)]
        fig.add_scatter(
            x=[x for x, _ in way], y=[y for _, y in way], mode="lines", hoverinfo="skip", opacity=0.8 if counts else 0.6,
            line={"color": colour, "width": width},
        )  # fmt: skip
        (x0_tip, y0_tip), (x1_tip, y1_tip) = way[-2:]
        tip = {"x": x1_tip, "y": y1_tip, "ax": x0_tip, "ay": y0_tip}
    else:
        tip = {"x": x1, "y": y1, "ax": x0, "ay": y0, "standoff": 40, "startstandoff": 40}
    fig.add_annotation(
        **tip, xref="x", yref="y", axref="x", ayref="y", text="", showarrow=True, arrowhead=2, arrowcolor=colour,
        arrowwidth=width, arrowsize=max(0.35, 1 - width / 16), opacity=0.8 if counts else 0.6,
    )  # fmt: skip
    # Labels stand at different parts of their arrows, so that crossing ones do not hide each other.
    at = _along((x0, y0), (x1, y1), bend, (0.42, 0.55, 0.34)[nth % 3])
    if counts:
        fig.add_annotation(
            x=at[0],
            y=at[1],
            text=said,
            showarrow=False,
            font={"size": 11, "color": colour},
            bgcolor="rgba(255,255,255,0.85)",
        )
    fig.add_scatter(
        x=[at[0]], y=[at[1]], mode="markers", marker={"size": 16, "opacity": 0}, text=[escaped(arrow.told)],
        hovertemplate="%{text}<extra></extra>",
    )  # fmt: skip


_Place = tuple[float, float]

_BEND = 0.55
"""How far below its middle the control point of a bent arrow lies."""


def _passes_through(arrow: _Arrow, places: dict[str, _Place], near: float = 0.2) -> bool:
    """Whether a straight arrow would cross a node that it does not belong to."""
    (x0, y0), (x1, y1) = places[arrow.source], places[arrow.target]
    others = (place for name, place in places.items() if name not in (arrow.source, arrow.target))
    return any(
        min(x0, x1) < x < max(x0, x1) and abs(y0 + (x - x0) / (x1 - x0) * (y1 - y0) - y) < near for x, y in others
    )


def _along(start: _Place, end: _Place, bend: float, part: float) -> _Place:
    """A point of an arrow: part 0 is its start, 1 its end."""
    straight = [a + part * (b - a) for a, b in zip(start, end, strict=True)]
    return straight[0], straight[1] - 2 * part * (1 - part) * bend


def _colour(name: str) -> str:
    known = colour_of(name) or (CROSS_MODAL if name in ("candidates", "reference") else COLOURS[Modality.TEXT])
    return _TEXT if known == COLOURS[Modality.TEXT] else known
