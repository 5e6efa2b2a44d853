import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from avlens import reweight
from avlens.errors import HookError
from avlens.hooks import HookPoint
from avlens.interventions.reweight import Reweight
from avlens.testing import tiny_clip, tiny_model
from tests.helpers import assert_equal, prompt_of

MODEL = tiny_model()
INPUTS = MODEL.prepare(tiny_clip(1.6), "what do you hear ?")
TOKENS = INPUTS.tokens
TEXT = prompt_of(MODEL, "text").tokens


def test_three_tokens_by_hand_before_the_softmax():
    inf = torch.inf
    scores = torch.tensor([[[[2.0, -inf, -inf], [-2.0, 4.0, -inf], [1.0, -2.0, 3.0]]]])
    edited = Reweight(TEXT.at([1, 2]), TEXT.at([0, 1]), 0.5, "attn_scores")(scores, HookPoint())
    # s + strength * |s|: -2 becomes -1, 4 becomes 6; what may not be read stays so
    assert edited[0, 0].tolist() == [[2, -inf, -inf], [-1, 6, -inf], [1.5, -1, 3]]
    assert scores[0, 0, 1, 0] == -2


def test_three_tokens_by_hand_after_the_softmax():
    pattern = torch.tensor([[[[1.0, 0, 0], [0.5, 0.5, 0], [0.2, 0.3, 0.5]]]])
    edit = {"queries": TEXT.at([1, 2]), "keys": TEXT.at([1]), "strength": 1.0, "site": "pattern"}
    assert_equal(
        Reweight(**edit)(pattern, HookPoint())[0, 0],
        torch.tensor([[1, 0, 0], [1 / 3, 2 / 3, 0], [0.2 / 1.3, 0.6 / 1.3, 0.5 / 1.3]]),
    )
    unnormalised = Reweight(**edit, renormalise=False)(pattern, HookPoint())[0, 0]
    assert_equal(unnormalised, torch.tensor([[1, 0, 0], [0.5, 1, 0], [0.2, 0.6, 0.5]]))


@given(strength=st.floats(-0.99, 5), site=st.sampled_from(["attn_scores", "pattern"]), seed=st.integers(0, 99))
def test_rows_sum_to_one_and_only_the_chosen_rows_and_heads_change(strength, site, seed):
    edit = reweight(TOKENS.question, TOKENS.audio, strength, site=site, layers=[0], heads=[1])
    name = "blocks.0.attn.hook_pattern"
    _, plain = MODEL.run_with_cache(INPUTS, name)
    _, cache = MODEL.run_with_cache(INPUTS, name, fwd_hooks=edit)
    assert_equal(cache[name].sum(-1), torch.ones(1, 4, len(TOKENS)))
    untouched = torch.ones(4, len(TOKENS), dtype=torch.bool)
    untouched[1, TOKENS.question.positions] = False
    assert torch.equal(cache[name][0][untouched], plain[name][0][untouched])
    more = (cache[name] - plain[name])[0, 1][TOKENS.question.positions][:, TOKENS.audio.positions].sum(-1)
    assert (more * strength >= -1e-6).all()


def test_strength_zero_changes_nothing():
    plain = MODEL(INPUTS, attn="eager")
    assert torch.equal(
        MODEL.run_with_hooks(INPUTS, fwd_hooks=reweight(TOKENS.all, TOKENS.audio, 0.0), attn="eager"), plain
    )
    assert_equal(MODEL.run_with_hooks(INPUTS, fwd_hooks=reweight(TOKENS.all, TOKENS.audio, 0.0, site="pattern")), plain)


def test_a_row_with_nothing_left_is_nan_not_a_plausible_number():
    edit = reweight(TOKENS.at([0]), TOKENS.at([0]), -1.0, site="pattern", layers=[0])
    _, cache = MODEL.run_with_cache(INPUTS, "blocks.0.attn.hook_pattern", fwd_hooks=edit)
    assert cache["pattern", 0][:, :, 0].isnan().all() and cache["pattern", 0][:, :, 1:].isfinite().all()


def test_wrong_sites_and_strengths_are_refused():
    with pytest.raises(
        HookError, match="strength -1.5 would make the attention negative. Pass -1 or more at 'pattern'"
    ):
        reweight(TOKENS.last, TOKENS.audio, -1.5, site="pattern")
