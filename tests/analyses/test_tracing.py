import pytest
import torch

from avlens.analyses.tracing import causal_trace
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
    assert trace.o_clean == int(model(clean)[0, -1].argmax()) and trace.o_corrupt == int(corrupt.argmax())
    assert trace.ie_clean.item() == pytest.approx(float(patched[trace.o_clean] - corrupt[trace.o_clean]), abs=1e-6)
    assert trace.ie_corrupt.item() == pytest.approx(
        float(corrupt[trace.o_corrupt] - patched[trace.o_corrupt]), abs=1e-6
    )
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
