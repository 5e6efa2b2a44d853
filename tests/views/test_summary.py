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


def test_a_column_of_numbers_is_an_axis_and_the_others_are_lines(frame):
    summary = summarise(frame, "x", by=["condition", "layer"])
    fig = plot(summary)
    assert {line.name for line in fig.data} == {
        "a",
        "&lt;b&gt;b&lt;/b&gt;",
        "c",
    } and fig.layout.xaxis.title.text == "layer"
    line = next(one for one in fig.data if one.name == "c")
    assert list(line.x) == [0, 1, 2] and list(line.y) == pytest.approx([1, 2, 3])
    interval = summary.intervals[summary.groups.index(("c", 1))]
    assert line.error_y.array[1] == pytest.approx(interval.high - interval.estimate)


def test_groups_without_numbers_are_points(frame):
    (points,) = plot(summarise(frame, "x")).data
    assert points.mode == "markers" and list(points.x) == ["a", "&lt;b&gt;b&lt;/b&gt;", "c"]
    assert plot(summarise(frame, "x", by=())).data[0].x == ("all",)


def test_what_survives_the_correction_is_filled(frame):
    (points,) = plot(compare(frame, "x", against="a")).data
    assert points.marker.color[0] != "#F7F7F7" and points.marker.color[1] == "#F7F7F7"
    assert "x: condition minus a" in plot(compare(frame, "x", against="a")).layout.title.text
