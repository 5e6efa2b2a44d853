"""How close is the worst, or the mean, object of each caption to what its clip is said to hold?"""

import numpy as np
import plotly.graph_objects as go

from avlens.metrics.aloha import Aloha
from avlens.views.style import CLEAN, counted, figure, joined, without_data

_BIN = 5.0  # percent


def plot_aloha(scores: Aloha) -> go.Figure:
    """Histogram of the captions' scores, with the mean and its interval."""
    known, mean = 100 * scores.scores[np.isfinite(scores.scores)], scores.mean
    ends = f" [{mean.low:.1f}, {mean.high:.1f}]" if np.isfinite(mean.low) else ""
    fig = figure(
        f"ALOHa of {counted(len(scores.scores), 'caption')}" + (f": {mean.estimate:.1f}{ends}" if len(known) else ""),
        note=joined(
            [
                f"{scores.aggregate} over a caption's objects",
                f"line and band: mean with its {100 * mean.level:g}% bootstrap interval",
                f"{sum(map(bool, scores.problems))} without a score" if any(scores.problems) else "",
                "with the released code's errors" if scores.released else "",
            ]
        ),
        height=360,
    )
    if not len(known):
        return without_data(fig, "no caption has a score")
    fig.add_histogram(
        x=np.minimum(known, 100 - _BIN / 2).tolist(), xbins={"start": 0, "end": 100, "size": _BIN}, marker_color=CLEAN,
        hovertemplate="ALOHa %{x}: %{y}<extra></extra>",
    )  # fmt: skip
    fig.add_vline(x=mean.estimate, line={"color": "#333333", "width": 1.5})
    if np.isfinite(mean.low):
        fig.add_vrect(x0=mean.low, x1=mean.high, fillcolor="#888888", opacity=0.2, line_width=0, layer="below")
    whole = {"dtick": 1} if len(known) <= 12 else {}
    return fig.update_layout(
        bargap=0.05, showlegend=False, xaxis={"title": "ALOHa, percent: 100 is all in the references", "range": [-1, 101]},
        yaxis={"title": "captions", "rangemode": "tozero", **whole},
    )  # fmt: skip
