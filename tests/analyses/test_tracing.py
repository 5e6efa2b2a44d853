import pytest
import torch

from avlens.analyses.tracing import causal_trace, trace_layers
from avlens.errors import LayerError, PromptError
from avlens.interventions import patch
from avlens.testing import tiny_clip, tiny_model

QUESTION = "what do you hear ?"


@pytest.fixture(scope="module", params=[0, 1])
def case(request):
    model = tiny_model(seed=request.param, n_layers=4)
    clip = tiny_clip(5.0, seed=request.param)
    return model, model.prepare(clip, QUESTION), model.prepare(clip.silenced(), QUESTION)


def test_patching_all_media_reaches_the_total_effect_and_nothing_or_the_past_has_none(case):
    model, clean, silent = case
    tokens = clean.tokens
    before_sound = tokens.at(range(int(tokens.audio.positions[0])))
    sets = {"all": tokens.media, "audio": tokens.audio, "before": before_sound, "none": tokens.at([])}
    trace = causal_trace(model, clean, silent, sets)
    ie = dict(zip(sets, trace.ie_clean.tolist(), strict=True))
    assert ie["all"] == pytest.approx(trace.te_clean, abs=1e-6) == ie["audio"]
    assert ie["before"] == 0 and ie["none"] == 0
    assert trace.ie_corrupt[0].item() == pytest.approx(trace.te_corrupt, abs=1e-6)
    assert trace.flipped[0]
    assert trace.to_frame().loc["none", "IE per token"] != trace.to_frame().loc["none", "IE per token"]  # NaN


def test_the_effect_is_what_the_patch_does_to_the_probability(case):
    model, clean, silent = case
    chosen = clean.tokens.audio & clean.tokens.seconds(1.0, 3.0)
    trace = causal_trace(model, clean, silent, {"middle": chosen}, layers=[1, 2], site="ln1.normalized")
    _, cache = model.run_with_cache(clean, names_filter=["ln1.normalized"])
    patched = model.run_with_hooks(silent, patch(cache, chosen, layers=[1, 2], site="ln1.normalized"))[0, -1].softmax(
        -1
    )
    corrupt = model(silent)[0, -1].softmax(-1)
    o_clean, o_corrupt = int(model(clean)[0, -1].argmax()), int(corrupt.argmax())
    assert trace.o_clean == (o_clean,) and trace.o_corrupt == (o_corrupt,)
    assert trace.ie_clean.item() == pytest.approx(float(patched[o_clean] - corrupt[o_clean]), abs=1e-6)
    assert trace.ie_corrupt.item() == pytest.approx(float(corrupt[o_corrupt] - patched[o_corrupt]), abs=1e-6)
    assert trace.layers == (1, 2)


def test_sites_agree_at_all_layers(case):
    model, clean, silent = case
    sets = {"video": clean.tokens.video, "scattered": clean.tokens.media & clean.tokens.at(range(30, 200, 7))}
    effects = [
        causal_trace(model, clean, silent, sets, site=site).p_patched for site in ("resid_pre", "ln1.normalized")
    ]
    torch.testing.assert_close(*effects, atol=1e-6, rtol=1e-4)


def test_prompts_that_differ_in_more_than_media_are_refused(case):
    model, clean, _ = case
    other = model.prepare(tiny_clip(5.0), "what do you see ?")
    with pytest.raises(PromptError, match="ask the same question"):
        causal_trace(model, clean, other, {})
    with pytest.raises(LayerError, match="counted from 0"):
        causal_trace(model, clean, clean, {}, layers=[-1])


def test_noising_all_that_differs_is_the_corrupted_run(case):
    model, clean, silent = case
    sets = {"all": clean.tokens.media, "none": clean.tokens.at([])}
    trace = causal_trace(model, clean, silent, sets, direction="noise")
    assert trace.ie_clean.tolist() == pytest.approx([trace.te_clean, 0], abs=1e-6)
    assert trace.ie_corrupt.tolist() == pytest.approx([trace.te_corrupt, 0], abs=1e-6)
    assert trace.flipped == (True, model(clean)[0, -1].argmax() == model(silent)[0, -1].argmax())
    assert trace.o_clean == causal_trace(model, clean, silent, {}).o_clean


def test_keys_and_values_carry_all_that_the_residual_does(case):
    model, clean, silent = case
    sets = {"audio": clean.tokens.audio}
    both = causal_trace(model, clean, silent, sets, site=("k", "v"))
    torch.testing.assert_close(both.p_patched, causal_trace(model, clean, silent, sets).p_patched, atol=1e-6, rtol=1e-4)


def test_the_maximum_over_steps_is_what_generate_sees(case):
    model, clean, silent = case
    trace = causal_trace(
        model, clean, silent, {"none": clean.tokens.at([])}, step="max", answers=("bell", "rain"), max_new_tokens=4
    )
    ids = [model.to_single_token(" bell"), model.tokenizer("bell")["input_ids"][0]]
    assert trace.o_clean == tuple(sorted(set(ids)))
    written = model.generate(silent, 4).tokens[0]
    best, tokens = 0.0, silent.ids
    for step in range(len(written)):
        logits = model.stock.whole(
            **(silent.hf_kwargs() | {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)})
        ).logits
        best = max(best, float(logits[0, -1].softmax(-1)[ids].max()))
        tokens = torch.cat([tokens, written[step].view(1, 1)], dim=1)
    assert trace.p_corrupt[0].item() == pytest.approx(best, rel=1e-3)
    assert trace.p_patched[0].tolist() == trace.p_corrupt.tolist()


def test_windows_of_layers_are_patches_of_those_layers(case):
    model, clean, silent = case
    swept = trace_layers(model, clean, silent, clean.tokens.audio, window=2, site="ln1.normalized")
    assert swept.first_layers == (0, 1, 2, 3) and len(swept.to_frame()) == 4
    alone = causal_trace(model, clean, silent, {"audio": clean.tokens.audio}, layers=[1, 2], site="ln1.normalized")
    assert swept.ie_clean[1].item() == pytest.approx(alone.ie_clean.item(), abs=1e-6)
    whole = trace_layers(model, clean, silent, clean.tokens.audio, window=4)
    assert whole.ie_clean[0].item() == pytest.approx(whole.trace.te_clean, abs=1e-6)
    with pytest.raises(LayerError, match="at least one layer"):
        trace_layers(model, clean, silent, clean.tokens.audio, window=0)
