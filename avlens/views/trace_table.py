"""Over many clips, which sets of tokens carry what the answer needs, and how sure is it?"""

import math
from collections.abc import Sequence

import plotly.graph_objects as go

from avlens.metrics.effects import Interval
from avlens.tables import SetEffect, TraceTable
from avlens.views.style import CLEAN, CORRUPT, add_level, column_names, counted, figure, joined


def plot_trace_table(table: TraceTable) -> go.Figure:
    """Mean indirect effects of each set with their intervals, and the mean total effects as dotted lines."""
    names, axis = column_names([row.name for row in table.rows], [_size(row) for row in table.rows])
    fig = figure(
        f"Indirect effect of {counted(len(table.rows), 'patched set')} over {counted(table.te_clean.n, 'clip')}",
        note=joined(
            [
                table.direction,
                f"bars: means, with {100 * table.te_clean.level:g}% bootstrap intervals over clips",
                "dotted: mean total effects",
            ]
        ),
        height=480 if axis["tickangle"] == 0 else 620,
    )
    flips = [f"flipped {100 * row.flipped:.0f}%" if math.isfinite(row.flipped) else "" for row in table.rows]
    denoise = table.direction == "denoise"
    for effects, total, name, colour in (
        ([r.ie_clean for r in table.rows], table.te_clean, "restores" if denoise else "destroys", CLEAN),
        ([r.ie_corrupt for r in table.rows], table.te_corrupt, "removes" if denoise else "brings", CORRUPT),
    ):
        answer = "clean answer (IE_clean)" if colour == CLEAN else "corrupted answer (IE_corrupt)"
        fig.add_bar(
            x=names, y=[effect.estimate for effect in effects], name=f"{name} the {answer}", marker_color=colour,
            error_y=ends(effects), customdata=list(zip(map(said, effects), flips, strict=True)),
            hovertemplate="%{x}<br>%{customdata[0]}<br>%{customdata[1]}<extra></extra>",
        )  # fmt: skip
        add_level(fig, total.estimate, colour)
    return fig.update_layout(
        barmode="group", bargap=0.35, bargroupgap=0.08, xaxis=axis,
        yaxis={"title": "mean change of probability", "zeroline": True, "zerolinecolor": "#888888"},
    )  # fmt: skip


def ends(effects: Sequence[Interval]) -> dict[str, object]:
    """How far each interval reaches up and down; nothing where a single clip says not how sure it is."""
    up = [effect.high - effect.estimate for effect in effects]
    down = [effect.estimate - effect.low for effect in effects]
    return {"type": "data", "array": up, "arrayminus": down, "color": "#555555", "thickness": 1.5, "width": 5}


def _size(row: SetEffect) -> list[str]:
    size = f"{row.tokens:,.0f} tokens" if math.isfinite(row.tokens) else "no token"
    return [size, counted(row.clips, "clip")]


def said(effect: Interval) -> str:
    """An estimate with its interval."""
    if not math.isfinite(effect.estimate):
        return "not known"
    known = math.isfinite(effect.low) and math.isfinite(effect.high)
    return f"{effect.estimate:.4f}" + (f" [{effect.low:.4f}, {effect.high:.4f}]" if known else "")
