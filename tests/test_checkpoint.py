"""Where a checkpoint is looked for, and what is said where there is none. Loading itself is the families' tests."""

import json
import shutil

import pytest

from avlens.checkpoint import ZOO, check_device, find_checkpoint, zoo_names
from avlens.errors import CheckpointError, UnsupportedSettingError
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


@pytest.mark.parametrize("written", ["{", "\x00", "[1]"])
def test_a_config_that_cannot_be_read_is_said(tmp_path, written):
    (tmp_path / "config.json").write_text(written)
    with pytest.raises(CheckpointError, match=r"config\.json of the checkpoint .* (cannot be read|holds a list)"):
        HookedAVModel.from_pretrained(tmp_path)


def test_weights_that_are_missing_or_cut_off_are_said(tmp_path):
    shutil.copytree(ZOO / "avlens-tiny", tmp_path, dirs_exist_ok=True)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="a file of the checkpoint .* cannot be read"):
        HookedAVModel.from_pretrained(tmp_path)
    weights.unlink()
    with pytest.raises(CheckpointError, match="has no weights"):
        HookedAVModel.from_pretrained(tmp_path)


def test_a_revision_is_refused_where_there_is_only_one_version(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    for name, says in (("avlens-tiny", "a model of the zoo"), (tmp_path, "a folder")):
        with pytest.raises(CheckpointError, match=f"revision is 'v2', but .* is {says}.*Leave revision out"):
            HookedAVModel.from_pretrained(name, revision="v2")


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A hub whose every repository is avlens-tiny at one commit, and what was asked of it."""
    asked, snapshot = [], tmp_path / "0123abcd"
    snapshot.mkdir()

    def download(name, *, revision, allow_patterns):
        asked.append((name, revision, "*.safetensors" in allow_patterns))
        if "*.safetensors" in allow_patterns:
            shutil.copytree(ZOO / "avlens-tiny", snapshot, dirs_exist_ok=True)
        else:
            shutil.copy(ZOO / "avlens-tiny" / "config.json", snapshot)
        return str(snapshot)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    return asked


@pytest.mark.parametrize("revision", [None, "v2"])
def test_a_hub_id_is_loaded_at_the_revision_asked_for_config_first(hub, revision):
    model = HookedAVModel.from_pretrained("some/model", revision=revision)
    assert model.cfg.n_layers == HookedAVModel.from_pretrained("avlens-tiny").cfg.n_layers
    assert hub == [("some/model", revision, False), ("some/model", "0123abcd", True)]


def test_weights_are_not_downloaded_for_a_config_or_dtype_that_is_refused(hub, monkeypatch):
    with pytest.raises(UnsupportedSettingError, match="is no dtype"):
        HookedAVModel.from_pretrained("some/model", dtype="float7")
    assert not hub
    monkeypatch.setattr("avlens.checkpoint._read_config", lambda *_: {"model_type": "llama"})
    with pytest.raises(CheckpointError, match="no family"):
        HookedAVModel.from_pretrained("some/model")
    assert hub == [("some/model", None, False)]


def test_a_hub_id_that_is_no_id_is_said():
    with pytest.raises(CheckpointError, match="could not be had from the hub \\(HFValidationError"):
        find_checkpoint("some/-model-")


def test_devices_are_tried_before_anything_is_loaded():
    check_device("cpu")
    for device in ("gpu", "meta", "", "cuda:99"):
        with pytest.raises(CheckpointError, match=rf"the device '{device}' cannot be used .*Devices here: cpu"):
            check_device(device)


def test_a_device_map_is_tried_before_anything_is_loaded(monkeypatch):
    pytest.importorskip("accelerate")
    monkeypatch.setattr(
        "avlens.checkpoint.find_checkpoint", lambda *args, **kwargs: pytest.fail("looked for the checkpoint")
    )
    for given, says in (
        ("banana", "the device 'banana' cannot be used .*Devices here: cpu"),
        ("cuda:99", "the device 'cuda:99' cannot be used"),
        ({"": "cpu", "lm_head": "banana"}, "the device 'banana' cannot be used"),
        ({"": 99}, "the device 99 cannot be used"),
        ({}, "device_map is {}. Pass 'auto', .*a device, or a dict"),
        ({"": None}, "device_map is .* Pass 'auto'"),
    ):
        with pytest.raises(CheckpointError, match=says):
            HookedAVModel.from_pretrained("avlens-tiny", device_map=given)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(CheckpointError, match="pip install accelerate"):
        HookedAVModel.from_pretrained("avlens-tiny", device_map="auto")
