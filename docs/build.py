"""Build the documentation site: `python docs/build.py` writes docs/_build/html, with warnings as errors and without network."""

import shutil
import sys
import tempfile
from pathlib import Path

from sphinx.cmd.build import build_main

DOCS = Path(__file__).parent


def main(out: Path) -> int:
    """Draw the pages that answer to clicks, then build the site around them."""
    write_live(DOCS / "_live" / "live")
    with tempfile.TemporaryDirectory() as doctrees:
        return build_main(["-W", "--keep-going", "-q", "-b", "html", "-d", doctrees, str(DOCS), str(out)])


def write_live(folder: Path) -> None:
    """A report, a view of attention and an explorer, each a page of its own."""
    from avlens import Clip, HookedAVModel, views
    from avlens.demo import QUESTION, run_demo

    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    model = HookedAVModel.from_pretrained("avlens-tiny")
    with tempfile.TemporaryDirectory() as made:
        story = run_demo(model, Path(made))
        clip = Clip.from_file(Path(made) / "clip.mp4")
        shutil.copy(story.report, folder / "report.html")
    clean, silent = (model.prepare(one, QUESTION) for one in (clip, clip.silenced()))
    _, cache = model.run_with_cache(clean, names_filter=["pattern"], logits_at=clean.tokens.last)
    views.attention(cache, layer=2).save(folder / "attention.html")
    explorer = views.PatchExplorer(model, clean, silent, clip=clip)
    explorer.sweep()
    explorer.sweep(kind="knockout")
    explorer.save(folder / "explorer.html")


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]) if len(sys.argv) > 1 else DOCS / "_build" / "html"))
