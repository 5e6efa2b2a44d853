import math

import pytest
import torch

from avlens.analyses.shift import MARGINAL, shift_table, stock_reader, token_distribution_shift
from avlens.errors import MetricError, PromptError
from avlens.testing import tiny_clip, tiny_model
from tests.helpers import assert_equal

QUESTION = "describe the clip ."


@pytest.fixture(scope="module")
def case():
    model, clip = tiny_model(seed=2), tiny_clip(2.0)
    return model, model.prepare(clip, QUESTION), model.prepare(clip.without_audio(), QUESTION)


def fixed(rows):
    """A base that says the same of every answer."""
    return lambda ids: torch.tensor(rows)


def test_a_model_against_itself_has_not_shifted(case):
    model, inputs, _ = case
    shift = token_distribution_shift(model, inputs, inputs, max_new_tokens=6)
    assert (shift.rank == 1).all() and set(shift.shifts) == {"unshifted"}
    assert shift.kl.max() < 1e-6 and shift.kl_reverse.max() < 1e-6
    torch.testing.assert_close(shift.p, shift.p_base)
    assert shift.base_strings == shift.strings


@pytest.mark.parametrize("family", ["qwen2_5_omni", "video_salmonn_o1", "video_salmonn2_plus"])
def test_what_is_read_is_what_was_written(family):
    model = tiny_model(family)
    inputs = model.prepare(tiny_clip(2.0), QUESTION)
    written = model.generate(inputs, 4, keep_logits=True, eos_token_id=None)
    n = len(inputs.tokens)
    longer = inputs.with_answer(written.tokens[0])
    assert_equal(model(longer)[0, n - 1 : n + 3], written.logits[0])
    assert longer.with_answer(written.tokens[0]).prompt.next_position == inputs.prompt.next_position + 8
    assert list(longer.tokens.answer) == [n, n + 1, n + 2, n + 3] and longer.tokens.question == longer.tokens.question


def test_the_base_reads_its_own_prompt(case):
    model, inputs, silent = case
    shift = token_distribution_shift(model, inputs, silent, answer=torch.tensor([7, 11, 5]))
    n = len(silent.tokens)
    base = model(silent.with_answer(shift.tokens))[0, n - 1 : -1].log_softmax(-1)
    own = model(inputs.with_answer(shift.tokens))[0, len(inputs.tokens) - 1 : -1].log_softmax(-1)
    torch.testing.assert_close(shift.p_base, base[range(3), shift.tokens].exp(), atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(
        shift.kl, torch.nn.functional.kl_div(base, own, reduction="none", log_target=True).sum(-1)
    )
    order = base.argsort(-1, descending=True)
    assert shift.rank.tolist() == [order[i].tolist().index(int(token)) + 1 for i, token in enumerate(shift.tokens)]


def test_ranks_and_divergences_by_hand(case):
    model, inputs, _ = case
    d_vocab = model.cfg.d_vocab
    rows = torch.full((3, d_vocab), -50.0)
    rows[:, :4] = torch.tensor([3.0, 2.0, 1.0, 0.0])
    shift = token_distribution_shift(model, inputs, base=fixed(rows.tolist()), answer=torch.tensor([0, 2, 3]))
    assert shift.rank.tolist() == [1, 3, 4] and shift.shifts == ("unshifted", "marginal", "shifted")
    total = sum(math.exp(x) for x in (3, 2, 1, 0))
    assert shift.p_base.tolist() == pytest.approx([math.exp(3) / total, math.exp(1) / total, 1 / total], rel=1e-4)
    own = model(inputs.with_answer(shift.tokens))[0, len(inputs.tokens) - 1].double().softmax(-1)
    base = rows[0].double().softmax(-1)
    assert float(shift.kl[0]) == pytest.approx(float((own * (own / base).log()).sum()), rel=1e-4)
    assert float(shift.kl_reverse[0]) == pytest.approx(float((base * (base / own).log()).sum()), rel=1e-4)


def test_a_stock_model_can_be_the_base(case):
    model, inputs, silent = case
    by_stock = token_distribution_shift(
        model, inputs, base=stock_reader(model.stock.whole, **silent.hf_kwargs()), max_new_tokens=4
    )
    by_model = token_distribution_shift(model, inputs, silent, max_new_tokens=4)
    assert torch.equal(by_stock.rank, by_model.rank)
    torch.testing.assert_close(by_stock.kl, by_model.kl, atol=1e-5, rtol=1e-4)


def test_another_model_with_a_larger_vocabulary_is_compared_over_the_smaller(case):
    model, inputs, _ = case
    wide = torch.zeros(1, model.cfg.d_vocab + 64)
    wide[0, -1] = 90.0
    shift = token_distribution_shift(model, inputs, base=fixed(wide.tolist()), answer=torch.tensor([3]))
    assert float(shift.p_base) == pytest.approx(1 / model.cfg.d_vocab, rel=1e-4)


def test_words_and_tables(case):
    model, inputs, silent = case
    shifts = [
        token_distribution_shift(model, inputs, silent, answer="a red drum and a bell", words=("drum", "bell", "rain"))
    ]
    shifts += [token_distribution_shift(model, inputs, silent, answer="a red dog", words=("drum",))]
    steps = {word: spans for word, spans in shifts[0].words.items() if spans}
    assert set(steps) == {"drum", "bell"}
    assert "".join(shifts[0].strings[step] for step in steps["drum"][0]).strip() == "drum"
    table = shift_table(shifts, n_draws=100)
    frame = table.to_frame()
    assert frame.loc["all", "tokens"] == frame.loc["words", "tokens"] + frame.loc["others", "tokens"]
    assert frame[["unshifted", "marginal", "shifted"]].sum(axis=1).tolist() == pytest.approx([1.0] * 3)
    ranks = torch.cat([shift.rank for shift in shifts])
    assert table.shares["all"]["shifted"].estimate == pytest.approx(float((ranks > MARGINAL).double().mean()))
    assert (table.kl["words"].n_clusters, table.kl["all"].n_clusters) == (1, 2)
    nothing = shift_table(shifts[1:], n_draws=10)
    assert math.isnan(nothing.kl["words"].estimate) and nothing.kl["words"].n == 0


def test_refusals(case):
    model, inputs, _ = case
    with pytest.raises(PromptError, match="Pass base_inputs"):
        token_distribution_shift(model, inputs)
    with pytest.raises(PromptError, match="the answer is empty"):
        token_distribution_shift(model, inputs, inputs, answer="")
    with pytest.raises(PromptError, match="One row|one row"):
        token_distribution_shift(model, inputs, base=fixed([[0.0] * model.cfg.d_vocab]), answer=torch.tensor([1, 2]))
    with pytest.raises(PromptError, match="another vocabulary"):
        token_distribution_shift(model, inputs, inputs, base=tiny_model("video_salmonn_o1"))
    with pytest.raises(PromptError, match="Pass one for each"):
        inputs.with_answer(torch.tensor([1, 2]), ["one"])
    with pytest.raises(MetricError, match="no shifts"):
        shift_table([])
