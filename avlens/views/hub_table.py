"""Over many clips, which sets carry the answer where audio decides, and which where video does?"""

import math

import plotly.graph_objects as go

from avlens.hub_table import HubTable
from avlens.tables import TraceTable
from avlens.views.style import CLEAN, CORRUPT, counted, escaped, figure, joined, origin, without_data
from avlens.views.trace_table import ends, said

_PATCHED = {"audio dominant": "video tokens patched", "video dominant": "audio tokens patched"}
_SET, _GAP = 40, 0.04  # pixels of a set; of the plot's width, between two cases


def plot_hub_table(table: HubTable) -> go.Figure:
    """For each case the mean indirect effects of each set with their intervals, and the mean total effects as dotted lines."""
    cases = table.tables
    clips, sets = (
        sum(one.te_clean.n for one in cases.values()),
        max((len(one.rows) for one in cases.values()), default=1),
    )
    level = next((one.te_clean.level for one in cases.values()), 0.95)
    fig = figure(
        f"Indirect effects in {counted(clips, 'clip')} that one modality decides",
        note=joined(
            [
                f"bars: means, with {100 * level:g}% bootstrap intervals over clips",
                "dotted: mean total effects",
                origin(table.made_by),
            ]
        ),
        height=230 + _SET * sets,
        flush=True,
    )
    if not cases:
        return without_data(fig, "no clip that one modality decides")
    width = (1 + _GAP) / len(cases) - _GAP
    for i, (case, one) in enumerate(cases.items()):
        number, left = f"{i + 1}" if i else "", i * (width + _GAP)
        _add_case(fig, one, number)
        fig.update_layout(
            {
                f"xaxis{number}": {
                    "domain": [left, left + width], "anchor": f"y{number}", "title": "mean change of probability",
                    "zeroline": True, "zerolinecolor": "#888888",
                },
                f"yaxis{number}": {
                    "anchor": f"x{number}", "autorange": "reversed", "automargin": True, "showticklabels": not i,
                    "type": "category", "ticksuffix": "  ",
                },
            }
        )  # fmt: skip
        fig.add_annotation(
            text=f"{case}<br>{_PATCHED[case]} ({counted(one.te_clean.n, 'clip')})", x=left, y=1, xref="paper", yref="paper",
            xanchor="left", yanchor="bottom", align="left", showarrow=False, font={"size": 12, "color": "#666666"},
        )  # fmt: skip
    return fig.update_layout(
        barmode="group", bargap=0.3, bargroupgap=0.05, margin={"t": fig.layout.margin.t + 64},
        legend={"y": 1 + 42 / (_SET * sets)},
    )  # fmt: skip


def _add_case(fig: go.Figure, table: TraceTable, number: str) -> None:
    denoise = table.direction == "denoise"
    names = [escaped(row.name) for row in table.rows]
    sizes = [
        f"{row.tokens:,.0f} tokens, {counted(row.clips, 'clip')}" if row.clips else "no token" for row in table.rows
    ]
    for effects, total, name, colour in (
        ([r.ie_clean for r in table.rows], table.te_clean, "restores" if denoise else "destroys", CLEAN),
        ([r.ie_corrupt for r in table.rows], table.te_corrupt, "removes" if denoise else "brings", CORRUPT),
    ):
        answer = "clean answer (IE_clean)" if colour == CLEAN else "corrupted answer (IE_corrupt)"
        fig.add_bar(
            y=names, x=[effect.estimate for effect in effects], orientation="h", name=f"{name} the {answer}",
            marker_color=colour, error_x=ends(effects), customdata=list(zip(map(said, effects), sizes, strict=True)),
            hovertemplate="%{y}<br>%{customdata[0]}<br>%{customdata[1]}<extra></extra>", legendgroup=name,
            showlegend=not number, xaxis=f"x{number}", yaxis=f"y{number}",
        )  # fmt: skip
        if math.isfinite(total.estimate):
            fig.add_shape(
                type="line", y0=0, y1=1, x0=total.estimate, x1=total.estimate, yref=f"y{number} domain", xref=f"x{number}",
                line={"color": colour, "width": 1.5, "dash": "dot"}, layer="below",
            )  # fmt: skip
