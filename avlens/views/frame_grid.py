"""What does each frame carry, patch by patch: all frames of a clip as a grid, with a number on each patch?

Frames run from left to right and from top to bottom, each with the second at which it begins. One heatmap lies on all of them.
"""

import math

import numpy as np
import plotly.graph_objects as go
from jaxtyping import Float, Shaped
from torch import Tensor

from avlens.errors import ViewError
from avlens.media import Clip
from avlens.tokens import TokenMap, TokenSet
from avlens.views.frames import Strip, on_strip, pictures, strip
from avlens.views.scene import Scene, add_sinks, colour_bar, scene
from avlens.views.style import OVERLAY, OVERLAY_SEQUENTIAL, counted, figure, joined, question_of

_WIDTH = 960  # pixels of the plot's inside, as on a page of the site
_GAP, _LABEL = 6, 18  # pixels between frames, and above each for its second
_MOST_FRAMES = 400
_NARROWEST = 84  # pixels of a frame


def frame_grid(
    clip: Clip,
    tokens: TokenMap,
    *,
    value: Shaped[Tensor, "..."] | None = None,
    name: str = "value",
    sinks: TokenSet | None = None,
    start: float | int | None = None,
    end: float | int | None = None,
    every: int = 1,
    columns: int | None = None,
    clip_index: int = 0,
) -> go.Figure:
    """Every frame of one clip of a prompt, with a number on each patch.

    Args:
        clip: What was seen.
        tokens: The prompt that was prepared from it.
        value: A number for each position of the prompt; without it, only frames and sinks are shown.
        name: What the number is, with its unit.
        sinks: Positions to mark, by cyan squares.
        start: Leave out what is before, in seconds.
        end: Leave out what is after, in seconds.
        every: Show one in so many frames.
        columns: How many frames are side by side; by default what makes them large.
        clip_index: Which clip of the prompt it is, from 0.

    Raises:
        ViewError: If there is nothing to show, more than can be told apart, or `value` is of another length.
        PositionError: If `sinks` belongs to a prompt of another layout.
    """
    most = _WIDTH // _NARROWEST
    if every < 1 or not (columns is None or 1 <= columns <= most):
        raise ViewError(
            f"every={every} and columns={columns} make no grid. Pass every=1 or more and 1 to {most} columns."
        )
    told = scene(clip, tokens, value=value, name=name, sinks=sinks, between=(start, end), clip_index=clip_index)
    if not told.video:
        raise ViewError(f"clip {clip_index} has no video tokens in this part. Draw its sound with views.timeline.")
    frames = strip(told.video, every=every, most=_MOST_FRAMES)
    return _drawn(told, _Grid(frames, _shape(clip), columns or _columns(len(frames.frames), most)))


class _Grid:
    """Where frames and patches stand, in pixels from the upper left corner."""

    def __init__(self, frames: Strip, shape: float, columns: int) -> None:
        self.frames, self.n, self.columns = frames, len(frames.frames), min(columns, len(frames.frames))
        self.n_rows, self.n_cols = frames.positions.shape[0], frames.positions.shape[1] // self.n
        self.rows = math.ceil(self.n / self.columns)
        # few frames need not fill the page
        self.width = min(320.0, (_WIDTH - _GAP * (self.columns - 1)) / self.columns)
        self.height = self.width * shape
        self.x = [c * (self.width + _GAP) for c in range(self.columns)]
        self.y = [_LABEL + r * (self.height + _LABEL + _GAP) for r in range(self.rows)]

    def corner(self, i: int) -> tuple[float, float]:
        """The upper left corner of a frame."""
        return self.x[i % self.columns], self.y[i // self.columns]

    def edges(self) -> tuple[list[float], list[float]]:
        """Where columns and rows of patches begin, those between frames included, and where the last ones end."""
        across = [x + self.width * k / self.n_cols for x in self.x for k in range(self.n_cols + 1)]
        down = [y + self.height * k / self.n_rows for y in self.y for k in range(self.n_rows + 1)]
        return across, down

    def placed(self, cells: Float[np.ndarray, "row column"], empty: float) -> Float[np.ndarray, "down across"]:
        """What each patch of the strip has, on the grid; `empty` between frames and after the last."""
        whole = np.full((self.rows, self.n_rows + 1, self.columns, self.n_cols + 1), empty)
        for i in range(self.n):
            part = cells[:, i * self.n_cols : (i + 1) * self.n_cols]
            whole[i // self.columns, : self.n_rows, i % self.columns, : self.n_cols] = part
        return whole.reshape(self.rows * (self.n_rows + 1), -1)[:-1, :-1]


def _shape(clip: Clip) -> float:
    """Height over width."""
    return 0.75 if clip.frames is None else clip.frames.shape[2] / clip.frames.shape[3]


def _columns(n: int, most: int) -> int:
    """As many as fit on some three rows, and not so many that frames are narrow."""
    return min(most, max(4, math.ceil(n / 3))) if n <= 3 * most else most


def _drawn(told: Scene, grid: _Grid) -> go.Figure:
    inside = (grid.x[-1] + grid.width, grid.y[-1] + grid.height)
    fig = figure("Frames" if told.value is None else f"{told.name} by frame", note=_note(told, grid))
    above = fig.layout.margin.t
    for i, picture in enumerate(pictures(told.clip, grid.frames)):
        x, y = grid.corner(i)
        fig.add_layout_image(
            source=picture, x=x, y=y, sizex=grid.width, sizey=grid.height, xref="x", yref="y", xanchor="left", yanchor="top",
            sizing="stretch", layer="below",
        )  # fmt: skip
    _add_patches(fig, told, grid)
    corners = [grid.corner(i) for i in range(grid.n)]
    fig.add_scatter(
        x=[x for x, _ in corners], y=[y - 2 for _, y in corners], mode="text", textposition="top right", hoverinfo="skip",
        text=[f"{second:.4g} s" for second in grid.frames.starts[:-1].tolist()], textfont={"size": 11, "color": "#666666"},
        showlegend=False, cliponaxis=False,
    )  # fmt: skip
    nothing = {"visible": False, "showgrid": False, "zeroline": False}
    return fig.update_layout(
        height=above + inside[1] + 24, margin={"b": 24, "l": 24}, legend={"y": 1.0},
        xaxis=nothing | {"range": [0, max(_WIDTH, inside[0])], "constrain": "domain", "constraintoward": "left"},
        yaxis=nothing | {"range": [inside[1], 0], "scaleanchor": "x", "constrain": "domain", "constraintoward": "top"},
    )  # fmt: skip


def _add_patches(fig: go.Figure, told: Scene, grid: _Grid) -> None:
    value = np.zeros(len(told.tokens)) if told.value is None else told.value
    at = grid.placed(grid.frames.positions.numpy().astype(float), -1.0).astype(int)
    across, down = grid.edges()
    fig.add_heatmap(
        z=grid.placed(on_strip(grid.frames, value), 0.0), x=across, y=down, zmin=told.lowest, zmax=told.limit,
        customdata=[[told.told(p) if p >= 0 else ("", 0.0) for p in row] for row in at.tolist()],
        hovertemplate="%{customdata[0]}<extra></extra>", showscale=told.value is not None, colorbar=colour_bar(told),
        colorscale=OVERLAY if told.is_signed else OVERLAY_SEQUENTIAL,
    )  # fmt: skip
    rows, columns = np.isin(at, told.sinks.positions.numpy()).nonzero()
    middles = [(np.array(edges)[1:] + np.array(edges)[:-1]) / 2 for edges in (across, down)]
    add_sinks(fig, ("x", "y"), middles[0][columns], middles[1][rows])


def _note(told: Scene, grid: _Grid) -> str:
    question = question_of(told.tokens)
    return joined(
        [
            repr(told.clip),
            f"{grid.n} of {counted(grid.frames.n_frames, 'video step')}, {grid.n_rows} × {grid.n_cols} patches each",
            f"“{question}”" if question else "",
        ]
    )
