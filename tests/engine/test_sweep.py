import pytest
import torch

from avlens.engine import sweep
from avlens.errors import BatchError
from avlens.inputs import AVInputs
from avlens.interventions import discard, knockout, patch
from avlens.testing import tiny_clip, tiny_model
from tests.helpers import assert_equal


@pytest.fixture(scope="module")
def model():
    return tiny_model(seed=1)


@pytest.fixture(scope="module")
def runs(model):
    clip = tiny_clip(2.0, seed=3)
    return [model.prepare(c, "what do you hear ?") for c in (clip, clip.silenced())]


def edits(model, runs):
    clean, silent = runs
    _, cache = model.run_with_cache(clean, names_filter=["resid_pre"])
    tokens = silent.tokens
    return {
        "nothing": [],
        "patch": patch(cache, tokens.audio),
        "knockout": knockout(tokens.last, tokens.video, layers=[1]),
        "discard": discard(tokens.video, layer=1),
    }


def test_a_sweep_is_each_edit_by_itself_in_order(model, runs):
    found, chosen = runs[1], edits(model, runs)
    logits = sweep(model, found, chosen, logits_at=found.tokens.last, progress="editing")
    assert logits.shape == (4, 1, model.cfg.d_vocab)
    for row, hooks in zip(logits, chosen.values(), strict=True):
        assert_equal(row, model.run_with_hooks(found, hooks, logits_at=found.tokens.last)[0])


def test_without_logits_at_every_position_is_unembedded(model, runs):
    logits = sweep(model, runs[1], {"none": []})
    assert torch.equal(logits[0], model(runs[1])[0])


def test_no_edit_gives_no_row(model, runs):
    assert sweep(model, runs[1], {}, logits_at=runs[1].tokens.last).shape == (0, 1, model.cfg.d_vocab)


def test_several_prompts_are_refused(model, runs):
    with pytest.raises(BatchError, match="Choose one"):
        sweep(model, AVInputs.batch(runs), {"none": []})
