import pytest
import torch

from avlens.decoding import FMD
from avlens.decoding.fmd import merge_weight
from avlens.errors import DecodingError
from avlens.interventions import ablate, knockout
from tests.helpers import assert_equal, scores_of


def test_without_a_fork_it_is_vanilla_decoding(model, prompt, two):
    stock = model.stock.whole.generate(**prompt.hf_kwargs(), max_new_tokens=8, do_sample=False)
    assert torch.equal(model.generate(prompt, 8, decoding=FMD(fork=0)).tokens, stock[:, prompt.shape[1] :])
    assert torch.equal(model.generate(two, 8, decoding=FMD(fork=0)).tokens, model.generate(two, 8).tokens)


def slowly(model, inputs, fork, weights):
    """Branches by two whole passes, merged into a third; one weight for the prompt's text and for each written token."""
    tokens = inputs.tokens
    branches = [ablate(kind, layers=[0]) for kind in (tokens.video, tokens.audio)]
    caches = [model.run_with_cache(inputs, ["resid_pre", "pattern"], fwd_hooks=hooks)[1] for hooks in branches]
    no_video, no_audio = (cache["resid_pre", fork][0] for cache in caches)
    rows = [cache["pattern", fork - 1][0, :, -1].mean(0) for cache in caches]
    audio, video = float(rows[0][tokens.audio.positions].sum()), float(rows[1][tokens.video.positions].sum())
    weights = [*weights, audio / (audio + video)]
    written = len(weights) - 1
    merged = torch.empty_like(no_video)
    for i in range(len(tokens)):
        w = weights[max(0, i - (len(tokens) - written) + 1)]
        mixed = w * no_video[i] + (1 - w) * no_audio[i]
        merged[i] = no_video[i] if i in tokens.audio else no_audio[i] if i in tokens.video else mixed
    return model.run_with_hooks(inputs, [(f"blocks.{fork}.hook_resid_pre", lambda x, hook: merged[None])])[
        0, -1
    ], weights


@pytest.mark.parametrize("fork", [1, 3])
def test_each_step_is_the_formula_by_three_whole_passes(model, prompt, fork):
    out, scores = scores_of(model, prompt, 3, FMD(fork=fork))
    weights = []
    for step in range(3):
        wanted, weights = slowly(model, prompt.with_answer(out.tokens[0, :step]), fork, weights)
        assert_equal(scores[0, step], wanted)
    assert out.records["weight"][0].tolist() == pytest.approx(weights, rel=1e-3)
    assert float((scores[0, 0] - model(prompt)[0, -1]).abs().max()) > 1e-3


def test_a_batch_is_its_rows(model, two):
    both, scores = scores_of(model, two, 4, FMD(fork=2))
    for row, one in enumerate(two):
        alone, own = scores_of(model, one, 4, FMD(fork=2))
        assert torch.equal(both.tokens[row], alone.tokens[0])
        assert_equal(scores[row], own[0])
    options = {"do_sample": True, "seed": 5, "decoding": FMD(fork=2)}
    assert torch.equal(model.generate(two, 6, **options).tokens, model.generate(two, 6, **options).tokens)


def test_without_media_nothing_is_lost(model):
    text = model.prepare("what is a drum ?")
    assert torch.equal(model.generate(text, 6, decoding=FMD(fork=2)).tokens, model.generate(text, 6).tokens)


def test_a_users_hooks_act_on_both_branches(model, prompt):
    tokens = prompt.tokens
    blind = knockout(~tokens.media, tokens.media)
    _, scores = scores_of(model, prompt, 2, FMD(fork=2), fwd_hooks=blind)
    _, plain = scores_of(model, prompt, 2, None, fwd_hooks=blind)
    # With media cut off from everything else, both branches are the same at text.
    assert_equal(scores, plain)
    seen = []
    watch = [("blocks.1.hook_resid_pre", lambda x, hook: seen.append(len(x)))]
    out = model.generate(
        prompt, 2, decoding=FMD(fork=2), fwd_hooks=watch, names_filter=["resid_pre"], eos_token_id=None
    )
    assert seen == [1] * 4 and out.cache["resid_pre", 3].shape[0] == 1


def test_the_weight_is_audios_share():
    assert merge_weight(0.3, 0.1) == pytest.approx(0.75) and merge_weight(0.0, 0.0) == 0.5


def test_settings_out_of_range_are_refused(model, prompt):
    for method, says in [(FMD(fork=-1), "from 0 to"), (FMD(fork=99), "from 0 to"), (FMD(weight=1.5), "share between")]:
        with pytest.raises(DecodingError, match=says):
            model.generate(prompt, 2, decoding=method)
