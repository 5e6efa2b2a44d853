import pytest
import torch

from avlens.errors import BatchError, PositionError
from avlens.hooks import (
    HookPoint,
    first_query_pos,
    head_mask,
    is_row_wise,
    key_positions,
    on_rows,
    query_positions,
    rows_of,
)
from avlens.inputs import AVInputs
from avlens.testing import tiny_clip, tiny_model

MODEL = tiny_model(n_layers=2)
SHORT, LONG = MODEL.prepare([], "is it ?"), MODEL.prepare(tiny_clip(1.0), "what do you hear ?")
BATCH = AVInputs.batch([SHORT, LONG])


def telling(told, dim):
    def tell(x, hook):
        told.append((first_query_pos(hook), query_positions(hook, x, dim=dim), key_positions(hook, x)))

    return tell


@pytest.mark.parametrize(("name", "dim"), [("blocks.1.attn.hook_pattern", 2), ("blocks.1.attn.hook_attn_scores", 2)])
def test_positions_are_those_of_the_rows_own_prompt_in_prefill_and_decoding(name, dim):
    told = []
    out = MODEL.generate(BATCH, 3, fwd_hooks=[(name, telling(told, dim))], min_new_tokens=3)
    n, pad = LONG.shape[1], LONG.shape[1] - SHORT.shape[1]
    assert out.tokens.shape == (2, 3) and [first for first, _, _ in told] == [0, n, n + 1]
    for step, (_, query, key) in enumerate(told):
        rows = torch.arange(n) if step == 0 else torch.tensor([n + step - 1])
        keys = torch.arange(n + step)
        assert torch.equal(query, torch.stack([rows - pad, rows]))
        assert torch.equal(key, torch.stack([keys - pad, keys]))


def test_without_a_run_position_i_is_row_i():
    hook, x = HookPoint(), torch.zeros(2, 5, 3)
    assert first_query_pos(hook) == 0
    assert query_positions(hook, x).tolist() == [[0, 1, 2, 3, 4]]
    assert key_positions(hook, x).tolist() == [[0, 1, 2]]
    assert rows_of(hook, LONG.tokens.audio).tolist() == [True]


def test_a_run_leaves_nothing_behind_even_after_an_error():
    def fail(x, hook):
        raise RuntimeError("on purpose")

    with pytest.raises(RuntimeError, match="on purpose"):
        MODEL.run_with_hooks(LONG, fwd_hooks=[("blocks.0.hook_resid_pre", fail)])
    assert all(not point.ctx and not point.fwd_hooks for point in MODEL.hook_dict.values())


def test_a_set_speaks_of_the_rows_that_have_its_layout():
    told = []
    hooks = [("blocks.0.hook_resid_pre", lambda x, hook: told.append(rows_of(hook, LONG.tokens.audio)))]
    MODEL.run_with_hooks(BATCH, fwd_hooks=hooks)
    assert told[0].tolist() == [False, True]
    with pytest.raises(PositionError, match="another layout than the one that runs at blocks.0.hook_resid_pre. Take"):
        MODEL.run_with_hooks(SHORT, fwd_hooks=hooks)


def test_hooks_on_some_rows_see_and_edit_those_rows_only():
    told = []

    def double(x, hook):
        told.append((x.shape[0], query_positions(hook, x)[:, 0].tolist()))
        return x * 2

    name = "blocks.0.hook_resid_post"
    plain, edited = MODEL(BATCH), MODEL.run_with_hooks(BATCH, fwd_hooks=on_rows([(name, double)], [1]))
    assert told == [(1, [0])]
    assert torch.equal(edited[0], plain[0]) and not torch.equal(edited[1], plain[1])
    single = MODEL.run_with_hooks(LONG, fwd_hooks=[(name, double)])
    assert torch.allclose(edited[1:], single, atol=1e-5)
    with pytest.raises(BatchError, match="bound to row 2, but the batch at blocks.0.hook_resid_post has 2"):
        MODEL.run_with_hooks(BATCH, fwd_hooks=on_rows([(name, double)], [2]))


def test_what_works_row_by_row_says_so():
    class Edit:
        row_wise = True

        def __call__(self, x, hook):
            return None

    assert is_row_wise(Edit()) and not is_row_wise(lambda x, hook: None)
    assert all(is_row_wise(fn) for _, fn in on_rows([("hook_embed", Edit())], [0]))


def test_a_head_that_does_not_exist_is_refused():
    scores = torch.zeros(1, 4, 2, 2)
    assert head_mask((1, 3), scores).flatten().tolist() == [False, True, False, True]
    assert head_mask(None, scores).all()
    with pytest.raises(PositionError, match=r"no head 4: the layer has 4 \(0 to 3\)"):
        head_mask((0, 4), scores)
