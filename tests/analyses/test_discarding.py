import math

import pytest
import torch

from avlens import AVInputs, discard, knockout
from avlens.analyses.discarding import (
    compare_discarding,
    leaves_at,
    leaving,
    leaving_at_random,
    leaving_by_fastv,
)  # fmt: skip
from avlens.analyses.flow import information_flow
from avlens.decoder import KeyValues
from avlens.errors import BatchError, HookError, LayerError, PositionError, PromptError
from avlens.interventions import fastv
from avlens.testing import tiny_clip, tiny_model
from tests.helpers import assert_equal, prompt_of

MODEL = tiny_model(n_layers=4)
INPUTS = MODEL.prepare(tiny_clip(1.6), "what do you hear ?")
TOKENS = INPUTS.tokens


@pytest.mark.parametrize(("group", "layer"), [("audio", 0), ("video", 2), ("question", 3)])
def test_discarding_while_generating_is_knocking_out_from_that_layer_on(group, layer):
    gone = getattr(TOKENS, group)
    cut = knockout(~gone, gone, layers=range(layer, 4))
    options = {"max_new_tokens": 6, "keep_logits": True, "eos_token_id": None}
    ours = MODEL.generate(INPUTS, fwd_hooks=discard(gone, layer=layer), **options)
    slow = MODEL.generate(INPUTS, fwd_hooks=cut, **options)
    assert torch.equal(ours.tokens, slow.tokens)
    assert_equal(ours.logits, slow.logits)


def test_caches_are_really_shorter_and_keep_positions():
    past, hooks = KeyValues(), discard(TOKENS.audio, layer=1) + discard(TOKENS.video, layer=3)
    with torch.no_grad(), MODEL.hooks(hooks):
        MODEL.advance(INPUTS, None, past)
        MODEL.advance(INPUTS, torch.tensor([[5]]), past)
    left = [TOKENS.all, TOKENS.all - TOKENS.audio, TOKENS.all - TOKENS.audio, TOKENS.all - TOKENS.media]
    for layer, chosen in enumerate(left):
        assert past.layers[layer].keys.shape[2] == len(chosen) + 1
        assert past.key_index[layer].tolist() == [*chosen, len(TOKENS)]


def test_fastv_keeps_what_the_last_position_reads_most():
    layer, tokens = 2, TOKENS.video
    _, cache = MODEL.run_with_cache(INPUTS, ["pattern"])
    read = cache["pattern", layer - 1][0, :, -1].mean(0)[tokens.positions]
    least = tokens.positions[read.argsort(descending=True)[round(0.4 * len(tokens)) :]]
    gone = TOKENS.at(sorted(least.tolist()))
    logits = MODEL.run_with_hooks(INPUTS, fastv(tokens, layer=layer, ratio=0.6))
    assert_equal(logits, MODEL.run_with_hooks(INPUTS, discard(gone, layer=layer)))
    hooks = fastv(tokens, layer=layer, ratio=0.6)
    for inputs in (INPUTS, MODEL.prepare(tiny_clip(1.6, seed=8), "what do you hear ?")):  # ranked anew in each run
        again = MODEL.run_with_hooks(inputs, fastv(inputs.tokens.video, layer=layer, ratio=0.6))
        assert_equal(MODEL.run_with_hooks(inputs, hooks), again)
    written = MODEL.generate(INPUTS, 4, fwd_hooks=hooks, keep_logits=True, eos_token_id=None)
    slow = MODEL.generate(INPUTS, 4, fwd_hooks=discard(gone, layer=layer), keep_logits=True, eos_token_id=None)
    assert_equal(written.logits, slow.logits)
    assert MODEL.run_with_hooks(INPUTS, fastv(tokens, ratio=0.0)).shape[1] == len(TOKENS)
    assert MODEL.run_with_hooks(INPUTS, fastv(tokens, ratio=1.0)).shape[1] == len(TOKENS) - len(tokens)


def test_fastv_after_a_discard_ranks_what_is_left():
    some = TOKENS.at(TOKENS.video.positions[:3].tolist())
    hooks = discard(some, layer=1) + fastv(TOKENS.video, layer=2, ratio=0.5)
    keep = round(0.5 * len(TOKENS.video))
    assert MODEL.run_with_hooks(INPUTS, hooks).shape[1] == len(TOKENS) - len(TOKENS.video) + keep


def test_wrong_fastv_is_refused():
    with pytest.raises(LayerError, match="Pass 1 or more"):
        fastv(TOKENS.video, layer=0)
    with pytest.raises(HookError, match="from 0 to 1"):
        fastv(TOKENS.video, ratio=1.5)
    with pytest.raises(PositionError, match="last position"):
        fastv(TOKENS.all)
    with pytest.raises(BatchError, match="Run one prompt at a time"):
        MODEL.run_with_hooks(AVInputs.batch([INPUTS, INPUTS]), fastv(TOKENS.video))


def test_a_group_leaves_after_the_last_layer_that_needs_it():
    flow = information_flow(MODEL, INPUTS, ["audio -> all", "video + audio -> last"], sweep="top_down")
    change = flow.change[:, :, 0].abs()
    for tolerance in (float(change[0, 2]), float(change.max()), 0.0):
        beyond = [layer for layer in range(4) if float(change[:, layer].max()) > tolerance]
        wanted = beyond[-1] + 1 if beyond else 0
        assert leaves_at(flow, "audio", tolerance=tolerance) == (wanted if wanted < 4 else None)
    assert leaves_at(flow, "video", tolerance=1e9) == 0
    with pytest.raises(PromptError, match="cut no edge out of 'question'"):
        leaves_at(flow, "question")
    with pytest.raises(LayerError, match="layers='all'"):
        leaves_at(information_flow(MODEL, INPUTS, ["audio -> last"], layers=[1]), "audio")


def test_plans_are_compared_on_the_same_prompts():
    other = prompt_of(MODEL, "video_and_audio")
    layers = {"audio": 1, "video + question": 3, "image": 2}
    plans = {"late": leaving(layers), "random": leaving_at_random(layers, seed=1), "fastv": leaving_by_fastv("video")}
    said = [MODEL.to_string(MODEL(one, logits_at=one.tokens.last)[0, 0].argmax()) for one in (INPUTS, other)]
    found = compare_discarding(MODEL, [INPUTS, other], plans, labels=[said[0], "dog"], repeats=1)
    assert found.plans == ("plain", "late", "random", "fastv")
    assert found.same[0].tolist() == [1, 1] and found.right[0].tolist() == [1, 0]
    for i, inputs in enumerate((INPUTS, other)):
        tokens, n = inputs.tokens, len(inputs.tokens)
        audio, more = len(tokens.audio), len(tokens.video | tokens.question)
        rows = [4 * n, n + 2 * (n - audio) + n - audio - more]
        assert found.rows[:3, i].tolist() == [*rows, rows[1]]
        per_row = 2 * 4 * MODEL.cfg.n_key_value_heads * MODEL.cfg.d_head
        assert found.cache_bytes[:3, i].tolist() == [row * per_row for row in [*rows, rows[1]]]
        logits = MODEL.run_with_hooks(inputs, plans["late"](inputs), logits_at=tokens.last)[0, 0]
        assert_equal(found.p[1, i], logits.softmax(-1)[int(MODEL(inputs, logits_at=tokens.last)[0, 0].argmax())])
    frame = found.to_frame()
    assert frame.loc["plain", ["seconds", "rows", "cache"]].tolist() == [1, 1, 1] and frame.loc["late", "rows"] < 1
    assert found.lost("plain").estimate == 0 and (found.seconds > 0).all()
    assert math.isnan(compare_discarding(MODEL, [INPUTS], plans, repeats=1).accuracy("late").estimate)
    with pytest.raises(PromptError, match="no plan 'early'"):
        found.accuracy("early")
    with pytest.raises(PromptError, match="no plan called 'plain'"):
        compare_discarding(MODEL, [INPUTS], {"plain": leaving({})})


def test_random_tokens_leave_once_and_never_the_first_or_the_last():
    layers = {"audio": 1, "video": 2}
    first, second = (fn.tokens for _, fn in leaving_at_random(layers, seed=3)(INPUTS))
    assert (len(first), len(second)) == (len(TOKENS.audio), len(TOKENS.video)) and not first & second
    assert 0 not in first | second and len(TOKENS) - 1 not in first | second
    again = [fn.tokens for _, fn in leaving_at_random(layers, seed=3)(INPUTS)]
    assert [first, second] == again
