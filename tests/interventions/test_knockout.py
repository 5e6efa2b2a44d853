import pytest
import torch

from avlens import knockout, patch
from avlens.errors import PositionError
from avlens.hooks import HookPoint
from avlens.interventions.knockout import Knockout
from avlens.testing import tiny_clip, tiny_model
from tests.helpers import assert_equal, in_chunks_of, largest_difference, prompt_of

MODEL = tiny_model()
INPUTS = MODEL.prepare(tiny_clip(1.6), "what do you hear ?")
TOKENS = INPUTS.tokens
TEXT = prompt_of(MODEL, "text").tokens


def test_three_tokens_by_hand():
    scores = torch.full((1, 2, 3, 3), 1.0).masked_fill(torch.ones(3, 3, dtype=torch.bool).triu(1), -torch.inf)
    before = scores.clone()
    edited = Knockout(TEXT.at([2]), TEXT.at([0, 1]), heads=(1,))(scores, HookPoint())
    inf = torch.inf
    assert edited[0, 0].tolist() == [[1, -inf, -inf], [1, 1, -inf], [1, 1, 1]]
    assert edited[0, 1].tolist() == [[1, -inf, -inf], [1, 1, -inf], [-inf, -inf, 1]]
    assert torch.equal(scores, before)


def test_the_remaining_keys_share_the_mass_in_proportion():
    name = ["blocks.0.attn.hook_pattern"]
    _, plain = MODEL.run_with_cache(INPUTS, name)
    edit = knockout(TOKENS.question, TOKENS.audio, layers=[0])
    _, cache = MODEL.run_with_cache(INPUTS, name, fwd_hooks=edit)
    rows = plain["pattern", 0].clone()
    asked = rows[:, :, TOKENS.question.positions]
    asked[..., TOKENS.audio.positions] = 0
    rows[:, :, TOKENS.question.positions] = asked / asked.sum(-1, keepdim=True)
    assert_equal(cache["pattern", 0], rows)


def test_knocking_out_nothing_or_what_causality_forbids_changes_nothing():
    plain = MODEL(INPUTS, attn="eager")
    for queries, keys in ((TOKENS.at([]), TOKENS.all), (TOKENS.last, TOKENS.at([])), (TOKENS.media, TOKENS.question)):
        assert torch.equal(MODEL.run_with_hooks(INPUTS, fwd_hooks=knockout(queries, keys), attn="eager"), plain)


def test_chunks_of_rows_give_what_the_whole_gives(monkeypatch):
    edit = knockout(TOKENS.question, TOKENS.audio, heads=[0, 2]) + knockout(TOKENS.video, TOKENS.system)
    whole = MODEL.run_with_hooks(
        INPUTS, fwd_hooks=[(name, lambda x, hook, fn=fn: fn(x, hook=hook)) for name, fn in edit]
    )
    in_chunks_of(5, monkeypatch)
    assert_equal(MODEL.run_with_hooks(INPUTS, fwd_hooks=edit), whole)


def test_edits_add_up():
    _, cache = MODEL.run_with_cache(MODEL.prepare(tiny_clip(1.6, seed=9), "what do you hear ?"))
    first, second = patch(cache, TOKENS.video), knockout(TOKENS.question, TOKENS.audio, layers=range(1, 3))
    both = MODEL.run_with_hooks(INPUTS, fwd_hooks=first + second)
    for part in (first, second):
        assert largest_difference(both, MODEL.run_with_hooks(INPUTS, fwd_hooks=part)) > 1e-4


def test_a_query_left_with_nothing_is_named():
    with pytest.raises(
        PositionError, match="leaves position 0 with nothing to read at blocks.0.attn.hook_attn_scores. Leave"
    ):
        MODEL.run_with_hooks(INPUTS, fwd_hooks=knockout(TOKENS.all, TOKENS.all))
    with pytest.raises(PositionError, match="leaves position 7 with nothing .*at blocks.1"):
        MODEL.run_with_hooks(INPUTS, fwd_hooks=knockout(TOKENS.at([7]), TOKENS.at(range(8)), layers=[1]))
    later = MODEL.generate
    with pytest.raises(PositionError, match=f"leaves position {len(TOKENS)} with nothing"):
        later(INPUTS, 3, fwd_hooks=knockout(TOKENS.generated, TOKENS.all | TOKENS.generated), min_new_tokens=3)


def test_padding_is_exempt_from_the_check():
    from avlens.inputs import AVInputs

    short = prompt_of(MODEL, "text")
    edit = knockout(short.tokens.question, short.tokens.system)
    batch = MODEL.run_with_hooks(AVInputs.batch([INPUTS, short]), fwd_hooks=edit)
    assert_equal(batch[1, -short.shape[1] :], MODEL.run_with_hooks(short, fwd_hooks=edit)[0])


def test_wrong_heads_and_sets_are_refused():
    with pytest.raises(PositionError, match=r"no head 9: the layer has 4 \(0 to 3\)"):
        MODEL.run_with_hooks(INPUTS, fwd_hooks=knockout(TOKENS.question, TOKENS.audio, heads=[9]))
    with pytest.raises(
        PositionError, match="another layout than the one that runs .*Take the set from the inputs.tokens"
    ):
        MODEL.run_with_hooks(INPUTS, fwd_hooks=knockout(TEXT.question, TEXT.system))
    with pytest.raises(PositionError, match="layout"):
        MODEL.run_with_hooks(INPUTS, fwd_hooks=knockout(TOKENS.question, TEXT.system))
