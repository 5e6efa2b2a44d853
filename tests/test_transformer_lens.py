"""TransformerLens's own tools on a HookedAVModel: what they return is checked against runs of ours."""

import pandas as pd
import pytest
import torch
from transformer_lens import patching
from transformer_lens.patching import generic_activation_patch

from avlens import patch
from avlens.testing import tiny_clip, tiny_model
from tests.helpers import assert_equal, largest_difference, prompt_of

MODEL = tiny_model(n_layers=2)  # ln_final.w and every bias are random
INPUTS = prompt_of(MODEL, "video")
LOGITS, CACHE = MODEL.run_with_cache(INPUTS)
OTHER = MODEL.prepare(tiny_clip(2.6, size=(84, 56), seed=8, audio=False), "is it red ?", system="answer with a word")
TOKENS, ANSWER, WRONG = INPUTS.tokens, 31, 56


def metric(logits):
    return logits[0, -1, ANSWER] - logits[0, -1, WRONG]


def small_prompts():
    clean, corrupted = torch.tensor([[5, 9, 300, 7]]), torch.tensor([[5, 41, 300, 7]])
    return MODEL.run_with_cache(clean)[1], corrupted


# ActivationCache.


def test_components_add_up_to_the_stream_and_to_the_logit():
    assert largest_difference(MODEL.ln_final.w, torch.ones(64)) > 0.05
    final = CACHE["resid_post", 1]
    parts, labels = CACHE.decompose_resid(layer=-1, mode="full", return_labels=True)
    assert_equal(parts.sum(0), final)
    assert labels[-1] == "1_mlp_out" and len(labels) == len(parts)
    accumulated = CACHE.accumulated_resid(layer=-1, incl_mid=True)
    assert_equal(accumulated[-1], final)
    assert_equal(accumulated[1], CACHE["resid_mid", 0])
    normed = CACHE.accumulated_resid(layer=-1, apply_ln=True)[-1]
    assert_equal(normed @ MODEL.W_U, LOGITS)
    attributed = CACHE.logit_attrs(parts, tokens=torch.tensor(ANSWER))
    assert_equal(attributed.sum(0)[0], LOGITS[0, :, ANSWER])
    difference = CACHE.logit_attrs(parts, tokens=torch.tensor(ANSWER), incorrect_tokens=torch.tensor(WRONG))
    assert_equal(difference.sum(0)[0], LOGITS[0, :, ANSWER] - LOGITS[0, :, WRONG])


@pytest.mark.parametrize("expand_neurons", [False, True])
def test_the_full_decomposition_adds_up(expand_neurons):
    _, cache = MODEL.run_with_cache(INPUTS, lambda name: True)
    parts, labels = cache.get_full_resid_decomposition(expand_neurons=expand_neurons, return_labels=True)
    assert_equal(parts.sum(0), cache["resid_post", 1])
    assert len(labels) == len(parts) and "L1H3" in labels and ("L1N95" in labels) == expand_neurons
    attributed = cache.logit_attrs(parts, tokens=torch.tensor(ANSWER))
    assert_equal(attributed.sum(0)[0], LOGITS[0, :, ANSWER])


def test_head_results_are_had_with_and_without_the_hook_point():
    watched = MODEL.run_with_cache(INPUTS, lambda name: True)[1].stack_head_results(layer=2)
    computed = MODEL.run_with_cache(INPUTS)[1].stack_head_results(layer=2)
    assert watched.shape == (8, 1, len(TOKENS), 64)
    assert_equal(computed, watched)
    assert_equal(watched[4:].sum(0), CACHE["attn_out", 1])


def test_directions_hold_the_final_norms_weight():
    assert_equal(MODEL.tokens_to_residual_directions(ANSWER), MODEL.W_U[:, ANSWER] * MODEL.ln_final.w)
    word = MODEL.to_single_token(" dog")
    assert torch.equal(MODEL.tokens_to_residual_directions(" dog"), MODEL.tokens_to_residual_directions(word))
    assert MODEL.tokens_to_residual_directions(torch.tensor([1, 2])).shape == (2, 64)


def test_the_logit_lens_ends_at_the_logits():
    lens = CACHE.logit_lens()
    assert lens.labels[-1] == "final_post"
    assert_equal(lens.values[-1], LOGITS[:, -1])


# Patching.


def test_patching_residuals_equals_our_patch():
    clean, corrupted = small_prompts()
    got = patching.get_act_patch_resid_pre(MODEL, corrupted, clean, metric)
    assert got.shape == (2, 4)
    inputs = MODEL.family.text_inputs(corrupted)
    for layer in range(2):
        for pos in range(4):
            hooks = patch(clean, inputs.tokens.at([pos]), layers=[layer])
            assert_equal(got[layer, pos], metric(MODEL.run_with_hooks(inputs, fwd_hooks=hooks)))
    assert got.abs().max() > 0 and torch.equal(MODEL(corrupted), MODEL(corrupted))


def test_patching_heads_works_with_grouped_keys_and_values():
    clean, corrupted = small_prompts()
    out = patching.get_act_patch_attn_head_out_all_pos(MODEL, corrupted, clean, metric)
    queries = patching.get_act_patch_attn_head_q_all_pos(MODEL, corrupted, clean, metric)
    values = patching.get_act_patch_attn_head_v_all_pos(MODEL, corrupted, clean, metric)
    keys = patching.get_act_patch_attn_head_k_all_pos(MODEL, corrupted, clean, metric)
    assert out.shape == queries.shape == (2, 4) and values.shape == keys.shape == (2, 2)

    def by_hand(name, head):
        def write(x, hook):
            edited = x.clone()
            edited[:, :, head] = clean[name][:, :, head]
            return edited

        return metric(MODEL.run_with_hooks(corrupted, fwd_hooks=[(name, write)]))

    for layer in range(2):
        for head in range(2):
            assert_equal(values[layer, head], by_hand(f"blocks.{layer}.attn.hook_v", head))
            assert_equal(keys[layer, head], by_hand(f"blocks.{layer}.attn.hook_k", head))
        for head in range(4):
            assert_equal(out[layer, head], by_hand(f"blocks.{layer}.attn.hook_z", head))
            assert_equal(queries[layer, head], by_hand(f"blocks.{layer}.attn.hook_q", head))


def test_every_kind_of_head_is_patched_in_one_call():
    ids, corrupted = torch.tensor([[5, 9, 300, 7]]), torch.tensor([[5, 41, 300, 7]])
    _, clean = MODEL.run_with_cache(ids, lambda name: True)
    every = patching.get_act_patch_attn_head_all_pos_every(MODEL, corrupted, clean, metric)
    assert every.shape == (5, 2, 4)
    assert_equal(every[0], patching.get_act_patch_attn_head_out_all_pos(MODEL, corrupted, clean, metric))
    pattern = patching.get_act_patch_attn_head_pattern_all_pos(MODEL, corrupted, clean, metric)
    assert_equal(every[4], pattern)


def test_generic_patching_takes_prompts_with_clips():
    def write(corrupted, index, clean):
        corrupted[:, index[1]] = clean[:, index[1]]
        return corrupted

    rows = pd.DataFrame({"layer": [0, 1, 1], "pos": [len(TOKENS) - 1, 20, 25]})
    plain = MODEL(OTHER)
    got = generic_activation_patch(MODEL, OTHER, CACHE, metric, write, "resid_pre", index_df=rows)
    for value, (layer, pos) in zip(got, rows.values.tolist(), strict=True):
        hooks = patch(CACHE, TOKENS.at([pos]), layers=[layer])
        assert_equal(value, metric(MODEL.run_with_hooks(OTHER, fwd_hooks=hooks)))
    assert torch.equal(MODEL(OTHER), plain)


def test_hooks_may_be_added_and_reset_as_in_transformer_lens():
    seen = []
    MODEL.add_hook("blocks.0.hook_resid_pre", lambda x, hook: seen.append(hook.name))
    MODEL(INPUTS)
    MODEL.reset_hooks()
    MODEL(INPUTS)
    assert seen == ["blocks.0.hook_resid_pre"]
    with MODEL.hooks(fwd_hooks=[("hook_embed", lambda x, hook: x * 0)]):
        wiped = MODEL(INPUTS)
    assert largest_difference(wiped, LOGITS) > 1e-3
    assert_equal(MODEL(INPUTS), LOGITS)
