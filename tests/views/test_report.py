import re
import shutil
from html.parser import HTMLParser

import av
import numpy as np
import pandas as pd
import pytest
import torch

from avlens.errors import PositionError, ViewError
from avlens.media import Clip
from avlens.testing import tiny_clip
from avlens.views import Section, attention, plot, report
from avlens.views.player import recording
from tests.views.reading import unpacked

HOSTILE = "</script><b>bold</b>&"


class Tags(HTMLParser):
    """Every tag of a page with its attributes; what is inside scripts is text."""

    def __init__(self):
        super().__init__()
        self.tags = []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))


def tags(html):
    parser = Tags()
    parser.feed(html)
    return parser.tags


def sections(run):
    table = pd.DataFrame({HOSTILE: [HOSTILE, np.nan]}, index=pd.Index([1, 2], name="position"))
    return [
        Section(HOSTILE, f"One.\n\n{HOSTILE}", table=table, generated=HOSTILE),
        Section("Figures", figures=[plot(run.sinks), plot(run.mds)]),
        Section("Attention", view=attention(run.cache, layer=1)),
        Section("Again", view=attention(run.cache, layer=2, heads=[0])),
    ]


@pytest.fixture(scope="module")
def written(run, tmp_path_factory):
    value = torch.linspace(-1, 1, len(run.tokens))
    path = tmp_path_factory.mktemp("report") / "report.html"
    return report(
        path,
        title=HOSTILE,
        clip=run.clip,
        tokens=run.tokens,
        sections=sections(run),
        value=value,
        sinks=run.sinks.tokens,
    )


@pytest.fixture(scope="module")
def html(written):
    return written.read_text(encoding="utf-8")


def media(html):
    kind, data = re.search(r"id='avlens-media' data-kind='(.*?)'>(.*?)</script>", html).groups()
    return kind, unpacked(data)


def test_a_report_asks_nothing_of_the_network(html):
    links = [
        (tag, name, value) for tag, attrs in tags(html) for name, value in attrs.items() if name in ("src", "href")
    ]
    assert not [link for link in links if not link[2].startswith("data:")]
    assert "default-src 'none'" in html and "connect-src" not in html


def test_scripts_are_in_the_page_once(html):
    assert [html.count(f"data-script='{name}'") for name in ("CircuitsVis", "Plotly")] == [1, 1]
    assert html.count(" data-figure='") == 3 and html.count(" data-view='") == 2


def test_all_text_is_escaped(html):
    body = html.split("<main>")[1]
    assert "<b>" not in body
    assert body.count("&lt;/script&gt;&lt;b&gt;bold") == 6  # heading, paragraph, answer, column, cell and the title
    assert [tag for tag, _ in tags(html)].count("b") == 0


def test_ids_are_unique_and_pages_are_repeatable(run, html, written, tmp_path):
    ids = [attrs["id"] for _, attrs in tags(html) if "id" in attrs]
    assert len(ids) == len(set(ids))
    value = torch.linspace(-1, 1, len(run.tokens))
    again = report(
        tmp_path / "again.html", title=HOSTILE, clip=run.clip, tokens=run.tokens, sections=sections(run), value=value,
        sinks=run.sinks.tokens,
    )  # fmt: skip
    assert again.read_text(encoding="utf-8") == html


def test_tables_show_what_is_unknown_and_their_index_once(html):
    table = html.split("<table")[1].split("</table>")[0]
    assert "–" in table and table.count("position") == 1 and "<td>1</td>" in table


def test_row_numbers_that_say_nothing_are_left_out(run, tmp_path):
    section = Section("short", table=pd.DataFrame({"x": [7.5]}))
    html = report(tmp_path / "r.html", title="t", clip=run.clip, tokens=run.tokens, sections=[section]).read_text(
        "utf-8"
    )
    assert "<td>7.5</td>" in html and "<th>0</th>" not in html


def test_long_tables_are_cut_and_say_so(run, tmp_path):
    section = Section("long", table=pd.DataFrame({"x": range(500)}))
    html = report(tmp_path / "r.html", title="t", clip=run.clip, tokens=run.tokens, sections=[section]).read_text(
        "utf-8"
    )
    assert "The first 100 of 500 rows" in html and "<td>100</td>" not in html


@pytest.mark.parametrize("having", ["both", "audio only", "video only"])
def test_the_clip_is_inside(prompts, tmp_path, having):
    clip, tokens = prompts[having]
    html = report(tmp_path / "r.html", title="t", clip=clip, tokens=tokens).read_text("utf-8")
    kind, content = media(html)
    assert kind == ("audio/mp4" if having == "audio only" else "video/mp4")
    (tmp_path / "clip.mp4").write_bytes(content)
    played = Clip.from_file(tmp_path / "clip.mp4")
    assert (played.has_video, played.has_audio) == (clip.has_video, clip.has_audio)
    assert abs(played.seconds - clip.seconds) < 0.15
    assert f"<{kind.split('/')[0]} id='avlens-player'" in html and "data-script='CircuitsVis'" not in html


def test_a_file_is_played_only_while_it_is_what_the_model_was_given(run, tmp_path):
    path = run.clip.to_file(tmp_path / "clip.mp4")
    clip = Clip.from_file(path)
    assert recording(clip).content == path.read_bytes()
    assert recording(Clip.from_file(path, max_pixels=40 * 40)).content == path.read_bytes()
    for changed in (
        clip.silenced(),
        clip.blanked(),
        clip.without_audio(),
        clip.noised(500),
        Clip.from_file(path, start=1.0),
        Clip.from_file(path, audio=False),
    ):
        assert recording(changed).content != path.read_bytes()
    path.unlink()
    assert recording(clip).kind == "video/mp4"


def test_what_is_heavy_for_a_page_is_made_light(tmp_path):
    clip = tiny_clip(2.0, fps=10.0, size=(240, 320))  # noise
    path = clip.to_file(tmp_path / "clip.mp4")
    light = recording(Clip.from_file(path, fps=10.0, max_pixels=320 * 240))
    assert path.stat().st_size > 1_000_000 and len(light.content) < 30_000 * 2 + 30_000 and light.kind == "video/mp4"
    (tmp_path / "light.mp4").write_bytes(light.content)
    played = Clip.from_file(tmp_path / "light.mp4", fps=10.0)
    assert abs(played.seconds - 2.0) < 0.15 and played.has_audio and len(played.frames) == 20
    assert len(recording(clip.silenced()).content) < 90_000


def test_what_a_browser_may_not_know_is_written_anew(tmp_path):
    path = tmp_path / "old.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=5)
        stream.width = stream.height = 64
        for _ in range(10):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format="rgb24")))
        container.mux(stream.encode(None))
    content = recording(Clip.from_file(path)).content
    assert content != path.read_bytes() and b"avc1" in content


def test_a_sound_file_is_played_as_it_is(run, tmp_path):
    path = run.clip.to_file(tmp_path / "sound.wav")
    played = recording(Clip.from_file(path))
    assert (played.kind, played.content) == ("audio/wav", path.read_bytes())


@pytest.fixture(scope="module")
def of_two(prompts, tmp_path_factory):
    """A report without a clip of its own over sections with theirs; the last plays what the first does."""
    (first, tokens), (second, others) = prompts["both"], prompts["video only"]
    size = torch.arange(len(others), dtype=torch.float32)
    parts = [
        Section("One", clip=first, tokens=tokens),
        Section("Two", "Another.", clip=second, tokens=others, value=size, name="place"),
        Section("None"),
        Section("One again", clip=first, tokens=tokens),
    ]
    return report(tmp_path_factory.mktemp("two") / "two.html", title="Two clips", sections=parts)


def test_each_section_has_its_own_clip_and_no_file_is_carried_twice(of_two, prompts, tmp_path):
    html = of_two.read_text("utf-8")
    ids = [attrs["id"] for _, attrs in tags(html) if "id" in attrs]
    assert len(ids) == len(set(ids))
    assert [one for one in ids if one.startswith("avlens-media")] == ["avlens-media-0", "avlens-media-1"]
    assert [one for one in ids if one.startswith("avlens-player")] == [f"avlens-player-{i}" for i in (0, 1, 3)]
    for i, name in ((0, "both"), (1, "video only")):
        content = re.search(f"id='avlens-media-{i}' data-kind='video/mp4'>(.*?)</script>", html)[1]
        (tmp_path / f"{i}.mp4").write_bytes(unpacked(content))
        played, given = Clip.from_file(tmp_path / f"{i}.mp4"), prompts[name][0]
        assert abs(played.seconds - given.seconds) < 0.15 and played.has_audio == given.has_audio
    assert html.index("Another.") < html.index("id='avlens-player-1'") < html.index(">None<")


@pytest.mark.parametrize("part", [{"clip": None}, {"tokens": None}])
def test_a_clip_without_its_tokens_is_refused(run, tmp_path, part):
    given = {"clip": run.clip, "tokens": run.tokens} | part
    with pytest.raises(ViewError, match="'alone' has .* but no .*Pass both"):
        report(tmp_path / "r.html", title="t", sections=[Section("alone", **given)])
    with pytest.raises(ViewError, match="'t' has"):
        report(tmp_path / "r.html", title="t", **given)


def test_sinks_of_another_prompt_are_refused(run, prompts, tmp_path):
    with pytest.raises(PositionError, match="another layout"):
        report(tmp_path / "r.html", title="t", clip=run.clip, tokens=run.tokens, sinks=prompts["audio only"][1].at([1]))


WATCH = """window.problems = [];
addEventListener("error", e => problems.push(String(e.message)), true);
addEventListener("securitypolicyviolation", e => problems.push(e.violatedDirective + e.blockedURI));"""
DRAWN = """new Promise(done => {
  const look = () => "drawn" in document.documentElement.dataset ? done() : setTimeout(look, 50);
  look();
})"""
PROBE = """new Promise(done => {
  const plot = document.getElementById("avlens-timeline"), player = document.getElementById("avlens-player");
  const ground = () => plot.querySelector(".main-svg").style.background, before = ground(), begun = Date.now();
  let seconds;
  player.addEventListener("seeked", () => seconds ??= player.currentTime);
  plot.emit("plotly_click", {points: [{x: 9, customdata: ["a token", 1.5]}]});
  document.getElementById("avlens-theme").click();
  const look = () => (seconds === undefined || ground() === before) && Date.now() - begun < 20000 ? setTimeout(look, 100) : done({
    problems, seconds: seconds ?? null, cursor: !document.getElementById("avlens-cursor").hidden,
    plots: document.querySelectorAll(".js-plotly-plot .main-svg").length > 0,
    charts: document.querySelectorAll(".avlens-view canvas").length,
    grounds: [before, ground()], uploads: document.querySelectorAll("[data-title*='hare']").length,
  });
  look();
})"""


@pytest.mark.browser
@pytest.mark.filterwarnings("default")  # of the browser's driver
@pytest.mark.skipif(shutil.which("chromium") is None, reason="chromium is not installed")
def test_a_browser_draws_it_and_a_click_on_a_token_seeks_there(written):
    playwright = pytest.importorskip("playwright.sync_api", reason="the extra browser is not installed")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(
            executable_path=shutil.which("chromium"),
            args=["--no-sandbox", "--disable-gpu", "--autoplay-policy=no-user-gesture-required"],
        )
        page = browser.new_page(viewport={"width": 1300, "height": 1200})
        page.add_init_script(WATCH)
        page.goto(written.as_uri())
        page.evaluate(DRAWN)
        found = page.evaluate(PROBE)
        browser.close()
    assert found["problems"] == []
    assert 1.5 <= found["seconds"] < 5 and found["cursor"] and found["plots"]
    assert found["charts"] == 4 + 1 + 1 + 1  # thumbnails and the zoomed head of each view
    before, after = found["grounds"]
    assert before in ("white", "rgb(255, 255, 255)") and after == "rgb(20, 23, 28)"
    assert found["uploads"] == 0


CLICK = """new Promise(done => {
  const players = ["-0", "-1", "-3"].map(key => document.getElementById(`avlens-player${key}`)), begun = Date.now();
  players[0].play();
  document.getElementById("avlens-timeline-1").emit("plotly_click", {points: [{x: 9, customdata: ["a token", 1.0]}]});
  const told = () => [problems, players.map(one => one.currentTime >= 0.9), players.map(one => one.paused)];
  const look = () => !(told()[1][1] && told()[2][0]) && Date.now() - begun < 20000 ? setTimeout(look, 50) : done(told());
  look();
})"""


@pytest.mark.browser
@pytest.mark.filterwarnings("default")  # of the browser's driver
@pytest.mark.skipif(shutil.which("chromium") is None, reason="chromium is not installed")
def test_a_click_plays_the_clip_of_its_section_alone(of_two):
    playwright = pytest.importorskip("playwright.sync_api", reason="the extra browser is not installed")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(
            executable_path=shutil.which("chromium"),
            args=["--no-sandbox", "--disable-gpu", "--autoplay-policy=no-user-gesture-required"],
        )
        page = browser.new_page(viewport={"width": 1300, "height": 1200})
        page.add_init_script(WATCH)
        page.goto(of_two.as_uri())
        page.evaluate(DRAWN)
        problems, moved, paused = page.evaluate(CLICK)
        browser.close()
    assert problems == [] and moved == [False, True, False]
    assert paused[0] and paused[2]
