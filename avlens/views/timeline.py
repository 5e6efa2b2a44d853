"""What do the tokens of a clip carry, and when: frames, sound and tokens on one axis of seconds?

From top to bottom: frames with a number on each patch, the sound's spectrogram, a bar for each audio token, and sums
per second. The second at which a token begins comes with it (the last entry of its `customdata`), so that a page can
play what a reader clicks on.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import plotly.graph_objects as go
from jaxtyping import Float, Shaped
from torch import Tensor

from avlens.errors import ViewError
from avlens.media import Clip
from avlens.tokens import Modality, TokenMap, TokenSet
from avlens.views.frames import Strip, on_strip, pictures, strip
from avlens.views.scene import Scene, scene
from avlens.views.spectrogram import mel_spectrogram
from avlens.views.style import (
    COLOURS,
    DIVERGING,
    OVERLAY,
    OVERLAY_SEQUENTIAL,
    SEQUENTIAL,
    SINK,
    counted,
    escaped,
    figure,
    joined,
    question_of,
)

_WIDTH = 1100  # pixels of the plot's inside, as on a page
_GAP, _ABOVE, _BELOW = 36, 118, 52  # pixels between rows, above the first, below the last


def timeline(
    clip: Clip,
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
    """Frames, sound and tokens of one clip of a prompt.

    Args:
        clip: What was seen and heard.
        tokens: The prompt that was prepared from it.
        value: A number for each position of the prompt; without it, only modalities and counts are told.
        name: What the number is, with its unit.
        sinks: Positions to mark, by cyan squares.
        start: Leave out what is before, in seconds.
        end: Leave out what is after, in seconds.
        every: Show one in so many frames, in the room of those left out; sums are over all of them.
        clip_index: Which clip of the prompt it is, from 0.

    Raises:
        ViewError: If there is nothing to show, more than can be told apart, or `value` is of another length.
        PositionError: If `sinks` belongs to a prompt of another layout.
    """
    if every < 1:
        raise ViewError(f"every={every} shows no frame. Pass 1 for each frame, 2 for every second one, and so on.")
    told = scene(clip, tokens, value=value, name=name, sinks=sinks, between=(start, end), clip_index=clip_index)
    frames = strip(told.video, every=every) if told.video else None
    return _stacked(told, _rows(told, frames), _note(told, frames))


_Row = tuple[str, int, Callable[[go.Figure, str], None]]
"""What a row is called, its height in pixels, and what draws it on an axis."""


def _rows(told: Scene, frames: Strip | None) -> list[_Row]:
    """The rows that this clip has."""
    rows: list[_Row] = []
    if frames is not None:
        n_rows, n_cols = frames.positions.shape[0], frames.positions.shape[1] // len(frames.frames)
        # a family may put two frames of the clip in one step of its tokens, so that they are not counted as frames
        title = f"{len(frames.frames)} of {counted(frames.n_frames, 'video step')}, {n_rows} × {n_cols} patches each"
        rows.append((title, _strip_height(told, frames), lambda fig, axis: _draw_video(fig, axis, told, frames)))
    if told.clip.has_audio:
        rows.append(
            ("sound: Hz on the mel scale, dB below the loudest", 130, lambda f, axis: _draw_sound(f, axis, told))
        )
    if told.audio:
        title = "audio tokens" if told.value is None else f"audio tokens: {told.name}"
        rows.append((title, 110, lambda fig, axis: _draw_audio(fig, axis, told, bar=frames is None)))
    title = "tokens that begin in each second" if told.value is None else f"{told.name}, sum over each second"
    return [*rows, (title, 90, lambda fig, axis: _draw_sums(fig, axis, told))]


def _stacked(told: Scene, rows: list[_Row], note: str) -> go.Figure:
    """The rows one below the other, on one axis of seconds, so that the line under the pointer runs through all."""
    inside = sum(height for _, height, _ in rows) + _GAP * (len(rows) - 1)
    what = "Tokens" if told.value is None else told.name
    fig = figure(f"{what} over time", note=note, height=inside + _ABOVE + _BELOW)
    above = fig.layout.height - inside - _BELOW  # more where the subtitle has more lines
    top, axis = 0, "y"
    for i, (title, height, draw) in enumerate(rows):
        axis, high = f"y{i + 1}" if i else "y", 1 - top / inside
        fig.update_layout({_long(axis): {"domain": [max(0.0, high - height / inside), high], "anchor": "x"}})
        fig.add_annotation(
            text=escaped(title), x=0, y=high, xref="paper", yref="paper", xanchor="left", yanchor="bottom",
            showarrow=False, font={"size": 11, "color": "#666666"},
        )  # fmt: skip
        draw(fig, axis)
        top += height + _GAP
    fig.update_xaxes(
        title="seconds", range=list(told.span), anchor=axis, showgrid=False, zeroline=False, showspikes=True,
        spikemode="across", spikesnap="cursor", spikethickness=1, spikecolor="#888888", spikedash="dot",
    )  # fmt: skip
    return fig.update_layout(
        margin={"t": above, "b": _BELOW, "l": 56, "r": 24}, legend={"y": 1 + 22 / inside}, hovermode="closest",
        barmode="overlay", bargap=0,
    )  # fmt: skip


def _note(told: Scene, frames: Strip | None) -> str:
    """Where it comes from, and what the picture leaves out."""
    text, question = told.tokens.text.positions.numpy(), question_of(told.tokens)
    unseen = len(told.sinks & told.video) - (len(frames.places(told.sinks)[0]) if frames else 0)
    return joined(
        [
            repr(told.clip),
            *(counted(n, f"{kind} token") for n, kind in ((len(told.video), "video"), (len(told.audio), "audio")) if n),
            f"“{question}”" if question else "",
            f"sum over text {np.nansum(told.value[text]):.3g}" if told.value is not None and len(text) else "",
            f"{counted(unseen, 'sink')} in video steps not shown" if unseen else "",
        ]
    )


def _strip_height(told: Scene, frames: Strip) -> int:
    """So that frames keep their shape on a page, within reason."""
    height, width = (1, 1) if told.clip.frames is None else told.clip.frames.shape[2:]
    share = float(frames.starts.diff().median()) / (told.span[1] - told.span[0])
    return round(min(260.0, max(64.0, _WIDTH * share * height / width)))


def _draw_video(fig: go.Figure, axis: str, told: Scene, frames: Strip) -> None:
    n_rows = frames.positions.shape[0]
    lefts, widths = frames.starts[:-1].tolist(), frames.starts.diff().tolist()
    for picture, left, width in zip(pictures(told.clip, frames), lefts, widths, strict=False):
        fig.add_layout_image(
            source=picture, x=left, y=0, sizex=width, sizey=n_rows, xref="x", yref=axis, xanchor="left", yanchor="top",
            sizing="stretch", layer="below",
        )  # fmt: skip
    value = np.zeros(len(told.tokens)) if told.value is None else told.value
    fig.add_heatmap(
        z=on_strip(frames, value), x=frames.edges.numpy(), y=np.arange(n_rows + 1), yaxis=axis, zmin=told.lowest, zmax=told.limit,
        customdata=[[told.told(p) if p >= 0 else ("", 0.0) for p in row] for row in frames.positions.tolist()],
        hovertemplate="%{customdata[0]}<extra></extra>",
        colorscale=OVERLAY if told.is_signed else OVERLAY_SEQUENTIAL, showscale=told.value is not None, colorbar=_bar(told),
    )  # fmt: skip
    for left in lefts[1:]:
        line = {"color": "white", "width": 2}
        fig.add_shape(type="line", x0=left, x1=left, y0=0, y1=n_rows, xref="x", yref=axis, line=line)
    _add_sinks(fig, axis, *frames.places(told.sinks))
    fig.update_layout({_long(axis): {"range": [n_rows, 0], "showticklabels": False, "showgrid": False}})


def _draw_sound(fig: go.Figure, axis: str, told: Scene) -> None:
    waveform, rate = told.clip.waveform, told.clip.sample_rate or 1
    assert waveform is not None
    first = round(told.span[0] * rate)
    heard = mel_spectrogram(waveform[first : round(told.span[1] * rate)], rate)
    fig.add_heatmap(
        z=heard.decibels.round().numpy().astype(np.int8), x=heard.seconds.numpy() + told.span[0], yaxis=axis,
        zmin=min(-20.0, float(heard.decibels.quantile(0.2))), zmax=0, colorscale="Greys", reversescale=True, showscale=False,
        hovertemplate="%{x:.2f} s, %{z} dB<extra></extra>",
    )  # fmt: skip
    marked = [hertz for hertz in (250, 1000, 2000, 4000, 8000) if hertz < rate / 2]
    at = [int((heard.hertz - hertz).abs().argmin()) for hertz in marked]
    fig.update_layout(
        {_long(axis): {"tickvals": at, "ticktext": [f"{hertz:,}" for hertz in marked], "showgrid": False}}
    )


def _draw_audio(fig: go.Figure, axis: str, told: Scene, *, bar: bool) -> None:
    audio = told.audio.sorted()
    begins, ends = (column[audio.positions].double().numpy() for column in (told.tokens.start, told.tokens.end))
    middles, widths = (begins + ends) / 2, ends - begins
    heights = np.ones(len(audio)) if told.value is None else np.nan_to_num(told.value[audio.positions.numpy()])
    marker: dict[str, Any] = {"color": COLOURS[Modality.AUDIO], "line": {"width": 0}}
    if told.value is not None:
        scale = DIVERGING if told.is_signed else SEQUENTIAL
        marker |= {"color": heights, "colorscale": scale, "cmin": told.lowest, "cmax": told.limit}
        marker |= {"showscale": bar, "colorbar": _bar(told)}
    fig.add_bar(
        x=middles, y=heights, width=widths, marker=marker, yaxis=axis, hoverinfo="skip", showlegend=False,
        textposition="none",
    )  # fmt: skip
    low, high = min(0.0, float(heights.min())), max(0.0, float(heights.max()))
    room = 0.08 * ((high - low) or 1.0)
    # A bar of height 0 cannot be pointed at: what is pointed at is a layer over the whole row that nobody sees.
    fig.add_bar(
        x=middles, y=np.full(len(audio), high - low + 2 * room), base=low - room, width=widths, yaxis=axis,
        marker={"color": "rgba(0,0,0,0)", "line": {"width": 0}}, showlegend=False,
        customdata=[told.told(position) for position in audio], hovertemplate="%{customdata[0]}<extra></extra>",
    )  # fmt: skip
    marked = np.isin(audio.positions.numpy(), told.sinks.positions.numpy())
    _add_sinks(fig, axis, audio.positions.numpy()[marked].tolist(), middles[marked], heights[marked])
    ticks = {"showticklabels": told.value is not None, "zeroline": True, "zerolinecolor": "#BBBBBB"}
    fig.update_layout({_long(axis): {"range": [low - room, high + room], "nticks": 4, **ticks}})


def _draw_sums(fig: go.Figure, axis: str, told: Scene) -> None:
    edges = np.arange(np.floor(told.span[0]), np.ceil(told.span[1]) + 1)
    for tokens, name, kind in ((told.video, "video", Modality.VIDEO), (told.audio, "audio", Modality.AUDIO)):
        if tokens:
            sums = _sums(told, tokens, edges)
            fig.add_scatter(
                x=edges, y=[*sums, sums[-1]], mode="lines", line={"shape": "hv", "color": COLOURS[kind], "width": 2},
                name=f"{name} per second", yaxis=axis, hovertemplate=f"{name} from %{{x}} s: %{{y:.4g}}<extra></extra>",
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


def _add_sinks(fig: go.Figure, axis: str, positions: list[int], x: Any, y: Any) -> None:
    """Squares that let the pointer through to the token below; one legend entry for both rows."""
    if positions:
        named = any(trace.name == "sink" for trace in fig.data)
        fig.add_scatter(
            x=x, y=y, mode="markers", name="sink", legendgroup="sink", showlegend=not named, yaxis=axis, hoverinfo="skip",
            cliponaxis=False, marker={"symbol": "square-open", "size": 11, "color": SINK, "line": {"width": 2.5}},
        )  # fmt: skip


def _bar(told: Scene) -> dict[str, Any]:
    return {"title": {"text": escaped(told.name)}, "thickness": 12, "len": 0.5, "y": 1, "yanchor": "top"}


def _long(axis: str) -> str:
    """`y2` as a layout calls it: `yaxis2`."""
    return f"yaxis{axis[1:]}"
