import json

import numpy as np
import pandas as pd
import pytest

from avlens.datasets.avhbench import read_avhbench
from avlens.errors import MetricError
from avlens.metrics.effects import bootstrap_mean, paired_difference
from avlens.metrics.significance import sign_change_p
from avlens.records import Record, RecordTable
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


def test_intervals_are_those_of_drawing_clips_one_by_one():
    rng, rows = np.random.default_rng(1), []
    for clip in range(12):
        rows += [(f"c{clip}", rng.normal(clip % 4, 0.3)) for _ in range(1 + clip % 5)]
    frame = pd.DataFrame(rows, columns=["sample", "x"])
    parts = [group.x.to_numpy() for _, group in frame.groupby("sample")]
    means = [np.concatenate([parts[i] for i in rng.integers(0, 12, 12)]).mean() for _ in range(8000)]
    found = summarise(frame, "x", by=()).intervals[0]
    assert [found.low, found.high] == pytest.approx(np.quantile(means, [0.025, 0.975]), abs=0.03)
    apart = bootstrap_mean(frame.x.tolist())  # As if rows of one clip were independent: too sure of itself.
    assert found.high - found.low > 1.3 * (apart.high - apart.low)


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


def test_questions_about_one_clip_are_not_independent(tmp_path):
    asked = [{"video_id": str(i // 3), "task": "t", "text": "q", "label": "Yes"} for i in range(12)]
    (tmp_path / "qa.json").write_text(json.dumps(asked))
    questions = read_avhbench(tmp_path / "qa.json", tmp_path)
    given = [0.0] * 3 + [0.2] * 3 + [0.4] * 3 + [1.0] * 3  # Answers of one clip are alike.
    found = RecordTable(
        tuple(
            Record(one.id, condition, rows=({"x": x + (condition == "b")},), clip=one.clip)
            for one, x in zip(questions, given, strict=True)
            for condition in ("a", "b")
        )
    )
    assert summarise(found, "x").intervals[0] == bootstrap_mean(given, clusters=[i // 3 for i in range(12)])
    apart = summarise(found, "x", clip="sample").intervals[0]
    assert apart.n_clusters == 12 and summarise(found.to_frame(), "x").intervals[0].n_clusters == 4
    assert compare(found, "x", against="a").differences[0].n == 4


def test_columns_that_make_no_groups_are_refused(frame):
    for wrong in ({"by": "x"}, {"by": ["layer", "layer"]}, {"by": "lists"}):
        with pytest.raises(MetricError, match="once|no groups"):
            summarise(frame.assign(lists=[[1]] * len(frame)), "x", **wrong)
    with pytest.raises(MetricError, match="cannot be compared with each other"):
        compare(frame, "x", "sample", against="c0")
    for far in (1e300, np.inf):
        assert len(summarise(frame.assign(layer=far), "x", by="layer").groups) == 1


def test_tables_for_papers_are_escaped(frame):
    frame["condition"] = frame.condition.map({"a": "a_1 & b%", "b": "audio -> last", "c": "c"})
    said = summarise(frame, "x", by="condition").to_latex()
    assert r"a\_1 \& b\% & " in said and said.startswith(r"\begin{tabular}{lrr}") and r"\midrule" in said
    table = compare(frame, "x", against="a_1 & b%", correction="none").to_latex(digits=2)
    assert r"x - a\_1 \& b\%" in table and r"audio -\textgreater{} last & $2." in table
    assert "& $<0.01$ & 10" in table  # All ten clips differ one way: 2 of 1,024 sign changes.
    assert all(line.count("&") - line.count(r"\&") in (0, 3) for line in table.splitlines())


def test_numbers_are_set_as_mathematics_and_what_is_not_known_as_a_dash():
    frame = pd.DataFrame({"sample": ["a", "b", "a"], "condition": ["x", "x", "y"], "v": [-1.0, -2.0, np.nan]})
    assert summarise(frame, "v").to_latex().splitlines()[4:6] == [
        r"x & $-1.500\ [-2.000, -1.000]$ & 2 \\", r"y & -- & 0 \\",
    ]  # fmt: skip
    assert r"y & -- & -- & 0 \\" in compare(frame, "v", against="x").to_latex()


def test_edge_cases_give_nan_never_a_plausible_number():
    one = pd.DataFrame({"sample": ["a", "a"], "condition": ["x", "y"], "v": [1.0, 3.0]})
    alone, differs = summarise(one, "v"), compare(one, "v", against="x")
    assert alone.to_frame()["v"].tolist() == [1, 3] and alone.to_frame()[["low", "high"]].isna().all(axis=None)
    assert differs.differences[0].estimate == 2 and np.isnan([differs.p[0], differs.p_adjusted[0]]).all()
    nothing = one.assign(v=np.nan)
    assert summarise(nothing, "v").to_frame()[["clips", "missing"]].to_numpy().tolist() == [[0, 1], [0, 1]]
    assert np.isnan(compare(nothing, "v", against="x").differences[0].estimate)
    same = pd.DataFrame({"sample": list("abcdef") * 2, "condition": ["x"] * 6 + ["y"] * 6, "v": [1.0] * 12})
    assert compare(same, "v", against="x").p == (1.0,)
    shifted = compare(same.assign(v=[1.0] * 6 + [3.0] * 6), "v", against="x")
    assert (shifted.differences[0].low, shifted.differences[0].high, shifted.p[0]) == (2, 2, 2 / 2**6)
    apart = pd.DataFrame({"sample": list("abcd"), "condition": list("xxyy"), "v": [1.0, 2.0, 3.0, 4.0]})
    assert compare(apart, "v", against="x").differences[0].n == 0  # No clip has both: nothing is paired.
    assert len(compare(apart[:2], "v", against="x").to_frame()) == 0


def test_conditions_with_more_rows_of_a_clip_weigh_no_more():
    rows = [("a", "x", 0.0), ("a", "y", 1.0), ("b", "x", 0.0), *[("b", "y", 3.0)] * 9]
    frame = pd.DataFrame(rows, columns=["sample", "condition", "v"])
    assert compare(frame, "v", against="x").differences[0].estimate == 2  # (1 + 3) / 2, not 28 / 10
    assert summarise(frame, "v").to_frame().loc["y", "v"] == 2.8


def test_rows_of_another_kind_do_not_count_and_whole_numbers_stay_whole():
    rows = ({"layer": 0, "x": 1.0}, {"layer": 1, "x": float("nan")}, {"total": 5.0})
    found = RecordTable(tuple(Record(clip, rows=rows) for clip in "ab"))
    table = summarise(found, "x", by="layer")
    assert table.groups == ((0,), (1,)) and all(type(layer) is int for (layer,) in table.groups)
    assert table.to_frame()["missing"].tolist() == [0, 2]
    assert summarise(found, "total", by=()).to_frame().loc["all", ["n", "missing"]].tolist() == [2, 0]


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
