"""Along which edges does what differs between two runs reach the answer?"""

import math

import plotly.graph_objects as go

from avlens.analyses.paths import PathEffects
from avlens.views.patch_effects import told
from avlens.views.style import counted, escaped, figure, joined, origin, told_apart


def plot_paths(result: PathEffects) -> go.Figure:
    """The share of the total effect that comes along each path: a bar each, or a line over layers where spans were patched."""
    fig = figure(
        f"Patching {counted(len(result.paths), 'path')}",
        note=joined([told(result.contrast, result.direction), origin(result.made_by)]),
        height=max(300, 170 + 34 * len(result.paths)) if not result.layers else 440,
        flush=not result.layers,
    )
    names = [escaped(path) for path in result.paths]
    if not result.layers:
        values = result.shares[:, 0].double().tolist()
        fig.add_bar(
            x=values, y=names, orientation="h", marker_color=[colour for colour, _ in told_apart(result.paths)],
            text=[f"{value:+.2f}" for value in values], textposition="outside", cliponaxis=False,
            hovertemplate="%{y}: %{x:.4f} of the total effect<extra></extra>",
        )  # fmt: skip
        known = [0.0, *(value for value in values if math.isfinite(value))]
        low, high = min(known), max(known)
        room = 0.12 * ((high - low) or 1)  # for what stands beside bars
        return fig.update_layout(
            xaxis={
                "range": [low - room * (low < 0), high + room], "title": "share of the total effect", "zeroline": True,
                "zerolinecolor": "#888888",
            },
            yaxis={"autorange": "reversed", "automargin": True}, bargap=0.4,
        )  # fmt: skip
    styles = told_apart(result.paths)
    for name, row, (colour, dash) in zip(names, result.shares.double().tolist(), styles, strict=True):
        fig.add_scatter(
            x=list(result.layers), y=row, mode="lines+markers", name=name,
            line={"color": colour, "width": 2, "dash": dash},
            marker={"size": 6}, hovertemplate=f"{name}, layer %{{x}}: %{{y:.4f}}<extra></extra>",
        )  # fmt: skip
    few = {"dtick": 1} if len(result.layers) <= 32 else {}
    return fig.update_layout(
        xaxis={"title": "layer of the span", "showgrid": False, **few},
        yaxis={"title": "share of the total effect", "zeroline": True, "zerolinecolor": "#888888"},
    )  # fmt: skip
