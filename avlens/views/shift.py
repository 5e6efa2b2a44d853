"""Which tokens of an answer would the base have written too?"""

import plotly.graph_objects as go

from avlens.analyses.shift import SHIFTS, TokenShift
from avlens.views.style import counted, escaped, figure, joined, origin

SHIFT_COLOURS = dict(zip(SHIFTS, ("#BBBBBB", "#DDAA33", "#BB5566"), strict=True))
"""The colour of each kind of token."""

_MOST_TICKS = 40


def plot_shift(shift: TokenShift) -> go.Figure:
    """KL(model || base) at each token, coloured by its rank among the base's; words that were looked for are shaded."""
    steps = list(range(len(shift.tokens)))
    rows = shift.to_frame()
    fig = figure(
        f"{counted(int((shift.rank > 1).sum()), 'token')} of {len(steps)} that the base would not have written",
        note=joined(
            [f"base: {shift.made_by.get('base', '')}", "rank 1 unshifted, 2 or 3 marginal, above shifted", origin(shift.made_by)]
        ),
        height=400,
    )  # fmt: skip
    for kind in SHIFTS:
        its = [step for step in steps if shift.shifts[step] == kind]
        said = [
            (
                escaped(rows["token"][i]),
                escaped(rows["base"][i]),
                int(shift.rank[i]),
                float(shift.p[i]),
                float(shift.p_base[i]),
            )
            for i in its
        ]
        fig.add_bar(
            x=its, y=shift.kl[its].double().tolist(), name=f"{kind} (n = {len(its)})", marker_color=SHIFT_COLOURS[kind],
            customdata=said,
            hovertemplate="%{customdata[0]}<br>rank %{customdata[2]}; the base says %{customdata[1]}<br>"
            "P %{customdata[3]:.3g}, base %{customdata[4]:.3g}<br>KL %{y:.3g} nats<extra></extra>",
        )  # fmt: skip
    for spans in shift.words.values():
        for span in spans:
            fig.add_vrect(
                x0=span[0] - 0.5, x1=span[-1] + 0.5, fillcolor="#888888", opacity=0.2, line_width=0, layer="below"
            )
    every = -(-len(steps) // _MOST_TICKS)
    written = [escaped(string.replace("\n", "⏎").strip() or "␣") for string in shift.strings]
    return fig.update_layout(
        bargap=0.25, margin={"b": 96},
        xaxis={"tickvals": steps[::every], "ticktext": written[::every], "tickangle": -60, "showgrid": False, "zeroline": False},
        yaxis={"title": "KL (model || base) in nats", "rangemode": "tozero"},
    )  # fmt: skip
