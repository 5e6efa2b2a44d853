"""The examples of "Probing Cross-modal Information Hubs" run on the embedded model, and print what the paper's tables hold."""

import importlib.util
from pathlib import Path

import pandas as pd
import pytest

from avlens.analyses.selection import read_judgements

FOLDER = Path(__file__).parents[1] / "examples" / "cross_modal_hubs"


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Runs an example in a folder of its own; its result, what it printed, and the folder."""

    def main(name, **options):
        monkeypatch.chdir(tmp_path)
        spec = importlib.util.spec_from_file_location(f"hub_example_{name}", FOLDER / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module.main(**options), capsys.readouterr().out, tmp_path

    return main


def test_every_example_is_tested_and_on_the_page():
    names = {path.stem for path in FOLDER.glob("*.py")}
    assert names == {"selection", "causal_tracing", "layers", "sinks", "decoding", "dynamics"}
    page = (FOLDER.parents[1] / "docs" / "cross_modal_hubs.md").read_text(encoding="utf-8")
    assert all(f"examples/cross_modal_hubs/{name}.py" in page for name in names)


def test_selection(run):
    selection, said, folder = run("selection", data="synthetic:2", out=Path("judged"))
    assert len(selection.judgements) == 2 and "audio-dominant" in said
    assert len(read_judgements(folder / "judged")) == 2


def test_causal_tracing(run):
    table, said, folder = run("causal_tracing", data="synthetic:2", draws=2)
    assert len(table.tables) >= 1 and "cross N=4, matched frequency" in said and "bootstrap intervals" in said
    assert "toprule" in (folder / "causal_tracing/table.tex").read_text()
    assert len(list((folder / "causal_tracing").glob("*_dominant.html"))) == len(table.tables)


def test_layers(run):
    table, said, folder = run("layers", data="synthetic:3", out=Path("layers.html"))
    assert list(table.index) == list(range(6)) and "IE_clean" in said and (folder / "layers.html").stat().st_size > 1000


def test_sinks(run):
    tables, said, folder = run("sinks", data="synthetic:3")
    assert tables["MDS per sink, pooled over clips"][0.5].between(-1, 1).all() and "spearman" in said
    assert tables["share of each half in each chunk"].sum(1).tolist() == [pytest.approx(1.0)] * 4
    assert {path.name for path in (folder / "sinks").iterdir()} == {"sinks.html", "dominance.html", "hubs.html"}


def test_decoding(run):
    table, said, folder = run("decoding", data="synthetic:2", max_new_tokens=12)
    assert list(table.index) == ["vanilla", "PAI", "VCD", "AVCD", "FMD (approximate)", "ASD"]
    assert list(table.columns) == ["ALOHa", "Cs", "Ci", "F1", "recall", "length"] and "ASD" in said
    assert len(pd.read_csv(folder / "captions.csv")) == 2


def test_dynamics(run):
    table, said, folder = run("dynamics", data="synthetic:2")
    assert {"cross", "uni"} == set(table.index.get_level_values("set")) and (table["words"] > 0).all()
    assert (folder / "dynamics.html").stat().st_size > 1000 and "genuine" in said
