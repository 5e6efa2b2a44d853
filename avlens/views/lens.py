"""What would the model say after each layer, at each token?"""

import plotly.graph_objects as go

from avlens.analyses.logit_lens import LogitLens
from avlens.views.style import SEQUENTIAL, counted, escaped, figure, joined, origin

MOST_WRITTEN = 40
"""Up to how many tokens the cells hold their words; with more, hovering tells them."""


def plot_lens(lens: LogitLens) -> go.Figure:
    """The likeliest word of each layer (the last on top) and token, coloured by its probability."""
    n, written = len(lens.tokens), len(lens.tokens) <= MOST_WRITTEN
    fig = figure(
        f"What {counted(len(lens.layers), 'layer')} would say at {counted(n, 'token')}",
        note=joined(
            [
                lens.made_by.get("lens", ""),
                f"{lens.site}, {'with' if lens.norm else 'without'} the final norm",
                "" if written else "hover for words",
                origin(lens.made_by, lens.tokens.tokens),
            ]
        ),
        height=170 + max(26 * len(lens.layers), 120),
        width=max(560, 120 + 58 * n) if written else None,
    )
    words = [[escaped(_visible(lens.top_strings[token])) for token in row] for row in lens.top_ids[..., 0].tolist()]
    labels = [escaped(f"{label}@{position}") for label, position in zip(lens.tokens.labels, lens.tokens, strict=True)]
    fig.add_heatmap(
        z=lens.top_p[..., 0].double().tolist(), x=list(range(n)), y=[str(layer) for layer in lens.layers],
        zmin=0, zmax=1, colorscale=SEQUENTIAL, xgap=1, ygap=1, colorbar={"title": "probability", "thickness": 12},
        text=words if written else None, texttemplate="%{text}" if written else None, textfont={"size": 11},
        customdata=_told(lens, labels), hovertemplate="layer %{y}, %{customdata[0]}<br>%{customdata[1]}<extra></extra>",
    )  # fmt: skip
    every = 1 if written else -(-n // MOST_WRITTEN)
    return fig.update_layout(
        margin={"b": 96}, yaxis={"title": "after block", "type": "category", "showgrid": False},
        xaxis={"tickvals": list(range(0, n, every)), "ticktext": labels[::every], "tickangle": -60, "showgrid": False},
    )  # fmt: skip


def _told(lens: LogitLens, labels: list[str]) -> list[list[tuple[str, str]]]:
    """For each cell its token, and the likeliest words with their probabilities."""
    told = []
    for ids, ps in zip(lens.top_ids.tolist(), lens.top_p.tolist(), strict=True):
        cells = [
            "<br>".join(
                f"{escaped(_visible(lens.top_strings[token]))}  {p:.3f}" for token, p in zip(*cell, strict=True)
            )
            for cell in zip(ids, ps, strict=True)
        ]
        told.append(list(zip(labels, cells, strict=True)))
    return told


def _visible(string: str) -> str:
    """A token's text, so that none is blank."""
    return string.replace("\n", "⏎").strip() or "␣"
