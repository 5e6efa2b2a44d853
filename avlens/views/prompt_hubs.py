"""How strong is each sink of a prompt, who reads it, and which of them are cross-modal hubs?"""

import plotly.graph_objects as go

from avlens.hubs import PromptHubs
from avlens.tokens import Modality
from avlens.views.style import COLOURS, CROSS_MODAL, counted, escaped, figure, joined, origin, without_data


def plot_prompt_hubs(found: PromptHubs) -> go.Figure:
    """Each scored sink by its modality dominance and its largest energy; diamonds are cross-modal."""
    dominance, hubs = found.dominance, found.hubs
    tokens, mean = dominance.sinks.tokens, dominance.mean
    unscored = int(mean.isnan().sum())
    fig = figure(
        f"{counted(len(hubs.cross), 'cross-modal sink')} of {len(dominance.sinks)}",
        note=joined(
            [
                f"split by {hubs.method}",
                f"mean over {counted(len(dominance.layers), 'layer')}",
                f"{unscored} that nothing later reads left out" if unscored else "",
                origin(dominance.made_by, tokens),
            ]
        ),
        height=420,
    )
    if unscored == len(mean):
        return without_data(fig, "no sink that later tokens read")
    energy = found.sinks.energy.amax(0)
    for kind in (Modality.VIDEO, Modality.AUDIO):
        for part, name, symbol in ((hubs.uni, "unimodal", "circle"), (hubs.cross, "cross-modal", "diamond")):
            mine = [i for i, p in enumerate(dominance.sinks) if tokens.modality[p] == kind and p in part]
            if mine:
                at = dominance.sinks.positions[mine]
                labels = [escaped(f"{tokens.labels[p]} @{p}") for p in at.tolist()]
                ring = {"color": CROSS_MODAL if part is hubs.cross else "#888888", "width": 2}
                fig.add_scatter(
                    x=mean[mine].double().tolist(), y=energy[at].double().tolist(), mode="markers", text=labels,
                    name=f"{kind.name.lower()}, {name} (n = {len(mine)})",
                    marker={"symbol": symbol, "size": 12, "color": COLOURS[kind], "opacity": 0.85, "line": ring},
                    hovertemplate="%{text}<br>MDS %{x:.3f}, energy %{y:.3f}<extra></extra>",
                )  # fmt: skip
    fig.add_hline(y=found.sinks.threshold, line={"color": "#888888", "width": 1, "dash": "dot"}, layer="below")
    return fig.update_layout(
        xaxis={"title": "read by audio   ←   MDS   →   read by video", "range": [-1.05, 1.05], "zerolinecolor": "#888888"},
        yaxis={"title": "largest energy (dotted: threshold)", "rangemode": "tozero"},
    )  # fmt: skip
