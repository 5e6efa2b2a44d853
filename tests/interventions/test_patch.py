import pytest
import torch

from avlens import patch
from avlens.errors import BatchError, HookError, LayerError, PositionError
from avlens.hooks import HookPoint
from avlens.inputs import AVInputs
from avlens.interventions.patch import Patch
from avlens.testing import tiny_clip, tiny_model

MODEL = tiny_model()
CLIP = tiny_clip(1.0)
INPUTS = MODEL.prepare(CLIP, "what do you hear ?")
TOKENS = INPUTS.tokens
OTHER = MODEL.prepare(tiny_clip(1.0, seed=5), "what do you hear ?")
_, CACHE = MODEL.run_with_cache(INPUTS)


def test_values_stand_where_they_belong_and_nowhere_else():
    values = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    x = torch.zeros(1, len(TOKENS), 2)
    edited = Patch(TOKENS.at([7, 3]), values, "blocks.0.hook_resid_pre")(x, HookPoint())
    assert edited[0, 7].tolist() == [1, 2] and edited[0, 3].tolist() == [3, 4]
    assert edited.sum() == 10 and x.sum() == 0


@pytest.mark.parametrize("site", ["resid_mid", "mlp_out", "z", "rot_k", "mlp.post", "ln2.scale"])
def test_the_patched_run_holds_the_clean_values_at_the_set_and_its_own_elsewhere(site):
    site = {"mlp.post": "post"}.get(site, site)
    _, plain = MODEL.run_with_cache(OTHER, site)
    hooks = patch(CACHE, TOKENS.video, layers=[0], site=site)
    _, cache = MODEL.run_with_cache(OTHER, site, fwd_hooks=hooks)
    inside = TOKENS.video.mask
    assert torch.equal(cache[site, 0][:, inside], CACHE[site, 0][:, inside])
    assert torch.equal(cache[site, 0][:, ~inside], plain[site, 0][:, ~inside])


def test_all_layers_means_those_that_the_cache_holds():
    _, one = MODEL.run_with_cache(INPUTS, "blocks.1.hook_resid_pre")
    assert [name for name, _ in patch(one, TOKENS.audio)] == ["blocks.1.hook_resid_pre"]
    assert [name for name, _ in patch(CACHE, TOKENS.audio, site="k")] == [f"blocks.{i}.attn.hook_k" for i in range(3)]
    assert [name for name, _ in patch(CACHE, TOKENS.audio, layers=range(1, 3))] == [
        "blocks.1.hook_resid_pre", "blocks.2.hook_resid_pre",
    ]  # fmt: skip


def test_a_patch_acts_on_every_row_of_its_layout_and_no_other():
    text = MODEL.prepare([], "what do you hear ?")
    hooks = patch(CACHE, TOKENS.all)
    both = MODEL.run_with_hooks(AVInputs.batch([OTHER, text, OTHER]), fwd_hooks=hooks)
    clean = MODEL(INPUTS)
    assert torch.allclose(both[0], clean[0], atol=1e-5) and torch.allclose(both[2], clean[0], atol=1e-5)
    assert torch.allclose(both[1, -text.shape[1] :], MODEL(text)[0], atol=1e-5)


def test_what_cannot_be_patched_is_refused_with_what_to_do():
    with pytest.raises(HookError, match="pattern has no axis of positions .*Use knockout or reweight"):
        patch(CACHE, TOKENS.audio, site="pattern")
    with pytest.raises(HookError, match="'resid' is no activation of a block. Near names: "):
        patch(CACHE, TOKENS.audio, site="resid")
    with pytest.raises(LayerError, match=r"layers \[0, 1, 2\], not of layer 3. Patch a layer it holds, or run again"):
        patch(CACHE, TOKENS.audio, layers=[3])
    with pytest.raises(KeyError, match="is not in this cache"):
        patch(MODEL.run_with_cache(INPUTS, "k")[1], TOKENS.audio)
    with pytest.raises(BatchError, match="lost its batch axis. Run again without remove_batch_dim"):
        patch(MODEL.run_with_cache(INPUTS, remove_batch_dim=True)[1], TOKENS.audio)
    with pytest.raises(BatchError, match=r"holds 2 prompts. Choose one, such as cache.row\(0\)"):
        patch(MODEL.run_with_cache(AVInputs.batch([INPUTS, INPUTS]))[1], TOKENS.audio)
    longer = MODEL.prepare(CLIP, "what do you hear now ?").tokens
    with pytest.raises(PositionError, match="another layout than the cache's"):
        patch(CACHE, longer.audio)
    with pytest.raises(PositionError, match="not yet generated.*Subtract them: tokens - inputs.tokens.generated"):
        patch(CACHE, TOKENS.last | TOKENS.generated)
    with pytest.raises(HookError, match=r"shape \[64\] per position, but blocks.0.attn.hook_k has \[2, 16\]. Patch an"):
        (_, fn), *_ = patch(CACHE, TOKENS.audio)
        MODEL.run_with_hooks(OTHER, fwd_hooks=[("blocks.0.attn.hook_k", fn)])


def test_an_empty_patch_changes_nothing_and_a_patch_says_what_it_is():
    assert torch.equal(MODEL.run_with_hooks(OTHER, fwd_hooks=patch(CACHE, TOKENS.at([]))), MODEL(OTHER))
    (_, fn), *_ = patch(CACHE, TOKENS.audio)
    assert repr(fn).startswith("Patch(blocks.0.hook_resid_pre at TokenSet(25 of ")
