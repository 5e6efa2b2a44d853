"""In which layers are how many tokens of which modality sinks, and how strong are they?"""

import plotly.graph_objects as go

from avlens.analyses.sinks import Sinks
from avlens.tokens import Modality
from avlens.views.style import COLOURS, counted, escaped, figure, joined, origin, without_data

_MOST_LINES = 12


def plot_sinks(sinks: Sinks) -> go.Figure:
    """Left: sinks per layer by modality. Right: the energy of the most frequent sinks over layers, with the threshold."""
    tokens = sinks.token_map
    fig = figure(
        f"{counted(len(sinks.tokens), 'sink')} among {counted(len(tokens), 'token')}",
        note=joined([f"dimension {', '.join(map(str, sinks.dims)) or 'none'}", origin(sinks.made_by, tokens)]),
        height=440,
    )
    if not sinks.tokens:
        return without_data(fig, f"no token above the threshold of {sinks.threshold:.3g}")
    _add_counts(fig, sinks)
    _add_energies(fig, sinks)
    layers = {"dtick": 1} if len(sinks.layers) <= 16 else {}
    return fig.update_layout(
        barmode="stack", bargap=0.15, hovermode="closest",
        xaxis={"domain": [0, 0.44], "title": "layer", "showgrid": False, **layers},
        yaxis={"title": "sinks", "rangemode": "tozero"},
        xaxis2={"domain": [0.54, 1], "anchor": "y2", "title": "layer", "showgrid": False, **layers},
        yaxis2={"anchor": "x2", "title": "energy (share of the residual stream)", "rangemode": "tozero"},
        legend={"x": 0.44, "xanchor": "right"},
    )  # fmt: skip


def _add_counts(fig: go.Figure, sinks: Sinks) -> None:
    for kind in Modality:
        mine = sinks.is_sink[:, sinks.token_map.modality == kind].sum(-1)
        if mine.any():
            name = kind.name.lower()
            fig.add_bar(
                x=list(sinks.layers), y=mine.tolist(), name=name, marker_color=COLOURS[kind],
                hovertemplate=f"layer %{{x}}: %{{y}} {name}<extra></extra>",
            )  # fmt: skip


def _add_energies(fig: go.Figure, sinks: Sinks) -> None:
    layers = list(sinks.layers)
    for position in list(sinks.tokens)[:_MOST_LINES]:
        label = escaped(f"{sinks.token_map.labels[position]} @{position}")
        frequency = f"sink in {int(sinks.frequency[position])} of {counted(len(layers), 'layer')}"
        fig.add_scatter(
            x=layers, y=sinks.energy[:, position].double().tolist(), mode="lines+markers", xaxis="x2", yaxis="y2",
            line={"color": COLOURS[Modality(int(sinks.token_map.modality[position]))], "width": 1.5}, marker={"size": 4},
            opacity=0.8, showlegend=False,
            hovertemplate=f"{label}<br>{frequency}<br>layer %{{x}}: %{{y:.3f}}<extra></extra>",
        )  # fmt: skip
    fig.add_scatter(
        x=[layers[0], layers[-1]], y=[sinks.threshold] * 2, mode="lines", xaxis="x2", yaxis="y2",
        line={"color": "#333333", "width": 1, "dash": "dot"}, showlegend=False, hoverinfo="skip",
    )  # fmt: skip
    shown = min(_MOST_LINES, len(sinks.tokens))
    which = f"the {shown} most frequent" if shown < len(sinks.tokens) else "all sinks"
    fig.add_annotation(
        text=f"{which}; dotted: threshold {sinks.threshold:.3g}", x=1, y=1, xref="paper",
        yref="paper", xanchor="right", yanchor="bottom", showarrow=False, font={"size": 12, "color": "#666666"},
    )  # fmt: skip
