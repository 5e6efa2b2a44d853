"""In which layers do tokens name what they hold, more often than what other clips hold?"""

import plotly.graph_objects as go

from avlens.analyses.logit_lens import LatentUnderstanding
from avlens.views.style import COLOURS, counted, figure, joined, origin


def plot_latent(latent: LatentUnderstanding) -> go.Figure:
    """The share of clips named in each layer and, dotted, the same of other clips' content."""
    frame, kind = latent.to_frame(), latent.modality.name.lower()
    layers, n = list(frame.index), latent.rate.n
    fig = figure(
        f"{counted(n, 'clip')}: named at {kind} tokens in {latent.rate.estimate:.0%}, another clip's content in "
        f"{latent.control_rate.estimate:.0%}",
        note=joined([f"in any layer from {latent.from_layer} on", str(latent.made_by.get("lens", "")), origin(latent.made_by)]),
        height=430,
    )  # fmt: skip
    lines = {
        f"clips whose content is named at {kind} tokens": ("named", COLOURS[latent.modality], "solid"),
        f"share of {kind} tokens that name it": ("tokens", COLOURS[latent.modality], "dash"),
        "other clips' content (control)": ("control", "#666666", "dot"),
    }
    for name, (column, colour, dash) in lines.items():
        fig.add_scatter(
            x=layers, y=frame[column].tolist(), mode="lines+markers", name=name, marker={"size": 6},
            line={"color": colour, "width": 2, "dash": dash}, hovertemplate="layer %{x}: %{y:.1%}<extra></extra>",
        )  # fmt: skip
    few = {"dtick": 1} if len(layers) <= 32 else {}
    return fig.update_layout(
        margin={"b": 110}, legend={"x": 0, "xanchor": "left", "y": -0.2, "yanchor": "top"},
        xaxis={"title": "after block", "showgrid": False, **few},
        yaxis={"title": "share", "range": [0, 1.03], "tickformat": ".0%"},
    )  # fmt: skip
