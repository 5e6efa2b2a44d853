"""How many sinks of each modality are read by their own modality, and how many by the other?"""

import plotly.graph_objects as go

from avlens.analyses.dominance import Hubs
from avlens.tokens import Modality
from avlens.views.style import COLOURS, CROSS_MODAL, counted, figure, joined, question_of, without_data


def plot_hubs(hubs: Hubs) -> go.Figure:
    """Unimodal, cross-modal and unscored sinks of audio and of video."""
    sets = {"unimodal": hubs.uni, "cross-modal": hubs.cross, "nothing later reads": hubs.unscored}
    n, question = sum(len(tokens) for tokens in sets.values()), question_of(hubs.uni.tokens)
    fig = figure(
        f"{counted(len(hubs.cross), 'cross-modal sink')} of {n:,}",
        note=joined([f"split by {hubs.method}", f"“{question}”" if question else ""]),
        height=320,
    )
    if not n:
        return without_data(fig, "no sinks of video or audio")
    kinds = (Modality.VIDEO, Modality.AUDIO)
    for name, tokens in sets.items():
        mine = tokens.tokens.modality[tokens.positions]
        counts = [int((mine == kind).sum()) for kind in kinds]
        colours = {"unimodal": [COLOURS[kind] for kind in kinds], "cross-modal": CROSS_MODAL}.get(name, "#CCCCCC")
        fig.add_bar(
            y=[kind.name.lower() for kind in kinds], x=counts, name=f"{name} (n = {sum(counts)})", orientation="h",
            marker_color=colours, text=[count or "" for count in counts], textposition="inside", insidetextanchor="middle",
            hovertemplate=f"%{{y}}, {name}: %{{x}}<extra></extra>",
        )  # fmt: skip
    return fig.update_layout(
        barmode="stack", bargap=0.4, xaxis={"title": "sinks", "rangemode": "tozero"}, legend={"traceorder": "normal"}
    )
