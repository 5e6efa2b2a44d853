"""The notebooks are their percent scripts, and run from top to bottom."""

from pathlib import Path

import jupytext
import nbformat
import pytest
from nbclient import NotebookClient

_PLOTLY = "application/vnd.plotly.v1+json"
EXAMPLES = sorted(Path(__file__).parents[1].glob("examples/*.py"))


@pytest.mark.parametrize("script", EXAMPLES, ids=lambda path: path.stem)
def test_the_notebook_is_its_script_and_was_run(script):
    notebook = nbformat.read(script.with_suffix(".ipynb"), as_version=4)
    cells = [(cell.cell_type, cell.source) for cell in notebook.cells]
    assert cells == [(cell.cell_type, cell.source) for cell in jupytext.read(script).cells]
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert not any(output.output_type == "error" for cell in code for output in cell.outputs)


@pytest.mark.parametrize("script", EXAMPLES, ids=lambda path: path.stem)
@pytest.mark.filterwarnings("default")  # of Jupyter's own machinery
def test_the_notebook_runs(script):
    notebook = jupytext.read(script)
    NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(script.parent)}}
    ).execute()
    shown = [output.get("data", {}) for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert any(_PLOTLY in data for data in shown)
    if script.stem == "quickstart":
        assert sum(_PLOTLY in data for data in shown) == 3
        assert any("CircuitsVis" in data.get("text/html", "") for data in shown)
        assert any("application/vnd.jupyter.widget-view+json" in data for data in shown)
        assert any("data-avlens-still" in data.get("text/html", "") for data in shown)  # where widgets are not drawn


@pytest.mark.parametrize("script", EXAMPLES, ids=lambda path: path.stem)
def test_the_committed_notebook_shows_its_pictures_without_scripts(script):
    """A page that nobody runs, such as GitHub's, shows pictures, not scripts and widgets."""
    cells = nbformat.read(script.with_suffix(".ipynb"), as_version=4).cells
    shown = [output.get("data", {}) for cell in cells if cell.cell_type == "code" for output in cell.outputs]
    assert sum("image/png" in data for data in shown) >= (5 if script.stem == "quickstart" else 1)
    assert not any("<script" in data.get("text/html", "") or _PLOTLY in data for data in shown)
