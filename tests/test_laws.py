"""The laws of the design, on tiny random models. Those of decoding methods and analyses are tested beside them."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from avlens import discard, knockout, patch, reweight
from avlens.errors import UnsupportedSettingError
from avlens.families.qwen2_5_omni import Qwen25Omni
from avlens.inputs import AVInputs
from avlens.testing import tiny_clip, tiny_model
from tests.helpers import (
    KINDS,
    assert_equal,
    largest_difference,
    points_that_run,
    prompt_from,
    prompt_of,
    real_positions,
    recipes,
    sizes,
    stock_run,
)

MODEL = tiny_model(n_layers=3)
CLIP = tiny_clip(2.6, size=(84, 56), seed=1)
CLEAN = MODEL.prepare(CLIP, "what do you hear ?")
TOKENS = CLEAN.tokens
AT_EVERY_LAYER = ["resid_pre", "ln1.normalized", "k", "v"]


def corrupted(kind):
    other = tiny_clip(2.6, size=(84, 56), seed=2)
    clip = {"silenced": CLIP.silenced(), "blanked": CLIP.blanked(), "other": other}[kind]
    return MODEL.prepare(clip, "what do you hear ?")


# Law 1.


@pytest.mark.parametrize("attn", ["eager", "sdpa"])
@given(size=sizes(), rows=st.lists(recipes(), min_size=1, max_size=3))
@settings(max_examples=12)
def test_logits_residuals_and_patterns_equal_the_stock_models(attn, size, rows):
    model = tiny_model(**size)
    inputs = AVInputs.batch([prompt_from(model, row) for row in rows])
    try:
        stock = stock_run(model, inputs, attn)
    except ValueError as refused:
        assert "all with sound or all without" in str(refused)
        return
    logits, cache = model.run_with_cache(
        inputs, ["resid_pre", "pattern"] if attn == "eager" else ["resid_pre"], attn=attn
    )
    real = real_positions(inputs)
    assert_equal(logits[real], stock.logits[real])
    for layer in range(model.cfg.n_layers):
        assert_equal(cache["resid_pre", layer][real], stock.hidden_states[layer][real])
        if attn == "eager":
            assert_equal(cache["pattern", layer].transpose(1, 2)[real], stock.attentions[layer].transpose(1, 2)[real])


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_prompt_equals_the_stock_model(kind):
    try:
        inputs = prompt_of(MODEL, kind)
        stock = stock_run(MODEL, inputs, "sdpa")
        real = real_positions(inputs)
        assert_equal(MODEL(inputs)[real], stock.logits[real])
        assert_equal(MODEL(inputs, attn="eager")[real], stock.logits[real])
    finally:
        MODEL.forget_encodings()


def test_bare_token_ids_equal_the_stock_model():
    ids = torch.randint(0, 400, (3, 11))
    assert_equal(MODEL(ids), MODEL.stock.whole(input_ids=ids).logits)


# Law 2.


@pytest.mark.parametrize("kind", ["interleaved", "batch"])
def test_a_hook_that_returns_its_input_changes_nothing(kind):
    inputs = prompt_of(MODEL, kind)
    idle, real = MODEL(inputs), real_positions(inputs)
    for name in points_that_run(MODEL, inputs):
        watched = MODEL.run_with_hooks(inputs, fwd_hooks=[(name, lambda x, hook: None)])
        returned = MODEL.run_with_hooks(inputs, fwd_hooks=[(name, lambda x, hook: x)])
        copied = MODEL.run_with_hooks(inputs, fwd_hooks=[(name, lambda x, hook: x.clone())])
        assert torch.equal(watched[real], returned[real]), name
        assert torch.equal(watched[real], copied[real]), name
        assert_equal(watched[real], idle[real])


@pytest.mark.parametrize("kind", ["interleaved", "text"])
def test_a_change_at_any_hook_point_reaches_the_logits(kind):
    inputs = prompt_of(MODEL, kind)
    idle, ran = MODEL(inputs), points_that_run(MODEL, inputs)
    for name in ran:
        changed = MODEL.run_with_hooks(inputs, fwd_hooks=[(name, lambda x, hook: x + 0.3 * torch.rand_like(x))])
        assert changed.isfinite().all(), name
        assert largest_difference(changed, idle) > 1e-3, name
    silent = {
        "interleaved": set(),
        "text": {"vision", "audio", "hook_audio_embed", "hook_video_embed", "hook_image_embed"},
    }
    assert {name.split(".")[0] for name in set(MODEL.hook_dict) - set(ran)} == silent[kind]


def test_a_change_at_any_hook_point_acts_in_decoding_too():
    inputs = prompt_of(MODEL, "text")
    first = MODEL.generate(inputs, 1).tokens[0, 0]
    n = inputs.shape[1]
    for name in points_that_run(MODEL, inputs):
        seen = []

        def from_the_second_step(x, hook, seen=seen):
            at = hook.ctx["run"].query_index
            seen.append(int(at[0]))
            return x + 50 * torch.randn_like(x) if int(at[0]) >= n else None

        kept = []
        hooks = [(name, from_the_second_step), ("ln_final.hook_normalized", lambda x, hook, kept=kept: kept.append(x))]
        out = MODEL.generate(inputs, 2, fwd_hooks=hooks, min_new_tokens=2)
        plain = MODEL.generate(inputs, 2, fwd_hooks=[], names_filter=["ln_final.hook_normalized"], min_new_tokens=2)
        assert seen == [0, n] and out.tokens[0, 0] == first, name
        if name != "ln_final.hook_scale" and name != "ln_final.hook_normalized":
            assert largest_difference(kept[1], plain.cache["ln_final.hook_normalized"][:, -1:]) > 1e-3, name


# Law 3.


@pytest.mark.parametrize("kind", ["interleaved", "batch"])
def test_the_residual_stream_is_the_sum_of_its_parts(kind):
    inputs = prompt_of(MODEL, kind)
    _, cache = MODEL.run_with_cache(inputs, lambda name: name.startswith(("blocks", "hook_embed")))
    real = real_positions(inputs)
    assert torch.equal(cache["hook_embed"], cache["resid_pre", 0])
    for layer in range(3):
        assert_equal(cache["resid_pre", layer] + cache["attn_out", layer], cache["resid_mid", layer])
        assert_equal(cache["resid_mid", layer] + cache["mlp_out", layer], cache["resid_post", layer])
        assert_equal(cache["result", layer].sum(2)[real], cache["attn_out", layer][real])
        heads = torch.einsum("bqhd,hdm->bqhm", cache["z", layer], MODEL.blocks[layer].attn.W_O)
        assert_equal(cache["result", layer], heads)
        if layer:
            assert torch.equal(cache["resid_post", layer - 1], cache["resid_pre", layer])


def test_writing_resid_mid_writes_the_stream():
    r = torch.randn(1, len(TOKENS), MODEL.cfg.d_model)
    _, cache = MODEL.run_with_cache(
        CLEAN, ["resid_mid", "resid_post", "mlp_out"], fwd_hooks=[("blocks.1.hook_resid_mid", lambda x, hook: r)]
    )
    block = MODEL.blocks[1]
    assert torch.equal(cache["resid_mid", 1], r)
    assert_equal(cache["resid_post", 1], r + block.mlp(block.ln2(r)))


# Law 4.


@pytest.mark.parametrize("site", ["resid_pre", "resid_mid", "attn_out", "mlp_out", "k", "v", "z", "ln1.normalized"])
def test_patching_clean_into_clean_is_the_identity(site):
    logits, cache = MODEL.run_with_cache(CLEAN)
    patched = MODEL.run_with_hooks(CLEAN, fwd_hooks=patch(cache, TOKENS.all, site=site))
    assert torch.equal(patched, logits)


@pytest.mark.parametrize("kind", ["silenced", "blanked", "other"])
def test_patching_all_media_gives_the_clean_run_at_every_later_text_position(kind):
    clean, cache = MODEL.run_with_cache(CLEAN, "resid_pre")
    inputs = corrupted(kind)
    assert inputs.tokens.layout == TOKENS.layout
    broken = MODEL(inputs)
    patched = MODEL.run_with_hooks(inputs, fwd_hooks=patch(cache, TOKENS.audio | TOKENS.video))
    later = [i for i in TOKENS.text if i > int(TOKENS.media.positions.max())]
    assert len(later) > 5
    assert largest_difference(broken[:, later], clean[:, later]) > 1e-3
    assert_equal(patched[:, later], clean[:, later])


def test_patching_before_the_first_corrupted_token_is_an_exact_no_op():
    _, cache = MODEL.run_with_cache(CLEAN, AT_EVERY_LAYER)
    inputs = corrupted("silenced")
    before = TOKENS.at(range(int(TOKENS.audio.positions.min())))
    assert len(before & TOKENS.video) > 0
    for site in AT_EVERY_LAYER:
        assert torch.equal(MODEL.run_with_hooks(inputs, fwd_hooks=patch(cache, before, site=site)), MODEL(inputs))


# Law 5.


@given(seed=st.integers(0, 99), n=st.integers(1, 40))
def test_patching_residuals_normalised_inputs_or_keys_and_values_agree_outside_the_set(seed, n):
    _, cache = MODEL.run_with_cache(CLEAN, AT_EVERY_LAYER)
    inputs = corrupted("other")
    chosen = TOKENS.random_like(TOKENS.media if n > 30 else TOKENS.at(TOKENS.video.positions[:n].tolist()), seed=seed)
    ways = [patch(cache, chosen, site=site) for site in ("resid_pre", "ln1.normalized")]
    ways.append(patch(cache, chosen, site="k") + patch(cache, chosen, site="v"))
    by_resid, by_norm, by_keys = (MODEL.run_with_hooks(inputs, fwd_hooks=way)[:, ~chosen.mask] for way in ways)
    assert largest_difference(by_resid, MODEL(inputs)[:, ~chosen.mask]) > 1e-4
    assert_equal(by_norm, by_resid)
    assert_equal(by_keys, by_resid)


# Law 6.


@pytest.mark.parametrize("layer", [0, 1, 2])
@given(seed=st.integers(0, 99), whole=st.booleans())
@settings(max_examples=6)
def test_discarding_equals_knocking_out_of_every_other_query(layer, seed, whole):
    chosen = TOKENS.audio if whole else TOKENS.random_like(TOKENS.video, seed=seed)
    remain = ~chosen - TOKENS.generated
    gone = MODEL.run_with_hooks(CLEAN, fwd_hooks=discard(chosen, layer=layer))
    unread = MODEL.run_with_hooks(CLEAN, fwd_hooks=knockout(remain, chosen, layers=range(layer, 3)))
    assert gone.shape[1] == len(remain)
    assert_equal(gone, unread[:, remain.positions])
    assert largest_difference(unread, MODEL(CLEAN)) > 1e-3


def test_discarding_equals_knocking_out_while_generating():
    chosen = TOKENS.media
    options = {"max_new_tokens": 8, "min_new_tokens": 8}
    everyone_else = ~chosen | TOKENS.generated
    gone = MODEL.generate(CLEAN, fwd_hooks=discard(chosen, layer=1), **options)
    unread = MODEL.generate(CLEAN, fwd_hooks=knockout(everyone_else, chosen, layers=[1, 2]), **options)
    assert torch.equal(gone.tokens, unread.tokens)
    assert not torch.equal(gone.tokens, MODEL.generate(CLEAN, **options).tokens)


# Law 9.


@pytest.mark.parametrize(
    "edit",
    [
        knockout(TOKENS.question, TOKENS.audio),
        knockout(TOKENS.question, TOKENS.audio, heads=[1, 3]),
        reweight(TOKENS.question, TOKENS.video, 0.7),
        reweight(TOKENS.question, TOKENS.video, -3.0),
        reweight(TOKENS.question, TOKENS.video, -0.9, site="pattern"),
        reweight(TOKENS.question, TOKENS.video, 2.0, site="pattern"),
    ],
    ids=["knockout", "some heads", "more", "less", "less pattern", "more pattern"],
)
def test_rows_of_an_edited_pattern_sum_to_one(edit):
    _, cache = MODEL.run_with_cache(CLEAN, "pattern", fwd_hooks=edit)
    _, plain = MODEL.run_with_cache(CLEAN, "pattern")
    future = torch.ones(len(TOKENS), len(TOKENS), dtype=torch.bool).triu(1)
    for layer in range(3):
        rows = cache["pattern", layer].sum(-1)
        assert_equal(rows, torch.ones_like(rows))
        assert (cache["pattern", layer][..., future] == 0).all()
    assert largest_difference(cache["pattern", 0], plain["pattern", 0]) > 1e-3


# Law 11.


@given(size=sizes(), recipe=st.lists(recipes(), min_size=3, max_size=3))
@settings(max_examples=8)
def test_a_left_padded_batch_equals_its_single_runs(size, recipe):
    model = tiny_model(**size)
    rows = [prompt_from(model, row) for row in recipe]
    logits, cache = model.run_with_cache(AVInputs.batch(rows), ["resid_post", "pattern", "attn_scores", "k"])
    for i, row in enumerate(rows):
        alone, single = model.run_with_cache(row, ["resid_post", "pattern", "attn_scores", "k"])
        assert_equal(logits[i : i + 1, -row.shape[1] :], alone)
        ours = cache.row(i)
        for name in single:
            assert_equal(ours[name], single[name])


def test_interventions_act_on_the_rows_of_a_batch_that_they_speak_of():
    other = MODEL.prepare([], "what do you see ? is it a dog or a bell")
    _, cache = MODEL.run_with_cache(corrupted("other"), ["resid_pre", "k"])
    edits = {
        "patch": patch(cache, TOKENS.video),
        "knockout": knockout(TOKENS.question, TOKENS.audio),
        "reweight": reweight(TOKENS.question, TOKENS.audio, 1.5, site="pattern"),
    }
    for order in ([CLEAN, other], [other, CLEAN, CLEAN]):
        batch = AVInputs.batch(order)
        for edit in edits.values():
            together = MODEL.run_with_hooks(batch, fwd_hooks=edit)
            for row, one in enumerate(order):
                alone = MODEL.run_with_hooks(one, fwd_hooks=edit) if one is CLEAN else MODEL(one)
                assert_equal(together[row : row + 1, -one.shape[1] :], alone)


# Law 12.


@given(
    section=st.sampled_from(["", "text_config", "audio_config", "vision_config"]), name=st.text("abcdefg_", min_size=3)
)
def test_a_setting_that_nobody_handled_is_refused_by_name(section, name):
    config = MODEL.stock.whole.config.to_dict()
    Qwen25Omni.check(config)
    where = f"new_{name}"
    (config[section] if section else config)[where] = 3
    full = f"{section}.{where}" if section else where
    with pytest.raises(UnsupportedSettingError, match=rf"sets {full} = 3.*ignore_settings=\['{full}'\]"):
        Qwen25Omni.check(config)
    Qwen25Omni.check(config, ignore=[full])
