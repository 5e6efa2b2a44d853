"""Which heads read sinks for video, which for audio, and which for both?"""

import plotly.graph_objects as go

from avlens.analyses.dominance import HeadDominance
from avlens.tokens import Modality
from avlens.views.style import DIVERGING, counted, figure, joined, origin, without_data

_UNKNOWN = "#DDDDDD"
_GAP = 0.08  # of the plot's width, between two heatmaps


def plot_head_dominance(dominance: HeadDominance) -> go.Figure:
    """For the sinks of each modality, the mean score in each head of each layer; a gap where nothing later reads them."""
    of_sinks = dominance.sinks.tokens.modality[dominance.sinks.positions]
    kinds = [kind for kind in Modality if bool((of_sinks == kind).any())]
    unknown = bool(dominance.score.isnan().all(-1).any())
    fig = figure(
        f"Modality dominance of {counted(len(dominance.sinks), 'sink')} in each head",
        note=joined(
            [
                "mean over sinks",
                "grey: nothing later reads them" if unknown else "",
                origin(dominance.made_by, dominance.sinks.tokens),
            ]
        ),
        height=max(360, 160 + 16 * len(dominance.layers)),
    )
    if not kinds:
        return without_data(fig, "no sinks")
    width = (1 + _GAP) / len(kinds) - _GAP
    for i, kind in enumerate(kinds):
        number, left = f"{i + 1}" if i else "", i * (width + _GAP)
        _add_heads(fig, dominance, kind, number)
        fig.update_layout(
            {
                f"xaxis{number}": {"domain": [left, left + width], "anchor": f"y{number}", "title": "head"},
                f"yaxis{number}": {"anchor": f"x{number}", "title": "" if i else "layer", "autorange": "reversed"},
            }
        )
    fig.update_xaxes(showgrid=False, zeroline=False, **_whole(dominance.score.shape[1]))
    fig.update_yaxes(showgrid=False, zeroline=False, **_whole(len(dominance.layers)))
    ends = ["−1: audio reads", "0: alike", "+1: video reads"]
    bar = {"title": {"text": "MDS<br>&nbsp;"}, "thickness": 12, "tickvals": [-1, 0, 1], "ticktext": ends}
    return fig.update_layout(
        plot_bgcolor=_UNKNOWN, coloraxis={"colorscale": DIVERGING, "cmin": -1, "cmax": 1, "colorbar": bar}
    )


def _add_heads(fig: go.Figure, dominance: HeadDominance, kind: Modality, number: str) -> None:
    mine = dominance.score[..., dominance.sinks.tokens.modality[dominance.sinks.positions] == kind].double()
    known = (~mine.isnan()).sum(-1).tolist()
    fig.add_heatmap(
        z=mine.nanmean(-1).tolist(), y=list(dominance.layers), coloraxis="coloraxis", customdata=known, xgap=1, ygap=1,
        xaxis=f"x{number}", yaxis=f"y{number}", hoverongaps=False,
        hovertemplate="layer %{y}, head %{x}: MDS %{z:.3f}<br>sinks scored: %{customdata}<extra></extra>",
    )  # fmt: skip
    fig.add_annotation(
        text=f"sinks in {kind.name.lower()} (n = {mine.shape[-1]})", x=0, y=1, xref=f"x{number} domain",
        yref=f"y{number} domain", xanchor="left", yanchor="bottom", showarrow=False, font={"color": "#666666"},
    )  # fmt: skip


def _whole(n: int) -> dict[str, int]:
    """No half heads or layers."""
    return {"dtick": 1} if n <= 16 else {}
