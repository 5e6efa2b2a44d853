"""Which dimensions of the residual stream stand out at the first token?"""

import plotly.graph_objects as go

from avlens.analyses.sinks import SinkDims
from avlens.views.style import counted, figure, joined, origin, without_data


def plot_sink_dims(dims: SinkDims) -> go.Figure:
    """The mean size of each sink dimension, and in what share of the layers it stands out."""
    prompts = len(dims.made_by.get("prompts_of_text", ()))
    fig = figure(
        f"{counted(len(dims), 'sink dimension')} of the language model",
        note=joined(
            [
                counted(prompts, "text") if prompts else "",
                f"layers {dims.layers[0]} to {dims.layers[-1]}" if dims.layers else "",
                origin(dims.made_by),
            ]
        ),
        height=380,
    )
    if not len(dims):
        return without_data(fig, "no dimension stands out")
    shares = [f"{share:.0%} of layers" for share in dims.share.tolist()]
    fig.add_bar(
        x=[str(dim) for dim in dims], y=dims.magnitude.double().tolist(), text=shares, textposition="outside",
        marker_color="#B2182B", cliponaxis=False, hovertemplate="dimension %{x}: %{y:.3g}<br>%{text}<extra></extra>",
    )  # fmt: skip
    return fig.update_layout(
        xaxis={"title": "dimension of d_model", "type": "category"}, bargap=0.6,
        yaxis={"title": "|x| of the first token, root mean square 1", "rangemode": "tozero"},
    )  # fmt: skip
