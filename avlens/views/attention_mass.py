"""How much of their attention do the question, the last and the generated tokens pay to each group of tokens, layer by layer?"""

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from avlens.analyses.attention_mass import REST, AttentionMass
from avlens.display import MODALITY_COLOURS
from avlens.views.style import counted, escaped, figure, joined, origin, told_apart

_HEIGHT = 280


def plot_attention_mass(attention: AttentionMass) -> go.Figure:
    """For each group of queries, its attention to each group of keys by layer, mean over heads; dotted without sinks."""
    shown = [i for i, n in enumerate(attention.n_queries) if n]
    titles = [
        f"{attention.queries[i]} ({counted(attention.n_queries[i], 'query').replace('querys', 'queries')})"
        for i in shown
    ]
    sinks = bool((attention.to_sinks > 0).any())
    style = figure(
        "Attention by group of tokens",
        note=joined(
            [
                f"mean over {counted(attention.mass.shape[-1], 'head')}",
                "dotted: sinks left out, and the rest shared out anew" if sinks else "",
                origin(attention.made_by),
            ]
        ),
        height=150 + _HEIGHT * -(-len(shown) // 2),
    )
    rows = max(1, -(-len(shown) // 2))
    fig = make_subplots(
        rows=rows, cols=min(2, max(1, len(shown))), subplot_titles=[escaped(title) for title in titles], shared_yaxes=True,
        vertical_spacing=0.3 / rows, horizontal_spacing=0.06,
    )  # fmt: skip
    fig.update_layout(style.layout)
    fig.update_annotations(font={"size": 12, "color": "#666666"}, yshift=4)
    for place, i in enumerate(shown):
        _add_group(fig, attention, i, place, sinks=sinks)
    fig.update_yaxes(range=[0, 1.02], showgrid=True)
    fig.update_yaxes(title="share of attention", col=1)
    few = {"dtick": 1} if len(attention.layers) <= 16 else {}
    ends = [attention.layers[0], attention.layers[-1]] if len(attention.layers) else [0, 0]
    room = 0.03 * max(1, ends[1] - ends[0])
    fig.update_xaxes(showgrid=False, zeroline=False, range=[ends[0] - room, ends[1] + room], **few)
    for column in range(1, min(2, len(shown)) + 1):
        fig.update_xaxes(title="layer", row=rows, col=column)
    return fig.update_layout(
        hovermode="x unified", legend={"orientation": "v", "x": 1.02, "xanchor": "left", "y": 1, "yanchor": "top"}
    )


def _add_group(fig: go.Figure, attention: AttentionMass, i: int, place: int, *, sinks: bool) -> None:
    where = {"row": place // 2 + 1, "col": place % 2 + 1}
    layers = list(attention.layers)
    mode = "lines" if len(layers) > 1 else "markers"
    for j, (key, (colour, _)) in enumerate(zip(attention.keys, told_apart(attention.keys), strict=True)):
        colour = MODALITY_COLOURS["special"] if key == REST else colour
        fig.add_scatter(
            x=layers, y=attention.mass[i, j].double().mean(-1).tolist(), name=escaped(key), legendgroup=key, mode=mode,
            showlegend=place == 0, line={"color": colour, "width": 2}, hovertemplate="%{y:.3f}", **where,
        )  # fmt: skip
        if sinks:
            fig.add_scatter(
                x=layers, y=attention.without_sinks[i, j].double().mean(-1).tolist(), name=f"{escaped(key)}, without sinks",
                legendgroup=key, mode=mode, showlegend=False, line={"color": colour, "width": 1.5, "dash": "dot"},
                hovertemplate="%{y:.3f}", **where,
            )  # fmt: skip
