"""Which groups of tokens carry the answer in which layers, and in which heads?"""

from collections.abc import Mapping, Sequence

import plotly.graph_objects as go
from jaxtyping import Float
from torch import Tensor

from avlens.analyses.attribution_patching import PatchingEffects
from avlens.contrast import Contrast, Direction
from avlens.views.style import DIVERGING, counted, escaped, figure, joined, origin

_MOST_COLUMNS = 4
_GAP = 0.05  # of the plot's width, between two panels


def plot_patching(result: PatchingEffects) -> go.Figure:
    """The share of the total effect that each patch moves, by layer and group; where there are heads, by head of each group."""
    how = {"attribution": "estimated by one gradient", "exact": "each patch run"}[result.method]
    how = f"estimated by {result.steps} gradients" if result.steps > 1 else how
    groups = [f"{escaped(name)}<br>n = {len(tokens):,}" for name, tokens in result.groups.items()]
    tokens = next(iter(result.groups.values())).tokens
    fig = figure(
        f"Patching {counted(len(groups), 'group')}: {result.site}, {how}",
        note=joined([told(result.contrast, result.direction), origin(result.made_by, tokens)]),
        height=150 + 34 * max(4, len(result.layers)),
    )
    if result.heads is None:
        fig.add_heatmap(
            z=result.shares.double().tolist(), x=groups, y=list(result.layers), coloraxis="coloraxis", xgap=1, ygap=1,
            text=[[f"{share:+.2f}" for share in row] for row in result.shares.tolist()], texttemplate="%{text}",
            hovertemplate="layer %{y}, %{x}: %{z:.4f} of the total effect<extra></extra>",
        )  # fmt: skip
        fig.update_yaxes(title="layer", showgrid=False, zeroline=False, dtick=1)
        largest = float(result.shares.abs().max())
    else:
        shares = result.heads / result.contrast.total
        panels(fig, dict(zip(groups, shares.unbind(-1), strict=True)), result.layers)
        largest = float(shares.abs().max())
    return fig.update_layout(coloraxis=share_axis(largest))


def panels(fig: go.Figure, grids: Mapping[str, Float[Tensor, "layer head"]], layers: Sequence[int]) -> None:
    """Layers by heads, one panel for each grid, by its title as HTML."""
    columns = min(_MOST_COLUMNS, max(1, len(grids)))
    rows = -(-len(grids) // columns)
    width, height = (1 + _GAP) / columns - _GAP, (1 + 0.25) / rows - 0.25
    for i, (title, grid) in enumerate(grids.items()):
        number, row, column = f"{i + 1}" if i else "", i // columns, i % columns
        left, top = column * (width + _GAP), 1 - row * (height + 0.25)
        fig.add_heatmap(
            z=grid.double().tolist(), y=list(layers), coloraxis="coloraxis", xgap=1, ygap=1,
            xaxis=f"x{number}", yaxis=f"y{number}",
            hovertemplate="layer %{y}, head %{x}: %{z:.4f} of the total effect<extra></extra>",
        )  # fmt: skip
        fig.update_layout(
            {
                f"xaxis{number}": {"domain": [left, left + width], "anchor": f"y{number}", "title": "head"},
                f"yaxis{number}": {"domain": [top - height, top], "anchor": f"x{number}", "title": "" if column else "layer"},
            }
        )  # fmt: skip
        fig.add_annotation(
            text=title, x=0, y=1, xref=f"x{number} domain", yref=f"y{number} domain", xanchor="left", yanchor="bottom",
            align="left", showarrow=False, font={"color": "#666666"},
        )  # fmt: skip
        fig.update_xaxes(showgrid=False, zeroline=False, **({"dtick": 1} if grid.shape[1] <= 16 else {}))
    fig.update_yaxes(showgrid=False, zeroline=False, **({"dtick": 1} if len(layers) <= 16 else {}))
    fig.update_layout(height=150 + rows * (60 + 24 * max(4, len(layers))), margin={"t": 132})


def told(contrast: Contrast, direction: Direction) -> str:
    """What is patched into what, and what the whole difference is."""
    clean, corrupt = contrast.answers
    way = f"{corrupt!r} towards {clean!r}" if direction == "denoise" else f"{clean!r} towards {corrupt!r}"
    return f"{way}; 1 is the total effect, {contrast.total:.1f} logits"


def share_axis(largest: float) -> dict[str, object]:
    """The colours of shares of a total effect, centred at 0."""
    end = max(largest, 1e-9)
    return {
        "colorscale": DIVERGING, "cmin": -end, "cmax": end, "colorbar": {"title": {"text": "share"}, "thickness": 12}
    }  # fmt: skip
