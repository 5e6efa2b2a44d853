import math

import numpy as np
import pytest
import torch

from avlens.errors import ViewError
from avlens.views import frame_grid
from avlens.views.frames import strip


def drawn(fig):
    """The number and the hover text at a place of the grid, in pixels."""
    heat = fig.data[0]

    def at(x, y):
        i, j = np.searchsorted(heat.y, y, "right") - 1, np.searchsorted(heat.x, x, "right") - 1
        return heat.z[i][j], heat.customdata[i][j]

    return at


@pytest.mark.parametrize("columns", [1, 3, 4])
def test_each_patch_is_where_its_frame_shows_it(run, columns):
    tokens = run.tokens
    fig = frame_grid(run.clip, tokens, value=torch.arange(len(tokens)).double(), name="place", columns=columns)
    at, images = drawn(fig), fig.layout.images
    assert len(images) == 4 and {(image.sizex, image.sizey) for image in images} == {(images[0].sizex, images[0].sizey)}
    for position in tokens.video:
        frame, row, col = (int(one[position]) for one in (tokens.frame, tokens.row, tokens.col))
        image = images[frame]
        number, (text, second) = at(image.x + (col + 0.5) * image.sizex / 3, image.y + (row + 0.5) * image.sizey / 3)
        assert number == position and text == f"{tokens.labels[position]} @{position}<br>place {position}"
        assert second == float(tokens.start[position])
    assert len({image.y for image in images}) == math.ceil(4 / columns)


def test_nothing_is_between_frames_or_after_the_last(run):
    fig = frame_grid(run.clip, run.tokens, value=torch.ones(len(run.tokens)), columns=3)
    assert float(np.sum(fig.data[0].z)) == len(run.tokens.video)
    last = fig.layout.images[3]
    number, told = drawn(fig)(last.x + 1.5 * last.sizex, last.y + 1)
    assert number == 0.0 and list(told) == ["", 0.0]


def test_sinks_are_in_the_middle_of_their_patches(run):
    position = int(run.tokens.video.positions[9 + 4])  # patch [1, 1] of the second frame
    fig = frame_grid(run.clip, run.tokens, sinks=run.tokens.at([position, 0]))
    square = [one for one in fig.data if one.name == "sink"][0]
    image = fig.layout.images[1]
    assert (square.x[0], square.y[0]) == pytest.approx((image.x + image.sizex / 2, image.y + image.sizey / 2))
    assert len(square.x) == 1


def test_a_part_and_every_second_frame(run):
    assert len(frame_grid(run.clip, run.tokens, start=1, end=3).layout.images) == 2
    every = frame_grid(run.clip, run.tokens, every=2)
    assert [one.text for one in every.data if one.type == "scatter"][0] == ("0 s", "2 s")
    assert "2 of 4 video steps" in every.layout.title.subtitle.text


def test_what_makes_no_grid_is_refused(run, prompts):
    for wrong in ({"every": 0}, {"columns": 0}, {"columns": 99}):
        with pytest.raises(ViewError, match="make no grid"):
            frame_grid(run.clip, run.tokens, **wrong)
    with pytest.raises(ViewError, match=r"views\.timeline"):
        frame_grid(*prompts["audio only"])
    with pytest.raises(ViewError, match="4 frames of 3 x 3 patches cannot be told apart. Pass every=2"):
        strip(run.tokens.video, every=1, most=3)
