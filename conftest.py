"""The code in README.md and docs/ runs as tests, in a folder that holds a clip called dog.mp4."""

import os
import tempfile
from pathlib import Path

import pytest
from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser


def _enter(namespace):
    from avlens.datasets.synthetic import synthetic_clips

    namespace["_home"], namespace["_folder"] = Path.cwd(), tempfile.TemporaryDirectory()
    os.chdir(namespace["_folder"].name)
    drawn = synthetic_clips(1, seed=4, seconds=4.0, fps=10.0, size=168, blank=0, silent=0, matching=0)[0]
    drawn.clip.to_file("dog.mp4")


def _leave(namespace):
    os.chdir(namespace["_home"])
    namespace["_folder"].cleanup()


pytest_collect_file = Sybil(
    parsers=[PythonCodeBlockParser()],
    patterns=["README.md", "docs/*.md", "docs/methods/*.md"],
    setup=_enter,
    teardown=_leave,
).pytest()


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items):
    """A page's code runs from top to bottom, whatever order the tests are shuffled into."""
    pages = [item for item in items if item.path.suffix == ".md"]
    ordered = iter(sorted(pages, key=lambda item: (str(item.path), item.example.line)))
    items[:] = [next(ordered) if item.path.suffix == ".md" else item for item in items]
