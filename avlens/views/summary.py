"""Over many clips, what is a value in each group, or how far do groups lie from one of them, and how sure is it?"""

from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go

from avlens.metrics.effects import Interval
from avlens.summaries import Comparison, Summary
from avlens.tokens import Modality
from avlens.views.style import CLEAN, COLOURS, CORRUPT, CROSS_MODAL, counted, escaped, figure, joined

_LINES = (
    CLEAN,
    CORRUPT,
    CROSS_MODAL,
    COLOURS[Modality.VIDEO],
    COLOURS[Modality.AUDIO],
    COLOURS[Modality.SEPARATOR],
    "#666666",
)


def plot_summary(summary: Summary) -> go.Figure:
    """Means with their intervals: along a numeric column as lines, else as points."""
    clips = max((one.n_clusters for one in summary.intervals), default=0)
    fig = figure(
        f"{summary.value} over {counted(clips, 'clip')}",
        note=joined([f"by {', '.join(summary.by)}" if summary.by else "", _level(summary.intervals)]),
    )
    return _drawn(fig, summary.groups, summary.by, summary.intervals).update_yaxes(title=escaped(summary.value))


def plot_comparison(comparison: Comparison) -> go.Figure:
    """Differences with their intervals, filled where the corrected p is below the level that the intervals leave."""
    level = comparison.differences[0].level if comparison.differences else 0.95
    fig = figure(
        f"{comparison.value}: {comparison.of} minus {comparison.against}",
        note=joined(
            [
                _level(comparison.differences),
                f"filled: p below {1 - level:.2g}, {comparison.correction} over {len(comparison.p)}",
            ]
        ),
    )
    found = [p < 1 - level for p in comparison.p_adjusted]
    _drawn(fig, comparison.groups, (*comparison.by, comparison.of), comparison.differences, found)
    return fig.add_hline(y=0, line={"color": "#888888", "width": 1}, layer="below").update_yaxes(
        title=escaped(f"difference of {comparison.value}")
    )


def _level(intervals: Sequence[Interval]) -> str:
    return f"{100 * intervals[0].level:g}% bootstrap intervals over clips" if intervals else "nothing to show"


def _drawn(
    fig: go.Figure, groups: Sequence[tuple[Any, ...]], by: tuple[str, ...], intervals: Sequence[Interval],
    found: Sequence[bool] | None = None,
) -> go.Figure:  # fmt: skip
    """One line per group of the other columns, along a column of numbers; else one point per group."""
    along = next(
        (i for i in range(len(by)) if groups and all(isinstance(group[i], (int, float)) for group in groups)), None
    )
    lines: dict[str, list[int]] = {}
    for row, group in enumerate(groups):
        lines.setdefault(_name(group[:along] + group[along + 1 :] if along is not None else ()), []).append(row)
    for number, (name, rows) in enumerate(lines.items()):
        colour = _LINES[number % len(_LINES)]
        shown = [intervals[row] for row in rows]
        inside = [colour if found is None or found[row] else "#F7F7F7" for row in rows]
        fig.add_scatter(
            x=[groups[row][along] if along is not None else _name(groups[row]) for row in rows],
            y=[one.estimate for one in shown], name=name, mode="markers" if along is None else "lines+markers",
            showlegend=along is not None and bool(name), line={"color": colour, "width": 2},
            marker={"size": 9, "color": inside, "line": {"color": colour, "width": 1.5}},
            error_y={
                "type": "data", "array": [one.high - one.estimate for one in shown],
                "arrayminus": [one.estimate - one.low for one in shown], "color": colour, "thickness": 1.2, "width": 4,
            },
            customdata=[f"{one!r}" for one in shown], hovertemplate="%{x}<br>%{customdata}<extra></extra>",
        )  # fmt: skip
    title = "" if along is None else escaped(by[along])
    return fig.update_xaxes(title=title, type="category" if along is None else "linear")


def _name(group: tuple[Any, ...]) -> str:
    return escaped(", ".join(map(str, group))) or "all"
