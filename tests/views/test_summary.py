import pandas as pd
import pytest

from avlens.summaries import compare, summarise
from avlens.views import plot


@pytest.fixture
def frame():
    rows = [
        {"sample": f"c{c}", "condition": name, "layer": layer, "x": c % 3 + 5.0 * (name == "<b>b</b>") + layer}
        for c in range(12) for name in ("a", "<b>b</b>", "c") for layer in (0, 1, 2)
    ]  # fmt: skip
    return pd.DataFrame(rows)


def test_a_column_of_numbers_is_an_axis_and_the_others_are_lines_with_bands(frame):
    summary = summarise(frame, "x", by=["condition", "layer"])
    fig = plot(summary)
    lines, bands = [one for one in fig.data if one.name], [one for one in fig.data if not one.name]
    assert [line.name for line in lines] == [
        "a",
        "&lt;b&gt;b&lt;/b&gt;",
        "c",
    ] and fig.layout.xaxis.title.text == "layer"
    assert list(lines[2].x) == [0, 1, 2] and list(lines[2].y) == pytest.approx([1, 2, 3])
    its = [summary.intervals[summary.groups.index(("c", layer))] for layer in (0, 1, 2)]
    assert list(bands[2].y) == pytest.approx([one.high for one in its] + [one.low for one in reversed(its)])
    assert "12 clips" in fig.layout.title.text and lines[2].customdata[1] == "2 [1.58, 2.42], 12 clips"


def test_a_band_stops_where_no_interval_is_known(frame):
    alone = frame[(frame.layer != 1) | (frame["sample"] == "c0")]
    fig = plot(summarise(alone[alone.condition == "a"], "x", by=["condition", "layer"]))
    assert [len(band.x) for band in fig.data if not band.name] == [2, 2]
    assert "1 to 12 clips" in fig.layout.title.text


def test_groups_without_numbers_are_rows_and_those_of_two_columns_stand_together(frame):
    (points,) = plot(summarise(frame, "x")).data
    assert points.mode == "markers" and list(points.y) == ["a", "&lt;b&gt;b&lt;/b&gt;", "c"]
    assert points.error_x.array[0] > 0 and plot(summarise(frame, "x", by=())).data[0].y == ("all",)
    parts = plot(summarise(frame.assign(kind="k", other=frame.condition), "x", by=["condition", "kind"])).data
    assert len(parts) == 3 and [list(column) for column in parts[0].y] == [["a"], ["k"]]
    assert len({part.marker.color[0] for part in parts}) == 3
    fewer = plot(summarise(frame[(frame.condition != "c") | (frame["sample"] < "c3")], "x"))
    assert list(fewer.data[0].y)[0] == "a (12)" and "in brackets: clips" in fewer.layout.title.subtitle.text


def test_what_survives_the_correction_is_filled(frame):
    fig = plot(compare(frame, "x", against="a"))
    assert fig.data[0].marker.color[0] != "#F7F7F7" and fig.data[0].marker.color[1] == "#F7F7F7"
    assert (
        "x: condition minus a" in fig.layout.title.text
        and "corrected (holm) for 2 comparisons" in fig.layout.title.subtitle.text
    )
    assert fig.layout.shapes[0].x0 == 0 == fig.layout.shapes[0].x1


def test_nothing_can_be_drawn_too(frame):
    assert "0 clips" in plot(summarise(frame[:0], "x")).layout.title.text
    assert "too few clips" in plot(summarise(frame[:1], "x")).layout.title.subtitle.text
