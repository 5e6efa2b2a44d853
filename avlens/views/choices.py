"""Which tokens did a decoding method choose otherwise than the model alone would, and what was read meanwhile?"""

from collections.abc import Sequence

import plotly.graph_objects as go

from avlens.choices import KINDS, DecodingChoices
from avlens.tokens import Modality
from avlens.views.style import CLEAN, COLOURS, counted, escaped, figure, joined, origin

_ROW, _AROUND = 26, 214  # pixels of a token, and of all that is around them
_UP, _DOWN = -0.16, 0.16  # of a row: its two lines
_LONGEST, _SAME = 18, 1e-4
_RIVAL, _GROUND = "#888888", "#F7F7F7"
_SYMBOLS = ("circle", "diamond", "square")
_DECIDED = {"gamma": "gamma", "entropy": "entropy", "weight": "weight"}


def plot_choices(choices: DecodingChoices) -> go.Figure:
    """A row for each token: probabilities and attention of the model alone (hollow) and with the method (filled).

    Rows whose token was changed are shaded. Streams that read as the model alone does, or no media, are left out.
    """
    shift, steps = choices.shift, list(range(len(choices.rivals)))
    name = choices.method.split("(")[0]
    fig = figure(
        f"{int(choices.changed.sum())} of {counted(len(steps), 'token')} chosen otherwise by {name}",
        note=joined([f"“{choices.text.strip()[:160]}”", f"hollow: the model alone, filled: {name}", _shown(choices),
                     origin(choices.made_by)]),
        height=_AROUND + _ROW * max(4, len(steps)),
        flush=True,
    )  # fmt: skip
    rivals = [f"{rival} instead of {word}" for word, rival in zip(*_words(choices), strict=True)]
    _add_pairs(fig, "x", shift.p_base.tolist(), shift.p.tolist(), _UP, "written", CLEAN, _words(choices)[0])
    _add_pairs(
        fig, "x", choices.p_rival_base.tolist(), choices.p_rival.tolist(), _DOWN, "likeliest rival", _RIVAL, rivals
    )
    for kind, shift_by in ((0, _UP), (1, _DOWN)):
        colour = COLOURS[Modality[KINDS[kind].upper()]]
        base = choices.reads_base[:, kind].tolist()
        streams: list[int | None] = [*_reading_otherwise(choices)] or [None]
        for i, stream in enumerate(streams):
            reads = base if stream is None else choices.reads[stream, :, kind].tolist()
            told = [escaped(choices.streams[stream or 0])] * len(steps)
            _add_pairs(
                fig, "x2", base, reads, shift_by, f"attention to {KINDS[kind]}", colour, told,
                symbol=_SYMBOLS[i % len(_SYMBOLS)], legend=not i, filled=stream is not None,
            )  # fmt: skip
    decided = next((one for one in _DECIDED if one in choices.decided), None)
    if decided is not None:
        fig.add_bar(
            x=choices.decided[decided].tolist(), y=steps, orientation="h", xaxis="x3", marker={"color": "#BBBBBB"}, width=0.6,
            showlegend=False, hovertemplate=f"{_DECIDED[decided]}: %{{x:.3g}}<extra></extra>",
        )  # fmt: skip
    for step in choices.changed.nonzero()[:, 0].tolist():
        fig.add_hrect(y0=step - 0.5, y1=step + 0.5, fillcolor="#DDAA33", opacity=0.22, line_width=0, layer="below")
    return _with_axes(fig, choices, decided)


def _add_pairs(
    fig: go.Figure, axis: str, alone: Sequence[float], with_it: Sequence[float], shifted: float, name: str, colour: str,
    told: Sequence[str], *, symbol: str = "circle", legend: bool = True, filled: bool = True,
) -> None:  # fmt: skip
    """For each step a line from what the model alone has to what the method has, hollow and filled at its ends."""
    y = [step + shifted for step in range(len(alone))]
    common = {"xaxis": axis, "legendgroup": name, "mode": "markers"}
    if filled:
        x = [value for pair in zip(alone, with_it, strict=True) for value in (*pair, None)]
        fig.add_scatter(
            x=x, y=[value for value in y for _ in range(3)], **{**common, "mode": "lines"}, hoverinfo="skip",
            showlegend=False, line={"color": colour, "width": 2},
        )  # fmt: skip
    ends = [(alone, "#FEFEFE", "alone")] if legend else []
    for values, fill, whose in ends + ([(with_it, colour, "with the method")] if filled else []):
        fig.add_scatter(
            x=list(values), y=y, **common, name=name, showlegend=legend and (fill == colour or not filled),
            marker={"size": 7, "color": fill, "symbol": symbol, "line": {"color": colour, "width": 1.5}}, customdata=list(told),
            hovertemplate=f"%{{customdata}}<br>{name}, {whose}: %{{x:.3g}}<extra></extra>",
        )  # fmt: skip


def _with_axes(fig: go.Figure, choices: DecodingChoices, decided: str | None) -> go.Figure:
    words, rivals = _words(choices)
    changed = choices.changed.tolist()
    ticks = [
        f"{rival} → <b>{word}</b>" if new else word for word, rival, new in zip(words, rivals, changed, strict=True)
    ]
    ends = (0.46, 0.5, 0.78, 0.82) if decided is not None else (0.56, 0.61, 1.0, 1.0)
    common = {"side": "top", "anchor": "y", "zeroline": False, "title": {"standoff": 6}}
    most = float(choices.reads[..., :2].max()) if choices.reads.numel() else 0
    most = max(most, float(choices.reads_base[:, :2].max())) or 1.0  # Where there are no media, an axis all the same.
    return fig.update_layout(
        margin={"t": fig.layout.margin.t + 16, "b": 40}, bargap=0.4,
        legend={"x": 0, "xanchor": "left", "y": 0, "yanchor": "top"},
        xaxis={**common, "domain": [0, ends[0]], "title": {"text": "probability"}, "range": [-0.03, 1.03]},
        xaxis2={**common, "domain": list(ends[1:3]), "title": {"text": "attention"}, "range": [0, 1.1 * most], "nticks": 4},
        **({} if decided is None else {"xaxis3": {
            **common, "domain": [ends[3], 1], "title": {"text": _DECIDED[decided]}, "rangemode": "tozero", "nticks": 3}}),
        yaxis={
            "tickvals": list(range(len(ticks))), "ticktext": ticks, "range": [len(ticks) - 0.4, -0.6], "automargin": True,
            "showgrid": False, "zeroline": False,
        },
    )  # fmt: skip


def _reading_otherwise(choices: DecodingChoices) -> list[int]:
    """Streams that read media, and not as the model alone does."""
    media, base = choices.reads[..., :2], choices.reads_base[:, :2]
    return [i for i, reads in enumerate(media) if reads.any() and float((reads - base).abs().max()) > _SAME]


def _shown(choices: DecodingChoices) -> str:
    """Which streams' attention is drawn."""
    shown = [choices.streams[i] for i in _reading_otherwise(choices)]
    marks = [_SYMBOLS[i % len(_SYMBOLS)] for i in range(len(shown))]
    if not shown:
        return "no stream reads otherwise than the model alone"
    if len(shown) == 1:
        return f"attention of the stream “{shown[0]}”"
    return "attention of the streams " + ", ".join(f"“{one}” ({m})" for one, m in zip(shown, marks, strict=True))


def _words(choices: DecodingChoices) -> tuple[list[str], list[str]]:
    """What was written and its rivals, as ticks; spaces are shown where the two differ by nothing else."""
    pairs = list(zip(choices.shift.strings, choices.rivals, strict=True))
    same = [written.strip() == rival.strip() for written, rival in pairs]
    columns = [[_visible(pair[i], spaces) for pair, spaces in zip(pairs, same, strict=True)] for i in range(2)]
    return columns[0], columns[1]


def _visible(string: str, spaces: bool) -> str:
    text = string.replace("\n", "⏎")
    text = text.replace(" ", "␣") if spaces else text.strip() or "␣"
    return escaped(text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…")
