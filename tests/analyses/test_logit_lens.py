import math
from dataclasses import replace

import pytest
import torch

from avlens.analyses import logit_lens as module
from avlens.analyses.logit_lens import latent_understanding, logit_lens, names_keyword
from avlens.analyses.tuned_lens import TunedLens, fit_tuned_lens
from avlens.errors import CheckpointError, HookError, LayerError, MetricError, PositionError, PromptError
from avlens.interventions import discard
from avlens.testing import tiny_clip, tiny_model
from avlens.tokens import Modality
from tests.helpers import assert_equal

QUESTION = "what do you hear ?"


@pytest.fixture(scope="module")
def case():
    model = tiny_model(n_layers=3)
    return model, model.prepare(tiny_clip(3.0), QUESTION)


def slowly(model, inputs, norm=True, site="resid_post"):
    """P of each layer, position and token, by the definition."""
    _, cache = model.run_with_cache(inputs, names_filter=[site])
    found = []
    for layer in range(model.cfg.n_layers):
        x = cache[site, layer][0]
        x = model.ln_final.w * x / (x.pow(2).mean(-1, keepdim=True) + model.cfg.eps).sqrt() if norm else x
        found.append((x @ model.W_U).softmax(-1))
    return torch.stack(found)


@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize("site", ["resid_post", "mlp_out"])
def test_the_lens_is_the_final_norm_and_unembedding_of_each_layer(case, norm, site, monkeypatch):
    model, inputs = case
    monkeypatch.setattr(module, "AT_ONCE", 7)
    tokens = inputs.tokens.at([60, 3, 17, 44, 20, 21, 22, 23, 24, -1])
    lens = logit_lens(model, inputs, tokens, norm=norm, site=site, k=4, words=["dog"])
    want = slowly(model, inputs, norm, site)[:, tokens.positions]
    assert_equal(lens.top_p, want.topk(4).values)
    assert_equal(want.gather(-1, lens.top_ids), lens.top_p)
    assert_equal(lens.entropy, -(want * want.log()).sum(-1))
    forms = [model.tokenizer(form)["input_ids"][0] for form in ("dog", " dog")]
    assert_equal(lens.p_words[..., 0], want[..., forms].amax(-1))
    assert torch.equal(lens.rank_words[..., 0], 1 + (want > want[..., forms].amax(-1, keepdim=True)).sum(-1))


@pytest.mark.parametrize("family", ["qwen2_5_omni", "qwen3_omni", "video_salmonn_o1"])
def test_the_last_layer_says_what_the_model_says(family):
    model = tiny_model(family)
    inputs = model.prepare(tiny_clip(2.0), QUESTION)
    lens = logit_lens(model, inputs, divergence=True)
    assert lens.tokens == inputs.tokens.media | inputs.tokens.last
    p = model(inputs)[0].softmax(-1)[lens.tokens.positions]
    assert_equal(lens.top_p[-1], p.topk(5).values)
    assert lens.kl[-1].max() < 1e-6 and lens.kl[0].mean() > 1e-4
    first = slowly(model, inputs)[0, lens.tokens.positions]
    assert_equal(lens.kl[0], (p * (p / first).log()).sum(-1))


def test_edits_are_seen_and_layers_chosen(case):
    model, inputs = case
    double = [("blocks.1.hook_resid_pre", lambda x, hook: x.flip(-1))]
    lens = logit_lens(model, inputs, inputs.tokens.last, layers=[2, 0], fwd_hooks=double)
    plain = logit_lens(model, inputs, inputs.tokens.last)
    assert lens.layers == (2, 0) and torch.equal(lens.top_ids[1], plain.top_ids[0])
    assert_equal(lens.top_p[0, 0], model.run_with_hooks(inputs, double)[0, -1].softmax(-1).topk(5).values)
    assert not torch.allclose(lens.top_p[0], plain.top_p[2])


def test_frames_tables_and_parts(case):
    model, inputs = case
    tokens = inputs.tokens
    lens = logit_lens(model, inputs, tokens.audio | tokens.last, words=["bell"], divergence=True)
    frame, table = lens.to_frame(), lens.table()
    assert len(frame) == 3 * len(lens.tokens) and {"P(bell)", "rank(bell)", "KL"} <= set(frame.columns)
    assert list(table.columns) == ["Token_Position", "Token_Type", "Layer_0", "Layer_1", "Layer_2"]
    assert list(table["Token_Position"]) == list(lens.tokens) and set(table["Token_Type"]) == {"audio", "text"}
    assert table["Layer_1"][0] == lens.top_strings[int(lens.top_ids[1, 0, 0])]
    last = lens.at(tokens.last)
    assert last.tokens == tokens.last and torch.equal(last.top_ids, lens.top_ids[:, -1:])
    assert sum(n for _, n in lens.common(1, 1000)) == len(lens.tokens)


def test_a_tuned_lens_foretells_prompts_that_it_was_not_fitted_on(case, tmp_path):
    model, inputs = case
    seen = [model.prepare(tiny_clip(2.0, seed=seed), "what do you see ?") for seed in range(3)]
    tuned = fit_tuned_lens(model, seen, steps=60)
    plain, better = (
        logit_lens(model, inputs, inputs.tokens.all, lens=lens, divergence=True).kl.mean(-1) for lens in (None, tuned)
    )
    assert (better[:-1] < 0.8 * plain[:-1]).all() and better[-1] < 1e-6
    assert torch.equal(fit_tuned_lens(model, seen, steps=3).weight, fit_tuned_lens(model, seen, steps=3).weight)
    tuned.save(tmp_path / "lens.safetensors")
    again = TunedLens.load(tmp_path / "lens.safetensors")
    assert torch.equal(again.weight, tuned.weight) and torch.equal(again.bias, tuned.bias)
    zero = TunedLens(torch.zeros_like(tuned.weight), torch.zeros_like(tuned.bias))
    assert_equal(logit_lens(model, inputs, lens=zero).top_p, logit_lens(model, inputs).top_p)
    assert model.unembed.weight.grad is None
    with pytest.raises(LayerError, match="layers 0 to 2, not 3"):
        tuned(torch.zeros(1, 64), 3)
    with pytest.raises(CheckpointError, match="weight and bias"):
        TunedLens.load(_other_file(tmp_path))


def _other_file(folder):
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(1)}, folder / "other.safetensors")
    return folder / "other.safetensors"


@pytest.mark.parametrize(
    ("decoded", "keywords", "named"),
    [
        (" Dog", {"dog"}, True),
        ("dogs", {"dog"}, True),
        (" dog", {"dogs"}, True),
        (" bark", {"barking"}, True),
        (" bar", {"barking"}, False),
        ("hot", {"hotdog"}, False),
        (" dogma", {"dog"}, False),
        (" ", {"dog", ""}, False),
        (" bell", set(), False),
    ],
)
def test_when_a_token_names_a_keyword(decoded, keywords, named):
    assert names_keyword(decoded, keywords) is named


def spoken(model, inputs, said):
    """A lens that says these words, layer by layer, at each audio token."""
    audio = inputs.tokens.audio
    lens = logit_lens(model, inputs, audio, k=1)
    strings = dict(enumerate(dict.fromkeys(word for row in said for word in row)))
    ids = {word: token for token, word in strings.items()}
    top = torch.tensor([[ids[row[i % len(row)]] for i in range(len(audio))] for row in said])[..., None]
    return replace(lens, top_ids=top, top_strings=strings)


def test_latent_understanding_by_hand(case):
    model, inputs = case
    one = spoken(model, inputs, [["bell"], ["a", "bell"], ["a"]])
    two = spoken(model, inputs, [["a"], ["bell", "a"], ["a"]])
    three = spoken(model, inputs, [["rain"], ["a"], ["a"]])
    found = latent_understanding([one, two, three], [{"bell", "bells"}, {"drum"}, {"rain"}], from_layer=1)
    assert found.hit.tolist() == [[True, True, False], [False, False, False], [True, False, False]]
    n = len(inputs.tokens.audio)
    assert found.share[0].tolist() == pytest.approx([1, (n // 2) / n, 0])
    assert found.control.tolist() == [[0, 0, 0], [0, 0.5, 0], [0, 0, 0]]
    assert found.rate.estimate == pytest.approx(1 / 3) and found.control_rate.estimate == pytest.approx(1 / 6)
    assert found.to_frame().loc[0, "named"] == pytest.approx(2 / 3)
    early = latent_understanding([one, two, three], [{"bell"}, {"drum"}, {"rain"}], from_layer=0)
    assert early.rate.estimate == pytest.approx(2 / 3)


def test_without_another_sound_there_is_no_control(case):
    model, inputs = case
    lens = spoken(model, inputs, [["bell"], ["bell"], ["bell"]])
    found = latent_understanding([lens, lens], [{"bell"}, {"bell", "bells"}])
    assert found.from_layer == 1 and found.rate.estimate == 1
    assert math.isnan(found.control_rate.estimate) and found.control.isnan().all()


def test_refusals(case):
    model, inputs = case
    tokens = inputs.tokens
    for options, error, says in (
        ({"site": "pattern"}, HookError, "residual stream"),
        ({"k": 0}, HookError, "Keep from 1"),
        ({"layers": [7]}, LayerError, "layer 7"),
        ({"words": "dog"}, PromptError, "list of words"),
        ({"words": ["dog", " "]}, PromptError, "list of words"),
        ({"tokens": tokens.at([])}, PositionError, "cannot be read"),
        ({"tokens": tokens.last | tokens.generated}, PositionError, "cannot be read"),
        ({"tokens": tokens.audio, "fwd_hooks": discard(tokens.audio, layer=1)}, PositionError, "discarded"),
    ):
        with pytest.raises(error, match=says):
            logit_lens(model, inputs, **options)
    lens = logit_lens(model, inputs, tokens.video)
    with pytest.raises(PositionError, match="no audio token"):
        latent_understanding([lens], [{"bell"}])
    with pytest.raises(MetricError, match="1 lenses cannot be scored against 2"):
        latent_understanding([lens], [{"bell"}, {"drum"}])
    with pytest.raises(MetricError, match="from_layer is 3"):
        latent_understanding([lens], [{"bell"}], modality=Modality.VIDEO, from_layer=3)
    with pytest.raises(PromptError, match="no prompts"):
        fit_tuned_lens(model, [])
