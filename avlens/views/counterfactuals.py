"""How unlike is the sound that clips of a counterfactual data set got to the one that they had?"""

import numpy as np
import plotly.graph_objects as go

from avlens.datasets.counterfactual import Counterfactuals, Swaps
from avlens.views.style import CORRUPT, counted, figure, joined

_BIN = 0.05


def plot_swaps(swaps: Swaps) -> go.Figure:
    """Histogram of the similarity of each clip's caption to that of its new sound; dotted: of two clips by chance."""
    fig = _histogram(swaps.similarity, f"New sounds of {counted(len(swaps.similarity), 'clip')}", "dotted: by chance")
    return fig.add_vline(x=swaps.chance, line={"color": "#333333", "width": 1.5, "dash": "dot"})


def plot_counterfactuals(data: Counterfactuals) -> go.Figure:
    """The same for the clips of a data set that have another's sound."""
    swapped = [clip for clip in data.clips if clip.counterfactual and not clip.problem]
    factual = sum(not clip.counterfactual and not clip.problem for clip in data.clips)
    title = f"{counted(factual, 'factual clip')}, {counted(len(swapped), 'counterfactual one')}"
    note = f"{len(data.problems)} without a file" if data.problems else ""
    return _histogram(np.array([clip.similarity for clip in swapped]), title, note)


def _histogram(similarity: np.ndarray, title: str, note: str) -> go.Figure:
    mean = f"mean {similarity.mean():.3f}" if len(similarity) else "no clip has another's sound"
    fig = figure(title, note=joined([mean, note]), height=340)
    fig.add_histogram(
        x=similarity.tolist(), xbins={"start": -1, "end": 1.05, "size": _BIN}, marker_color=CORRUPT, showlegend=False,
        hovertemplate="similarity %{x}: %{y}<extra></extra>",
    )  # fmt: skip
    whole = {"dtick": 1} if len(similarity) <= 12 else {}
    least = min(0.0, float(similarity.min())) if len(similarity) else 0.0
    return fig.update_layout(
        bargap=0.05, xaxis={"title": "similarity of both captions: 1 is the same", "range": [least - 0.02, 1.02]},
        yaxis={"title": "clips", "rangemode": "tozero", **whole},
    )  # fmt: skip
