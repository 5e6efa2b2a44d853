"""How heavy are pages, and how soon are they drawn? `python docs/weigh.py` measures, and writes the table of docs/views.md.

A prompt of about 1,500 tokens with 28 heads: ten seconds of 336 x 280 pixels. Weight is the file's, drawing ends with the first
frame after the page's scripts have run, in Chromium without network or graphics card.
"""

import re
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch

from avlens import views
from avlens.testing import tiny_clip, tiny_model

DOCS = Path(__file__).parent
QUESTION = "what do you hear ?"


def pages(folder: Path) -> Iterator[tuple[str, Path]]:
    """Each page with what it is."""
    model = tiny_model("qwen2_5_omni", n_layers=2, d_model=224, n_heads=28, n_key_value_heads=4)
    clip = tiny_clip(10.0, size=(280, 336))
    clean, silent = (model.prepare(one, QUESTION, max_pixels=280 * 336) for one in (clip, clip.silenced()))
    n, (_, cache) = (
        len(clean.tokens),
        model.run_with_cache(clean, ["blocks.0.attn.hook_pattern"], logits_at=clean.tokens.last),
    )
    yield (
        f"attention, 28 heads, {n:,} tokens in groups",
        views.attention(cache, layer=0).save(folder / "attention.html"),
    )
    explorer = views.PatchExplorer(model, clean, silent)
    explorer.sweep(1)
    columns = len(explorer.result.groups)
    yield f"explorer, {columns} groups, {model.cfg.n_layers} layers", explorer.save(folder / "explorer.html")
    value = torch.rand(n, generator=torch.Generator().manual_seed(0))
    title = {"value": value, "name": "a number for each token"}
    yield (
        "report: the clip, and its timeline",
        views.report(folder / "report.html", title="A clip", clip=clip, tokens=clean.tokens, **title),
    )
    sections = [views.Section("Attention", view=views.attention(cache, layer=0))]
    yield (
        "the same with attention, 28 heads",
        views.report(folder / "more.html", title="A clip", clip=clip, tokens=clean.tokens, sections=sections, **title),
    )
    figure = views.attention_full(cache, layer=0, head=0)
    yield f"one head in full, {n:,} x {n:,}", views.save(figure, folder / "full.html")


_WHEN_DRAWN = """done => {
  const look = () => {
    const drawing = window.avlens && !("drawn" in document.documentElement.dataset);
    requestAnimationFrame(drawing ? look : () => setTimeout(() => done(performance.now())));
  };
  look();
}"""


def drawn(page: Path) -> tuple[float, float]:
    """Seconds to the first contentful paint, and until everything is drawn."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path="/usr/bin/chromium", args=["--no-sandbox", "--disable-gpu"]
        )
        shown = browser.new_page(viewport={"width": 1280, "height": 1000})
        shown.goto(page.as_uri())
        last = shown.evaluate(f"new Promise(done => ({_WHEN_DRAWN})(done))")
        first = shown.evaluate(
            "performance.getEntriesByName('first-contentful-paint')[0]?.startTime ?? performance.now()"
        )
        browser.close()
    return first / 1000, last / 1000


def main() -> None:
    """Measure, print, and put the table in its place."""
    warnings.simplefilter("error")  # what is slow to draw would warn
    rows = ["| page | MB | first paint, s | drawn, s |", "|---|---|---|---|"]
    with tempfile.TemporaryDirectory() as folder:
        for name, page in pages(Path(folder)):
            first, last = sorted(drawn(page) for _ in range(3))[1]
            rows.append(f"| {name} | {page.stat().st_size / 1e6:.2f} | {first:.1f} | {last:.1f} |")
            print(rows[-1], flush=True)
    text = (DOCS / "views.md").read_text("utf-8")
    table = "<!-- weights -->\n" + "\n".join(rows) + "\n<!-- end -->"
    (DOCS / "views.md").write_text(
        re.sub(r"<!-- weights -->.*<!-- end -->", lambda _: table, text, flags=re.DOTALL), "utf-8"
    )


if __name__ == "__main__":
    main()
