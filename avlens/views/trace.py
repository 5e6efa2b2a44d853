"""Which sets of tokens carry what the answer needs?"""

import plotly.graph_objects as go

from avlens.analyses.tracing import CausalTrace
from avlens.views.style import CLEAN, CORRUPT, add_level, column_names, counted, escaped, figure, joined, origin


def plot_trace(trace: CausalTrace) -> go.Figure:
    """Both indirect effects of each set, with the total effects that a perfect patch reaches as dotted lines."""
    layers = f"layers {trace.layers[0]} to {trace.layers[-1]}" if trace.layers else "no layer"
    tokens = next(iter(trace.sets.values())).tokens if trace.sets else None
    names, axis = column_names(list(trace.sets), [[f"n = {len(tokens):,}"] for tokens in trace.sets.values()])
    fig = figure(
        f"Indirect effect of {counted(len(trace.sets), 'patched set')}",
        note=joined(
            [
                f"{', '.join(trace.sites)} of {layers}",
                probabilities(trace),
                "dotted: total effects",
                origin(trace.made_by, tokens),
            ]
        ),
        height=480 if axis["tickangle"] == 0 else 620,
    )
    source = "clean" if trace.direction == "denoise" else "corrupted"
    flipped = [f"answers as the {source} run" if flip else "answer unchanged" for flip in trace.flipped]
    clean, corrupt = what_patches_do(trace)
    for effects, total, name, colour in (
        (trace.ie_clean, trace.te_clean, clean, CLEAN),
        (trace.ie_corrupt, trace.te_corrupt, corrupt, CORRUPT),
    ):
        fig.add_bar(
            x=names, y=effects.double().tolist(), name=escaped(name), marker_color=colour, customdata=flipped,
            hovertemplate="%{x}<br>%{y:.4f}<br>%{customdata}<extra></extra>",
        )  # fmt: skip
        add_level(fig, total, colour)
    return fig.update_layout(
        barmode="group", bargap=0.35, bargroupgap=0.08, xaxis=axis,
        yaxis={"title": "change of probability", "zeroline": True, "zerolinecolor": "#888888"},
    )  # fmt: skip


def what_patches_do(trace: CausalTrace) -> tuple[str, str]:
    """What IE_clean and IE_corrupt say in the direction of the patches."""
    clean, corrupt = (repr(answer) for answer in trace.answers)
    restores, removes = ("restores", "removes") if trace.direction == "denoise" else ("destroys", "brings")
    return f"{restores} {clean} (IE_clean)", f"{removes} {corrupt} (IE_corrupt)"


def probabilities(trace: CausalTrace) -> str:
    """That of the clean answer in both runs."""
    clean, corrupt = float(trace.p_clean[0]), float(trace.p_corrupt[0])
    return f"P({trace.answers[0]!r}) is {clean:.3g} clean, {corrupt:.3g} corrupted"
