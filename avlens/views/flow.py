"""Through which layers does what a group of tokens holds reach another group?"""

import math
from collections.abc import Sequence

import plotly.graph_objects as go

from avlens.analyses.flow import InformationFlow, Measure
from avlens.edges import Edge
from avlens.metrics.effects import Interval
from avlens.views.style import counted, escaped, figure, joined, origin, told_apart

_UNITS = {
    "change": "change of the answer's probability, %",
    "logit_diff": "change of the logit difference",
    "flipped": "flipped",
}
_FADED = 0.15


def plot_flow(
    flow: InformationFlow, *, measure: Measure = "change", edges: Sequence[str | Edge] | None = None
) -> go.Figure:
    """A curve over layers for each edge, with its interval over prompts as a band and its control dotted.

    Args:
        flow: What was cut.
        measure: `change`, `logit_diff` or `flipped`.
        edges: Which to draw; by default all.
    """
    chosen = list(flow.edges) if edges is None else [Edge.parse(edge) for edge in edges]
    fig = figure(
        f"What cutting {counted(len(chosen), 'edge')} does to the answer", note=_note(flow, measure), height=470
    )
    for edge, (colour, dash) in zip(chosen, told_apart([str(edge) for edge in chosen]), strict=True):
        curve = flow.curve(edge, measure)
        _add_band(fig, flow.layers, curve, colour)
        forbidden = "" if int(flow.pairs[flow.index(edge)].sum()) else ", which causality forbids"
        fig.add_scatter(
            x=list(flow.layers), y=[mean.estimate for mean in curve], name=escaped(str(edge) + forbidden), legendgroup=str(edge),
            line={"color": colour, "width": 2, "dash": dash}, mode="lines+markers", marker={"size": 6},
            customdata=[_told(mean) for mean in curve], hovertemplate="%{customdata}",
        )  # fmt: skip
        if measure == "change" and flow.p_control.shape[1]:
            fig.add_scatter(
                x=list(flow.layers), y=flow.control_change[flow.index(edge)].nanmean(-1).tolist(), showlegend=False, mode="lines",
                line={"color": colour, "width": 1, "dash": "dot"}, name="as many random edges", legendgroup=str(edge),
                hovertemplate="%{y:.3g}",
            )  # fmt: skip
    few = {"dtick": 1} if len(flow.layers) <= 32 else {}
    return fig.update_layout(
        hovermode="x unified", legend={"orientation": "v", "x": 1.02, "xanchor": "left", "y": 1, "yanchor": "top"},
        xaxis={"title": _axis(flow), "showgrid": False, "zeroline": False, **few},
        yaxis={"title": _UNITS[measure], "zeroline": True, "zerolinecolor": "#888888"},
    )  # fmt: skip


def _note(flow: InformationFlow, measure: Measure) -> str:
    answers = {answer.strip() for answer in flow.answers}
    return joined(
        [
            f"P of {next(iter(answers))!r}" if len(answers) == 1 else "P of each prompt's answer",
            f"plainly {float(flow.p_base.mean()):.3g}" + (" on average" if len(flow.p_base) > 1 else ""),
            "bands: 95% over prompts" if len(flow.p_base) > 1 else "",
            "dotted: as many random edges" if measure == "change" and flow.p_control.shape[1] else "",
            origin(flow.made_by),
        ]
    )


def _axis(flow: InformationFlow) -> str:
    if flow.sweep == "window":
        return "layer" if flow.window == 1 else f"layer at the centre of {flow.window} that are cut"
    if flow.sweep == "inverse":
        return f"layer at the centre of {flow.window} that are left, all others cut"
    return (
        "first layer that is cut, up to the last"
        if flow.sweep == "top_down"
        else "last layer that is cut, from the first"
    )


def _add_band(fig: go.Figure, layers: Sequence[int], curve: Sequence[Interval], colour: str) -> None:
    known = [(layer, mean) for layer, mean in zip(layers, curve, strict=True) if not math.isnan(mean.low)]
    there, back = [layer for layer, _ in known], [layer for layer, _ in reversed(known)]
    if known:
        fig.add_scatter(
            x=there + back, y=[mean.high for _, mean in known] + [mean.low for _, mean in reversed(known)], fill="toself",
            fillcolor=colour, opacity=_FADED, line={"width": 0}, mode="lines", showlegend=False, hoverinfo="skip",
        )  # fmt: skip


def _told(mean: Interval) -> str:
    if math.isnan(mean.estimate):
        return "not known"
    ends = "" if math.isnan(mean.low) else f" [{mean.low:.3g}, {mean.high:.3g}]"
    return f"{mean.estimate:.3g}{ends}, n = {mean.n}"
