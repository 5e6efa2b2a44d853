"""Whoever is sent a page opens it in their browser, clicks, and nothing is asked of any other machine."""

from contextlib import closing

import pytest

from avlens import views
from avlens.testing import tiny_clip, tiny_model
from avlens.views import panel
from avlens.views.page import page
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


CONTRASTS = """(() => {
  const drawn = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const luminance = colour => {
    drawn.fillStyle = colour;
    drawn.fillRect(0, 0, 1, 1);
    const linear = x => (x <= 10 ? x / 255 / 12.92 : ((x / 255 + 0.055) / 1.055) ** 2.4);
    const [red, green, blue] = [...drawn.getImageData(0, 0, 1, 1).data].map(linear);
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
  };
  const root = document.querySelector(".avx"), ground = luminance(getComputedStyle(root).backgroundColor);
  const contrast = colour => {
    const [low, high] = [luminance(colour), ground].sort((a, b) => a - b);
    return (high + 0.05) / (low + 0.05);
  };
  const keys = [...root.querySelectorAll(".avx-keys i")].map(key => getComputedStyle(key).backgroundColor);
  return [...[getComputedStyle(root).color, ...keys].map(contrast), ground];
})()"""
HOSTS = {
    "a page": "",
    "a page of a reader who likes it dark": "",
    "JupyterLab, dark": "document.body.dataset.jpThemeLight = 'false'; ['--jp-ui-font-color0', '--jp-layout-color0']"
    ".forEach((name, i) => document.body.style.setProperty(name, ['#fff', '#111'][i]))",
    "VS Code, dark, where widgets stand on white": "document.body.className = 'vscode-dark'; "
    "['--vscode-editor-foreground', '--vscode-editor-background', '--jp-ui-font-color0', '--jp-layout-color0']"
    ".forEach((name, i) => document.body.style.setProperty(name, ['#ccc', '#1f1f1f', '#000', '#fff'][i]))",
}


@pytest.mark.parametrize("browser", ["chromium"], indirect=True)
@pytest.mark.parametrize("host", HOSTS)
def test_the_explorer_can_be_read_wherever_it_stands(pages, browser, host):
    scheme = "dark" if "likes" in host else "light"
    with closing(browser.context.browser.new_page(viewport=SIZE, color_scheme=scheme)) as shown:
        shown.goto((pages[0] / "explorer.html").as_uri())
        shown.evaluate(f"() => {{ {HOSTS[host]} }}")
        ink, *bars, ground = shown.evaluate(CONTRASTS)
        assert ink > 7 and min(bars) > 3
        assert (ground < 0.05) is ("dark" in host)


@pytest.mark.parametrize("browser", ["chromium"], indirect=True)
def test_bars_are_as_long_as_their_probabilities(pages, browser, tmp_path):
    explorer = pages[1]
    p = {"clean": [1.0, 0.9, 0.5, 0.0, 0.0], "corrupted": [0.0, 0.2, 0.8, 0.0, 0.0]}
    body = panel.standing_alone(explorer._spec | {"p": p}, explorer._view())
    (tmp_path / "page.html").write_text(page("", body), encoding="utf-8")
    open_page(browser, tmp_path / "page.html")
    length = "document.querySelector(`.avx-bar[data-run='{}'][data-answer='{}'] i`).getBoundingClientRect().width"
    full = browser.evaluate(length.format("clean", 0))
    assert full > 100
    for run, shares in p.items():
        for i, share in enumerate(shares):
            assert browser.evaluate(length.format(run, i)) == pytest.approx(max(1, full * share), abs=1)


@pytest.mark.parametrize("browser", ["chromium"], indirect=True)
def test_a_telephone_scrolls_figures_and_the_cursor_stays_on_its_second(pages, browser):
    with closing(browser.context.browser.new_page(viewport={"width": 400, "height": 800})) as phone:
        phone.goto((pages[0] / "report.html").as_uri())
        until(phone, "document.querySelectorAll('#avlens-timeline .nsewdrag').length > 0")
        assert phone.evaluate("document.documentElement.scrollWidth") == 400
        assert phone.evaluate("document.getElementById('avlens-timeline').clientWidth") == 700
        at = "document.getElementById('avlens-cursor').getBoundingClientRect().left"
        first = "document.querySelector('#avlens-timeline .nsewdrag').getBoundingClientRect().left"
        for scrolled in (0, 150):
            phone.evaluate(f"document.getElementById('avlens-synced').scrollLeft = {scrolled}")
            phone.evaluate("document.getElementById('avlens-player').dispatchEvent(new Event('timeupdate'))")
            assert phone.evaluate(f"{at} - {first}") == pytest.approx(-1, abs=1)
