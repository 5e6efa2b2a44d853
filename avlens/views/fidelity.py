"""How much of what a clip shows and sounds like do captions tell, as a judge sees it?"""

import numpy as np
import plotly.graph_objects as go

from avlens.display import MODALITY_COLOURS
from avlens.metrics.fidelity import Fidelity
from avlens.views.style import counted, escaped, figure, joined

_BIN = 0.1


def plot_fidelity(fidelity: Fidelity) -> go.Figure:
    """For each modality the share of captions at each score, and the mean with its interval as a line and a band."""
    level = next(iter(fidelity.means.values())).level
    failed = sum(fidelity.failures.values())
    fig = figure(
        "Fidelity: " + ", ".join(f"{kind} {_said(mean.estimate)}" for kind, mean in fidelity.means.items()),
        note=joined(
            [
                counted(len(fidelity.captions), "caption"),
                f"lines and bands: means with {100 * level:g}% bootstrap intervals over captions",
                f"{counted(failed, 'verdict')} without a score" if failed else "",
            ]
        ),
        height=380,
    )
    for modality, mean in fidelity.means.items():
        known, colour = fidelity.scores(modality), MODALITY_COLOURS[modality]
        known = known[np.isfinite(known)]
        fig.add_histogram(
            x=np.minimum(known, 1 - _BIN / 2).tolist(), xbins={"start": 0, "end": 1, "size": _BIN}, histnorm="probability",
            name=escaped(f"{modality} (n = {len(known)})"), marker_color=colour,
            hovertemplate=f"{modality}, score %{{x}}: %{{y:.0%}}<extra></extra>",
        )  # fmt: skip
        if np.isfinite(mean.estimate):
            fig.add_vline(x=mean.estimate, line={"color": colour, "width": 2, "dash": "dot"})
        if np.isfinite(mean.low):
            fig.add_vrect(x0=mean.low, x1=mean.high, fillcolor=colour, opacity=0.15, line_width=0, layer="below")
    return fig.update_layout(
        barmode="group", bargap=0.1, xaxis={"title": "score: 1 is all of it", "range": [-0.02, 1.02]},
        yaxis={"title": "share of captions", "rangemode": "tozero", "tickformat": ".0%"},
    )  # fmt: skip


def _said(mean: float) -> str:
    return f"{mean:.2f}" if np.isfinite(mean) else "not known"
