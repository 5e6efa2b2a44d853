import numpy as np
import pandas as pd
import pytest

from avlens.errors import MetricError
from avlens.metrics.effects import bootstrap_mean, paired_difference
from avlens.metrics.significance import sign_change_p
from avlens.summaries import compare, summarise


@pytest.fixture
def frame():
    rng = np.random.default_rng(0)
    rows = [
        {"sample": f"c{c}", "condition": name, "layer": layer, "x": rng.normal() + 3 * (name == "b"), "total": 2.0}
        for c in range(10) for name in ("a", "b", "c") for layer in (0, 1)
    ]  # fmt: skip
    return pd.DataFrame(rows)


def test_groups_are_means_whose_intervals_draw_whole_clips(frame):
    found = summarise(frame, "x", by=["condition", "layer"])
    part = frame[(frame.condition == "b") & (frame.layer == 1)]
    assert found.intervals[found.groups.index(("b", 1))] == bootstrap_mean(
        part.x.tolist(), clusters=part["sample"].tolist()
    )
    one = summarise(frame, "x", by="condition")
    assert one.to_frame().loc["a", ["n", "clips"]].tolist() == [20, 10]
    whole = summarise(frame, "x", by=())
    assert whole.to_frame().loc["all", "x"] == pytest.approx(frame.x.mean())


def test_a_share_is_a_ratio_of_sums(frame):
    found = summarise(frame, "x", over="total", by="condition").to_frame()
    part = frame[frame.condition == "c"]
    assert found.loc["c", "x / total"] == pytest.approx(part.x.sum() / part.total.sum())


def test_missing_values_are_counted_and_rows_without_a_group_left_out(frame):
    frame.loc[0, "x"] = np.nan
    frame.loc[1, "condition"] = None
    found = summarise(frame, "x", by="condition").to_frame()
    assert found.loc["a", ["n", "missing"]].tolist() == [18, 1]


def test_a_comparison_takes_each_clip_as_its_own_control(frame):
    found = compare(frame, "x", against="a")
    means = frame.groupby(["sample", "condition"]).x.mean().unstack()
    assert found.groups == (("b",), ("c",))
    assert found.differences[0] == paired_difference(means.b.tolist(), means.a.tolist())
    assert found.p[1] == sign_change_p((means.c - means.a).to_numpy())
    assert found.p_adjusted[0] == pytest.approx(2 * found.p[0]) and found.p_adjusted[0] < 0.05 < found.p_adjusted[1]
    layers = compare(frame, "x", against="a", by="layer", correction="bh")
    assert layers.groups == ((0, "b"), (0, "c"), (1, "b"), (1, "c"))
    assert layers.to_frame().loc[(1, "b"), "difference"] > 1


def test_a_clip_without_both_does_not_count(frame):
    lost = frame[~((frame["sample"] == "c3") & (frame.condition == "a"))]
    assert compare(lost, "x", against="a").differences[0].n == 9


def test_tables_for_papers_are_escaped(frame):
    frame["condition"] = frame.condition.map({"a": "a_1 & b%", "b": "b", "c": "c"})
    said = summarise(frame, "x", by="condition").to_latex()
    assert r"a\_1 \& b\% & " in said and said.startswith(r"\begin{tabular}{lrr}") and r"\midrule" in said
    assert r"x - a\_1 \& b\%" in compare(frame, "x", against="a_1 & b%").to_latex()


def test_html_escapes_text(frame):
    frame["condition"] = "<script>alert(1)</script>"
    assert "<script" not in summarise(frame, "x", by="condition")._repr_html_()


def test_what_is_not_there_is_said(frame):
    with pytest.raises(MetricError, match="no 'y'. They have sample, condition"):
        summarise(frame, "y")
    with pytest.raises(MetricError, match="never 'z'. It is 'a', 'b', 'c'"):
        compare(frame, "x", against="z")
    with pytest.raises(MetricError, match="holds no numbers, such as 'c0'"):
        summarise(frame, "sample")
