"""What does it cost in answers, and what does it save, to let tokens leave?"""

import math
from collections import Counter

import plotly.graph_objects as go

from avlens.analyses.discarding import PLAIN, Discarding
from avlens.views.style import counted, escaped, figure, joined, origin, told_apart

_SYMBOLS = ("circle", "square", "triangle-up", "cross", "star", "hexagon", "triangle-down", "x")


def plot_discarding(discarding: Discarding) -> go.Figure:
    """Each plan by what its pass costs and how often it answers as it should, with the interval over prompts.

    Without labels: how often it answers as the plain run. Where a colour comes again, the symbol is another.
    """
    table = discarding.to_frame()
    known = not table["right"].isna().all()
    title = f"{counted(len(table) - 1, 'way')} to let tokens leave"
    fig = figure(
        title, note=joined(["intervals of 95% over prompts" if known else "", origin(discarding.made_by)]), height=440
    )
    used = Counter[str]()
    for (plan, row), (colour, _) in zip(table.iterrows(), told_apart([str(plan) for plan in table.index]), strict=True):
        symbol = _SYMBOLS[used[colour] % len(_SYMBOLS)]
        used[colour] += plan != PLAIN
        y = row["right"] if known else row["same answer"]
        ends = [row["high"] - y, y - row["low"]] if known and not math.isnan(row["low"]) else [0.0, 0.0]
        mark = {"color": "#333333", "symbol": "diamond"} if plan == PLAIN else {"color": colour, "symbol": symbol}
        fig.add_scatter(
            x=[row["rows"]], y=[y], mode="markers", name=escaped(str(plan)), marker={"size": 12} | mark,
            error_y={"type": "data", "array": ends[:1], "arrayminus": ends[1:], "thickness": 1.5, "width": 4},
            customdata=[[row["seconds"], row["cache"], row["same answer"]]],
            hovertemplate="%{y:.3f} at %{x:.3f} of the rows<br>%{customdata[0]:.3f} of the time, %{customdata[1]:.3f} of keys "
            "and values<br>%{customdata[2]:.3f} answer as the plain run",
        )  # fmt: skip
    return fig.update_layout(
        legend={"orientation": "v", "x": 1.02, "xanchor": "left", "y": 1, "yanchor": "top"},
        xaxis={"title": "rows computed, as a share of the plain run's", "zeroline": False},
        yaxis={"title": "answered right" if known else "answers as the plain run", "zeroline": False, "rangemode": "tozero"},
    )  # fmt: skip
