"""Which heads carry the answer from one group of tokens to another?"""

import plotly.graph_objects as go

from avlens.analyses.transport import Transport
from avlens.views.patch_effects import panels, share_axis, told
from avlens.views.style import counted, escaped, figure, joined, origin


def plot_transport(transport: Transport) -> go.Figure:
    """The share of the total effect that each head of each layer carries along each edge; a gap where it was not run."""
    shares = transport.scores / transport.contrast.total
    fig = figure(
        f"Transport along {counted(len(transport.edges), 'edge')}, by head",
        note=joined(
            [transport.made_by.get("method", ""), told(transport.contrast, transport.direction), origin(transport.made_by)]
        ),
    )  # fmt: skip
    titles = [
        f"{escaped(edge)}<br>sum {float(share.nansum()):+.2f}"
        for edge, share in zip(transport.edges, shares, strict=True)
    ]
    panels(fig, dict(zip(titles, shares, strict=True)), range(shares.shape[1]))
    return fig.update_layout(coloraxis=share_axis(float(shares.nan_to_num().abs().max())))
