import pytest
import torch

from avlens.analyses.paths import open_paths, path_patching
from avlens.errors import LayerError, PositionError, PromptError
from avlens.groups import token_groups
from avlens.interventions import path_patch
from avlens.testing import tiny_clip, tiny_model

ANSWERS = ("dog", "rain")


@pytest.fixture(scope="module")
def case():
    model, clip = tiny_model(n_layers=3, seed=1), tiny_clip(4.0, size=(56, 56))
    return model, model.prepare(clip, "what do you hear ?"), model.prepare(clip.silenced(), "what do you hear ?")


@pytest.mark.parametrize("direction", ["denoise", "noise"])
def test_read_by_all_the_sound_is_the_total_effect(case, direction):
    model, clean, silent = case
    found = path_patching(
        model, clean, silent, ["audio -> all", "audio -> audio", "question -> last"], answers=ANSWERS, direction=direction,
        groups={**token_groups(clean.tokens), "all": clean.tokens.all},
    )  # fmt: skip
    assert found.layers == () and found.spans == ((0, 1, 2),)
    both = path_patching(
        model, clean, silent, ["audio -> all + audio"], answers=ANSWERS, direction=direction,
        groups={"audio": clean.tokens.audio, "all": clean.tokens.all},
    )  # fmt: skip
    # Each token reads itself as it is, so nearly all of the effect, and all of it where the others read the sound.
    assert abs(float(both.shares[0, 0]) - 1) < 0.35
    assert float(found.shares[2, 0]) != 0


def test_an_edge_is_its_path_patch_in_its_span(case):
    model, clean, silent = case
    found = path_patching(model, clean, silent, ["audio -> last", "video <-> audio"], window=2, answers=ANSWERS)
    assert found.layers == (0, 1, 2) and found.spans == ((0,), (0, 1), (1, 2))
    _, cache = model.run_with_cache(clean, ["rot_k", "v"], attn="eager")
    tokens = clean.tokens
    hooks = path_patch(cache, tokens.last, tokens.audio, layers=[1, 2])
    moved = found.contrast(model.run_with_hooks(silent, hooks, attn="eager")[0, -1]) - found.contrast.corrupt
    assert float(found.effects[0, 2]) == pytest.approx(float(moved), abs=1e-4)
    hooks = path_patch(cache, tokens.audio, tokens.video, layers=[0]) + path_patch(
        cache, tokens.video, tokens.audio, layers=[0]
    )
    moved = found.contrast(model.run_with_hooks(silent, hooks, attn="eager")[0, -1]) - found.contrast.corrupt
    assert float(found.effects[1, 0]) == pytest.approx(float(moved), abs=1e-4)
    assert len(found.to_frame()) == 6 and "PathEffects" in repr(found)


def test_what_causality_forbids_has_no_effect(case):
    model, clean, silent = case
    found = path_patching(model, clean, silent, ["question -> video", "last -> question"], answers=ANSWERS)
    assert float(found.effects.abs().max()) < 1e-5


def test_a_chain_of_one_edge_is_the_edge_and_longer_ones_pass_it_on(case):
    model, clean, silent = case
    tokens = clean.tokens
    late = tokens.video & tokens.seconds(2.0, 4.0)
    sets = {**token_groups(tokens), "late": late, "early": tokens.video - late}
    edge = path_patching(model, clean, silent, ["audio -> last"], answers=ANSWERS)
    ways = {"direct": ["audio", "last"], "late": ["audio", "late", "last"], "early": ["audio", "early", "last"]}
    chains = open_paths(model, clean, silent, ways, groups=sets, answers=ANSWERS)
    assert float(chains.effects[0, 0]) == pytest.approx(float(edge.effects[0, 0]), abs=1e-4)
    assert abs(float(chains.effects[1, 0])) > 1e-4  # video of the second chunk can hear the first one's sound
    assert float(chains.effects[2, 0]) == pytest.approx(0, abs=1e-5)  # that of the first chunk cannot
    assert chains.paths == ("direct", "late", "early")
    assert open_paths(model, clean, silent, [["audio", "last"]], answers=ANSWERS).paths == ("audio -> last",)


def test_refusals(case):
    model, clean, silent = case
    with pytest.raises(PositionError, match="no prompt has both ends"):
        path_patching(model, clean, silent, ["smell -> last"], answers=ANSWERS)
    with pytest.raises(PositionError, match="only the prompt is patched"):
        path_patching(model, clean, silent, ["audio -> generated"], answers=ANSWERS)
    with pytest.raises(PositionError, match="no prompt has both ends"):
        open_paths(model, clean, silent, [["audio", "smell", "last"]], answers=ANSWERS)
    with pytest.raises(PromptError, match="no path to patch"):
        path_patching(model, clean, silent, [], answers=ANSWERS)
    with pytest.raises(LayerError, match="window 0"):
        path_patching(model, clean, silent, ["audio -> last"], answers=ANSWERS, window=0)
    assert torch.is_grad_enabled()
