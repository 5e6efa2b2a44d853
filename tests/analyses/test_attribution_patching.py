import pytest
import torch

from avlens import HookedAVModel
from avlens.analyses.attribution_patching import attribution_patching, exact_patching
from avlens.datasets.synthetic import QUESTIONS, counterfactual_pairs
from avlens.errors import HookError, PositionError, PromptError
from avlens.groups import token_groups
from avlens.interventions import patch
from avlens.media import Clip
from avlens.testing import tiny_clip, tiny_model

ANSWERS = ("dog", "rain")


@pytest.fixture(scope="module")
def case():
    model, clip = tiny_model(n_layers=3, seed=1), tiny_clip(3.0, size=(56, 56))
    return model, model.prepare(clip, "what do you hear ?"), model.prepare(clip.silenced(), "what do you hear ?")


def groups(inputs):
    return {name: tokens for name, tokens in token_groups(inputs.tokens).items() if name != "generated"}


@pytest.mark.parametrize("direction", ["denoise", "noise"])
def test_exact_effects_are_those_of_the_patches(case, direction):
    model, clean, silent = case
    found = exact_patching(
        model, clean, silent, groups(clean), site="z", layers=[1, 2], by_head=True, direction=direction, answers=ANSWERS
    )
    source, target = (clean, silent) if direction == "denoise" else (silent, clean)
    _, cache = model.run_with_cache(source, ["z"])
    name, sign = list(found.groups)[1], 1 if direction == "denoise" else -1
    for heads, got in ((None, found.effects[1, 1]), ([2], found.heads[1, 2, 1])):
        hooks = patch(cache, found.groups[name], layers=[2], site="z", heads=heads)
        moved = found.contrast(model.run_with_hooks(target, hooks)[0, -1]) - found.contrast(model(target)[0, -1])
        assert float(got) == pytest.approx(sign * float(moved), abs=1e-4)


def test_patching_all_that_differs_at_the_bottom_is_the_total_effect(case):
    model, clean, silent = case
    found = exact_patching(
        model, clean, silent, {"audio": clean.tokens.audio, "video": clean.tokens.video}, answers=ANSWERS
    )
    assert float(found.shares[0, 0]) == pytest.approx(1, abs=1e-3) and float(found.effects[0, 1]) == pytest.approx(
        0, abs=1e-4
    )


@pytest.mark.parametrize("site", ["resid_pre", "z", "v", "k"])
def test_small_differences_are_told_to_first_order(case, site):
    """Where clean and corrupted differ by a little, gradients tell what patches do."""
    model, clean, _ = case
    clip = tiny_clip(3.0, size=(56, 56))
    near = Clip(clip.frames, clip.fps, clip.waveform * 1.003, clip.sample_rate)
    other = model.prepare(near, "what do you hear ?")
    options = {"site": site, "answers": ANSWERS}
    told = attribution_patching(model, clean, other, groups(clean), **options)
    run = exact_patching(model, clean, other, groups(clean), by_head=site != "resid_pre", **options)
    got, want = (told.effects, run.effects) if site == "resid_pre" else (told.heads, run.heads)
    assert float((got - want).abs().max()) < 0.1 * float(want.abs().max()) + 1e-5
    assert told.agrees_with(run).pearson > 0.99


def test_gradients_along_the_way_add_up_to_the_total_effect(case):
    """Completeness: at the bottom, all groups together."""
    model, clean, silent = case
    whole = {"audio": clean.tokens.audio, "rest": clean.tokens.all - clean.tokens.audio}
    one, many = (
        attribution_patching(model, clean, silent, whole, layers=[0], answers=ANSWERS, steps=n) for n in (1, 48)
    )
    total = many.contrast.total
    assert float(many.effects.sum()) == pytest.approx(total, abs=0.03 * abs(total) + 1e-3)
    assert abs(float(many.effects.sum()) - total) <= abs(float(one.effects.sum()) - total)


def test_estimates_rank_patches_of_the_embedded_model_as_running_them_does():
    model = HookedAVModel.from_pretrained("avlens-tiny")
    found = []
    for pair in counterfactual_pairs(3, seed=5):
        clean, corrupt = (model.prepare(sample.clip, QUESTIONS["sound"]) for sample in pair)
        told = attribution_patching(model, clean, corrupt, groups(clean), steps=4)
        found.append(told.agrees_with(exact_patching(model, clean, corrupt, groups(clean))).spearman)
    assert sum(found) / len(found) > 0.6


def test_gradients_need_no_setting_and_leave_nothing_behind(case):
    model, clean, silent = case
    with torch.no_grad():
        found = attribution_patching(model, clean, silent, groups(clean), answers=ANSWERS)
    again = attribution_patching(model, clean, silent, groups(clean), answers=ANSWERS)
    assert torch.equal(found.effects, again.effects) and not found.effects.requires_grad
    assert all(weight.grad is None for weight in model.parameters())
    frame = found.to_frame()
    assert len(frame) == 3 * len(found.groups) and frame["effect"].sum() == pytest.approx(
        float(found.effects.sum()), abs=1e-5
    )


def test_runs_with_gradients_take_encodings_from_the_store(case):
    model, clean, _ = case
    model(clean)
    stored = dict(model._encoded)
    model(clean, grad=True)
    assert model._encoded.keys() == stored.keys() and all(model._encoded[key] is stored[key] for key in stored)


def test_refusals(case):
    model, clean, silent = case
    media = {"media": clean.tokens.media}
    for options, error, says in (
        ({"site": "pattern"}, HookError, "Patch one of"),
        ({"steps": 0}, HookError, "at least one gradient"),
        ({"answers": ("dog", "dog")}, PromptError, "both begin with the token"),
        ({"groups": {}}, PromptError, "no group"),
        ({"groups": {"x": model.prepare(tiny_clip(1.0), "what ?").tokens.audio}}, PositionError, "another layout"),
    ):
        with pytest.raises(error, match=says):
            attribution_patching(model, clean, silent, **({"groups": media, "answers": ANSWERS} | options))
    with pytest.raises(HookError, match="has no heads"):
        exact_patching(model, clean, silent, media, by_head=True)
    with pytest.raises(PromptError, match="same layout"):
        attribution_patching(model, clean, model.prepare(tiny_clip(1.0), "what ?"), media)
    one = attribution_patching(model, clean, silent, media, answers=ANSWERS)
    with pytest.raises(PromptError, match="patch different things"):
        one.agrees_with(attribution_patching(model, clean, silent, media, answers=ANSWERS, site="v"))
