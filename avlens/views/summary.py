"""Over many clips, what is a value in each group, or how far do groups lie from one of them, and how sure is it?"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import plotly.graph_objects as go

from avlens.metrics.effects import Interval
from avlens.summaries import Comparison, Summary
from avlens.views.style import counted, escaped, figure, joined, told_apart

Group = tuple[Any, ...]

_ROW, _AROUND = 24, 150  # pixels of a row of points, and of all that is around them
_HOLLOW, _FADED = "#F7F7F7", 0.15


def plot_summary(summary: Summary) -> go.Figure:
    """Means with their intervals: along a numeric column as lines with bands, else a row for each group."""
    note = [f"by {', '.join(summary.by)}" if summary.by else "", _level(summary.intervals)]
    return _drawn(f"{summary.value} over {_clips(summary.intervals)}", note, summary.value, summary.groups, summary.by,
                  summary.intervals, [True] * len(summary.groups))  # fmt: skip


def plot_comparison(comparison: Comparison) -> go.Figure:
    """Differences with their intervals, filled where the corrected p is below the level that the intervals leave."""
    level = comparison.differences[0].level if comparison.differences else 0.95
    corrected = "not corrected" if comparison.correction == "none" else f"corrected ({comparison.correction})"
    note = [
        _level(comparison.differences),
        f"filled: p < {1 - level:.2g}, {corrected} for {len(comparison.p)} comparisons",
    ]
    title = f"{comparison.value}: {comparison.of} minus {comparison.against}, {_clips(comparison.differences)}"
    found = [p < 1 - level for p in comparison.p_adjusted]
    by, value = (*comparison.by, comparison.of), f"difference of {comparison.value}"
    return _drawn(title, note, value, comparison.groups, by, comparison.differences, found, zero=True)


def _drawn(
    title: str, note: list[str], value: str, groups: Sequence[Group], by: tuple[str, ...], intervals: Sequence[Interval],
    found: Sequence[bool], *, zero: bool = False,
) -> go.Figure:  # fmt: skip
    """Lines along the first column of numbers, one for each group of the others; without one, a row for each group."""
    along = next((i for i in range(len(by)) if groups and all(_is_number(group[i]) for group in groups)), None)
    if along is None:
        return _rows(title, note, value, groups, by, intervals, found, zero=zero)
    fig = figure(title, note=joined(note), height=470)
    lines: dict[str, list[int]] = {}
    for row, group in enumerate(groups):
        lines.setdefault(_name(group[:along] + group[along + 1 :]), []).append(row)
    for (name, rows), (colour, dash) in zip(lines.items(), told_apart(list(lines)), strict=True):
        rows = sorted(rows, key=lambda row: groups[row][along])
        x, its = [groups[row][along] for row in rows], [intervals[row] for row in rows]
        _add_bands(fig, x, its, colour)
        fig.add_scatter(
            x=x, y=[one.estimate for one in its], name=name, legendgroup=name, mode="lines+markers", showlegend=len(lines) > 1,
            line={"color": colour, "width": 2, "dash": dash}, marker=_marker(colour, [found[row] for row in rows], 7),
            customdata=[_told(one) for one in its], hovertemplate="%{customdata}",
        )  # fmt: skip
    ticks = (
        {"dtick": 1}
        if all(isinstance(group[along], int) for group in groups) and len(groups) <= 32 * len(lines)
        else {}
    )
    if zero:
        fig.add_hline(y=0, line={"color": "#888888", "width": 1}, layer="below")
    return fig.update_layout(
        hovermode="x unified", legend={"orientation": "v", "x": 1.02, "xanchor": "left", "y": 1, "yanchor": "top"},
        xaxis={"title": escaped(by[along]), "showgrid": False, "zeroline": False, **ticks}, yaxis={"title": escaped(value)},
    )  # fmt: skip


def _rows(
    title: str, note: list[str], value: str, groups: Sequence[Group], by: tuple[str, ...], intervals: Sequence[Interval],
    found: Sequence[bool], *, zero: bool,
) -> go.Figure:  # fmt: skip
    """A row for each group, from top to bottom, in a colour for each value of the first column where there are several."""
    n = [one.n_clusters for one in intervals]
    differ = len(set(n)) > 1
    fig = figure(
        title,
        note=joined([*note, "in brackets: clips" if differ else ""]),
        height=_AROUND + _ROW * max(3, len(n)),
        flush=True,
    )
    parts = dict.fromkeys(group[0] for group in groups) if len(by) > 1 else {"": None}
    for part, (colour, _) in zip(parts, told_apart([str(part) for part in parts]), strict=True):
        rows = [row for row, group in enumerate(groups) if len(by) < 2 or group[0] == part]
        names = [
            _name(groups[row][1:] if len(by) > 1 else groups[row]) + (f" ({n[row]})" if differ else "") for row in rows
        ]
        its = [intervals[row] for row in rows]
        fig.add_scatter(
            x=[one.estimate for one in its], y=[[_name((part,))] * len(rows), names] if len(by) > 1 else names, mode="markers",
            showlegend=False, name=_name((part,)), marker=_marker(colour, [found[row] for row in rows], 9),
            customdata=[_told(one) for one in its], hovertemplate="%{customdata}<extra></extra>",
            error_x={
                "type": "data", "array": [one.high - one.estimate for one in its], "color": colour, "thickness": 1.5, "width": 4,
                "arrayminus": [one.estimate - one.low for one in its],
            },
        )  # fmt: skip
    if zero:
        fig.add_vline(x=0, line={"color": "#888888", "width": 1}, layer="below")
    fig.update_xaxes(title=escaped(value), zeroline=False, showgrid=True)
    return fig.update_yaxes(
        autorange="reversed", automargin=True, showgrid=False, dividercolor="#CCCCCC", dividerwidth=1
    )


def _add_bands(fig: go.Figure, x: Sequence[float], intervals: Sequence[Interval], colour: str) -> None:
    """The interval around each stretch of a line in which it is known."""
    for known in _stretches(x, intervals):
        there, back = [at for at, _ in known], [at for at, _ in reversed(known)]
        fig.add_scatter(
            x=there + back, y=[one.high for _, one in known] + [one.low for _, one in reversed(known)], fill="toself",
            fillcolor=colour, opacity=_FADED, line={"width": 0}, mode="lines", showlegend=False, hoverinfo="skip",
        )  # fmt: skip


def _stretches(x: Sequence[float], intervals: Sequence[Interval]) -> Iterator[list[tuple[float, Interval]]]:
    known: list[tuple[float, Interval]] = []
    for at, one in zip(x, intervals, strict=True):
        if math.isnan(one.low):
            if known:
                yield known
            known = []
        else:
            known.append((at, one))
    if known:
        yield known


def _marker(colour: str, found: Sequence[bool], size: int) -> dict[str, Any]:
    inside = [colour if one else _HOLLOW for one in found]
    return {"size": size, "color": inside, "line": {"color": colour, "width": 1.5}}


def _told(one: Interval) -> str:
    if math.isnan(one.estimate):
        return "not known"
    ends = "" if math.isnan(one.low) else f" [{one.low:.3g}, {one.high:.3g}]"
    return f"{one.estimate:.3g}{ends}, {counted(one.n_clusters, 'clip')}"


def _level(intervals: Sequence[Interval]) -> str:
    if not intervals:
        return "nothing to show"
    if all(math.isnan(one.low) for one in intervals):
        return "too few clips for intervals"
    return f"{100 * intervals[0].level:g}% bootstrap intervals over clips"


def _clips(intervals: Sequence[Interval]) -> str:
    """How many clips there are, or between which numbers in the groups."""
    n = [one.n_clusters for one in intervals] or [0]
    return counted(n[0], "clip") if min(n) == max(n) else f"{min(n):,} to {counted(max(n), 'clip')}"


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _name(group: Group) -> str:
    return escaped(", ".join(map(str, group))) or "all"
