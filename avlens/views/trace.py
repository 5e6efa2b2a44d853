"""Which sets of tokens carry what the answer needs?"""

import plotly.graph_objects as go

from avlens.analyses.tracing import CausalTrace
from avlens.views.style import counted, escaped, figure, joined, origin

_CLEAN, _CORRUPT = "#332288", "#D55E00"  # not those of a modality


def plot_trace(trace: CausalTrace) -> go.Figure:
    """Both indirect effects of each set, with the total effects that a perfect patch reaches as dotted lines."""
    clean, corrupt = (repr(answer) for answer in trace.answers)
    layers = f"layers {trace.layers[0]} to {trace.layers[-1]}" if trace.layers else "no layer"
    tokens = next(iter(trace.sets.values())).tokens if trace.sets else None
    fig = figure(
        f"Indirect effect of {counted(len(trace.sets), 'patched set')}",
        note=joined(
            [
                f"{', '.join(trace.sites)} of {layers}",
                _probabilities(trace),
                "dotted: total effects",
                origin(trace.made_by, tokens),
            ]
        ),
        height=460,
    )
    names = [f"{escaped(name)}<br>n = {len(tokens):,}" for name, tokens in trace.sets.items()]
    flipped = ["answers as the clean run" if flip else "answer unchanged" for flip in trace.flipped]
    for effects, total, name, colour in (
        (trace.ie_clean, trace.te_clean, f"restores {clean} (IE_clean)", _CLEAN),
        (trace.ie_corrupt, trace.te_corrupt, f"removes {corrupt} (IE_corrupt)", _CORRUPT),
    ):
        fig.add_bar(
            x=names, y=effects.double().tolist(), name=escaped(name), marker_color=colour, customdata=flipped,
            hovertemplate="%{x}<br>%{y:.4f}<br>%{customdata}<extra></extra>",
        )  # fmt: skip
        fig.add_hline(y=total, line={"color": colour, "width": 1.5, "dash": "dot"}, layer="below")
    return fig.update_layout(
        barmode="group", bargap=0.35, bargroupgap=0.08, xaxis={"type": "category"},
        yaxis={"title": "change of probability", "zeroline": True, "zerolinecolor": "#888888"},
    )  # fmt: skip


def _probabilities(trace: CausalTrace) -> str:
    clean, corrupt = float(trace.p_clean[0]), float(trace.p_corrupt[0])
    return f"P({trace.answers[0]!r}) is {clean:.3g} clean, {corrupt:.3g} corrupted"
