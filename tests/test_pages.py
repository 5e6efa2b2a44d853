"""The tables of pages are written by their scripts."""

import importlib.util
import re
from dataclasses import replace
from pathlib import Path

import pytest

from avlens import HookedAVModel
from avlens.cost import duration
from avlens.experiments.ledger import H100, QWEN2_5_OMNI, Widths
from avlens.testing import tiny_clip

DOCS = Path(__file__).parents[1] / "docs"


def loaded(name):
    spec = importlib.util.spec_from_file_location(name, DOCS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def script():
    return loaded("senses_to_decisions")


@pytest.fixture(scope="module")
def planning():
    return loaded("planning")


@pytest.mark.parametrize("name", ["script", "planning"])
def test_every_table_of_the_page_is_the_scripts(name, request):
    script = request.getfixturevalue(name)
    found = re.findall(r"<!-- (\w+) -->\n(.*?)\n<!-- end -->", script.PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert sorted(name for name, _ in found) == sorted(script.TABLES)
    assert all(table.startswith("|") for _, table in found)


def test_tables_are_measured_and_written_into_their_places(script):
    model, samples = HookedAVModel.from_pretrained("avlens-tiny"), script.clips(2)
    assert all(not sample.content.matches for sample in samples)
    table = script.orders(model, samples)
    assert table.iloc[:, 1]["media -> question"] == table.iloc[:, 0]["question -> media"] == "no such pairs"
    text = script._markdown(table)
    page = "before\n<!-- orders -->\nold\n<!-- end -->\nafter\n<!-- joint -->\nkept\n<!-- end -->\n"
    new = script.written(page, "orders", text)
    assert new == page.replace("old", text)


def test_costs_are_counted_and_summed_up(planning):
    chosen = [
        line
        for line in planning.LINES
        if line.name in ("selection", "flow") or line.said.startswith("the published sets, audio")
    ]
    model, found = planning.thin("7B", n_layers=2), {}
    clip = tiny_clip(2.0, size=(56, 56))
    for line in chosen:
        work = planning.counted(line, model, clip)
        for name, widths in QWEN2_5_OMNI.items():
            found[line, name] = work.widened(Widths.of(model), replace(widths, n_layers=2))
    selection, tracing, flow = chosen
    assert found[flow, "7B"].operations > found[flow, "3B"].operations
    # Judging alone, which tracing does first, and then the sets.
    assert found[tracing, "7B"].operations > found[selection, "7B"].operations
    table = planning.per_clip(found)
    assert list(table["clips"]) == ["1,000", "349", "2,281"]
    whole = planning.whole(found)
    total = found[flow, "3B"].seconds(H100) * 2281
    assert whole.loc["P3", "3B on H100 SXM"] == f"{duration(total)} / {duration(planning.LOADING + total / 8)}"
    workers = planning.workers(found)
    assert workers["efficiency"].astype(float).between(0, 1).all() and len(workers) == 10


def test_traced_sets_are_as_large_as_published(planning):
    line = next(line for line in planning.LINES if line.said.startswith("the published sets, audio"))
    rows = []
    with planning.decided(line):
        model, clip = planning.thin("7B", n_layers=2), tiny_clip(10.0, size=(336, 336))
        settings = {**planning.EXPERIMENTS["tracing"].conditions["zero"], "seed": 0}
        rows = planning.EXPERIMENTS["tracing"].measure(model, planning.asked(line, clip), settings)
    assert {row["set"]: row["tokens"] for row in rows} == planning.PUBLISHED["audio"]
