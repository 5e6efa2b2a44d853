"""Whoever is sent a page opens it in their browser, clicks, and nothing is asked of any other machine."""

from contextlib import closing

import pytest

from avlens import views
from avlens.testing import tiny_clip, tiny_model
from tests.browser.browsers import SIZE, chromium, firefox, until

pytestmark = [pytest.mark.browser, pytest.mark.filterwarnings("default")]  # of the browsers' drivers


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """A report, an explorer of which one column was run, and a view of attention."""
    folder = tmp_path_factory.mktemp("pages")
    model = tiny_model(n_layers=3)
    clip = tiny_clip(3.0)
    clean, corrupt = (model.prepare(one, "what ?") for one in (clip, clip.silenced()))
    _, cache = model.run_with_cache(clean, names_filter=["resid_pre", "pattern"])
    size = cache["resid_pre", 1][0].norm(dim=-1)
    views.report(folder / "report.html", title="A clip", clip=clip, tokens=clean.tokens, value=size, name="size")
    explorer = views.PatchExplorer(model, clean, corrupt, clip=clip)
    explorer.column = next(i for i, label in enumerate(explorer.result.groups) if label.startswith("a·"))
    explorer.sweep(explorer.column)
    explorer.save(folder / "explorer.html")
    views.attention(cache, layer=1).save(folder / "attention.html")
    return folder, explorer


@pytest.fixture(scope="module", params=["chromium", "firefox"])
def browser(request, tmp_path_factory):
    with chromium() if request.param == "chromium" else firefox(tmp_path_factory.mktemp("profile")) as page:
        yield page


def open_page(browser, path):
    browser.errors.clear()
    browser.outside.clear()
    browser.open(path)


TOKEN = """(() => {
  const plot = document.getElementById("avlens-timeline");
  const i = plot.data.findIndex(trace => trace.type === "bar"), trace = plot._fullData[i];
  const axis = name => plot._fullLayout[name.replace(/^(.)/, "$1axis")], x = axis(trace.xaxis), y = axis(trace.yaxis);
  const n = Math.floor(0.6 * trace.x.length), box = plot.getBoundingClientRect();
  const told = trace.customdata?.[n];
  return [box.left + x._offset + x.d2p(trace.x[n]), box.top + y._offset + y.d2p(trace.y[n] / 2), trace.x[n], told];
})()"""


def test_a_click_on_a_token_plays_the_clip_there(pages, browser):
    open_page(browser, pages[0] / "report.html")
    until(browser, "document.querySelectorAll('#avlens-timeline .nsewdrag').length > 0")
    player = "document.getElementById('avlens-player')"
    plays = browser.evaluate(f"{player}.canPlayType('video/mp4; codecs=\"avc1.42E01E\"')") != ""
    if plays:
        until(browser, f"{player}.readyState > 0")
    browser.evaluate("document.getElementById('avlens-timeline').scrollIntoView({block: 'center'})")
    x, y, at, _told = browser.evaluate(TOKEN)
    assert at > 1
    browser.click_at(x, y)
    if plays:
        until(browser, f"{player}.currentTime > 0.5")
        assert browser.evaluate(f"{player}.currentTime") == pytest.approx(at, abs=0.5)
        assert browser.evaluate("document.getElementById('avlens-cursor').hidden") is False
    assert browser.evaluate("document.getElementById('avlens-problem').hidden") is plays
    assert browser.outside == [] and browser.errors == []


def test_an_explorer_without_a_kernel_answers_what_was_run(pages, browser):
    folder, explorer = pages
    open_page(browser, folder / "explorer.html")
    click = (
        "document.querySelector(`.avx-cell[data-layer='{}'][data-group='{}'] .avx-patched`)"
        ".dispatchEvent(new MouseEvent('click', {{bubbles: true}}))"
    )
    told = "document.querySelector(\".avx-bar[data-run='edited'][data-answer='0'] span\").textContent"
    assert browser.evaluate(told) == "–"
    browser.evaluate(click.format(2, explorer.column))
    answer = next(iter(explorer.probabilities["clean"]))
    assert browser.evaluate(told) == f"{explorer.patch(2, explorer.column)[answer]:.3f}"
    browser.evaluate(click.format(2, 0))
    assert "not run" in browser.evaluate("document.querySelector('.avx-status').textContent")
    assert browser.outside == [] and browser.errors == []


def test_attention_is_drawn(pages, browser):
    open_page(browser, pages[0] / "attention.html")
    until(browser, "document.querySelectorAll('canvas').length > 2")
    assert browser.outside == [] and browser.errors == []


WIDE = "Math.max(...[...document.querySelectorAll('.avlens-view canvas')].map(canvas => canvas.clientWidth))"


@pytest.mark.parametrize("browser", ["chromium"], indirect=True)
def test_attention_grows_with_its_window_and_follows_the_readers_theme(pages, browser):
    with closing(browser.context.browser.new_page(viewport=SIZE, color_scheme="light")) as page:
        page.goto((pages[0] / "attention.html").as_uri())
        until(page, "document.querySelectorAll('canvas').length > 2")
        before, style = page.evaluate(WIDE), "getComputedStyle(document.querySelector('.avlens-view'))"
        assert before > 800 and page.evaluate(f"{style}.filter") == "none"
        page.set_viewport_size({"width": 500, "height": 800})
        until(page, f"{WIDE} < 500")
        page.set_viewport_size(SIZE)
        until(page, f"{WIDE} === {before}")
        page.emulate_media(color_scheme="dark")
        assert "invert" in page.evaluate(f"{style}.filter")
        assert page.evaluate(f"{style}.backgroundColor") == "rgba(0, 0, 0, 0)"
