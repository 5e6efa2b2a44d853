import time

import pytest
import torch

from avlens import ablate, discard
from avlens.errors import HookError, PositionError
from avlens.hooks import HookPoint, Run
from avlens.inputs import AVInputs
from avlens.testing import tiny_clip, tiny_model
from tests.helpers import assert_equal, prompt_of

MODEL = tiny_model()
INPUTS = MODEL.prepare(tiny_clip(1.6), "what do you hear ?")
TOKENS = INPUTS.tokens
NAME = "blocks.1.hook_resid_pre"
_, PLAIN = MODEL.run_with_cache(INPUTS, "resid_pre")


def after(hooks, inputs=INPUTS):
    return MODEL.run_with_cache(inputs, NAME, fwd_hooks=hooks)[1][NAME]


def wanted(positions, values):
    out = PLAIN[NAME].clone()
    out[:, positions] = values
    return out


def test_zero_mean_and_resample_write_what_they_say():
    chosen = TOKENS.at([*TOKENS.video.positions[:3].tolist(), *TOKENS.audio.positions[5:7].tolist()])
    x = PLAIN[NAME]
    video, audio = x[:, TOKENS.video.positions], x[:, TOKENS.audio.positions]
    assert torch.equal(after(ablate(chosen, layers=[1])), wanted(chosen.positions, 0.0))
    means = torch.stack([video.mean(1)] * 3 + [audio.mean(1)] * 2, 1)
    assert_equal(after(ablate(chosen, by="mean", layers=[1])), wanted(chosen.positions, means))
    drawn = after(ablate(chosen, by="resample", layers=[1], seed=4))
    for i, pool in zip(chosen, [video] * 3 + [audio] * 2, strict=True):
        assert (pool[0] == drawn[0, i]).all(-1).any()
    assert torch.equal(drawn[:, ~chosen.mask], x[:, ~chosen.mask])
    assert torch.equal(drawn, after(ablate(chosen, by="resample", layers=[1], seed=4)))
    assert not torch.equal(drawn, after(ablate(chosen, by="resample", layers=[1], seed=5)))


def test_another_run_may_be_the_reference():
    other = MODEL.prepare(tiny_clip(2.2, seed=3), "what is it ?")
    _, reference = MODEL.run_with_cache(other, "resid_pre")
    got = after(ablate(TOKENS.audio, by="mean", layers=[1], reference=reference))
    assert_equal(
        got, wanted(TOKENS.audio.positions, reference[NAME][:, other.tokens.audio.positions].mean(1, keepdim=True))
    )
    _, silent = MODEL.run_with_cache(prompt_of(MODEL, "text"), "resid_pre")
    with pytest.raises(PositionError, match="the reference has no audio position to take from"):
        ablate(TOKENS.audio, by="mean", reference=silent)


@pytest.mark.parametrize("by", ["zero", "mean", "resample"])
def test_rows_of_a_batch_are_ablated_by_themselves(by):
    edit = ablate(TOKENS.audio, by=by, layers=[1])
    other = MODEL.prepare(tiny_clip(1.6, seed=7), "what do you hear ?")
    longer = MODEL.prepare(tiny_clip(2.6, seed=7), "what do you hear ?")
    batch = MODEL.run_with_hooks(AVInputs.batch([INPUTS, longer, other]), fwd_hooks=edit)
    for row, one in ((0, INPUTS), (2, other)):
        assert_equal(batch[row, -one.shape[1] :], MODEL.run_with_hooks(one, fwd_hooks=edit)[0])
    assert_equal(batch[1], MODEL(longer)[0])


def test_only_the_prompt_is_ablated():
    edit = ablate(TOKENS.video, by="mean")
    out = MODEL.generate(INPUTS, 4, fwd_hooks=edit, names_filter="resid_pre", min_new_tokens=4)
    assert_equal(out.cache[NAME][:, : len(TOKENS)], MODEL.run_with_cache(INPUTS, NAME, fwd_hooks=edit)[1][NAME])
    assert out.cache[NAME].shape[1] == len(TOKENS) + 3


def test_heads_are_positions_second_too_and_attention_is_refused():
    _, cache = MODEL.run_with_cache(INPUTS, "z", fwd_hooks=ablate(TOKENS.question, site="z"))
    assert (cache["z", 2][:, TOKENS.question.positions] == 0).all() and (
        cache["z", 2][:, TOKENS.last.positions] != 0
    ).any()
    with pytest.raises(HookError, match="pattern has no axis of positions. Use knockout or reweight"):
        ablate(TOKENS.audio, site="pattern")
    (_, fn), *_ = ablate(TOKENS.audio, by="mean")
    assert repr(fn).endswith("by mean)") and "resid_pre" in repr(fn)


def test_an_ablation_of_tokens_not_yet_written_is_refused():
    with pytest.raises(PositionError, match="not yet generated.*Subtract them: tokens - inputs.tokens.generated"):
        ablate(TOKENS.last | TOKENS.generated)


@pytest.mark.parametrize("by", ["zero", "mean", "resample"])
def test_a_run_that_computes_none_of_the_positions_is_left_as_it_is(by):
    (name, fn), *_ = ablate(TOKENS.audio, by=by)
    point, n = HookPoint(), len(TOKENS)
    point.name = name
    for first, count, touched in ((n, 1, False), (int(TOKENS.audio.positions[-1]) + 1, 3, False), (0, n, True)):
        queries = torch.arange(first, first + count)
        point.ctx["run"] = Run(torch.zeros(1).long(), (TOKENS.layout,), queries, torch.arange(first + count))
        assert (fn(torch.ones(1, count, 4), hook=point) is not None) == touched


def test_after_a_discard_the_mean_is_over_the_positions_that_are_left():
    video = TOKENS.video.positions
    gone, edited = TOKENS.at(video[::2].tolist()), TOKENS.at(video[:6].tolist())
    left = (~gone.mask).nonzero()[:, 0]
    _, plain = MODEL.run_with_cache(INPUTS, NAME, fwd_hooks=discard(gone, layer=0))
    hooks = discard(gone, layer=0) + ablate(edited, by="mean", layers=[1])
    _, cache = MODEL.run_with_cache(INPUTS, NAME, fwd_hooks=hooks)
    want = plain[NAME].clone()
    want[:, edited.mask[left]] = plain[NAME][:, TOKENS.video.mask[left]].mean(1, keepdim=True)
    assert_equal(cache[NAME], want)
    drawn = ablate(edited, by="resample", layers=[1], seed=1)
    (replaced, source), = drawn[0][1].sources  # fmt: skip
    _, cache = MODEL.run_with_cache(INPUTS, NAME, fwd_hooks=discard(gone, layer=0) + drawn)
    for into, taken in zip(replaced.tolist(), source.tolist(), strict=True):
        if into in left:
            row = cache[NAME][0, left.tolist().index(into)]
            known = taken in left
            assert torch.equal(row, plain[NAME][0, left.tolist().index(taken)]) if known else row.isnan().all()
    with pytest.raises(PositionError, match="recorded after tokens had been discarded"):
        after(ablate(edited, by="mean", layers=[1], reference=plain))


@pytest.mark.parametrize("by", ["zero", "mean", "resample"])
def test_thousands_of_positions_are_ablated_at_once(by):
    inputs = MODEL.prepare([], " ".join(["drum"] * 20_000))
    began = time.process_time()
    (name, fn), *_ = ablate(inputs.tokens.question, by=by)
    point = HookPoint()
    point.name = name
    x = torch.randn(1, len(inputs.tokens), 8)
    out = fn(x, hook=point)
    assert time.process_time() - began < 2
    assert torch.equal(out[:, ~inputs.tokens.question.mask], x[:, ~inputs.tokens.question.mask])
