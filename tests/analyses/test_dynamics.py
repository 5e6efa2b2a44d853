import pytest
import torch

from avlens import HookedAVModel
from avlens.analyses.dynamics import attention_dynamics
from avlens.datasets.synthetic import ball_and_bell
from avlens.errors import PositionError
from avlens.tokens import word_spans
from tests.helpers import in_chunks_of


@pytest.fixture(scope="module")
def model():
    return HookedAVModel.from_pretrained("avlens-tiny")


@pytest.mark.parametrize("rows", [10**4, 5])
def test_each_step_is_the_row_that_predicts_its_token(model, monkeypatch, rows):
    in_chunks_of(rows, monkeypatch)
    inputs = model.prepare(ball_and_bell(4.0, fps=2.0), "what do you hear ?")
    tokens = inputs.tokens
    sets = {"audio": tokens.audio, "some": tokens.at([20, 50, 3])}
    watched = attention_dynamics(model, inputs, sets, max_new_tokens=4)
    n_layers = model.cfg.n_layers
    assert watched.attention.shape == (2, n_layers, len(watched.tokens)) and watched.layers == tuple(range(n_layers))
    # The whole answer at once: row length - 1 + t of the pattern predicts token t.
    kwargs = inputs.hf_kwargs()
    ids = torch.cat([kwargs["input_ids"], watched.tokens[None]], dim=1)
    kwargs |= {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    whole = model.stock.whole
    whole.set_attn_implementation("eager")
    with torch.no_grad():
        patterns = whole(**kwargs, output_attentions=True).attentions
    whole.set_attn_implementation("sdpa")
    for i, chosen in enumerate(sets.values()):
        for layer in range(n_layers):
            for step in range(len(watched.tokens)):
                expected = patterns[layer][0, :, len(tokens) - 1 + step][:, chosen.positions].mean()
                assert watched.attention[i, layer, step].item() == pytest.approx(float(expected), abs=1e-5)
    assert list(watched.to_frame().columns) == ["audio", "some"]


def test_words_are_found_as_whole_words_across_tokens():
    strings = (" a", " hot", "dog", " eats", " a", " dog", ".", " Dog", "s")
    assert word_spans("dog", strings) == ((5,),)
    assert word_spans("hotdog", strings) == ((1, 2),)
    assert word_spans("cat", strings) == ()


def test_kinds_of_words_are_compared_at_their_first_step(model):
    inputs = model.prepare(ball_and_bell(4.0, fps=2.0), "what do you hear ?")
    written = model.generate(inputs, 6).text.split()
    watched = attention_dynamics(
        model, inputs, {"audio": inputs.tokens.audio}, words=[written[0], "zebra"], max_new_tokens=6
    )
    table = watched.at_words({written[0]: "genuine", "zebra": "hallucinated"}).set_index(["kind", "layer"])
    steps = [span[0] for span in watched.words[written[0]]]
    assert table.loc[("genuine", 2), "attention"] == pytest.approx(float(watched.attention[0, 2, steps].mean()))
    assert table.loc["hallucinated", "attention"].isna().all() and (table.loc["hallucinated", "words"] == 0).all()
    with pytest.raises(PositionError, match="Leave it out"):
        attention_dynamics(model, inputs, {"nothing": inputs.tokens.image})
