"""The tables of pages are written by their scripts."""

import importlib.util
import re
from pathlib import Path

import pytest

from avlens import HookedAVModel

DOCS = Path(__file__).parents[1] / "docs"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("senses_to_decisions", DOCS / "senses_to_decisions.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_table_of_the_page_is_the_scripts(script):
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
