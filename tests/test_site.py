"""The documentation site builds without warnings and without network, and holds what it promises."""

import functools
import html
import http.server
import re
import subprocess
import sys
import threading
import urllib.parse
from pathlib import Path

import pytest

from tests.browser.browsers import chromium

ROOT = Path(__file__).parents[1]
PARTS = ("## Formula", "## Source", "## Use", "## How to read it", "## How it misleads")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    pytest.importorskip("furo", reason="the extra docs is not installed")
    out = tmp_path_factory.mktemp("site")
    command = [
        sys.executable,
        "-m",
        "sphinx",
        "-W",
        "--keep-going",
        "-q",
        "-d",
        str(out / "trees"),
        "docs",
        str(out / "html"),
    ]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr[-3000:]
    return out / "html"


@pytest.mark.slow
def test_every_page_and_notebook_is_on_the_site(site):
    pages = [
        path.relative_to(ROOT / "docs") for path in (ROOT / "docs").glob("**/*.md") if "_" not in path.parts[-1][:1]
    ]
    assert len(pages) > 25
    assert [page for page in pages if not (site / page.with_suffix(".html")).is_file()] == []
    assert all((site / "examples" / f"{one.stem}.html").is_file() for one in (ROOT / "examples").glob("*.py"))


@pytest.mark.slow
def test_pages_load_nothing_from_elsewhere(site):
    for page in site.glob("**/*.html"):
        loaded = re.findall(r"<(?:script|img|iframe|video)[^>]*\ssrc=\"([^\"]+)\"", page.read_text("utf-8"))
        loaded += re.findall(r"<link[^>]*rel=\"(?:stylesheet|preload)\"[^>]*href=\"([^\"]+)\"", page.read_text("utf-8"))
        assert [link for link in loaded if link.startswith(("http", "//"))] == [], page


@pytest.mark.slow
def test_every_link_within_the_site_leads_somewhere(site):
    pages = [
        page for page in site.glob("**/*.html") if page.parent.name != "live"
    ]  # whose scripts hold text that looks like links
    texts = {page: page.read_text("utf-8") for page in pages}
    places = {page: set(re.findall(r"\s(?:id|name)=\"([^\"]+)\"", text)) for page, text in texts.items()}
    lost = []
    for page, text in texts.items():
        for link in set(re.findall(r"\s(?:href|src)=\"([^\"]+)\"", text)):
            if re.match(r"\w+:|//", link):
                continue
            path, _, place = html.unescape(urllib.parse.unquote(link)).partition("#")
            target = (page.parent / path.partition("?")[0]).resolve() if path else page
            if not target.exists() or (place and target in places and place not in places[target]):
                lost.append((page.name, link))
    assert lost == []


@pytest.mark.slow
@pytest.mark.browser
@pytest.mark.filterwarnings("default")  # of the browser's driver
def test_search_finds_and_pages_fit_into_narrow_and_wide_windows(site):
    quiet = type("Quiet", (http.server.SimpleHTTPRequestHandler,), {"log_message": lambda *_: None})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(quiet, directory=site)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_address[1]}"
        with chromium() as page:
            page.goto(f"{address}/search.html?q=massive+activation")
            page.locator("#search-results li a", has_text="Attention sinks").first.wait_for()
            for width in (480, 1280, 1600):
                page.set_viewport_size({"width": width, "height": 900})
                for name in (
                    "index",
                    "methods/sinks",
                    "examples/quickstart",
                    "benchmarks",
                    "reference/avlens.analyses",
                ):
                    page.goto(f"{address}/{name}.html")
                    assert page.evaluate("document.documentElement.scrollWidth") <= width, (name, width)
            assert page.outside == [] and page.errors == []
        server.shutdown()


@pytest.mark.slow
def test_the_reference_and_formulas_are_drawn(site):
    assert 'id="avlens.model.HookedAVModel.run_with_cache"' in (site / "reference" / "avlens.html").read_text("utf-8")
    assert "<math" in (site / "methods" / "sinks.html").read_text("utf-8")
    assert 'href="../reference/avlens.analyses.html#module-avlens.analyses.sinks"' in (
        site / "methods" / "sinks.html"
    ).read_text("utf-8")


def test_every_method_is_on_a_page_of_its_own_that_the_index_names():
    """Nothing can be asked, edited, decoded or scored that is not explained."""
    pages = {path.stem: path.read_text("utf-8") for path in (ROOT / "docs" / "methods").glob("*.md")}
    explained = {name for text in pages.values() for name in re.findall(r"`(avlens(?:\.\w+)+)`", text)}
    parts = ("analyses", "interventions", "decoding", "metrics")
    helpers = {"avlens.decoding.last_row", "avlens.decoding.plausible"}
    modules = {f"avlens.{part}.{path.stem}" for part in parts for path in (ROOT / "avlens" / part).glob("[!_]*.py")}
    assert len(modules) > 30 and modules - helpers - explained == set()
    for by in ("index.md", "methods.md"):
        named = re.findall(r"methods/(\w+)", (ROOT / "docs" / by).read_text("utf-8"))
        assert sorted(set(pages) - set(named)) == [], by


@pytest.mark.parametrize("page", sorted((ROOT / "docs" / "methods").glob("*.md")), ids=lambda path: path.stem)
def test_a_method_has_formula_source_use_and_how_it_is_read_and_misread(page):
    text = page.read_text("utf-8")
    assert [part for part in PARTS if part not in text] == []
    assert [part for part in PARTS if part in text] == sorted(PARTS, key=text.index)
    images = re.findall(r"\]\(\.\./(images/[^)]+)\)", text)
    assert all((ROOT / "docs" / image).is_file() for image in images)
