"""The architecture: imports stay light, every module is on the architecture page."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
HEAVY = ("transformers", "plotly", "transformer_lens", "circuitsvis", "av", "torch", "pandas")


def loaded_after(statement):
    """Which of the heavy packages a fresh interpreter has loaded after a statement."""
    code = f"import sys; {statement}; print(*[name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    return set(done.stdout.split())


def test_importing_avlens_loads_nothing_heavy():
    assert loaded_after("import avlens; dir(avlens); avlens.__version__") == set()


def test_the_help_of_commands_loads_nothing_heavy():
    assert loaded_after("import avlens.cli") == set()


def test_errors_names_and_tokens_load_neither_transformers_nor_plotting():
    assert loaded_after("import avlens.errors, avlens.names") == set()
    assert loaded_after("import avlens.tokens") <= {"torch", "pandas"}
    assert loaded_after("import avlens; avlens.Clip") <= {"torch", "av", "pandas"}


def test_the_model_loads_no_plotting():
    assert loaded_after("import avlens; avlens.HookedAVModel") & {"plotly", "circuitsvis"} == set()


def test_everything_that_avlens_offers_can_be_had():
    import avlens

    assert all(getattr(avlens, name) is not None for name in avlens.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'pathc'"):
        avlens.pathc  # noqa: B018


def test_transformer_lens_is_imported_in_one_file():
    importing = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "avlens").rglob("*.py")
        if any(line.lstrip().startswith(("import transformer_lens", "from transformer_lens")) for line in path.open())
    }
    assert importing == {"avlens/hooks.py"}


def test_every_module_is_on_the_architecture_page_and_nothing_else():
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"^\| \**`([\w/]+)`", page, re.MULTILINE))
    files = [path.relative_to(ROOT / "avlens") for path in (ROOT / "avlens").rglob("*.py")]
    modules = {str(path.with_suffix("")) for path in files if not path.name.startswith("__")}
    assert modules - listed == set()
    assert {name for name in listed if not name.endswith("/")} - modules == set()
