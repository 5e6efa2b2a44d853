"""What did a decoding method decide at each step, while which tokens were written?"""

from collections.abc import Mapping

import plotly.graph_objects as go

from avlens.errors import ViewError
from avlens.generation import Generation
from avlens.views.style import escaped, figure, joined, origin, told_apart

_SAID: Mapping[str, str] = {
    "gamma": "gamma: how much the calibrated stream counts (ASD)",
    "entropy": "entropy of the plain stream, nats (AVCD)",
    "weight": "share of the branch without video (FMD)",
}
_MOST_TICKS = 40


def plot_generation(written: Generation) -> go.Figure:
    """The number that the decoding method took at each step of each row.

    Raises:
        ViewError: If the method decides nothing step by step.
    """
    found = next(((name, written.records[name]) for name in _SAID if name in written.records), None)
    if found is None:
        known = ", ".join(written.records) or "nothing"
        raise ViewError(
            f"the records hold {known}, which is no number for each step. Plot what ASD(), AVCD() or FMD() wrote: "
            "model.generate(inputs, decoding=ASD()); what any method changes is plot(decoding_choices(model, inputs, VCD()))."
        )
    name, numbers = found
    n_rows, n_steps = numbers.shape
    text = f"“{written.texts[0].strip()[:160]}”" if n_rows == 1 else f"{n_rows} texts"
    fig = figure(f"{_SAID[name]}", note=joined([f"{n_steps} steps", text, origin(written.made_by)]), height=380)
    lines = told_apart([f"row {row}" for row in range(n_rows)])
    for row, (colour, dash) in enumerate(lines):
        fig.add_scatter(
            x=list(range(n_steps)), y=numbers[row].double().tolist(), mode="lines+markers", name=f"row {row}",
            showlegend=n_rows > 1, line={"color": colour, "width": 2, "dash": dash}, marker={"size": 6},
            customdata=[escaped(word) for word in _words(written, row, n_steps)],
            hovertemplate="step %{x}, %{customdata}: %{y:.4g}<extra></extra>",
        )  # fmt: skip
    every, words = -(-n_steps // _MOST_TICKS) or 1, _words(written, 0, n_steps)
    ticks = {"tickvals": list(range(0, n_steps, every)), "ticktext": [escaped(word) for word in words[::every]]}
    return fig.update_layout(
        margin={"b": 96}, xaxis={"title": "" if n_rows == 1 else "step", **(ticks if n_rows == 1 else {}), "showgrid": False},
        yaxis={"title": name, "rangemode": "tozero"},
    ).update_xaxes(tickangle=-60 if n_rows == 1 else 0)  # fmt: skip


def _words(written: Generation, row: int, n: int) -> list[str]:
    """What each step wrote, so that no tick is blank; its number where nobody knows."""
    if not written.strings:
        return [str(step) for step in range(n)]
    return [string.replace("\n", "⏎").strip() or "␣" for string in written.strings[row][:n]]
