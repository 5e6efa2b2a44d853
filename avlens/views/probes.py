"""At which layer, and at which tokens, can a label be read by a straight line?"""

import plotly.graph_objects as go

from avlens.analyses.probes import Probes
from avlens.views.style import counted, escaped, figure, joined, origin, told_apart


def plot_probes(probes: Probes) -> go.Figure:
    """The accuracy of each set by layer, with its interval over clips and, dotted, with shuffled labels."""
    frame = probes.to_frame()
    fig = figure(
        f"Linear probes of {counted(len(set(probes.labels)), 'label')} on {counted(len(probes.labels), 'clip')}",
        note=joined(
            [
                f"{probes.folds} folds, bands: 95% bootstrap intervals",
                "dotted: shuffled labels",
                "dashed: the commonest label",
                origin(probes.made_by),
            ]
        ),
        height=440,
    )
    for name, (colour, dash) in zip(probes.sets, told_apart(list(probes.sets)), strict=True):
        rows = frame[frame["set"] == name]
        layers, low, high = rows["layer"].tolist(), rows["low"].tolist(), rows["high"].tolist()
        fig.add_scatter(
            x=layers + layers[::-1], y=high + low[::-1], fill="toself", mode="lines", line={"width": 0}, fillcolor=colour,
            opacity=0.15, hoverinfo="skip", showlegend=False,
        )  # fmt: skip
        fig.add_scatter(
            x=layers, y=rows["accuracy"].tolist(), mode="lines+markers", name=escaped(name), marker={"size": 6},
            line={"color": colour, "width": 2, "dash": dash}, customdata=list(zip(low, high, rows["control"], strict=True)),
            hovertemplate=f"{escaped(name)}, layer %{{x}}: %{{y:.3f}} [%{{customdata[0]:.3f}}, %{{customdata[1]:.3f}}]"
            "<br>shuffled: %{customdata[2]:.3f}<extra></extra>",
        )  # fmt: skip
        fig.add_scatter(
            x=layers, y=rows["control"].tolist(), mode="lines", line={"color": colour, "width": 1.5, "dash": "dot"},
            hoverinfo="skip", showlegend=False,
        )  # fmt: skip
    fig.add_hline(y=probes.majority, line={"color": "#888888", "width": 1.5, "dash": "dash"}, layer="below")
    few = {"dtick": 1} if len(probes.layers) <= 32 else {}
    return fig.update_layout(
        xaxis={"title": f"layer, {probes.made_by.get('site', '')}", "showgrid": False, **few},
        yaxis={"title": "accuracy", "range": [0, 1.03]},
    )  # fmt: skip
