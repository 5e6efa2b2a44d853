import base64
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from avlens.errors import PositionError, ViewError
from avlens.testing import tiny_clip
from avlens.views import timeline
from avlens.views.frames import data_uri, pictures, smallest_every, strip, thumbnails


def trace(fig, kind, i=0):
    return [one for one in fig.data if one.type == kind][i]


@pytest.mark.parametrize("having", ["both", "audio only", "video only"])
@pytest.mark.parametrize("valued", [True, False])
def test_every_kind_of_clip_is_drawn_on_one_axis(prompts, having, valued):
    clip, tokens = prompts[having]
    value = torch.linspace(-1, 1, len(tokens)) if valued else None
    fig = timeline(clip, tokens, value=value, name="effect")
    rows = {"both": 4, "audio only": 3, "video only": 2}[having]
    assert len([key for key in fig.layout if key.startswith("yaxis")]) == rows
    assert {one.xaxis for one in fig.data} <= {None, "x"}
    assert list(fig.layout.xaxis.range) == [0, clip.seconds]
    fig.to_json()


def test_each_patch_has_its_number_and_its_second(run):
    value = torch.arange(len(run.tokens)).double()
    heat = trace(timeline(run.clip, run.tokens, value=value, name="place"), "heatmap")
    at = strip(run.tokens.video, every=1).positions.numpy()
    np.testing.assert_array_equal(heat.z, at)
    row, column = np.argwhere(at == int(run.tokens.video.positions[13]))[0]
    text, second = heat.customdata[row][column]
    position = int(run.tokens.video.positions[13])
    assert text == f"{run.tokens.labels[position]} @{position}<br>place {position}"
    assert second == float(run.tokens.start[position])
    assert heat.x[column] <= second + 1 and heat.x[0] == 0 and heat.x[-1] == 4


def test_what_is_never_negative_goes_from_nothing_to_red(run):
    value = torch.rand(len(run.tokens))
    value[0] = math.nan
    fig = timeline(run.clip, run.tokens, value=value)
    heat, bar = trace(fig, "heatmap"), trace(fig, "bar").marker
    assert (heat.zmin, bar.cmin) == (0, 0) and heat.zmax == bar.cmax > 0
    assert heat.colorscale[0][1] == "rgba(255,255,255,0)" and len(heat.colorscale) == len(bar.colorscale) == 2


def test_video_steps_are_not_called_frames(run):
    said = [one.text for one in timeline(run.clip, run.tokens).layout.annotations]
    assert said[0] == "4 of 4 video steps, 3 × 3 patches each"


def test_colours_of_signed_numbers_are_centred_at_zero(run):
    fig = timeline(run.clip, run.tokens, value=torch.rand(len(run.tokens)) - 0.5)
    assert trace(fig, "heatmap").zmin == -trace(fig, "heatmap").zmax
    assert trace(fig, "bar").marker.cmin == -trace(fig, "bar").marker.cmax == trace(fig, "heatmap").zmin


def test_sums_per_second_are_of_the_tokens_that_begin_in_it(run):
    tokens = run.tokens
    value = torch.zeros(len(tokens))
    value[tokens.audio.positions] = 2.0
    value[(tokens.audio & tokens.seconds(1.001, 1.039)).positions] = math.nan  # one token, in the second second
    sums = [one for one in timeline(run.clip, tokens, value=value).data if one.name == "audio per second"][0]
    assert list(sums.y) == [50.0, 48.0, 50.0, 50.0, 50.0]  # 25 tokens per second; the last number ends the line


def test_without_numbers_tokens_are_counted(run):
    sums = [one for one in timeline(run.clip, run.tokens).data if one.name == "video per second"][0]
    assert sum(sums.y[:-1]) == len(run.tokens.video)


def test_unknown_numbers_are_never_drawn_and_are_told(run):
    fig = timeline(run.clip, run.tokens, value=torch.full((len(run.tokens),), math.nan), name="effect")
    for one in fig.data:
        for numbers in (one.z if one.type == "heatmap" else one.y,):
            assert np.isfinite(np.array([x for x in np.ravel(numbers) if x is not None], float)).all()
    assert trace(fig, "heatmap").customdata[0][0][0].endswith("effect not known")


def test_sinks_are_marked_where_they_are(run):
    tokens = run.tokens
    sinks = tokens.at([int(tokens.video.positions[4]), int(tokens.audio.positions[10]), 0])
    fig = timeline(run.clip, tokens, sinks=sinks)
    squares = [one for one in fig.data if one.name == "sink"]
    # Patch [1, 1] of the 3 x 3 in the first frame, which lasts 1 s; the eleventh token of 0.04 s.
    assert (list(squares[0].x), list(squares[0].y)) == ([0.5], [1.5])
    assert list(squares[1].x) == pytest.approx([0.42])
    assert [one.showlegend for one in squares] == [True, False]


def test_frames_can_be_left_out_and_sinks_in_them_are_counted(run):
    sinks = run.tokens.frames(1).tokens.at([int(run.tokens.frames(1).positions[0])])
    fig = timeline(run.clip, run.tokens, every=2, sinks=sinks)
    assert len(fig.layout.images) == 2 and [image.sizex for image in fig.layout.images] == [2, 2]
    assert "1 sink in video steps not shown" in fig.layout.title.subtitle.text


def test_a_part_can_be_chosen(run):
    fig = timeline(run.clip, run.tokens, start=1, end=3)
    assert list(fig.layout.xaxis.range) == [1, 3] and len(fig.layout.images) == 2
    assert len(trace(fig, "bar").x) == 50


def test_what_cannot_be_told_apart_is_refused_with_what_would_fit(run):
    clip = tiny_clip(130.0, fps=1.0, size=(28, 28), audio=False)
    tokens = run.model.prepare(clip, "what ?").tokens
    with pytest.raises(ViewError, match=r"every=2, or a part with start"):
        timeline(clip, tokens)
    fitting = smallest_every(tokens.video)
    assert len(timeline(clip, tokens, every=fitting).layout.images) <= 60


@pytest.mark.parametrize(
    ("wrong", "advice"),
    [
        ({"value": torch.zeros(3)}, "one number for each"),
        ({"clip_index": 5}, "clip_index="),
        ({"start": 9.0}, "4.00 s"),
        ({"start": 3, "end": 2}, "Pass a part"),
        ({"every": 0}, "Pass 1"),
    ],
)
def test_what_cannot_be_drawn_is_refused(run, wrong, advice):
    with pytest.raises(ViewError, match=advice):
        timeline(run.clip, run.tokens, **wrong)


def test_sinks_of_another_prompt_are_refused(run, prompts):
    with pytest.raises(PositionError, match="another layout"):
        timeline(run.clip, run.tokens, sinks=prompts["audio only"][1].at([1]))


def test_names_are_plain_text(run):
    fig = timeline(run.clip, run.tokens, value=torch.rand(len(run.tokens)), name="<b>x</b>")
    assert "<b>" not in fig.to_json().replace("\\u003c", "<")


def test_a_picture_is_that_of_its_second_and_small(run):
    frames = (
        torch.zeros(8, 3, 90, 400, dtype=torch.uint8) + torch.arange(8, dtype=torch.uint8)[:, None, None, None] * 30
    )
    shown = pictures(replace(run.clip, frames=frames), strip(run.tokens.video, every=1))
    # Two frames of the clip are in each of the prompt's: 0 and 1, 2 and 3, ...
    assert shown == [data_uri(picture) for picture in thumbnails(frames[::2])]
    assert thumbnails(frames).shape == (8, 36, 160, 3)
    assert base64.b64decode(shown[0].split(",")[1]).startswith(b"\x89PNG")
    photograph = data_uri(torch.randint(0, 256, (90, 160, 3), dtype=torch.uint8))
    assert base64.b64decode(photograph.split(",")[1]).startswith(b"\xff\xd8") and len(photograph) < 40_000


def test_tokens_of_frames_that_are_no_longer_there_are_drawn_without(run):
    assert not timeline(run.clip.without_video(), run.tokens).layout.images


def test_an_interleaved_prompt_is_drawn_clip_by_clip(run):
    other = tiny_clip(2.0, seed=3)
    tokens = run.model.prepare([run.clip, "and", other], "which ?").tokens
    fig = timeline(other, tokens, clip_index=1)
    assert list(fig.layout.xaxis.range) == [0, 2]
    assert trace(fig, "heatmap").customdata[0][0][0].startswith("c1.v0[0,0]")


def test_several_clips_stand_side_by_side_on_one_scale(run):
    other = tiny_clip(2.0, seed=3, video=False)
    tokens = run.model.prepare([run.clip, "and", other], "which ?").tokens
    value = torch.linspace(-1, 3, len(tokens))
    fig = timeline([run.clip, other], tokens, value=value, sinks=tokens.at([int(tokens.clips(1).positions[0])]))
    assert [list(axis.range) for axis in (fig.layout.xaxis, fig.layout.xaxis2)] == [[0, 4], [0, 2]]
    assert [axis.title.text for axis in (fig.layout.xaxis, fig.layout.xaxis2)] == [
        "seconds of clip 0", "seconds of clip 1",
    ]  # fmt: skip
    first, second = fig.layout.xaxis.domain, fig.layout.xaxis2.domain
    assert first[1] < second[0] and first[1] - first[0] == pytest.approx(2 * (second[1] - second[0]))
    bars = [one for one in fig.data if one.type == "bar" and one.marker.cmax]
    assert [one.xaxis for one in bars] == ["x", "x2"] and bars[0].marker.cmax == bars[1].marker.cmax
    assert fig.layout.yaxis3.range == fig.layout.yaxis7.range and fig.layout.yaxis8.matches == "y4"
    assert [bool(trace(fig, "heatmap").showscale), *(bool(one.marker.showscale) for one in bars)] == [
        True,
        False,
        False,
    ]
    assert [one.xaxis for one in fig.data if one.name == "sink"] == ["x2"]
    assert [one.showlegend for one in fig.data if one.name == "audio per second"] == [True, False]


def test_no_clip_is_no_picture(run):
    with pytest.raises(ViewError, match="several in a list"):
        timeline([], run.tokens)


@pytest.mark.parametrize(("text", "told"), [(0.25, "0.25"), (0.0, "0"), (1e-12, "≈ 0"), (math.nan, "0")])
def test_a_sum_over_text_that_is_as_good_as_none_says_so(run, text, told):
    value = torch.zeros(len(run.tokens), dtype=torch.float64)
    value[run.tokens.video.positions] = 2.0
    value[run.tokens.text.positions[:1]] = text
    note = timeline(run.clip, run.tokens, value=value).layout.title.subtitle.text.replace("<br>", " · ")
    assert note.endswith(f"sum over text {told}")


def test_a_sum_of_nothing_known_is_not_known(run):
    fig = timeline(run.clip, run.tokens, value=torch.full((len(run.tokens),), math.nan))
    assert "sum over text not known" in fig.layout.title.subtitle.text.replace("<br>", " ")
