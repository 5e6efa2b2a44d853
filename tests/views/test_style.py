import math
import re
from dataclasses import replace

import plotly.graph_objects as go
import pytest
import torch

from avlens.tokens import Modality
from avlens.views import plot
from avlens.views.style import COLOURS, CROSS_MODAL, DIVERGING, colours_of, dark, figure, told_apart


def test_long_texts_are_broken_into_lines_and_the_figure_grows_by_them():
    short, long = figure("t", note="a · b"), figure("t " * 60, note=" · ".join(["x" * 40] * 3 + ["<b>" * 60]))
    assert short.layout.title.subtitle.text == "a · b"
    lines = long.layout.title.subtitle.text.split("<br>")
    assert lines[:2] == [f"{'x' * 40} · {'x' * 40}", "x" * 40] and len(lines) == 4
    assert max(len(line.replace("&lt;", "<").replace("&gt;", ">")) for line in lines) <= 96
    grown = long.layout.height - short.layout.height
    assert grown == long.layout.margin.t - short.layout.margin.t == 3 * 16 + 21
    assert 1 - long.layout.title.y == pytest.approx(16 / long.layout.height)


def test_texts_above_names_of_rows_begin_at_the_figures_edge(run):
    beside, above = figure("t", flush=True).layout.title, figure("t").layout.title
    assert (beside.xref, beside.x, beside.pad.l) == ("container", 0, 16) and (above.xref, above.pad.l) == ("paper", 0)
    for name in ("paths", "windows"):
        assert (plot(getattr(run, name)).layout.title.xref == "container") is (name == "paths")


def test_bars_of_paths_leave_room_for_their_numbers(run):
    effects = torch.tensor([[-0.5], [1.5]]) * run.paths.contrast.total
    axis = plot(replace(run.paths, effects=effects)).layout.xaxis
    assert list(axis.range) == pytest.approx([-0.74, 1.74])
    assert all(map(math.isfinite, plot(replace(run.paths, effects=effects * math.nan)).layout.xaxis.range))


def test_a_figure_for_dark_pages_leaves_no_dark_text(run):
    for result in (run.sinks, run.trace, run.heads, run.dynamics):
        turned = dark(plot(result))
        assert isinstance(turned, go.Figure) and turned.layout.paper_bgcolor == "#14171C"
        turned.layout.template = None
        assert not re.search("#(1A1A1A|333333|F7F7F7|332288)", turned.to_json(), re.IGNORECASE)


def test_scales_of_signed_values_have_nothing_in_the_middle():
    low, middle, high = (tuple(int(colour[i : i + 2], 16) for i in (1, 3, 5)) for _, colour in DIVERGING)
    assert len(set(middle)) == 1 and low[2] > low[0] and high[0] > high[2]
    assert len(set(COLOURS.values())) == len(COLOURS)


def test_lines_have_the_colour_of_what_they_begin_with_and_dashes_tell_them_apart():
    video, audio = COLOURS[Modality.VIDEO], COLOURS[Modality.AUDIO]
    names = ["audio -> last", "video -> last", "audio -> question", "audio <-> video", "<audio>", "question -> last"]
    found = told_apart(names)
    assert [colour for colour, _ in found[:5]] == [audio, video, audio, CROSS_MODAL, audio]
    assert [dash for _, dash in found] == ["solid", "solid", "dash", "solid", "longdash", "solid"]
    assert found[5][0] not in (*COLOURS.values(), CROSS_MODAL)
    assert len(set(told_apart([f"plan {i}" for i in range(20)]))) == 20


def test_the_first_set_of_a_modality_has_its_colour(run):
    tokens = run.tokens
    sets = {"a": tokens.video, "b": tokens.video, "c": tokens.audio, "d": tokens.media}
    colours = colours_of(sets)
    assert (colours[0], colours[2]) == (COLOURS[Modality.VIDEO], COLOURS[Modality.AUDIO]) and len(set(colours)) == 4
