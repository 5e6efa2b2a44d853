"""What do the tokens of a clip carry, and when: frames, sound and tokens on one axis of seconds?

From top to bottom: frames with a number on each patch, the sound's spectrogram, a bar for each audio token, and sums
per second. The second at which a token begins comes with it (the last entry of its `customdata`), so that a page can
play what a reader clicks on.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import plotly.graph_objects as go
from jaxtyping import Float, Shaped
from torch import Tensor

from avlens.errors import ViewError
from avlens.media import Clip
from avlens.tokens import Modality, TokenMap, TokenSet
from avlens.views.frames import Strip, on_strip, pictures, strip
from avlens.views.scene import Scene, add_sinks, alike, colour_bar, heights_of, scene
from avlens.views.spectrogram import mel_spectrogram
from avlens.views.style import (
    COLOURS,
    DIVERGING,
    OVERLAY,
    OVERLAY_SEQUENTIAL,
    SEQUENTIAL,
    counted,
    escaped,
    figure,
    joined,
    question_of,
)

_WIDTH = 1100  # pixels of the plot's inside, as on a page
_GAP, _ABOVE, _BELOW = 36, 118, 52  # pixels between rows, above the first, below the last
_BETWEEN = 0.03  # of the plot's width, between two clips


def timeline(
    clip: Clip | Sequence[Clip],
    tokens: TokenMap,
    *,
    value: Shaped[Tensor, "..."] | None = None,
    name: str = "value",
    sinks: TokenSet | None = None,
    start: float | int | None = None,
    end: float | int | None = None,
    every: int = 1,
    clip_index: int = 0,
) -> go.Figure:
    """Frames, sound and tokens of one clip of a prompt, or of several side by side.

    Args:
        clip: What was seen and heard; several in the order of the prompt, each with its own seconds.
        tokens: The prompt that was prepared from it.
        value: A number for each position of the prompt; without it, only modalities and counts are told.
        name: What the number is, with its unit.
        sinks: Positions to mark, by cyan squares.
        start: Leave out what is before, in seconds.
        end: Leave out what is after, in seconds.
        every: Show one in so many frames, in the room of those left out; sums are over all of them.
        clip_index: Which clip of the prompt it is, or the first of several, from 0.

    Raises:
        ViewError: If there is nothing to show, more than can be told apart, or `value` is of another length.
        PositionError: If `sinks` belongs to a prompt of another layout.
    """
    if every < 1:
        raise ViewError(f"every={every} shows no frame. Pass 1 for each frame, 2 for every second one, and so on.")
    clips = [clip] if isinstance(clip, Clip) else list(clip)
    if not clips:
        raise ViewError("there is no clip to draw. Pass one, or several in a list.")
    told = alike(
        [
            scene(one, tokens, value=value, name=name, sinks=sinks, between=(start, end), clip_index=clip_index + i)
            for i, one in enumerate(clips)
        ]
    )
    frames = [strip(one.video, every=every) if one.video else None for one in told]
    coloured = next(
        (i for i, one in enumerate(frames) if one), 0
    )  # the clip whose patches, or else bars, explain colours
    columns = [_Column(told[i], frames[i], value is not None and i == coloured) for i in range(len(told))]
    return _side_by_side(columns, _note(told, frames), clip_index)


class _Column(NamedTuple):
    """What stands on one axis of seconds, and whether the bar of colours belongs to it."""

    told: Scene
    frames: Strip | None
    bar: bool


_Draw = Callable[[go.Figure, tuple[str, str], _Column], None]


class _Row(NamedTuple):
    """What is drawn at one height.

    Attributes:
        title: What it is called, of a column.
        height: In pixels.
        is_there: Whether a column has it.
        draw: Draws it on a pair of axes.
    """

    title: Callable[[_Column], str]
    height: int
    is_there: Callable[[_Column], bool]
    draw: _Draw


def _rows(columns: Sequence[_Column]) -> list[_Row]:
    """The rows that any of these clips has."""
    name = columns[0].told.name if columns[0].told.value is not None else ""
    seconds = sum(one.told.span[1] - one.told.span[0] for one in columns)
    high = max(_strip_height(one, seconds) for one in columns)
    sums = f"{name}, sum over each second" if name else "tokens that begin in each second"
    rows = [
        _Row(_strip_title, high, lambda one: one.frames is not None, _draw_video),
        _Row(lambda _: "sound: Hz on the mel scale, dB below the loudest", 130, lambda one: one.told.clip.has_audio, _draw_sound),
        _Row(lambda _: f"audio tokens{f': {name}' if name else ''}", 110, lambda one: bool(one.told.audio), _draw_audio),
        _Row(lambda _: sums, 90, lambda _: True, _draw_sums),
    ]  # fmt: skip
    return [row for row in rows if any(map(row.is_there, columns))]


def _side_by_side(columns: Sequence[_Column], note: str, first: int) -> go.Figure:
    """Rows one below the other, each clip on its axis of seconds, so that the line under the pointer runs through all."""
    rows, told = _rows(columns), columns[0].told
    inside = sum(row.height for row in rows) + _GAP * (len(rows) - 1)
    what = "Tokens" if told.value is None else told.name
    fig = figure(f"{what} over time", note=note, height=inside + _ABOVE + _BELOW)
    above = fig.layout.height - inside - _BELOW  # more where the subtitle has more lines
    for i, (column, domain) in enumerate(zip(columns, _domains(columns), strict=True)):
        x, top, lowest = f"x{i + 1}" if i else "x", 0, "y"
        for j, row in enumerate(rows):
            number, high = i * len(rows) + j + 1, 1 - top / inside
            y = f"y{number}" if number > 1 else "y"
            if row.is_there(column):
                low = max(0.0, high - row.height / inside)
                fig.update_layout({_long(y): {"domain": [low, high], "anchor": x, "showticklabels": not i}})
                row.draw(fig, (x, y), column)
                lowest = y
                if not i or row.draw is _draw_video:
                    _add_title(fig, row.title(column), domain[0], high)
            top += row.height + _GAP
        title = f"seconds of clip {first + i}" if len(columns) > 1 else "seconds"
        fig.update_layout({_long(x): _seconds(column.told, domain, lowest) | {"title": {"text": title}}})
    if len(columns) > 1:
        _share_heights(fig, rows, columns)
    return fig.update_layout(
        margin={"t": above, "b": _BELOW, "l": 56, "r": 24}, legend={"y": 1 + 22 / inside}, hovermode="closest",
        barmode="overlay", bargap=0,
    )  # fmt: skip


def _domains(columns: Sequence[_Column]) -> list[tuple[float, float]]:
    """From where to where each clip reaches on the page, by its length."""
    lengths = np.array([one.told.span[1] - one.told.span[0] for one in columns])
    widths = lengths / lengths.sum() * (1 - _BETWEEN * (len(columns) - 1))
    starts = np.concatenate([[0.0], np.cumsum(widths + _BETWEEN)[:-1]])
    return [(float(start), min(1.0, float(start + width))) for start, width in zip(starts, widths, strict=True)]


def _seconds(told: Scene, domain: tuple[float, float], lowest: str) -> dict[str, Any]:
    return {
        "range": list(told.span), "domain": list(domain), "anchor": lowest, "showgrid": False,
        "zeroline": False, "showspikes": True, "spikemode": "across", "spikesnap": "cursor", "spikethickness": 1,
        "spikecolor": "#888888", "spikedash": "dot",
    }  # fmt: skip


def _add_title(fig: go.Figure, text: str, x: float, y: float) -> None:
    fig.add_annotation(
        text=escaped(text), x=x, y=y, xref="paper", yref="paper", xanchor="left", yanchor="bottom", showarrow=False,
        font={"size": 11, "color": "#666666"},
    )  # fmt: skip


def _share_heights(fig: go.Figure, rows: Sequence[_Row], columns: Sequence[_Column]) -> None:
    """Sums of all clips on one scale, as their audio tokens and colours are."""
    at = [i * len(rows) + len(rows) for i in range(len(columns))]
    for number in at[1:]:
        fig.update_layout({f"yaxis{number}": {"matches": "y" if at[0] == 1 else f"y{at[0]}"}})


def _note(told: Sequence[Scene], frames: Sequence[Strip | None]) -> str:
    """Where it comes from, and what the picture leaves out."""
    tokens, value = told[0].tokens, told[0].value
    text, question = tokens.text.positions.numpy(), question_of(tokens)
    seen, heard = (sum(map(len, sets)) for sets in ([one.video for one in told], [one.audio for one in told]))
    shown = sum(len(one.places(scene.sinks)[0]) for scene, one in zip(told, frames, strict=True) if one)
    unseen = sum(len(one.sinks & one.video) for one in told) - shown
    return joined(
        [
            repr(told[0].clip) if len(told) == 1 else counted(len(told), "clip"),
            *(counted(n, f"{kind} token") for n, kind in ((seen, "video"), (heard, "audio")) if n),
            f"“{question}”" if question else "",
            f"sum over text {_sum(value, text)}" if value is not None and len(text) else "",
            f"{counted(unseen, 'sink')} in video steps not shown" if unseen else "",
        ]
    )


def _sum(value: np.ndarray, at: np.ndarray) -> str:
    """The sum over some positions; what is a millionth of the largest number is as good as none."""
    if not np.isfinite(value[at]).any():
        return "not known"
    total, largest = float(np.nansum(value[at])), float(np.nanmax(np.abs(value), initial=0))
    return f"{total:.3g}" if total == 0 or abs(total) > 1e-6 * largest else "≈ 0"


def _strip_title(column: _Column) -> str:
    # a family may put two frames of the clip in one step of its tokens, so that they are not counted as frames
    assert column.frames is not None
    n, (n_rows, n_cols) = len(column.frames.frames), column.frames.positions.shape
    return f"{n} of {counted(column.frames.n_frames, 'video step')}, {n_rows} × {n_cols // n} patches each"


def _strip_height(column: _Column, seconds: float) -> int:
    """So that frames keep their shape on a page, within reason."""
    if column.frames is None:
        return 0
    height, width = (1, 1) if column.told.clip.frames is None else column.told.clip.frames.shape[2:]
    share = float(column.frames.starts.diff().median()) / seconds
    return round(min(260.0, max(64.0, _WIDTH * share * height / width)))


def _draw_video(fig: go.Figure, axes: tuple[str, str], column: _Column) -> None:
    told, frames, (x, axis) = column.told, column.frames, axes
    assert frames is not None
    n_rows = frames.positions.shape[0]
    lefts, widths = frames.starts[:-1].tolist(), frames.starts.diff().tolist()
    for picture, left, width in zip(pictures(told.clip, frames), lefts, widths, strict=False):
        fig.add_layout_image(
            source=picture, x=left, y=0, sizex=width, sizey=n_rows, xref=x, yref=axis, xanchor="left", yanchor="top",
            sizing="stretch", layer="below",
        )  # fmt: skip
    value = np.zeros(len(told.tokens)) if told.value is None else told.value
    fig.add_heatmap(
        z=on_strip(frames, value), x=frames.edges.numpy(), y=np.arange(n_rows + 1), xaxis=x, yaxis=axis,
        zmin=told.lowest, zmax=told.limit,
        customdata=[[told.told(p) if p >= 0 else ("", 0.0) for p in row] for row in frames.positions.tolist()],
        hovertemplate="%{customdata[0]}<extra></extra>",
        colorscale=OVERLAY if told.is_signed else OVERLAY_SEQUENTIAL, showscale=column.bar, colorbar=colour_bar(told),
    )  # fmt: skip
    for left in lefts[1:]:
        line = {"color": "white", "width": 2}
        fig.add_shape(type="line", x0=left, x1=left, y0=0, y1=n_rows, xref=x, yref=axis, line=line)
    add_sinks(fig, axes, *frames.places(told.sinks))
    fig.update_layout({_long(axis): {"range": [n_rows, 0], "showticklabels": False, "showgrid": False}})


def _draw_sound(fig: go.Figure, axes: tuple[str, str], column: _Column) -> None:
    told, (x, axis) = column.told, axes
    waveform, rate = told.clip.waveform, told.clip.sample_rate or 1
    assert waveform is not None
    first = round(told.span[0] * rate)
    heard = mel_spectrogram(waveform[first : round(told.span[1] * rate)], rate)
    fig.add_heatmap(
        z=heard.decibels.round().numpy().astype(np.int8), x=heard.seconds.numpy() + told.span[0], xaxis=x, yaxis=axis,
        zmin=min(-20.0, float(heard.decibels.quantile(0.2))), zmax=0, colorscale="Greys", reversescale=True, showscale=False,
        hovertemplate="%{x:.2f} s, %{z} dB<extra></extra>",
    )  # fmt: skip
    marked = [hertz for hertz in (250, 1000, 2000, 4000, 8000) if hertz < rate / 2]
    at = [int((heard.hertz - hertz).abs().argmin()) for hertz in marked]
    fig.update_layout(
        {_long(axis): {"tickvals": at, "ticktext": [f"{hertz:,}" for hertz in marked], "showgrid": False}}
    )


def _draw_audio(fig: go.Figure, axes: tuple[str, str], column: _Column) -> None:
    told, (x, axis), audio = column.told, axes, column.told.audio.sorted()
    begins, ends = (column[audio.positions].double().numpy() for column in (told.tokens.start, told.tokens.end))
    middles, widths = (begins + ends) / 2, ends - begins
    heights = heights_of(told)
    marker: dict[str, Any] = {"color": COLOURS[Modality.AUDIO], "line": {"width": 0}}
    if told.value is not None:
        scale = DIVERGING if told.is_signed else SEQUENTIAL
        marker |= {"color": heights, "colorscale": scale, "cmin": told.lowest, "cmax": told.limit}
        marker |= {"showscale": column.bar and column.frames is None, "colorbar": colour_bar(told)}
    fig.add_bar(
        x=middles, y=heights, width=widths, marker=marker, xaxis=x, yaxis=axis, hoverinfo="skip", showlegend=False,
        textposition="none",
    )  # fmt: skip
    low, high = told.bounds
    room = 0.08 * ((high - low) or 1.0)
    # A bar of height 0 cannot be pointed at: what is pointed at is a layer over the whole row that nobody sees.
    fig.add_bar(
        x=middles, y=np.full(len(audio), high - low + 2 * room), base=low - room, width=widths, xaxis=x, yaxis=axis,
        marker={"color": "rgba(0,0,0,0)", "line": {"width": 0}}, showlegend=False,
        customdata=[told.told(position) for position in audio], hovertemplate="%{customdata[0]}<extra></extra>",
    )  # fmt: skip
    marked = np.isin(audio.positions.numpy(), told.sinks.positions.numpy())
    add_sinks(fig, axes, middles[marked], heights[marked])
    ticks = {"zeroline": True, "zerolinecolor": "#BBBBBB", **({"showticklabels": False} if told.value is None else {})}
    fig.update_layout({_long(axis): {"range": [low - room, high + room], "nticks": 4, **ticks}})


def _draw_sums(fig: go.Figure, axes: tuple[str, str], column: _Column) -> None:
    told, (x, axis) = column.told, axes
    edges = np.arange(np.floor(told.span[0]), np.ceil(told.span[1]) + 1)
    for tokens, name, kind in ((told.video, "video", Modality.VIDEO), (told.audio, "audio", Modality.AUDIO)):
        if tokens:
            sums, named = _sums(told, tokens, edges), any(one.legendgroup == name for one in fig.data)
            fig.add_scatter(
                x=edges, y=[*sums, sums[-1]], mode="lines", line={"shape": "hv", "color": COLOURS[kind], "width": 2},
                name=f"{name} per second", legendgroup=name, showlegend=not named, xaxis=x, yaxis=axis,
                hovertemplate=f"{name} from %{{x}} s: %{{y:.4g}}<extra></extra>",
            )  # fmt: skip
    fig.update_layout({_long(axis): {"nticks": 4, "rangemode": "tozero", "zeroline": True, "zerolinecolor": "#BBBBBB"}})


def _sums(told: Scene, tokens: TokenSet, edges: Float[np.ndarray, " edge"]) -> list[float | None]:
    """Over the tokens that begin in each second; None where all numbers are unknown."""
    at = tokens.positions.numpy()
    begins = told.tokens.start.numpy()[at]
    numbers = np.ones(len(at)) if told.value is None else told.value[at]
    known = np.isfinite(numbers)
    sums, _ = np.histogram(begins[known], edges, weights=numbers[known])
    n_known, n_all = np.histogram(begins[known], edges)[0], np.histogram(begins, edges)[0]
    return [float(x) if k or not n else None for x, k, n in zip(sums, n_known, n_all, strict=True)]


def _long(axis: str) -> str:
    """`y2` as a layout calls it: `yaxis2`."""
    return f"{axis[0]}axis{axis[1:]}"
