"""Which component writes the answer into the last position, and from which tokens did it read it?"""

import plotly.graph_objects as go

from avlens.analyses.attribution import LogitAttribution
from avlens.views.style import colours_of, escaped, figure, joined, origin


def plot_attribution(attribution: LogitAttribution) -> go.Figure:
    """What the heads of each layer read at each group, and what its MLP adds, as stacked bars in logits."""
    against = f" rather than {attribution.against!r}" if attribution.against else ""
    tokens = next(iter(attribution.groups.values())).tokens
    rest = attribution.logit - float(attribution.heads.sum() + attribution.mlp.sum())
    fig = figure(
        f"What writes {attribution.answer!r}{against}: {attribution.logit:.1f} logits",
        note=joined(
            [
                "direct effects on the last position",
                f"embedding and biases add {rest:+.2f}",
                origin(attribution.made_by, tokens),
            ]
        ),
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
    few = {"dtick": 1} if len(layers) <= 32 else {}
    return fig.update_layout(
        barmode="relative", bargap=0.3,
        legend={"orientation": "v", "x": 1.02, "xanchor": "left", "y": 1, "yanchor": "top"},
        xaxis={"title": "layer", "showgrid": False, **few},
        yaxis={"title": "logits", "zeroline": True, "zerolinecolor": "#888888"},
    )  # fmt: skip
