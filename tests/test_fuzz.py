"""A small seeded part of `tests.fuzz` and `tests.soak`: damaged files end in avlens's own errors, and nothing piles up."""

import os

import pytest
import torch

from tests import fuzz
from tests.soak import hooks, once, open_files

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="files are read in forks of this process"),
    pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning"),
]


def test_damaged_media_end_in_our_errors(tmp_path):
    found = fuzz.fuzz_media(150, 7, tmp_path)
    assert found.broken == [] and found.longest < fuzz.SECONDS
    assert found.counts["MediaError"] > 20 and found.counts["read whole"] + found.counts["read in part"] > 20
    assert found.counts.total() == 150


def test_damaged_checkpoints_end_in_our_errors(tmp_path):
    found = fuzz.fuzz_checkpoints(100, 7, tmp_path)
    assert found.broken == [] and found.longest < fuzz.SECONDS
    assert found.counts["loads and runs"] > 10 and found.counts["CheckpointError"] > 10 and found.counts.total() == 100


def test_rounds_of_everything_leave_no_hook_and_no_file_behind(tmp_path):
    from avlens import HookedAVModel

    torch.set_num_threads(1)
    model = HookedAVModel.from_pretrained("avlens-tiny")
    before = hooks(model)
    once(model, 0, tmp_path)
    files = open_files()
    once(model, 1, tmp_path)
    assert hooks(model) == before and open_files() == files
