"""What of a clip is drawn: which of its tokens, with which numbers, over which seconds?"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Shaped
from torch import Tensor

from avlens.errors import ViewError
from avlens.media import Clip
from avlens.tokens import TokenMap, TokenSet
from avlens.views.style import escaped

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
    """

    clip: Clip
    tokens: TokenMap
    video: TokenSet
    audio: TokenSet
    value: Float[np.ndarray, " pos"] | None
    name: str
    sinks: TokenSet
    span: tuple[float, float]

    @property
    def limit(self) -> float:
        """The number at which colours are full: the 99.5th percentile of the sizes that are drawn."""
        if self.value is None:
            return 1.0
        sizes = np.abs(self.value[(self.video | self.audio).positions.numpy()])
        sizes = sizes[np.isfinite(sizes)]
        return (float(np.percentile(sizes, 99.5)) or float(sizes.max()) or 1.0) if len(sizes) else 1.0

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
    return Scene(clip, tokens, shown & tokens.video, audio, _numbers(value, tokens), name, sinks, span)


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
