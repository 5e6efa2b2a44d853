"""At the step that writes a word, how much does the model read which tokens?"""

import plotly.graph_objects as go

from avlens.analyses.dynamics import AttentionDynamics
from avlens.views.style import colours_of, counted, escaped, figure, joined, origin

_MOST_TICKS = 40


def plot_dynamics(dynamics: AttentionDynamics) -> go.Figure:
    """Attention per token of each set at each step, mean over layers, with the words that were looked for shaded.

    A set takes the colour of its modality if it is the first of it.
    """
    steps, whole = list(range(len(dynamics.strings))), next(iter(dynamics.sets.values()), None)
    fig = figure(
        f"Attention while {counted(len(steps), 'token')} were written",
        note=joined(
            [
                f"mean over heads and {counted(len(dynamics.layers), 'layer')}",
                origin(dynamics.made_by, None if whole is None else whole.tokens),
            ]
        ),
        height=440,
    )
    written = [escaped(_visible(string)) for string in dynamics.strings]
    means = dynamics.attention.double().mean(1).tolist()
    for (name, tokens), y, colour in zip(dynamics.sets.items(), means, colours_of(dynamics.sets), strict=True):
        fig.add_scatter(
            x=steps, y=y, mode="lines+markers", name=f"{escaped(name)} (n = {len(tokens):,})", customdata=written,
            line={"color": colour, "width": 2}, marker={"size": 5},
            hovertemplate=f"{escaped(name)}<br>step %{{x}}, %{{customdata}}: %{{y:.3g}}<extra></extra>",
        )  # fmt: skip
    for word, spans in dynamics.words.items():
        for span in spans:
            _shade(fig, word, span)
    every = -(-len(steps) // _MOST_TICKS) or 1
    return fig.update_layout(
        margin={"b": 96},
        xaxis={"tickvals": steps[::every], "ticktext": written[::every], "tickangle": -60, "showgrid": False, "zeroline": False},
        yaxis={"title": "mean attention per token", "rangemode": "tozero", "exponentformat": "power"},
    )  # fmt: skip


def _shade(fig: go.Figure, word: str, span: tuple[int, ...]) -> None:
    if span:
        fig.add_vrect(
            x0=span[0] - 0.5, x1=span[-1] + 0.5, fillcolor="#000000", opacity=0.07, line_width=0, layer="below"
        )
        fig.add_annotation(
            text=escaped(word), x=(span[0] + span[-1]) / 2, y=1, yref="paper", yanchor="top", showarrow=False,
            font={"size": 11, "color": "#666666"},
        )  # fmt: skip


def _visible(string: str) -> str:
    """A token as a tick, so that none is blank."""
    return string.replace("\n", "⏎").strip() or "␣"
