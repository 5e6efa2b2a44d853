"""What a notebook shows of values that are no pictures."""

import importlib
import math
import pkgutil
from dataclasses import is_dataclass
from html.parser import HTMLParser

import pandas as pd
import pytest

import avlens.analyses
from avlens import display
from avlens.testing import tiny_clip, tiny_model

HOSTILE = "</table><script>x</script>"


class Cells(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.cells = [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag in ("td", "th"):
            self.cells.append("")

    def handle_data(self, data):
        if self.cells:
            self.cells[-1] += data


def parsed(html):
    cells = Cells()
    cells.feed(html)
    return cells


def test_a_table_has_its_first_rows_and_says_how_many_more_there_are():
    rows = pd.DataFrame({"x": [0.123456, math.nan, *range(10)]}, index=pd.Index(range(12), name="n"))
    told = parsed(display.table("what", rows, {"model": "m", "dtype": "torch.float32"}))
    assert told.tags.count("tr") == 11 and told.cells[:6] == ["n", "x", "0", "0.1235", "1", "–"]
    assert "2 more rows in to_frame() · m · float32" in told.cells[-1]


def test_rows_of_several_indices_keep_them():
    index = pd.MultiIndex.from_product([[3], ["a", "b"]], names=["layer", "sink"])
    assert parsed(display.table("what", pd.DataFrame({"mds": [1, 2]}, index=index))).cells[:6] == [
        "layer", "sink", "mds", "3", "a", "1",
    ]  # fmt: skip


def test_nothing_in_a_table_is_taken_for_html():
    html = display.table(HOSTILE, pd.DataFrame({HOSTILE: [HOSTILE]}), {"model": HOSTILE})
    assert "<script" not in html and html.count("</table>") == 1


def test_a_bar_has_a_stripe_for_each_run_and_counts():
    html = display.runs(["text", "video", "video", "audio", "video"], {1: "0 s"})
    assert html.count("<rect") == 4 and "<title>video 1 to 2</title>" in html and "video 3" in html
    assert "x='200.00' width='400.00'" in html and ">0 s</text>" in html
    assert display.runs([]).count("<rect") == 0


@pytest.fixture(scope="module")
def run():
    model = tiny_model(n_layers=2)
    inputs = model.prepare(tiny_clip(3.0), HOSTILE)
    return model, inputs, *model.run_with_cache(inputs, ["resid_pre", "pattern"])


def test_prompts_sets_and_caches_show_themselves(run):
    model, inputs, _, cache = run
    assert "&lt;/table&gt;" in inputs._repr_html_() and "<script" not in inputs._repr_html_()
    assert [mark in inputs._repr_html_() for mark in (">0 s<", ">2 s<", ">3 s<")] == [True, True, False]
    assert inputs.tokens.video._repr_html_().count("<tr>") == 11
    assert parsed(cache._repr_html_()).cells[5:9] == [
        "resid_pre",
        "2",
        str(list(cache["resid_pre", 0].shape)),
        "float32",
    ]
    assert "text" in model.generate(inputs, 2)._repr_html_()


def test_every_result_of_an_analysis_shows_itself():
    modules = [
        importlib.import_module(one.name) for one in pkgutil.iter_modules(avlens.analyses.__path__, "avlens.analyses.")
    ]
    results = [
        kind for module in modules for kind in vars(module).values()
        if is_dataclass(kind) and kind.__module__ == module.__name__ and hasattr(kind, "to_frame")
    ]  # fmt: skip
    assert len(results) >= 8
    assert [kind.__name__ for kind in results if not hasattr(kind, "_repr_html_")] == []
