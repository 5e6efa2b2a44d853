import math

import pytest
import torch

from avlens.decoding import PAI
from avlens.decoding.pai import guide, without_media
from avlens.errors import DecodingError
from avlens.inputs import AVInputs
from avlens.interventions import reweight
from tests.helpers import assert_equal, scores_of


def test_without_boost_and_guidance_it_is_vanilla_decoding(model, prompt, two):
    method = PAI(alpha=0.0, gamma=1.0)
    stock = model.stock.whole.generate(**prompt.hf_kwargs(), max_new_tokens=8, do_sample=False)
    assert torch.equal(model.generate(prompt, 8, decoding=method).tokens, stock[:, prompt.shape[1] :])
    assert torch.equal(model.generate(two, 8, decoding=method).tokens, model.generate(two, 8).tokens)


def slowly(model, inputs, written, method, layers):
    """By two whole passes: the boost edits the last row, and those of what was written when they were the last."""
    longer, n = inputs.with_answer(written), len(inputs.tokens)
    tokens = longer.tokens
    boost = reweight(tokens.at(range(n - 1, len(tokens))), tokens.media, method.alpha, layers=layers)
    seen = model.run_with_hooks(longer, boost)[0, -1].log_softmax(-1)
    if method.gamma == 1:
        return seen
    keep = [i for i in range(n) if i not in inputs.tokens.media]
    ids = torch.cat([inputs.ids[:, keep], written[None]], 1)
    unseen = model(ids)[0, -1].log_softmax(-1)
    mixed = method.gamma * (seen - unseen) + unseen
    return mixed.masked_fill(seen < seen.max() + math.log(method.beta), -math.inf)


@pytest.mark.parametrize("method", [PAI(alpha=0.7, gamma=2.0), PAI(alpha=0.0, beta=0.01), PAI(alpha=0.9, gamma=1.0)])
def test_each_step_is_the_formula_by_two_whole_passes(model, prompt, method):
    out, scores = scores_of(model, prompt, 4, method)
    for step in range(4):
        wanted = slowly(model, prompt, out.tokens[0, :step], method, out.records["layers"])
        got = scores[0, step] if method.gamma != 1 else scores[0, step].log_softmax(-1)
        assert_equal(got, wanted)


def test_a_batch_is_its_rows(model, two):
    method = PAI(alpha=0.5, gamma=1.5)
    both, scores = scores_of(model, two, 4, method)
    for row, one in enumerate(two):
        alone, own = scores_of(model, one, 4, method)
        assert torch.equal(both.tokens[row], alone.tokens[0])
        assert_equal(scores[row], own[0])
    options = {"do_sample": True, "seed": 5, "decoding": method}
    assert torch.equal(model.generate(two, 6, **options).tokens, model.generate(two, 6, **options).tokens)


def test_where_nothing_is_seen_only_the_cutoff_is_left(model):
    text = model.prepare("what is a drum ?")
    _, scores = scores_of(model, text, 1, PAI(gamma=2.0, beta=0.0))
    assert_equal(scores[0, 0], model(text)[0, -1].log_softmax(-1))


def test_a_chat_without_media_is_the_same_text_with_positions_of_its_own(model, prompt):
    left = without_media(prompt).prompt
    assert not left.tokens.media and left.media == ()
    kept = [i for i in range(len(prompt.tokens)) if i not in prompt.tokens.media]
    assert left.ids.tolist() == prompt.ids[0, kept].tolist() and left.tokens.ids.tolist() == left.ids.tolist()
    assert left.positions.tolist() == [list(range(len(kept)))] * 3 and left.next_position == len(kept)
    assert left.tokens.find("describe").labels == prompt.tokens.find("describe").labels


def test_a_prompt_without_media_can_be_given(model, prompt):
    other = model.prepare("describe the clip .")
    _, scores = scores_of(model, prompt, 1, PAI(alpha=0.0, gamma=3.0, beta=0.0, without=other))
    seen, unseen = (model(one)[0, -1].log_softmax(-1) for one in (prompt, other))
    assert_equal(scores[0, 0], guide(seen, unseen, 3.0))
    with pytest.raises(DecodingError, match="none longer than the longest"):
        model.generate(other, 2, decoding=PAI(without=prompt))
    with pytest.raises(DecodingError, match="one prompt for each"):
        model.generate(prompt, 2, decoding=PAI(without=AVInputs.batch([other, other])))


def test_guidance_by_hand():
    assert guide(torch.tensor([-1.0, -2.0]), torch.tensor([-2.0, -1.0]), 2.0).tolist() == [0.0, -3.0]


def test_settings_out_of_range_are_refused(model, prompt):
    for method, says in [
        (PAI(alpha=-1.0), "alpha >= 0"),
        (PAI(gamma=0.5), "gamma >= 1"),
        (PAI(beta=-0.1), "a beta in"),
    ]:
        with pytest.raises(DecodingError, match=says):
            model.generate(prompt, 2, decoding=method)
