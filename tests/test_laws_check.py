"""`avlens check` has teeth: a law that is broken, or that could not be tried, does not hold."""

import math
from dataclasses import replace

import pytest
import torch

from avlens import laws
from avlens.inputs import AVInputs
from avlens.laws import Law, check_laws, laws_table
from avlens.testing import tiny_clip, tiny_model
from avlens.tokens import Modality

CLIP = tiny_clip(2.6, size=(84, 56), seed=3)


def verdicts(model):
    return {law.says: law for law in check_laws(model, model.prepare(CLIP, "what do you hear ?"))}


def edited(inputs, edit):
    """The same prompt with each medium's tensors edited."""
    prompt = inputs.prompt
    media = tuple(replace(m, tensors={name: edit(m, x) for name, x in m.tensors.items()}) for m in prompt.media)
    return AVInputs((replace(prompt, media=media),), inputs.stock_kwargs)


@pytest.mark.parametrize("layer", [0, 1])
def test_a_nan_in_one_weight_breaks_every_law_that_meets_it(layer):
    model = tiny_model()
    with torch.no_grad():
        model.blocks[layer].attn.W_Q[0, 0, 0] = math.nan
    found = verdicts(model)
    assert not any(law.holds for law in found.values()), laws_table(list(found.values()))
    assert all(math.isnan(law.difference) for law in found.values())


def test_the_largest_difference_is_nan_wherever_the_nan_stands():
    for values in ([math.nan, 1.0], [1.0, math.nan], [0.0, math.nan, 2.0], []):
        assert math.isnan(laws._largest(values))
        assert not Law("", laws._largest(values), 1.0).holds
    assert laws._largest([1.0, 3.0, 2.0]) == 3.0


def test_rows_do_not_hold_if_no_pattern_was_seen(monkeypatch):
    model = tiny_model()
    monkeypatch.setattr(model, "run_with_hooks", lambda inputs, hooks: model(inputs))
    assert math.isnan(laws._rows(model, model.prepare(CLIP, "what do you hear ?")))


@pytest.mark.parametrize("family", ["qwen2_5_omni", "video_salmonn_o1"])
def test_every_sound_is_muted_and_nothing_else(family):
    inputs = tiny_model(family).prepare(CLIP, "what do you hear ?")
    for loud, mute in zip(inputs.prompt.media, laws._muted(inputs).prompt.media, strict=True):
        for name, x in loud.tensors.items():
            is_sound = loud.modality == Modality.AUDIO and x.is_floating_point()
            assert torch.equal(mute.tensors[name], torch.full_like(x, x.min().item()) if is_sound else x)


def test_restoring_does_not_hold_if_nothing_could_be_muted():
    model = tiny_model()
    inputs = model.prepare(CLIP, "what do you hear ?")
    assert laws._restore(model, inputs) <= 1e-5
    flat = edited(inputs, lambda m, x: torch.full_like(x, x.min()) if m.modality == Modality.AUDIO else x)
    assert math.isnan(laws._restore(model, flat))
