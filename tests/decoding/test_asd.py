import pytest
import torch

from avlens.datasets.synthetic import ball_and_bell
from avlens.decoding import ASD
from avlens.decoding.asd import faded, gated, share
from avlens.errors import DecodingError
from avlens.hooks import on_rows
from avlens.inputs import AVInputs
from avlens.interventions import knockout, reweight
from avlens.planting import planted_model
from avlens.testing import tiny_clip, tiny_model
from tests.helpers import assert_equal, scores_of

REQUEST = "describe the clip ."


@pytest.fixture(scope="module")
def model():
    return planted_model()[0]


@pytest.fixture(scope="module")
def inputs(model):
    return model.prepare(ball_and_bell(4.0, fps=2.0), REQUEST)


@pytest.mark.parametrize("method", [ASD(alpha=0.0), ASD(strength=0.0), ASD(strength=0.0, rule="released")])
def test_without_strength_it_is_vanilla_decoding(model, inputs, method):
    vanilla = model.generate(inputs, 12)
    assert torch.equal(model.generate(inputs, 12, decoding=method).tokens, vanilla.tokens)
    stock = model.stock.whole.generate(**inputs.hf_kwargs(), max_new_tokens=12, do_sample=False)
    assert torch.equal(stock[:, inputs.shape[1] :], vanilla.tokens)


def slowly(model, inputs, run, method, written, previous, own=()):
    """gamma and mixed log-probabilities of the token after `written`, by two whole forward passes, one with `own` hooks."""
    longer, hubs, n = inputs.with_answer(written), run.hubs[0], len(inputs.tokens)
    tokens, after = longer.tokens, int(inputs.tokens.media.positions.max()) + 1
    cross, uni = (tokens.at(list(sinks)) for sinks in (hubs.cross, hubs.uni))
    readers = tokens.at(range(after if method.readers == "after_media" else n - 1, len(tokens)))
    edits = reweight(readers, cross, method.alpha, layers=run.edit_layers)
    edits += reweight(readers, uni, -method.lowered, layers=run.edit_layers)
    original, clean = model.run_with_cache(longer, names_filter=["pattern"], fwd_hooks=own)
    calibrated, edited = model.run_with_cache(longer, names_filter=["pattern"], fwd_hooks=edits)

    def paid(cache, sinks):
        return torch.stack([cache["pattern", i][0, :, -1][:, list(sinks)].mean() for i in run.last_row.layers]).mean()

    if method.rule == "paper":
        u, c = paid(edited, hubs.uni), paid(edited, hubs.cross)
        gamma = method.base * float(u / (u + c))
    elif previous is None:
        gamma = 0.0
    else:
        u, c = (sum(paid(clean, s & kind) for kind in (tokens.video, tokens.audio) if s & kind) for s in (uni, cross))
        text = float(
            torch.stack([clean["pattern", i][0, :, -1, after:].sum(-1).mean() for i in run.last_row.layers]).mean()
        )
        rule = {"released_new": gated, "released": faded}[method.rule]
        weight = float(u / (u + c)) if method.rule == "released_new" else float(c / (u + c))
        most = 0.4 if method.most_text is None else method.most_text
        gamma = 0.5 * previous + 0.5 * rule(weight, text, method.base, least_weight=method.least_weight, most_text=most)
    first, second = original[0, -1].log_softmax(-1), calibrated[0, -1].log_softmax(-1)
    return gamma, gamma * second + (1 - gamma) * first


@pytest.mark.parametrize(
    "method",
    [
        ASD(alpha=0.8),
        ASD(alpha=0.8, alpha_uni=0.3, readers="last", strength=0.7),
        ASD(alpha=0.8, rule="released_new", least_weight=0.2, most_text=0.9),
        ASD(alpha=0.8, rule="released", most_text=0.9, strength=1.0),
        ASD(alpha=0.8, alpha_uni=0.0, rule="released"),
    ],
)
def test_each_step_is_the_formula_by_two_whole_passes(model, inputs, method):
    out, steps = scores_of(model, inputs, 4, method)
    run, gamma = method.start(model, inputs), None
    for step in range(4):
        gamma, mixed = slowly(model, inputs, run, method, out.tokens[0, :step], gamma)
        assert out.records["gamma"][0, step].item() == pytest.approx(gamma, rel=1e-3, abs=1e-6)
        assert_equal(steps[0, step].log_softmax(-1), mixed.log_softmax(-1), 1e-4)
    assert gamma > 0


@pytest.mark.parametrize("rule", ["paper", "released_new"])
def test_under_a_users_hooks_only_the_original_stream_is_edited(model, inputs, rule):
    method = ASD(alpha=0.8, rule=rule, least_weight=0.0, most_text=1.0)

    def own(tokens):
        return reweight(tokens.at(list(inputs.tokens.audio)), tokens.at(list(inputs.tokens.video)), 0.7)

    out, steps = scores_of(model, inputs, 3, method, fwd_hooks=own(inputs.tokens))
    run, gamma = method.start(model, inputs), None
    for step in range(3):
        written = out.tokens[0, :step]
        edits = own(inputs.with_answer(written).tokens)
        gamma, mixed = slowly(model, inputs, run, method, written, gamma, edits)
        assert out.records["gamma"][0, step].item() == pytest.approx(gamma, rel=1e-3, abs=1e-6)
        assert_equal(steps[0, step].log_softmax(-1), mixed.log_softmax(-1), 1e-4)


@pytest.mark.parametrize(("readers", "again"), [("after_media", None), ("last", 1)])
def test_the_prompt_is_read_once_and_only_what_reads_otherwise_again(model, inputs, readers, again):
    rows, after = [], len(inputs.tokens) - 1 - int(inputs.tokens.media.positions.max())
    model.generate(inputs, 1, decoding=ASD())  # finds the sink dimensions, which the model remembers
    counted = model.blocks[0].attn.q_proj.register_forward_hook(lambda module, x, out: rows.append(out.shape[1]))
    try:
        model.generate(inputs, 3, decoding=ASD(readers=readers), eos_token_id=None)
    finally:
        counted.remove()
    assert rows == [len(inputs.tokens), again or after, 1, 1]


def test_the_released_rules_by_hand():
    assert share(0.3, 0.1) == pytest.approx(0.75) and share(0, 0) == 0
    assert gated(0.59, 0.1, 0.5) == 0 and gated(0.7, 0.51, 0.5) == 0 and gated(0.7, 0.5, 0.5) == pytest.approx(0.35)
    assert faded(0.8, 0.4, 0.5) == pytest.approx(0.4) and faded(0.8, 0.1, 1.0) == pytest.approx(0.6)
    assert faded(0.8, 0.5, 0.5) == pytest.approx(0.2) and faded(0.8, 0.7, 0.5) == pytest.approx(0, abs=1e-9)
    assert faded(0.3, 0.0, 0.5) == pytest.approx(0.15 * 0.25)


def test_momentum_under_the_papers_rule_starts_at_the_first_tokens_gamma(model, inputs):
    plain, slow = (
        model.generate(inputs, 2, decoding=ASD(momentum=m), eos_token_id=None).records["gamma"][0] for m in (0.0, 0.9)
    )
    assert slow[0] == plain[0] and float(slow[1]) == pytest.approx(float(0.9 * slow[0] + 0.1 * plain[1]), rel=1e-2)


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


def named(**wrong):
    """Settings that the tests' type checks would not let through."""
    method = ASD()
    for name, value in wrong.items():
        object.__setattr__(method, name, value)
    return method


def test_what_cannot_run_is_refused(model, inputs):
    with pytest.raises(DecodingError, match=r"AVInputs\.batch"):
        model.generate(inputs, 4, decoding=ASD(), num_beams=2)
    with pytest.raises(DecodingError, match="alpha >= 0"):
        model.generate(inputs, 4, decoding=ASD(alpha=-1.0))
    wrong = {
        "a strength in": ASD(strength=2.0),
        "a momentum in": ASD(momentum=1.0),
        "alpha_uni >= 0": ASD(alpha_uni=-1.0),
        "'released_new'": named(rule="new"),
        "'after_media' or 'last'": named(readers="all"),
    }
    for says, method in wrong.items():
        with pytest.raises(DecodingError, match=says):
            model.generate(inputs, 4, decoding=method)
    model.add_hook("blocks.0.hook_resid_pre", lambda x, hook: None)
    try:
        with pytest.raises(DecodingError, match=r"reset_hooks\(\)"):
            model.generate(inputs, 4, decoding=ASD())
    finally:
        model.reset_hooks()
    assert on_rows([], [0]) == []
