import pytest
import torch

from avlens.datasets.synthetic import ball_and_bell
from avlens.decoding import ASD
from avlens.errors import DecodingError
from avlens.hooks import on_rows
from avlens.inputs import AVInputs
from avlens.interventions import knockout, reweight
from avlens.planting import planted_model
from avlens.testing import tiny_clip, tiny_model

REQUEST = "describe the clip ."


@pytest.fixture(scope="module")
def model():
    return planted_model()[0]


@pytest.fixture(scope="module")
def inputs(model):
    return model.prepare(ball_and_bell(4.0, fps=2.0), REQUEST)


@pytest.mark.parametrize("method", [ASD(alpha=0.0), ASD(strength=0.0)])
def test_without_strength_it_is_vanilla_decoding(model, inputs, method):
    vanilla = model.generate(inputs, 12)
    assert torch.equal(model.generate(inputs, 12, decoding=method).tokens, vanilla.tokens)
    stock = model.stock.whole.generate(**inputs.hf_kwargs(), max_new_tokens=12, do_sample=False)
    assert torch.equal(stock[:, inputs.shape[1] :], vanilla.tokens)


def test_the_mix_is_the_papers_formula(model, inputs):
    method = ASD(alpha=0.8)
    out = model.generate(inputs, 1, decoding=method, output_logits=True, return_dict_in_generate=False)
    run = method.start(model, inputs)
    hubs, tokens = run.hubs[0], inputs.tokens
    readers = tokens.at(range(int(tokens.media.positions.max()) + 1, len(tokens)))
    edits = reweight(readers, hubs.cross, 0.8, layers=run.edit_layers) + reweight(
        readers, hubs.uni, -0.8, layers=run.edit_layers
    )
    calibrated, cache = model.run_with_cache(inputs, names_filter=["pattern"], fwd_hooks=edits)
    rows = torch.stack([cache["pattern", layer][0, :, -1].mean(0) for layer in run.target_layers])
    uni, cross = (float(rows[:, sinks.positions].mean()) for sinks in (hubs.uni, hubs.cross))
    gamma = uni / (uni + cross)
    assert out.records["gamma"][0, 0].item() == pytest.approx(gamma, rel=1e-4)
    original = model(inputs)[0, -1].log_softmax(-1)
    mixed = gamma * calibrated[0, -1].log_softmax(-1) + (1 - gamma) * original
    logits = torch.stack([model(inputs)[:, -1], calibrated[:, -1]])
    run._seen = {str(layer): cache["pattern", layer][:, :, -1] for layer in run.target_layers}
    torch.testing.assert_close(run.mix(logits)[0], mixed, atol=1e-4, rtol=1e-4)
    assert out.tokens.item() == int(mixed.argmax())


def test_it_changes_what_is_written_here(model):
    inputs = model.prepare(ball_and_bell(6.0, fps=2.0), "what do you hear ?")
    plain, guided = model.generate(inputs, 24), model.generate(inputs, 24, decoding=ASD())
    assert (guided.records["gamma"] > 0).all() and guided.records["gamma"].shape == guided.tokens.shape
    assert not torch.equal(plain.tokens, guided.tokens)


def test_a_batch_is_its_rows(model, inputs):
    short = model.prepare(ball_and_bell(2.0, fps=2.0, seed=3), REQUEST)
    both = model.generate(AVInputs.batch([inputs, short]), 8, decoding=ASD(alpha=1.0), eos_token_id=None)
    for row, one in enumerate((inputs, short)):
        alone = model.generate(one, 8, decoding=ASD(alpha=1.0), eos_token_id=None)
        assert torch.equal(both.tokens[row], alone.tokens[0])
        torch.testing.assert_close(both.records["gamma"][row], alone.records["gamma"][0], atol=1e-4, rtol=1e-3)


def test_a_users_hooks_act_on_the_original_stream(model, inputs):
    seen = []
    watch = [("blocks.2.hook_resid_post", lambda x, hook: seen.append(tuple(x.shape)))]
    model.generate(inputs, 3, decoding=ASD(), fwd_hooks=watch)
    assert seen == [(1, inputs.shape[1], 64), (1, 1, 64), (1, 1, 64)]
    blocked = knockout(inputs.tokens.last | inputs.tokens.generated, inputs.tokens.audio)
    at_zero = model.generate(inputs, 8, decoding=ASD(strength=0.0), fwd_hooks=blocked)
    assert torch.equal(at_zero.tokens, model.generate(inputs, 8, fwd_hooks=blocked).tokens)


def test_without_sinks_it_is_vanilla(inputs):
    random = tiny_model(seed=2)
    prompt = random.prepare(tiny_clip(2.0), REQUEST)
    out = random.generate(prompt, 6, decoding=ASD())
    assert torch.equal(out.tokens, random.generate(prompt, 6).tokens)
    assert (out.records["gamma"] == 0).all()


def test_sampling_is_seeded(model, inputs):
    options = {"do_sample": True, "temperature": 1.5, "seed": 7, "decoding": ASD(alpha=1.0)}
    assert torch.equal(model.generate(inputs, 8, **options).tokens, model.generate(inputs, 8, **options).tokens)


def test_what_cannot_run_is_refused(model, inputs):
    with pytest.raises(DecodingError, match=r"AVInputs\.batch"):
        model.generate(inputs, 4, decoding=ASD(), num_beams=2)
    with pytest.raises(DecodingError, match="alpha >= 0"):
        model.generate(inputs, 4, decoding=ASD(alpha=-1.0))
    model.add_hook("blocks.0.hook_resid_pre", lambda x, hook: None)
    try:
        with pytest.raises(DecodingError, match=r"reset_hooks\(\)"):
            model.generate(inputs, 4, decoding=ASD())
    finally:
        model.reset_hooks()
    assert on_rows([], [0]) == []
