"""Where a checkpoint is looked for, and what is said where there is none. Loading itself is the families' tests."""

import json

import pytest

from avlens.checkpoint import find_checkpoint, zoo_names
from avlens.errors import CheckpointError
from avlens.model import HookedAVModel


def test_the_zoo_comes_first_then_folders(tmp_path):
    assert "avlens-tiny" in zoo_names() and (find_checkpoint("avlens-tiny") / "model.safetensors").exists()
    (tmp_path / "config.json").write_text("{}")
    assert find_checkpoint(str(tmp_path)) == tmp_path


def test_a_family_that_nobody_knows_is_refused_with_those_known(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(CheckpointError, match=r"'llama' model, which no family.*Qwen2\.5-Omni"):
        HookedAVModel.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("nothing-here", "no model of the zoo"),
        ("./missing", "no folder"),
        ("a/b/c", "no folder"),
        ("/", "no config.json"),
    ],
)
def test_what_is_nowhere_is_said(name, says):
    with pytest.raises(CheckpointError, match=says):
        find_checkpoint(name)


def test_a_hub_id_that_cannot_be_had_says_what_needs_no_download(monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
    with pytest.raises(CheckpointError, match="Models that need no download: avlens-tiny"):
        find_checkpoint("some/model")
