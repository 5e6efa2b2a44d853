"""Over many answers, what share of the tokens would the base have written too?"""

import plotly.graph_objects as go

from avlens.analyses.shift import SHIFTS, ShiftTable
from avlens.views.shift import SHIFT_COLOURS
from avlens.views.style import counted, figure, joined


def plot_shift_table(table: ShiftTable) -> go.Figure:
    """The share of each shift among all tokens, those of the words, and the others, which add up to 1."""
    kinds = [kind for kind in table.shares if table.kl[kind].n]
    of_all = table.kl["all"]
    fig = figure(
        f"Shift of {counted(of_all.n, 'token')} of {counted(of_all.n_clusters, 'answer')}",
        note=joined([f"hover: {100 * of_all.level:g}% bootstrap intervals over answers", "rank 1, 2 or 3, above 3"]),
        height=320,
    )
    names = [f"{kind} (n = {table.kl[kind].n:,})<br>KL {table.kl[kind].estimate:.2f} nats" for kind in kinds]
    for shift in SHIFTS:
        shares = [table.shares[kind][shift] for kind in kinds]
        fig.add_bar(
            y=names, x=[share.estimate for share in shares], name=shift, orientation="h", marker_color=SHIFT_COLOURS[shift],
            text=[f"{100 * share.estimate:.0f}%" if share.estimate >= 0.04 else "" for share in shares], textangle=0,
            customdata=[(share.low, share.high) for share in shares],
            hovertemplate=f"{shift}: %{{x:.1%}} [%{{customdata[0]:.1%}}, %{{customdata[1]:.1%}}]<extra></extra>",
        )  # fmt: skip
    return fig.update_layout(
        barmode="stack", bargap=0.4, margin={"l": 140},
        xaxis={"title": "share of the tokens", "range": [0, 1], "tickformat": ".0%"}, yaxis={"autorange": "reversed"},
    )  # fmt: skip
