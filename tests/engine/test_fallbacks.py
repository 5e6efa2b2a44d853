"""Where no shortcut is exact a sweep runs in full, and what is shared is computed once."""

import inspect

import pytest
import torch

from avlens.analyses.tracing import causal_trace
from avlens.engine import plan_sweep, sweep
from avlens.errors import HookError, PositionError
from avlens.interventions import ablate, discard, knockout, patch
from avlens.interventions.discard import fastv
from avlens.testing import tiny_clip, tiny_model
from tests.helpers import assert_equal


def prepared(family="qwen2_5_omni", dtype=torch.float32):
    model = tiny_model(family, seed=2, n_layers=3 if family != "gemma4" else 4).to(dtype)
    clip = tiny_clip(1.0, size=(56, 56), seed=5)
    clean, corrupt = (model.prepare(one, "what do you hear ?") for one in (clip, clip.silenced().blanked()))
    return model, clean, corrupt


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_blocks_that_read_keys_of_others_are_run_in_full(dtype):
    model, clean, corrupt = prepared("gemma4", dtype)
    tokens, last = corrupt.tokens, corrupt.tokens.last
    _, cache = model.run_with_cache(clean, "resid_pre")
    edits = {"none": [], "patch": patch(cache, tokens.media), "cut": knockout(last, tokens.audio, layers=[1])}
    plan = plan_sweep(model, corrupt, edits, logits_at=last)
    assert set(plan.in_full) == {0, 1, 2} and "read keys that others made" in str(plan) and plan.runs == 3
    for row, hooks in zip(sweep(model, corrupt, edits, logits_at=last), edits.values(), strict=True):
        assert torch.equal(row, model.run_with_hooks(corrupt, hooks, logits_at=last)[0])


def test_what_decides_while_it_runs_or_reads_its_own_run_is_run_in_full():
    model, clean, _ = prepared()
    tokens, last = clean.tokens, clean.tokens.last
    edits = {
        "none": [],
        "fastv": fastv(tokens.media, layer=1, ratio=0.5),
        "mean": ablate(tokens.audio, by="mean"),
        "resample": ablate(tokens.video, by="resample", seed=4),
        "zero": ablate(tokens.video, by="zero"),
    }
    plan = plan_sweep(model, clean, edits, logits_at=last)
    assert {plan.names[edit] for edit in plan.in_full} == {"fastv", "mean", "resample"}
    for row, hooks in zip(sweep(model, clean, edits, logits_at=last), edits.values(), strict=True):
        assert_equal(row, model.run_with_hooks(clean, hooks, logits_at=last)[0])


def test_p_at_its_maximum_is_that_of_each_patched_answer_by_itself():
    model, clean, corrupt = prepared()
    sets = {"audio": clean.tokens.audio, "video": clean.tokens.video}
    trace = causal_trace(model, clean, corrupt, sets, step="max", max_new_tokens=3)
    _, cache = model.run_with_cache(clean, "resid_pre")
    for p, chosen in zip(trace.p_patched, sets.values(), strict=True):
        logits = model.generate(corrupt, 3, fwd_hooks=patch(cache, chosen), keep_logits=True).logits[0]
        best = [float(logits.softmax(-1)[:, list(word)].max()) for word in (trace.o_clean, trace.o_corrupt)]
        assert_equal(p, torch.tensor(best))


def test_encoders_run_once_and_only_asked_rows_are_unembedded(monkeypatch):
    model, clean, _ = prepared()
    tokens, last, encoded, rows = clean.tokens, clean.tokens.last, [], []
    encode = model.family.encode
    monkeypatch.setattr(type(model.family), "encode", lambda self, *args: encoded.append(1) or encode(*args))
    edits = {f"{i}": knockout(last, tokens.audio, layers=[i]) for i in range(3)} | {
        "mine": [("blocks.0.hook_resid_pre", lambda x, hook: 2 * x)],
        "none": [],
    }
    handle = model.unembed.register_forward_pre_hook(lambda module, args: rows.append(args[0].shape[-2]))
    found = sweep(model, clean, edits, logits_at=last)
    handle.remove()
    assert len(encoded) == len(clean.prompt.media) and set(rows) == {1}
    for row, hooks in zip(found, edits.values(), strict=True):
        assert_equal(row, model.run_with_hooks(clean, hooks, logits_at=last)[0])


def test_what_is_discarded_in_a_full_run_cannot_be_asked_for():
    model, clean, _ = prepared()
    tokens = clean.tokens
    for gone in (
        fastv(tokens.media, layer=1, ratio=0.5),
        [*discard(tokens.media, layer=1), ("blocks.0.hook_mlp_out", lambda x, hook: x)],
    ):
        for asked in (None, tokens.media):
            with pytest.raises(PositionError, match="discarded on the way"):
                sweep(model, clean, {"none": [], "gone": gone}, logits_at=asked)
    with pytest.raises(PositionError, match="discarded on the way"):
        model.run_with_hooks(clean, discard(tokens.media, layer=0), logits_at=tokens.media)


def test_a_model_made_in_inference_mode_is_swept():
    with torch.inference_mode():
        model, clean, corrupt = prepared()
        _, cache = model.run_with_cache(clean, "resid_pre")
        hooks = patch(cache, clean.tokens.audio)
        found = sweep(model, corrupt, {"none": [], "audio": hooks}, logits_at=corrupt.tokens.last, progress="patching")
        assert_equal(found[1], model.run_with_hooks(corrupt, hooks, logits_at=corrupt.tokens.last)[0])
        reading = model.read(corrupt)
        assert model.generate(corrupt, 2, reading=reading).texts == model.generate(corrupt, 2).texts


def test_token_ids_are_swept_as_a_text():
    model = tiny_model(n_layers=2)
    ids = torch.tensor([[3, 1, 4, 1, 5]])
    tokens = model.as_inputs(ids).tokens
    edits = {"none": [], "cut": knockout(tokens.last, tokens.at([1, 2]))}
    found = sweep(model, ids, edits, logits_at=tokens.last)
    assert_equal(found[0], model(ids)[0, -1:])
    assert_equal(found[1], model.run_with_hooks(model.as_inputs(ids), edits["cut"], logits_at=tokens.last)[0])
    assert torch.equal(model.read(ids).logits, model.read(model.as_inputs(ids)).logits)


@pytest.mark.parametrize(
    ("edits", "said"),
    [
        ([[]], "edits are a list. Give lists of hooks by name"),
        ({"mine": ("blocks.0.hook_resid_pre", print)}, "the edit 'mine' is .* Give a list of hooks"),
        ({"mine": None}, "the edit 'mine' is None"),
    ],
)
def test_what_are_no_edits_is_refused(edits, said):
    model, clean, _ = prepared()
    with pytest.raises(HookError, match=said):
        inspect.unwrap(plan_sweep)(model, clean, edits)
