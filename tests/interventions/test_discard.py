import pytest
import torch

from avlens import discard, knockout, patch
from avlens.errors import BatchError, HookError, LayerError, PositionError
from avlens.hooks import HookPoint, on_rows
from avlens.inputs import AVInputs
from avlens.testing import tiny_clip, tiny_model
from tests.helpers import assert_equal, prompt_of

MODEL = tiny_model()
INPUTS = MODEL.prepare(tiny_clip(1.6), "what do you hear ?")
TOKENS = INPUTS.tokens


def test_the_tokens_leave_at_their_layer():
    names = ["resid_pre", "resid_post", "pattern"]
    _, cache = MODEL.run_with_cache(INPUTS, names, fwd_hooks=discard(TOKENS.audio, layer=1))
    n, left = len(TOKENS), len(TOKENS) - len(TOKENS.audio)
    assert [cache["resid_post", layer].shape[1] for layer in range(3)] == [n, left, left]
    assert cache["pattern", 0].shape[-2:] == (n, n) and cache["pattern", 2].shape[-2:] == (left, left)


def test_tokens_may_leave_at_several_layers():
    first, second = TOKENS.audio, TOKENS.video
    hooks = discard(first, layer=1) + discard(second, layer=2)
    remain = ~(first | second) - TOKENS.generated
    unread = knockout(~first, first, layers=[1, 2]) + knockout(~second - first, second, layers=[2])
    wanted = MODEL.run_with_hooks(INPUTS, fwd_hooks=unread)[:, remain.positions]
    assert_equal(MODEL.run_with_hooks(INPUTS, fwd_hooks=hooks), wanted)
    twice = discard(first, layer=1) + discard(first | second, layer=2)
    assert_equal(MODEL.run_with_hooks(INPUTS, fwd_hooks=twice), wanted)
    together = discard(first, layer=2) + discard(second, layer=2)
    assert_equal(
        MODEL.run_with_hooks(INPUTS, fwd_hooks=together),
        MODEL.run_with_hooks(INPUTS, fwd_hooks=discard(first | second, layer=2)),
    )


def test_knockout_after_a_discard_speaks_of_the_same_positions():
    keys = TOKENS.video
    hooks = discard(TOKENS.audio, layer=1) + knockout(TOKENS.question, keys, layers=[2])
    _, cache = MODEL.run_with_cache(INPUTS, "pattern", fwd_hooks=hooks)
    remain = (~TOKENS.audio - TOKENS.generated).positions.tolist()
    rows, columns = [remain.index(i) for i in TOKENS.question], [remain.index(i) for i in keys]
    assert (cache["pattern", 2][:, :, rows][..., columns] == 0).all()
    assert (cache["pattern", 1][:, :, rows][..., columns] > 0).all()


def test_edits_after_a_discard_at_the_same_point_speak_of_the_same_positions():
    _, clean = MODEL.run_with_cache(MODEL.prepare(tiny_clip(1.6, seed=9), "what do you hear ?"), "resid_pre")
    gone, chosen = discard(TOKENS.audio, layer=1), TOKENS.question
    after = MODEL.run_with_hooks(INPUTS, fwd_hooks=gone + patch(clean, chosen, layers=[1]))
    before = MODEL.run_with_hooks(INPUTS, fwd_hooks=patch(clean, chosen, layers=[1]) + gone)
    assert torch.equal(after, before)


def test_rows_of_a_batch_cannot_be_discarded_apart():
    batch = AVInputs.batch([INPUTS, INPUTS])
    with pytest.raises(BatchError, match="acts on some rows of the batch only. Discard from whole batches"):
        MODEL.run_with_hooks(batch, fwd_hooks=on_rows(discard(TOKENS.audio, layer=1), [0]))


def test_a_batch_of_one_layout_is_discarded_together():
    other = MODEL.prepare(tiny_clip(1.6, seed=4), "what do you hear ?")
    hooks = discard(TOKENS.audio, layer=1)
    both = MODEL.run_with_hooks(AVInputs.batch([INPUTS, other]), fwd_hooks=hooks)
    assert_equal(both[1:], MODEL.run_with_hooks(other, fwd_hooks=hooks))
    with pytest.raises(BatchError, match="must fit every prompt that runs. Discard from prompts of one layout"):
        MODEL.run_with_hooks(AVInputs.batch([INPUTS, prompt_of(MODEL, "text")]), fwd_hooks=hooks)


def test_what_cannot_be_discarded_is_refused():
    with pytest.raises(
        PositionError, match=r"holds the prompt's last position .*Subtract it: tokens - inputs.tokens.last"
    ):
        discard(TOKENS.question | TOKENS.last, layer=0)
    with pytest.raises(PositionError, match="not yet generated.*Subtract them: tokens - inputs.tokens.generated"):
        discard(~TOKENS.all, layer=0)
    with pytest.raises(LayerError, match="counted from 0"):
        discard(TOKENS.audio, layer=-1)
    (_, fn), *_ = discard(TOKENS.audio, layer=0)
    with pytest.raises(HookError, match="runs on a HookedAVModel only"):
        fn(torch.zeros(1, len(TOKENS), 4), HookPoint())
    assert torch.equal(MODEL.run_with_hooks(INPUTS, fwd_hooks=discard(TOKENS.at([]), layer=1)), MODEL(INPUTS))
