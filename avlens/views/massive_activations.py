"""In which layers are the largest activations massive, and which tokens carry them?"""

import plotly.graph_objects as go

from avlens.analyses.massive_activations import MassiveActivations
from avlens.tokens import Modality
from avlens.views.style import COLOURS, counted, escaped, figure, joined, origin

_LINES = ("#B2182B", "#D55E00", "#999933")
_UNSEEN = {"size": 9, "line": {"color": "#FFFFFF", "width": 1}}


def plot_massive_activations(found: MassiveActivations) -> go.Figure:
    """The size of each rank over layers, on a logarithmic scale, and the median; dots have the colour of the token's modality."""
    dims = dict.fromkeys(found.dims[:, 0].tolist())
    fig = figure(
        f"The {counted(found.size.shape[1], 'largest activation')} of each layer",
        note=joined(
            [
                f"largest in dimension {', '.join(map(str, list(dims)[:6]))}{' ...' if len(dims) > 6 else ''}",
                f"{counted(len(found.token_map), 'token')}",
                "dots: modality of the token",
                origin(found.made_by, found.token_map),
            ]
        ),
        height=440,
    )
    layers, tokens = list(found.layers), found.token_map
    for rank in range(found.size.shape[1]):
        at = found.positions[:, rank].tolist()
        told = [
            f"{escaped(tokens.labels[p])} @{p}, dimension {dim}, {ratio:,.0f} times the median"
            for p, dim, ratio in zip(at, found.dims[:, rank].tolist(), found.ratio[:, rank].tolist(), strict=True)
        ]
        fig.add_scatter(
            x=layers, y=found.size[:, rank].double().tolist(), mode="lines+markers", name=f"number {rank + 1}", text=told,
            line={"color": _LINES[min(rank, len(_LINES) - 1)], "width": 2, "dash": "solid" if not rank else "dot"},
            marker=_UNSEEN | {"color": [COLOURS[Modality(int(tokens.modality[p]))] for p in at]},
            hovertemplate=f"layer %{{x}}, number {rank + 1}: %{{y:.4g}}<br>%{{text}}<extra></extra>",
        )  # fmt: skip
    fig.add_scatter(
        x=layers, y=found.median.double().tolist(), mode="lines", name="median", line={"color": "#666666", "width": 2},
        hovertemplate="layer %{x}, median: %{y:.4g}<extra></extra>",
    )  # fmt: skip
    few = {"dtick": 1} if len(layers) <= 32 else {}
    return fig.update_layout(
        xaxis={"title": "layer (resid_pre)", "showgrid": False, "zeroline": False, **few},
        yaxis={"title": "|activation|", "type": "log", "exponentformat": "power", "dtick": 1},
    )  # fmt: skip
