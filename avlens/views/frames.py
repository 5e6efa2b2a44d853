"""What does the model see, patch by patch: a strip of frames with a number on each patch?

Each frame that is shown reaches to the next one, so that a strip of every third frame has no gaps; patches lie on it
as one heatmap whose columns are times.
"""

import base64
import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from avlens.errors import ViewError
from avlens.media import Clip, jpeg_bytes, png_bytes
from avlens.media.codec import resize
from avlens.tokens import TokenSet

_MOST_FRAMES = 60  # 18 pixels each on a page
_MOST_PATCHES = 60_000
_THUMBNAIL = 160  # pixels of width


@dataclass(frozen=True, eq=False)
class Strip:
    """Frames side by side.

    Attributes:
        frames: Which frames are shown (indices as in `TokenMap.frame`).
        starts: Where each begins on the strip, in seconds, and where the last one ends.
        positions: The token of each cell of the strip; -1 where there is none.
        edges: Where each column begins, in seconds, and where the last one ends.
        n_frames: How many frames there are to choose from.
    """

    frames: Int[Tensor, " shown"]
    starts: Float[Tensor, " shown_and_end"]
    positions: Int[Tensor, "row column"]
    edges: Float[Tensor, " column_and_end"]
    n_frames: int

    def places(self, tokens: TokenSet) -> tuple[list[float], list[float]]:
        """The second and row of the middle of each patch of the set that is on the strip."""
        rows, columns = tokens.holds(self.positions).nonzero().unbind(1)
        middles = (self.edges[1:] + self.edges[:-1])[columns] / 2
        return middles.tolist(), (rows + 0.5).tolist()


def strip(video: TokenSet, *, every: int, most: int = _MOST_FRAMES) -> Strip:
    """Every so many of the frames of some video tokens, at most so many.

    Raises:
        ViewError: If so many frames or patches could not be told apart.
    """
    tokens, at = video.tokens, video.positions
    frames = tokens.frame[at].unique()
    shown = frames[::every]
    n_rows, n_cols = int(tokens.row[at].max()) + 1, int(tokens.col[at].max()) + 1
    if every < (fitting := smallest_every(video, most)):
        raise ViewError(
            f"{len(shown)} frames of {n_rows} x {n_cols} patches cannot be told apart. Pass every={fitting}, "
            "or a part with start=... and end=... in seconds."
        )
    begins = torch.stack([tokens.start[at[tokens.frame[at] == frame]].min() for frame in shown])
    starts = torch.cat([begins, tokens.end[at].max()[None]])
    index = torch.full((int(frames.max()) + 1,), -1)
    index[shown] = torch.arange(len(shown))
    kept = at[index[tokens.frame[at]] >= 0]
    positions = torch.full((n_rows, len(shown) * n_cols), -1)
    positions[tokens.row[kept], index[tokens.frame[kept]] * n_cols + tokens.col[kept]] = kept
    within = torch.arange(n_cols, dtype=starts.dtype) / n_cols
    edges = (starts[:-1, None] + within * starts.diff()[:, None]).flatten()
    return Strip(shown, starts, positions, torch.cat([edges, starts[-1:]]), len(frames))


def pictures(clip: Clip, of: Strip) -> list[str]:
    """The frame of the clip that is on when each frame of the strip begins, as a data URI; none without frames."""
    if clip.frames is None or clip.frame_seconds is None:
        return []
    begun = torch.searchsorted(clip.frame_seconds.double(), of.starts[:-1].double() + 1e-6)
    return [data_uri(picture) for picture in thumbnails(clip.frames[(begun - 1).clamp(min=0)])]


def thumbnails(frames: UInt8[Tensor, "frame 3 height width"]) -> UInt8[Tensor, "frame h w 3"]:
    """At most 160 pixels wide, channels last."""
    height, width = frames.shape[2:]
    smaller = min(1.0, _THUMBNAIL / width)
    return resize(frames, max(1, round(height * smaller)), max(1, round(width * smaller))).permute(0, 2, 3, 1)


def data_uri(picture: UInt8[Tensor, "height width 3"]) -> str:
    """A picture that stands in a page: as PNG or, where that is smaller, as JPEG."""
    png, jpeg = png_bytes(picture.contiguous()), jpeg_bytes(picture.contiguous())
    kind, content = ("png", png) if len(png) <= len(jpeg) else ("jpeg", jpeg)
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def on_strip(of: Strip, value: Float[np.ndarray, " pos"]) -> Float[np.ndarray, "row column"]:
    """The number of each cell; 0, which is transparent, where there is none."""
    cells = np.where(of.positions.numpy() >= 0, value[of.positions.numpy()], 0.0)
    return np.nan_to_num(cells)


def smallest_every(video: TokenSet, most: int = _MOST_FRAMES) -> int:
    """The smallest `every` with which a strip of these tokens can be read."""
    tokens, at = video.tokens, video.positions
    n_patches = (int(tokens.row[at].max()) + 1) * (int(tokens.col[at].max()) + 1)
    return math.ceil(len(tokens.frame[at].unique()) / max(1, min(most, _MOST_PATCHES // n_patches)))
