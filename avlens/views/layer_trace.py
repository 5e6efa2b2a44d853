"""In which layers does a set of tokens carry what the answer needs?"""

import plotly.graph_objects as go

from avlens.analyses.tracing import LayerTrace
from avlens.views.style import CLEAN, CORRUPT, add_level, counted, escaped, figure, joined, origin
from avlens.views.trace import probabilities, what_patches_do


def plot_layer_trace(layers: LayerTrace) -> go.Figure:
    """Both indirect effects by the first layer patched, with the total effects of a perfect patch as dotted lines."""
    trace = layers.trace
    patched = next(iter(trace.sets.values()), None)
    window = "one layer at a time" if layers.window == 1 else f"{layers.window} layers at a time"
    fig = figure(
        f"Indirect effect of {counted(0 if patched is None else len(patched), 'patched token')} by layer",
        note=joined(
            [
                f"{', '.join(trace.sites)} of {window}",
                probabilities(trace),
                "dotted: total effects",
                origin(trace.made_by, None if patched is None else patched.tokens),
            ]
        ),
        height=440,
    )
    clean, corrupt = what_patches_do(trace)
    for effects, total, name, colour in (
        (layers.ie_clean, trace.te_clean, clean, CLEAN),
        (layers.ie_corrupt, trace.te_corrupt, corrupt, CORRUPT),
    ):
        fig.add_scatter(
            x=list(layers.first_layers), y=effects.double().tolist(), mode="lines+markers", name=escaped(name),
            line={"color": colour, "width": 2}, marker={"size": 6}, hovertemplate="from layer %{x}: %{y:.4f}<extra></extra>",
        )  # fmt: skip
        add_level(fig, total, colour)
    fig.update_xaxes(showgrid=False, zeroline=False)
    few = {"dtick": 1} if len(layers.first_layers) <= 32 else {}
    return fig.update_layout(
        xaxis={"title": "layer" if layers.window == 1 else "first layer of the window", **few},
        yaxis={"title": "change of probability", "zeroline": True, "zerolinecolor": "#888888"},
    )  # fmt: skip
