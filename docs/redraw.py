"""Everything in docs and examples that comes from running: `python docs/redraw.py` runs every notebook and draws every picture.

`python docs/redraw.py notebooks [NAME ...]` and `python docs/redraw.py images [NAME ...]` do one of both. It needs the extra
`dev` and Chromium. Notebooks keep pictures as PNG, so that they show on GitHub; what is interactive is drawn by a
browser without network.
"""

import base64
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jupytext
import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).parent.parent
WIDTH = 1000  # pixels of a picture in a notebook
_WIDGET, _PLOTLY, _PNG = "application/vnd.jupyter.widget-view+json", "application/vnd.plotly.v1+json", "image/png"
_PICTURES = f"import plotly.io as pio; pio.renderers['png'].width, pio.renderers['png'].scale = {WIDTH}, 1.5"


def main() -> None:
    """What was asked for on the command line."""
    what, chosen = (sys.argv[1:2] or ["all"])[0], sys.argv[2:]
    if what not in ("all", "notebooks", "images"):
        raise SystemExit(f"{what!r} is unknown: pass notebooks, images, or nothing for both")
    with browser() as shoot:
        if what in ("all", "notebooks"):
            for script in sorted(ROOT.glob("examples/*.py")):
                if not chosen or script.stem in chosen:
                    run_notebook(script, shoot)
        if what in ("all", "images"):
            from pictures import draw_all

            draw_all(ROOT / "docs" / "images", shoot, chosen)


_WHEN_DRAWN = """done => {
  const waits = () => document.querySelector("script[data-figure], script[data-view]") && !document.querySelector("[data-drawn]");
  const look = () => waits() ? setTimeout(look, 50) : done();
  look();
}"""

Shoot = Callable[..., bytes]
"""A PNG of a page of HTML: `shoot(html, width=..., select=..., act=...)`."""


@contextmanager
def browser() -> Iterator[Shoot]:
    """Chromium, which may reach nothing."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright, tempfile.TemporaryDirectory() as folder:
        chromium = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])

        def shoot(
            html: str,
            *,
            width: int = WIDTH,
            select: str = "body",
            act: Callable[[Any], None] | None = None,
            scheme: str = "light",
        ) -> bytes:  # fmt: skip
            at = Path(folder) / "page.html"
            at.write_text(html, "utf-8")
            shown = chromium.new_page(
                viewport={"width": width, "height": 900}, device_scale_factor=1.5, color_scheme=scheme
            )
            shown.set_default_timeout(180_000)
            shown.goto(at.as_uri())
            shown.evaluate(f"new Promise(done => ({_WHEN_DRAWN})(done))")
            shown.wait_for_timeout(1500)
            if act is not None:
                act(shown)
            picture: bytes = shown.locator(select).first.screenshot()
            shown.close()
            return picture

        yield shoot
        chromium.close()


def run_notebook(script: Path, shoot: Shoot) -> None:
    """Execute a script's notebook, and write it beside the script with its pictures."""
    os.environ["PLOTLY_RENDERER"] = "plotly_mimetype+png"
    notebook = jupytext.read(script)
    client = NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(script.parent)}}
    )
    with client.setup_kernel():
        client.kc.execute(_PICTURES, store_history=False)
        for i, cell in enumerate(notebook.cells):
            if cell.cell_type == "code":
                client.execute_cell(cell, i)
                cell.metadata.pop("execution", None)
    widgets = client.widget_state
    for cell in notebook.cells:
        if "outputs" in cell:
            cell["outputs"] = [output for output in cell["outputs"] if not _stands_in(output)]
        for output in cell.get("outputs", ()):
            if "data" in output:
                output["data"] = _still(output["data"], widgets, shoot)
    notebook.metadata.pop("widgets", None)
    notebook.metadata["language_info"] = {"name": "python"}
    for i, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{i}"
    nbformat.write(notebook, script.with_suffix(".ipynb"))
    print(f"{script.stem}: {script.with_suffix('.ipynb').stat().st_size / 1e6:.2f} MB", flush=True)


def _stands_in(output: Mapping[str, Any]) -> bool:
    """Whether an output is the picture that a widget hides."""
    return "data-avlens-still" in str(output.get("data", {}).get("text/html", ""))


def _still(data: Mapping[str, Any], widgets: Mapping[str, Any], shoot: Shoot) -> dict[str, Any]:
    """What a notebook that nobody runs can show: a PNG instead of scripts and widgets."""
    from avlens.views.page import page
    from avlens.views.panel import standing_alone

    kept = {kind: value for kind, value in data.items() if kind not in (_PLOTLY, _WIDGET)}
    if _WIDGET in data:
        state = widgets[data[_WIDGET]["model_id"]]
        body = f"<div style='width:{WIDTH}px'>{standing_alone(state['spec'], state['view'])}</div>"
        return _pictured(kept, shoot(page("", body), width=WIDTH + 16, select=".avx"))
    if "avlens-view" in str(data.get("text/html", "")):
        return _pictured(
            kept,
            shoot(
                f"<!doctype html><html><head><meta charset='utf-8'></head><body>{data['text/html']}</body></html>",
                select=".avlens-view",
            ),
        )
    if _PNG in kept:
        kept.pop("text/html", None)
    return kept


def _pictured(data: Mapping[str, Any], png: bytes) -> dict[str, Any]:
    kept = {kind: value for kind, value in data.items() if kind not in ("text/html", "application/javascript")}
    return {**kept, _PNG: base64.b64encode(png).decode()}


if __name__ == "__main__":
    main()
