"""A researcher opens the quickstart in a real browser, runs it, clicks, and nothing leaves the machine."""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import jupytext
import nbformat
import pytest

from tests.browser.browsers import chromium

EXAMPLES = Path(__file__).parents[2] / "examples"
APPS = {
    "lab": ("jupyterlab", "--LabApp.expose_app_in_browser=True", "lab/tree"),
    "notebook": ("notebook", "--JupyterNotebookApp.expose_app_in_browser=True", "notebooks"),
}

pytestmark = [pytest.mark.browser, pytest.mark.filterwarnings("default")]  # of the browser's driver


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@pytest.fixture(params=["lab"])
def served(request, tmp_path):
    """JupyterLab, or the classic notebook's heir, in a folder of its own; gives its folder and the address of notebooks."""
    module, exposed, notebooks = APPS[request.param]
    anywidget = pytest.importorskip("anywidget", reason="the extra notebook is not installed")
    pytest.importorskip(module, reason="it is not installed")
    settings = tmp_path / "settings" / "@jupyterlab" / "notebook-extension"
    settings.mkdir(parents=True)
    (settings / "tracker.jupyterlab-settings").write_text(json.dumps({"windowingMode": "none"}))
    port, folder = free_port(), tmp_path / "work"
    folder.mkdir()
    installed = Path(anywidget.__file__).parents[4]  # where its part of JupyterLab is
    env = os.environ | {
        "JUPYTERLAB_SETTINGS_DIR": str(tmp_path / "settings"), "JUPYTER_CONFIG_DIR": str(tmp_path / "config"),
        "JUPYTER_RUNTIME_DIR": str(tmp_path / "run"), "JUPYTER_PATH": str(installed / "share" / "jupyter"),
        "JUPYTER_CONFIG_PATH": str(installed / "etc" / "jupyter"), "HF_HUB_OFFLINE": "1",
    }  # fmt: skip
    command = [
        sys.executable, "-m", module, "--no-browser", "--allow-root", "--ip=127.0.0.1", f"--port={port}",
        "--ServerApp.port_retries=0", "--IdentityProvider.token=t", f"--ServerApp.root_dir={folder}",
        exposed, "--LabApp.news_url=", "--LabApp.extension_manager=readonly",
        "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
    ]  # fmt: skip
    with (tmp_path / "log").open("w") as log:
        server = subprocess.Popen(command, cwd=folder, env=env, stdout=log, stderr=log)
    try:
        wait_for(f"http://127.0.0.1:{port}/api?token=t", server, tmp_path / "log")
        yield folder, f"http://127.0.0.1:{port}/{notebooks}"
    finally:
        server.terminate()
        server.wait(30)


def wait_for(address, server, log):
    for _ in range(240):
        if server.poll() is not None:
            break
        try:
            with urllib.request.urlopen(address, timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.5)
    pytest.fail(f"the server did not start: {log.read_text()[-2000:]}")


@pytest.fixture
def page():
    with chromium() as opened:
        yield opened


def run_all(page, address, name):
    """Open a notebook and run its cells; none may fail."""
    page.goto(f"{address}/{name}?token=t")
    page.wait_for_function("window.jupyterapp?.shell.currentWidget?.sessionContext?.session?.kernel?.status === 'idle'")
    page.evaluate("window.jupyterapp.commands.execute('notebook:run-all-cells')")
    cells = "window.jupyterapp.shell.currentWidget.content.widgets.filter(one => one.model.type === 'code')"
    page.wait_for_function(
        f"{cells}.every(one => one.model.executionCount) && "
        "window.jupyterapp.shell.currentWidget.sessionContext.session.kernel.status === 'idle'",
        timeout=300_000,
    )
    failed = page.evaluate(
        f"{cells}.flatMap(one => one.model.outputs.toJSON()).filter(one => one.output_type === 'error').map(one => one.evalue)"
    )
    assert failed == []


def complaints(page):
    """What a page complained of, but for what Notebook 7.6 says of its own settings while it starts, whatever is in it."""
    return [error for error in page.errors if not ("reading 'schema'" in error and "notebook_core" in error)]


def told(page, run, answer=0):
    return page.locator(f".avx-bar[data-run='{run}'][data-answer='{answer}'] span").inner_text()


def click(page, layer, group, **how):
    cell = page.locator(f".avx-cell[data-layer='{layer}'][data-group='{group}'] .avx-patched")
    cell.scroll_into_view_if_needed()
    cell.click(**how)


@pytest.mark.parametrize("served", APPS, indirect=True)
def test_the_quickstart_runs_and_its_explorer_answers_clicks(served, page):
    folder, address = served
    nbformat.write(jupytext.read(EXAMPLES / "quickstart.py"), folder / "quickstart.ipynb")
    run_all(page, address, "quickstart.ipynb")
    explorer = page.locator(".avx")
    explorer.scroll_into_view_if_needed()
    group = page.locator(".avx-column", has_text="a·").first.get_attribute("data-group")

    still = page.locator("[data-avlens-still]")
    assert still.count() == 1 and not still.is_visible()  # the picture for pages without a kernel

    before = told(page, "edited")
    click(page, 5, group)
    page.wait_for_function("document.querySelector('.avx-status').textContent.startsWith('patch L5')")
    assert told(page, "edited") != before
    assert told(page, "edited") == told(page, "corrupted")  # too late: the last token does not read it any more

    click(page, 0, group, modifiers=["Shift"])
    page.wait_for_function("document.querySelector('.avx-status').textContent.startsWith('knock out L0')")
    page.get_by_role("button", name="Undo").click()
    page.wait_for_function("document.querySelector('.avx-status').textContent.startsWith('patch L5')")

    page.locator(f".avx-column[data-group='{int(group) - 1}'] text").click(modifiers=["Shift"])
    page.wait_for_function("/cells? run in/.test(document.querySelector('.avx-status').textContent)")
    assert page.locator(f".avx-cell[data-group='{int(group) - 1}'] .avx-knocked.avx-known").count() == 6

    page.locator(".avlens-view canvas").first.wait_for()
    assert page.locator(".avlens-view canvas").count() == 4  # three heads and the zoomed one
    assert page.locator(".js-plotly-plot .main-svg").count() >= 3
    assert page.outside == [] and complaints(page) == []


def test_errors_are_seen_and_a_cell_that_runs_meanwhile_changes_nothing(served, page):
    folder, address = served
    code = [
        "from avlens import knockout, views\nfrom avlens.testing import tiny_clip, tiny_model",
        "model, clip = tiny_model(n_layers=3), tiny_clip(3.0)\n"
        "clean, corrupt = (model.prepare(one, 'what ?') for one in (clip, clip.silenced()))",
        "explorer = views.PatchExplorer(model, clean, corrupt)\nexplorer",
        "from avlens.views import patching\nsweep = patching.sweep\n"
        "patching.sweep = lambda *args, **more: 1 / 0 if explorer.result.window == 2 else sweep(*args, **more)",
    ]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in code])
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(notebook, folder / "small.ipynb")
    run_all(page, address, "small.ipynb")
    page.locator(".avx").scroll_into_view_if_needed()
    page.locator(".avx select[aria-label=window]").select_option("2")
    page.wait_for_timeout(500)
    click(page, 0, 0)
    page.wait_for_function("document.querySelector('.avx-status').textContent.includes('ZeroDivisionError')")
    assert page.locator(".avx-status.avx-failed").count() == 1
    page.locator(".avx select[aria-label=window]").select_option("1")

    run = (
        "kernel = window.jupyterapp.shell.currentWidget.sessionContext.session.kernel, "
        "window.meanwhile = kernel.requestExecute({code: 'for _ in range(40): model.run_with_hooks(clean, "
        "knockout(clean.tokens.last, clean.tokens.video))'}).done.then(() => { window.finished = true; }), 0"
    )
    page.evaluate(f"var kernel; {run}")
    page.get_by_role("button", name="Sweep column").click()
    page.wait_for_function("/3 cells run in/.test(document.querySelector('.avx-status').textContent)")
    page.wait_for_function("window.finished === true")
    colours = "[...document.querySelectorAll('.avx-cell[data-group=\"0\"] .avx-patched')].map(one => one.style.fill)"
    shown = page.evaluate(colours)
    check = (
        "other = views.PatchExplorer(model, clean, corrupt); other.sweep(0); "
        "assert other.result.patched[:, 0].allclose(explorer.result.patched[:, 0])"
    )
    said = page.evaluate(
        "code => kernel.requestExecute({code}).done.then(reply => reply.content.status + (reply.content.evalue ?? ''))",
        check,
    )
    assert said == "ok" and len(shown) == 3 and all(shown)
    assert page.outside == [] and complaints(page) == []
