"""The pictures of docs/benchmarks.md: what each work costs by each peer, and how cost grows with length."""

import plotly.graph_objects as go

from avlens.views.style import figure, told_apart
from tests.benchmarks.compare import LENGTHS
from tests.benchmarks.found import Found
from tests.benchmarks.peers import PEERS
from tests.benchmarks.tasks import TASKS

_SYMBOLS = ("star", "line-ns-open", "circle", "square", "diamond", "triangle-up", "x")
_BESIDE = "prompt"  # works that only avlens does, and that are measured against each other


def by_peer(found: Found, part: str = "1024") -> go.Figure:
    """Each peer's cost of each work, in stock forward passes."""
    tasks = [task for task in TASKS if not task.startswith(_BESIDE) and found.ratios(part, "avlens", task)]
    fig = figure(
        "The same work by each peer",
        note="S = 1024, in times of a stock forward pass; to the left is faster",
        height=520,
    )
    for who, symbol, (colour, _) in zip(PEERS, _SYMBOLS, told_apart(list(PEERS)), strict=True):
        mine = [
            (task.replace("`", ""), found.ratio(part, who, task)) for task in tasks if found.ratios(part, who, task)
        ]
        size, edge = 15 if who == "avlens" else 10, 2 if "open" in symbol else 0
        fig.add_scatter(
            x=[ratio for _, ratio in mine], y=[task for task, _ in mine], mode="markers", name=who,
            marker={"symbol": symbol, "size": size, "color": colour, "line": {"width": edge, "color": colour}},
        )  # fmt: skip
    fig.update_xaxes(type="log", title="stock forward passes", tickvals=[0.5, 1, 2, 5, 10, 20, 50, 100])
    fig.update_yaxes(autorange="reversed", showgrid=True, automargin=True)
    return fig


def by_length(found: Found) -> go.Figure:
    """avlens's cost of each work beside the stock forward pass of the same length."""
    fig = figure(
        "Cost against length",
        note="in times of a stock forward pass of the same length; level lines grow as it does",
        height=520,
    )
    tasks = [task for task in TASKS if any(found.ratios(f"length {n}", "avlens", task) for n in LENGTHS)]
    for task, (colour, dash) in zip(tasks, told_apart(tasks), strict=True):
        ratios = [found.ratio(f"length {n}", "avlens", task) for n in LENGTHS]
        fig.add_scatter(
            x=LENGTHS, y=ratios, name=task.replace("`", ""), mode="lines+markers", line={"color": colour, "dash": dash}
        )
    fig.update_xaxes(type="log", title="positions of the prompt", tickvals=LENGTHS)
    fig.update_yaxes(type="log", title="stock forward passes", tickvals=[0.2, 0.3, 0.5, 0.7, 1, 1.5, 2, 3, 4, 6, 8])
    fig.update_layout(
        legend={"orientation": "v", "x": 1.02, "xanchor": "left", "y": 1, "yanchor": "top"}, margin={"r": 280}
    )
    return fig
