"""The documentation site: `python docs/build.py` writes it to docs/_build/html, without network."""

import pkgutil
import re
import shutil
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import latex2mathml.converter

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

import avlens  # noqa: E402

project = "avlens"
author = "the avlens authors"
copyright = "the avlens authors, Apache-2.0"
version = release = avlens.__version__
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build", "_live", "**.ipynb_checkpoints"]
html_theme = "furo"
html_title = f"avlens {release}"
html_static_path = ["_static"]
html_css_files = ["avlens.css"]
html_extra_path = ["_live"] if (HERE / "_live").is_dir() else []
html_math_renderer = "mathml"
html_copy_source = False

nb_execution_mode = "off"
nb_ipywidgets_js: dict[str, Any] = {}
myst_enable_extensions = ["dollarmath", "deflist"]
myst_heading_anchors = 3


autodoc_typehints = "signature"
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True}
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_attr_annotations = False

_SECTIONS = ("Args:", "Attributes:", "Raises:", "Returns:", "Yields:")


def as_rst(text: str) -> str:
    """A docstring, which is plain text with `code` and indented formulas, as reStructuredText."""
    code = re.findall(r"`([^`]+)`", text)
    text = re.sub(r"`[^`]+`", "\0", text)  # also across lines
    made: list[str] = []
    formula = section = False
    for line in text.split("\n"):
        indented, named = line.startswith("    "), line.strip() in _SECTIONS
        if line.strip() and not indented:
            section, formula = named, False
        elif indented and not section and not formula:
            made += ["", "::", ""]
            formula = True
        made.append(line if formula else _without_markup(line))
    spans = iter(code)
    joined = re.sub("\0(?=\\w)", "\0\\\\ ", "\n".join(made))  # a literal ends at a space, which is not shown
    return re.sub("\0", lambda _: f"``{' '.join(next(spans).split())}``", joined)


def _without_markup(line: str) -> str:
    return re.sub(r"([*|\\`])|(?<=\w)_(?=\W|$)", lambda m: "\\" + m[0], line)


def _process(_app: Any, what: str, _name: str, _obj: Any, _options: Any, lines: list[str]) -> None:
    """Docstrings of modules keep their layout, which formulas and tables need; others become text."""
    if what == "module" and lines:
        rest = [f"    {line}" for line in lines[1:]]
        lines[:] = [*as_rst(lines[0]).split("\n"), "", ".. code-block:: text", "", *rest, ""]
    else:
        lines[:] = as_rst("\n".join(lines)).split("\n")


def _not_ours(_app: Any, _what: str, _name: str, obj: Any, skip: bool, _options: Any) -> bool | None:
    return (
        True
        if str(getattr(obj, "__module__", "")).split(".")[0] in ("transformer_lens", "torch", "transformers")
        else skip
    )


def _to_site(_app: Any, page: str, source: list[str]) -> None:
    """Notebooks stand among the pages, not beside them as on GitHub; pages that the index does not name are about papers."""
    if page == "index":
        unnamed = sorted(
            path.stem for path in HERE.glob("*.md") if f"\n{path.stem}\n" not in source[0] and path.stem != "index"
        )
        source[0] = source[0].replace("\ncross_modal_hubs\n", "\n".join(["", "cross_modal_hubs", *unnamed, ""]))
    source[0] = re.sub(r"\]\(\.\./((?:\.\./)*examples/\w+\.ipynb)\)", r"](\1)", source[0])


def write_notebooks() -> None:
    """Notebooks as they were run; they stand beside the pages only while a site is built."""
    shutil.rmtree(HERE / "examples", ignore_errors=True)
    (HERE / "examples").mkdir()
    for notebook in (HERE.parent / "examples").glob("*.ipynb"):
        shutil.copy(notebook, HERE / "examples")


def write_reference() -> None:
    """One page for each package of avlens, from docstrings."""
    shutil.rmtree(HERE / "reference", ignore_errors=True)
    (HERE / "reference").mkdir()
    pages: dict[str, list[str]] = {"avlens": []}
    for module in pkgutil.walk_packages(avlens.__path__, "avlens."):
        parts = module.name.split(".")
        if parts[1] in ("__main__", "cli", "training") or module.ispkg:
            continue
        pages.setdefault(".".join(parts[:-1]), []).append(module.name)
    for package, modules in pages.items():
        told = "".join(f"## {name}\n\n```{{eval-rst}}\n.. automodule:: {name}\n```\n\n" for name in modules)
        first = (import_module(package).__doc__ or "").strip().split("\n\n")[0].replace("\n", " ")
        (HERE / "reference" / f"{package}.md").write_text(f"# {package}\n\n{first}\n\n{told}", "utf-8")


def _visit_math(self: Any, node: Any) -> None:
    self.body.append(latex2mathml.converter.convert(node.astext(), display="inline"))
    raise _skip()


def _visit_block(self: Any, node: Any) -> None:
    self.body.append(f"<div class='math'>{latex2mathml.converter.convert(node.astext(), display='block')}</div>")
    raise _skip()


def _skip() -> Exception:
    from docutils.nodes import SkipNode

    return SkipNode()


def setup(app: Any) -> None:
    """Formulas are MathML, which browsers draw by themselves."""
    app.add_html_math_renderer("mathml", (_visit_math, None), (_visit_block, None))
    app.connect("autodoc-process-docstring", _process, priority=400)
    app.connect("autodoc-skip-member", _not_ours)
    app.connect("source-read", _to_site)


write_notebooks()
write_reference()
