"""How much of what captions mention is not in their clips, and how much of what is there do they mention?"""

import plotly.graph_objects as go

from avlens.metrics.chair import Chair, Score
from avlens.views.style import CORRUPT, counted, figure, joined

_SAID: dict[Score, str] = {
    "Cs": "Cs: captions with a hallucination",
    "Ci": "Ci: mentions that are hallucinated",
    "precision": "precision",
    "recall": "recall",
    "F1": "F1",
}
_GOOD = "#009E73"


def plot_chair(chair: Chair) -> go.Figure:
    """Each score in percent with its interval over captions; less is better in the first two, more in the others."""
    length, one = chair.scores["length"], chair.intervals["Cs"]
    fig = figure(
        f"CHAIR of {counted(len(chair.captions), 'caption')}",
        note=joined(
            [
                f"bars: {100 * one.level:g}% bootstrap intervals over captions",
                f"{length:.1f} words each",
                counted(len(chair.unknown), "true object") + " unknown to the vocabulary" if chair.unknown else "",
            ]
        ),
        height=340,
        flush=True,
    )
    found = [chair.intervals[name] for name in _SAID]
    values = [chair.scores[name] for name in _SAID]
    names = [f"{said}  <b>{value:.1f}</b>" for said, value in zip(_SAID.values(), values, strict=True)]
    fig.add_bar(
        y=names, x=values, orientation="h", marker_color=[CORRUPT, CORRUPT, _GOOD, _GOOD, _GOOD],
        error_x={
            "type": "data", "array": [one.high - one.estimate for one in found],
            "arrayminus": [one.estimate - one.low for one in found], "color": "#555555", "thickness": 1.5, "width": 5,
        },
        customdata=[(one.low, one.high) for one in found],
        hovertemplate="%{y} [%{customdata[0]:.2f}, %{customdata[1]:.2f}]<extra></extra>",
    )  # fmt: skip
    return fig.update_layout(
        bargap=0.35, yaxis={"autorange": "reversed", "automargin": True, "ticksuffix": "  "},
        xaxis={"title": "percent", "range": [0, 101]},
    )  # fmt: skip
