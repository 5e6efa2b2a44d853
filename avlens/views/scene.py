"""What of a clip is drawn: which of its tokens, with which numbers, over which seconds, and how are sinks marked?"""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import plotly.graph_objects as go
from jaxtyping import Float, Shaped
from torch import Tensor

from avlens.errors import ViewError
from avlens.media import Clip
from avlens.tokens import TokenMap, TokenSet
from avlens.views.style import SINK, escaped

_MOST_AUDIO = 20_000  # tokens


@dataclass(frozen=True, eq=False)
class Scene:
    """A span of one clip and what its tokens carry.

    Attributes:
        clip: What was seen and heard.
        tokens: The prompt.
        video: Video tokens of the clip that overlap the span.
        audio: Audio tokens of the clip that overlap the span.
        value: A number for each position, NaN where there is none; None to tell modalities only.
        name: What the number is.
        sinks: Positions to mark.
        span: First and last second.
        limit: The number at which colours are full: the 99.5th percentile of the sizes that are drawn.
        bounds: Lowest and highest number of the audio tokens, and 0.
    """

    clip: Clip
    tokens: TokenMap
    video: TokenSet
    audio: TokenSet
    value: Float[np.ndarray, " pos"] | None
    name: str
    sinks: TokenSet
    span: tuple[float, float]
    limit: float = 1.0
    bounds: tuple[float, float] = (0.0, 1.0)

    @property
    def is_signed(self) -> bool:
        """Whether any number of the prompt is negative: a share or an energy has no blue half."""
        return self.value is not None and bool((self.value < 0).any())

    @property
    def lowest(self) -> float:
        """The number at the lower end of the colours."""
        return -self.limit if self.is_signed else 0.0

    def told(self, position: int) -> tuple[str, float]:
        """A token's hover text, and the second at which it begins."""
        notes = " ★ sink" * (position in self.sinks) + " (padding)" * bool(self.tokens.is_pad[position])
        text = f"{escaped(self.tokens.labels[position])} @{position}{notes}"
        if self.value is not None:
            number = self.value[position]
            text += f"<br>{escaped(self.name)} {f'{number:.4g}' if np.isfinite(number) else 'not known'}"
        return text, max(0.0, float(self.tokens.start[position]))


def scene(
    clip: Clip,
    tokens: TokenMap,
    *,
    value: Shaped[Tensor, "..."] | None,
    name: str,
    sinks: TokenSet | None,
    between: tuple[float | int | None, float | int | None],
    clip_index: int,
) -> Scene:
    """The span of the clip, checked.

    Raises:
        ViewError: If nothing or too much is in it, or `value` is of another length.
        PositionError: If `sinks` belongs to a prompt of another layout.
    """
    if sinks is not None:
        tokens.check_own(sinks)
    timed = tokens.video | tokens.audio
    whole = timed & tokens.clips(clip_index)
    if not whole:
        raise ViewError(
            f"clip {clip_index} has neither video nor audio tokens in this prompt. Pass clip_index=... of one that has: "
            f"{tokens.clip[timed.positions].unique().tolist()}."
        )
    last = max(float(tokens.end[whole.positions].max()), clip.seconds)
    span = max(0.0, float(between[0] or 0.0)), last if between[1] is None else min(last, float(between[1]))
    shown = whole & tokens.seconds(*span) if span[0] < span[1] else tokens.at([])
    if not shown:
        raise ViewError(
            f"no token of the clip is between start={between[0]} and end={between[1]}. Pass a part of its {last:.2f} s."
        )
    audio = shown & tokens.audio
    if len(audio) > _MOST_AUDIO:
        raise ViewError(
            f"{len(audio):,} audio tokens are more than the {_MOST_AUDIO:,} that can be told apart. Pass a part of the "
            f"{last:.0f} s with start=... and end=... ."
        )
    sinks = tokens.at([]) if sinks is None else sinks
    found = Scene(clip, tokens, shown & tokens.video, audio, _numbers(value, tokens), name, sinks, span)
    return alike([found])[0]


def alike(scenes: Sequence[Scene]) -> list[Scene]:
    """The same scenes with one scale of colours and heights, so that they can be compared."""
    if scenes[0].value is None:
        return list(scenes)
    shown = [one.value[(one.video | one.audio).positions.numpy()] for one in scenes if one.value is not None]
    sizes = np.abs(np.concatenate(shown))
    sizes = sizes[np.isfinite(sizes)]
    limit = (float(np.percentile(sizes, 99.5)) or float(sizes.max()) or 1.0) if len(sizes) else 1.0
    heights = np.concatenate([[0.0], *(heights_of(one) for one in scenes)])
    bounds = float(heights.min()), float(heights.max())
    return [replace(one, limit=limit, bounds=bounds) for one in scenes]


def heights_of(told: Scene) -> Float[np.ndarray, " audio"]:
    """The number of each audio token, in order; 0 where it is unknown, 1 where no number is told."""
    at = told.audio.sorted().positions.numpy()
    return np.ones(len(at)) if told.value is None else np.nan_to_num(told.value[at])


def add_sinks(fig: go.Figure, axes: tuple[str, str], x: Any, y: Any) -> None:
    """Squares that let the pointer through to the token below; one legend entry for all of them."""
    if len(x):
        named = any(trace.name == "sink" for trace in fig.data)
        fig.add_scatter(
            x=x, y=y, mode="markers", name="sink", legendgroup="sink", showlegend=not named, xaxis=axes[0], yaxis=axes[1],
            hoverinfo="skip", cliponaxis=False,
            marker={"symbol": "square-open", "size": 11, "color": SINK, "line": {"width": 2.5}},
        )  # fmt: skip


def colour_bar(told: Scene) -> dict[str, Any]:
    """The bar that says what colours mean."""
    title = "<br>".join(map(escaped, textwrap.wrap(told.name, 12, break_long_words=False)))
    return {"title": {"text": title}, "thickness": 12, "len": 180, "lenmode": "pixels", "y": 1, "yanchor": "top"}


def _numbers(value: Tensor | None, tokens: TokenMap) -> Float[np.ndarray, " pos"] | None:
    if value is None:
        return None
    if tuple(value.shape) != (len(tokens),):
        raise ViewError(
            f"value has shape {list(value.shape)}, but the prompt has {len(tokens)} positions. Pass one number for each, "
            "NaN where there is none."
        )
    numbers: Float[np.ndarray, " pos"] = value.detach().double().cpu().numpy()
    return np.where(np.isfinite(numbers), numbers, np.nan)
