"""Which component writes the answer into the last position, and from which tokens did it read it?"""

import plotly.graph_objects as go

from avlens.analyses.attribution import LogitAttribution
from avlens.views.style import colours_of, escaped, figure, joined, origin


def plot_attribution(attribution: LogitAttribution) -> go.Figure:
    """What the heads of each layer read at each group, and what its MLP adds, as stacked bars in logits."""
    against = f" rather than {attribution.against!r}" if attribution.against else ""
    tokens = next(iter(attribution.groups.values())).tokens
    fig = figure(
        f"What writes {attribution.answer!r}{against}: {attribution.logit:.1f} logits",
        note=joined(["direct effects on the last position", origin(attribution.made_by, tokens)]),
        height=440,
    )
    layers = list(range(len(attribution.mlp)))
    for i, ((name, chosen), colour) in enumerate(
        zip(attribution.groups.items(), colours_of(attribution.groups), strict=True)
    ):
        fig.add_bar(
            x=layers, y=attribution.heads[:, :, i].sum(1).double().tolist(),
            name=f"heads, from {escaped(name)} (n = {len(chosen):,})",
            marker_color=colour,
            hovertemplate=f"layer %{{x}}, from {escaped(name)}: %{{y:.3f}}<extra></extra>",
        )  # fmt: skip
    fig.add_bar(
        x=layers, y=attribution.mlp.double().tolist(), name="MLP", marker_color="#BBBBBB",
        hovertemplate="MLP of layer %{x}: %{y:.3f}<extra></extra>",
    )  # fmt: skip
    rest = attribution.logit - float(attribution.heads.sum() + attribution.mlp.sum())
    fig.add_annotation(
        text=f"embedding and biases: {rest:+.2f}", x=1, y=0, xref="paper", yref="paper", xanchor="right", yanchor="bottom",
        showarrow=False, font={"size": 11, "color": "#666666"},
    )  # fmt: skip
    few = {"dtick": 1} if len(layers) <= 32 else {}
    return fig.update_layout(
        barmode="relative", bargap=0.3, xaxis={"title": "layer", "showgrid": False, **few},
        yaxis={"title": "logits", "zeroline": True, "zerolinecolor": "#888888"},
    )  # fmt: skip
