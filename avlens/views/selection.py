"""Which modality decides clips, how many of them are answered right, and how much does it decide?"""

import math

import plotly.graph_objects as go

from avlens.analyses.selection import Selection
from avlens.display import MODALITY_COLOURS
from avlens.views.style import CORRUPT, counted, escaped, figure, joined, origin

_KINDS = {"audio": "decided by audio", "video": "decided by video", "neither": "decided by neither"}
_NOBODY = "#BBBBBB"


def plot_selection(selection: Selection) -> go.Figure:
    """Left: clips by what decides them and whether they are answered right. Right: the total effect of each decided clip."""
    chosen = len(selection.audio_dominant) + len(selection.video_dominant)
    fig = figure(
        f"{counted(chosen, 'clip')} of {len(selection.judgements):,} that one modality decides",
        note=joined(
            [
                "and that are answered right" if selection.require_correct else "",
                f"{len(selection.skipped)} skipped" if selection.skipped else "",
                origin(selection.made_by),
            ]
        ),
        height=380,
        flush=True,
    )
    asked = [one for one in selection.judgements if not one.problem]
    answered = {True: ("answered right", "#009E73"), False: ("answered wrong", CORRUPT), None: ("no label", _NOBODY)}
    for is_right, (name, colour) in answered.items():
        counts = [sum(one.dominant == kind and one.correct is is_right for one in asked) for kind in _KINDS]
        if sum(counts):
            fig.add_bar(
                y=list(_KINDS.values()), x=counts, name=f"{name} (n = {sum(counts)})", orientation="h", marker_color=colour,
                text=[count or "" for count in counts], textposition="inside", insidetextanchor="middle", textangle=0,
                hovertemplate=f"%{{y}}, {name}: %{{x}}<extra></extra>",
            )  # fmt: skip
    for kind in ("audio", "video"):
        mine = [one for one in asked if one.dominant == kind and math.isfinite(one.p_clean[0] - one.p_corrupt[0])]
        fig.add_box(
            x=[one.p_clean[0] - one.p_corrupt[0] for one in mine], y=[_KINDS[kind]] * len(mine), xaxis="x2", yaxis="y2",
            boxpoints="all", jitter=0.6, pointpos=0, fillcolor="rgba(128,128,128,0.12)", showlegend=False, orientation="h",
            marker={"color": MODALITY_COLOURS[kind], "size": 6, "opacity": 0.8},
            line={"color": MODALITY_COLOURS[kind], "width": 1},
            text=[escaped(one.id) for one in mine], hovertemplate="%{text}: %{x:.3f}<extra></extra>", hoveron="points",
        )  # fmt: skip
    return fig.update_layout(
        barmode="stack", bargap=0.4, legend={"traceorder": "normal"},
        xaxis={"domain": [0, 0.52], "title": "clips", "rangemode": "tozero"},
        yaxis={"autorange": "reversed", "automargin": True},
        xaxis2={
            "domain": [0.6, 1], "anchor": "y2", "title": "P(answer) lost without it", "range": [-0.05, 1.05], "zeroline": False,
        },
        yaxis2={
            "anchor": "x2", "showticklabels": False, "type": "category", "range": [2.5, -0.5],
            "categoryorder": "array", "categoryarray": list(_KINDS.values()),
        },
    )  # fmt: skip
