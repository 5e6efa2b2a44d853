"""Are sinks read by video, by audio, or by both?"""

import plotly.graph_objects as go

from avlens.analyses.dominance import ModalityDominance
from avlens.errors import ViewError
from avlens.tokens import Modality
from avlens.views.style import COLOURS, CROSS_MODAL, counted, figure, joined, origin, without_data

_BIN = 0.05


def plot_dominance(dominance: ModalityDominance, *, band: float = 0.3) -> go.Figure:
    """Histogram of each sink's mean score by its modality, with the band around 0 in which a sink is read alike.

    Sinks that score +-1 only because one modality comes after them are drawn hatched.

    Raises:
        ViewError: If the band is no part of [0, 1].
    """
    if not 0 <= band <= 1:
        raise ViewError(f"band is {band}. Pass the half-width of a band around 0, between 0 and 1.")
    mean, kinds = dominance.mean, dominance.sinks.tokens.modality[dominance.sinks.positions]
    unscored = int(mean.isnan().sum())
    fig = figure(
        f"Modality dominance of {counted(len(mean), 'sink')}",
        note=joined(
            [
                f"mean over {counted(len(dominance.layers), 'layer')}",
                f"{unscored} that nothing later reads left out" if unscored else "",
                origin(dominance.made_by, dominance.sinks.tokens),
            ]
        ),
    )
    if unscored == len(mean):
        return without_data(fig, "no sink that later tokens read")
    for kind in Modality:
        for one_sided in (False, True):
            mine = mean[(kinds == kind) & ~mean.isnan() & (dominance.one_sided == one_sided)].double()
            if len(mine):
                _add_histogram(fig, mine.tolist(), kind, one_sided=one_sided)
    fig.add_vrect(x0=-band, x1=band, fillcolor=CROSS_MODAL, opacity=0.1, line_width=0, layer="below")
    fig.add_annotation(
        text=f"cross-modal: |MDS| ≤ {band:g}", x=0, y=1, yref="paper", yanchor="top", showarrow=False,
        font={"color": CROSS_MODAL, "size": 12}, bgcolor="rgba(255,255,255,0.85)",
    )  # fmt: skip
    known = mean[~mean.isnan()].clamp(max=1 - 1e-6)
    most = int(((known + 1) / _BIN).long().bincount().max())
    whole = {"dtick": 1} if most <= 12 else {}  # no half sinks
    return fig.update_layout(
        barmode="stack", bargap=0.05, yaxis={"title": "sinks", "rangemode": "tozero", **whole},
        xaxis={"title": "read by audio   ←   MDS = (v − a) / (v + a)   →   read by video", "range": [-1.03, 1.03]},
    )  # fmt: skip


def _add_histogram(fig: go.Figure, scores: list[float], kind: Modality, *, one_sided: bool) -> None:
    name = f"{kind.name.lower()}{', only one modality after' if one_sided else ''} (n = {len(scores)})"
    fig.add_histogram(
        # bins are half open: without the last digit of room, +1 would get one of its own outside of the axis
        x=[min(score, 1 - 1e-9) for score in scores], xbins={"start": -1, "end": 1, "size": _BIN}, name=name, opacity=0.85,
        marker={"color": COLOURS[kind], "pattern": {"shape": "/" if one_sided else ""}},
        hovertemplate=f"{kind.name.lower()}, MDS %{{x}}: %{{y}}<extra></extra>",
    )  # fmt: skip
