"""In which layers do which tokens carry what the answer needs, cell by cell?"""

import math

import plotly.graph_objects as go
from jaxtyping import Float
from torch import Tensor

from avlens.views.patching import PatchGrid
from avlens.views.style import DIVERGING, escaped, figure, joined, origin

_UNKNOWN = "#DDDDDD"
_GAP = 0.06  # of the plot's width, between two heatmaps


def plot_patch_grid(grid: PatchGrid) -> go.Figure:
    """Change of the followed answer's probability in each cell that was patched, and beside it knocked out; grey: not run."""
    parts = [("patched", grid.patched), ("knocked out", grid.knocked_out)]
    shown = [(name, effects) for name, effects in parts if not bool(effects.isnan().all())] or parts[:1]
    site = "" if grid.site == "resid_pre" else f" at {grid.site}"
    into = "clean into corrupted" if grid.direction == "denoise" else "corrupted into clean"
    layers = "one layer at a time" if grid.window == 1 else f"{grid.window} layers at a time, from the cell's on"
    fig = figure(
        f"Change of P({grid.answer}) by layer and group of tokens",
        note=joined(
            [
                f"{into}{site}, {layers}",
                f"P is {grid.p_clean:.3g} clean, {grid.p_corrupt:.3g} corrupted",
                "grey: not run",
                origin(grid.made_by),
            ]
        ),
        height=max(400, 260 + 16 * len(grid.patched)),
    )
    width = (1 + _GAP) / len(shown) - _GAP
    for i, (name, effects) in enumerate(shown):
        number, left = f"{i + 1}" if i else "", i * (width + _GAP)
        _add_cells(fig, grid, effects, name, number)
        fig.update_layout(
            {
                f"xaxis{number}": {"domain": [left, left + width], "anchor": f"y{number}", "tickangle": -60},
                f"yaxis{number}": {"anchor": f"x{number}", "title": "" if i else "layer", "autorange": "reversed"},
            }
        )
    fig.update_xaxes(showgrid=False, zeroline=False, type="category", tickfont={"size": 10})
    fig.update_yaxes(showgrid=False, zeroline=False, **({"dtick": 1} if len(grid.patched) <= 16 else {}))
    limit = max(_largest(grid.patched), _largest(grid.knocked_out), abs(grid.p_clean - grid.p_corrupt)) or 1.0
    bar = {"title": {"text": "change of<br>probability"}, "thickness": 12}
    return fig.update_layout(
        margin={"b": 130}, plot_bgcolor=_UNKNOWN,
        coloraxis={"colorscale": DIVERGING, "cmin": -limit, "cmax": limit, "colorbar": bar},
    )  # fmt: skip


def _add_cells(fig: go.Figure, grid: PatchGrid, effects: Float[Tensor, "layer group"], name: str, number: str) -> None:
    labels = [escaped(f"{label}") for label in grid.groups]
    counts = [len(tokens) for tokens in grid.groups.values()]
    fig.add_heatmap(
        z=effects.double().tolist(), x=labels, y=list(range(len(effects))), coloraxis="coloraxis", xgap=1, ygap=1,
        xaxis=f"x{number}", yaxis=f"y{number}", hoverongaps=False, customdata=[counts] * len(effects),
        hovertemplate=f"{name} %{{x}}, layer %{{y}}: %{{z:+.4f}}<br>%{{customdata}} tokens<extra></extra>",
    )  # fmt: skip
    fig.add_annotation(
        text=name, x=0, y=1, xref=f"x{number} domain", yref=f"y{number} domain", xanchor="left", yanchor="bottom",
        showarrow=False, font={"color": "#666666"},
    )  # fmt: skip


def _largest(effects: Float[Tensor, "layer group"]) -> float:
    sizes = [abs(x) for x in effects.flatten().tolist() if math.isfinite(x)]
    return max(sizes, default=0.0)
