"""Through which heads does what a group of tokens holds reach another group?"""

import plotly.graph_objects as go

from avlens.analyses.flow import HeadFlow
from avlens.views.style import DIVERGING, counted, figure, joined, origin


def plot_head_flow(heads: HeadFlow) -> go.Figure:
    """The mean change of the answer's probability by layer and head; red where the cut makes it more probable, blue less."""
    means = heads.change.double().nanmean(-1)
    n = heads.change.shape[-1]
    most = float(means.abs().nan_to_num(0).max()) or 1.0
    fig = figure(
        f"What cutting “{heads.edge}” in one head does to the answer",
        note=joined(
            [
                "one layer at a time" if heads.window == 1 else f"{heads.window} layers at a time",
                f"mean over {counted(n, 'prompt')}" if n > 1 else "",
                origin(heads.made_by),
            ]
        ),
        height=200 + max(22 * len(heads.layers), 120),
    )
    fig.add_heatmap(
        z=means.tolist(), x=[str(head) for head in range(means.shape[1])], y=[str(layer) for layer in heads.layers],
        zmin=-most, zmax=most, colorscale=DIVERGING, xgap=1, ygap=1, colorbar={"title": "change, %", "thickness": 12},
        hovertemplate="layer %{y}, head %{x}: %{z:.3g}%<extra></extra>",
    )  # fmt: skip
    return fig.update_layout(
        xaxis={"title": "head", "type": "category", "showgrid": False},
        yaxis={"title": "layer", "type": "category", "showgrid": False},
    )
