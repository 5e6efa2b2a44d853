"""The documentation site: `python docs/build.py` writes it to docs/_build/html, without network."""

import pkgutil
import re
import shutil
import sys
from importlib import import_module
from pathlib import Path
from textwrap import indent
from typing import Any

import latex2mathml.converter
from docutils import nodes

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
html_favicon = html_logo = "_static/avlens.svg"
html_extra_path = ["_live"] if (HERE / "_live").is_dir() else []
html_math_renderer = "mathml"
html_copy_source = False

nb_execution_mode = "off"
nb_ipywidgets_js: dict[str, Any] = {}
myst_enable_extensions = ["dollarmath", "deflist"]
myst_heading_anchors = 3


add_module_names = False
toc_object_entries_show_parents = "hide"
python_maximum_signature_line_length = 90
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


def module_as_rst(text: str) -> str:
    """A module's docstring: prose flows, and what is laid out by hand (formulas, lists, tables) stays as it is."""
    made = []
    for block in re.split(r"\n[ ]*\n", text.strip()):
        laid_out = any(line[:1] in " 123456789" for line in block.split("\n"))
        if laid_out and made and made[-1].startswith(".. code-block"):
            made[-1] += "\n\n" + indent(block, "    ")
        else:
            made.append(f".. code-block:: text\n\n{indent(block, '    ')}" if laid_out else as_rst(block))
    return "\n\n".join(made)


def _process(_app: Any, what: str, _name: str, _obj: Any, _options: Any, lines: list[str]) -> None:
    lines[:] = (module_as_rst if what == "module" else as_rst)("\n".join(lines)).split("\n") + [""]


def _not_ours(_app: Any, _what: str, _name: str, obj: Any, skip: bool, _options: Any) -> bool | None:
    return (
        True
        if str(getattr(obj, "__module__", "")).split(".")[0] in ("transformer_lens", "torch", "transformers")
        else skip
    )


def _to_site(_app: Any, _page: str, source: list[str]) -> None:
    """Notebooks stand among the pages, not beside them as on GitHub, and pages to click on are shown where they are built."""
    source[0] = re.sub(r"\]\(\.\./((?:\.\./)*examples/\w+\.ipynb)\)", r"](\1)", source[0])
    source[0] = re.sub(r"<!-- live(\w*): (.*?) -->", _live, source[0])


def _live(found: re.Match[str]) -> str:
    """`<!-- live: text with [a link](live/page.html) -->`, or `<!-- liveframe: live/page.html 500 -->` of so many pixels."""
    if not html_extra_path:
        return ""
    if found[1] == "frame":
        page, height = found[2].split()
        title = Path(page).stem
        return f'<iframe class="live" src="{page}" style="height:{height}px" title="{title}" loading="lazy"></iframe>'
    return re.sub(r"\[([^]]*)\]\(([^)]*)\)", r'<a href="\2">\1</a>', found[2])


def _link_names(app: Any, tree: Any, page: str) -> None:
    """Names of avlens in code type lead to the reference."""
    known = app.env.domains["py"].objects
    short: dict[str, str | None] = {}
    for name, found in known.items():
        if found.objtype in ("function", "class", "exception"):
            last = name.rsplit(".", 1)[-1]
            short[last] = None if last in short else name
    for literal in list(tree.findall(nodes.literal)):
        said = literal.astext().removeprefix("views.").removesuffix("()")
        telling = "_" in said or said != said.lower() or said in avlens.__all__ or literal.astext().startswith("views.")
        name = said if said in known and said.startswith("avlens") else short.get(said) if telling else None
        if name is None or isinstance(literal.parent, nodes.reference | nodes.title):
            continue
        uri = app.builder.get_relative_uri(page, known[name].docname) + f"#{known[name].node_id}"
        link = nodes.reference("", "", internal=True, refuri=uri, reftitle=name)
        literal.replace_self(link)
        link += literal


def _name_attributes(_app: Any, tree: Any, _page: str) -> None:
    """A dataclass has attributes; napoleon calls them variables."""
    for name in tree.findall(nodes.field_name):
        if name.astext() == "Variables":
            name[:] = [nodes.Text("Attributes")]


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
    raise nodes.SkipNode


def _visit_block(self: Any, node: Any) -> None:
    self.body.append(f"<div class='math'>{latex2mathml.converter.convert(node.astext(), display='block')}</div>")
    raise nodes.SkipNode


def setup(app: Any) -> None:
    """Formulas are MathML, which browsers draw by themselves."""
    app.add_html_math_renderer("mathml", (_visit_math, None), (_visit_block, None))
    app.connect("autodoc-process-docstring", _process, priority=400)
    app.connect("autodoc-skip-member", _not_ours)
    app.connect("source-read", _to_site)
    app.connect("doctree-resolved", _link_names)
    app.connect("doctree-resolved", _name_attributes)


write_notebooks()
write_reference()
