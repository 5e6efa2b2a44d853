import pytest
import torch

from avlens import HookedAVModel
from avlens.analyses.transport import exact_transport, transport
from avlens.datasets.synthetic import QUESTIONS, counterfactual_pairs
from avlens.errors import PositionError, PromptError
from avlens.interventions import path_patch
from avlens.testing import tiny_clip, tiny_model
from tests.helpers import in_chunks_of

ANSWERS = ("dog", "rain")
EDGES = ["audio -> text", "audio -> video", "audio -> audio", "video <-> audio"]


@pytest.fixture(scope="module")
def case():
    model, clip = tiny_model(n_layers=3, seed=1), tiny_clip(4.0, size=(56, 56))
    return model, model.prepare(clip, "what do you hear ?"), model.prepare(clip.silenced(), "what do you hear ?")


@pytest.mark.parametrize("direction", ["denoise", "noise"])
def test_the_score_is_the_gradient_times_what_the_path_patch_does_to_z(case, direction, monkeypatch):
    model, clean, silent = case
    in_chunks_of(7, monkeypatch)
    found = transport(model, clean, silent, EDGES, answers=ANSWERS, direction=direction)
    source, target = (clean, silent) if direction == "denoise" else (silent, clean)
    sign = 1 if direction == "denoise" else -1
    _, read = model.run_with_cache(source, ["rot_k", "v"], attn="eager")
    logits, graph = model.run_with_cache(target, ["z"], attn="eager", grad=True)
    tokens, layer = clean.tokens, 1
    slope = torch.autograd.grad(found.contrast(logits[0, -1]), graph["z", layer])[0]
    text = tokens.all - tokens.media
    for edge, hooks in (
        (0, path_patch(read, text, tokens.audio, layers=[layer])),
        (2, path_patch(read, tokens.audio, tokens.audio, layers=[layer], unit=torch.arange(len(tokens)))),
    ):
        _, run = model.run_with_cache(target, ["z"], fwd_hooks=hooks, attn="eager")
        want = sign * ((run["z", layer] - graph["z", layer]) * slope).sum((0, 1, 3))
        torch.testing.assert_close(found.scores[edge, layer], want.detach(), atol=1e-4, rtol=1e-3)


def test_attention_is_that_of_the_run_that_is_patched(case):
    model, clean, silent = case
    found = transport(model, clean, silent, EDGES, answers=ANSWERS)
    _, cache = model.run_with_cache(silent, ["pattern"])
    tokens = clean.tokens
    text = (tokens.all - tokens.media).positions
    want = cache["pattern", 2][0][:, text][:, :, tokens.audio.positions].sum(-1).mean(-1)
    torch.testing.assert_close(found.attention[0, 2], want, atol=1e-5, rtol=1e-4)


def test_exact_transport_runs_the_path_patch_of_one_head(case):
    model, clean, silent = case
    found = exact_transport(model, clean, silent, ["audio -> text"], heads=[(1, 2), (2, 0)], answers=ANSWERS)
    assert int((~found.scores.isnan()).sum()) == 2
    _, read = model.run_with_cache(clean, ["rot_k", "v"], attn="eager")
    tokens = clean.tokens
    hooks = path_patch(read, tokens.all - tokens.media, tokens.audio, layers=[1], heads=[2])
    moved = found.contrast(model.run_with_hooks(silent, hooks, attn="eager")[0, -1]) - found.contrast.corrupt
    assert float(found.scores[0, 1, 2]) == pytest.approx(float(moved), abs=1e-4)


def test_estimates_rank_heads_of_the_embedded_model_as_running_them_does():
    model = HookedAVModel.from_pretrained("avlens-tiny")
    (one, other), *_ = counterfactual_pairs(1, seed=6)
    clean, corrupt = (model.prepare(sample.clip, QUESTIONS["sound"]) for sample in (one, other))
    found, run = transport(model, clean, corrupt), exact_transport(model, clean, corrupt)
    assert found.edges == ("video -> audio", "audio -> video", "video -> text", "audio -> text")
    assert found.agrees_with(run).spearman > 0.5
    top = found.top(3)
    assert len(top) == 3 and top["transport"].abs().is_monotonic_decreasing and "Transport(4 edges" in repr(found)


def test_edges_that_a_prompt_lacks(case):
    model, _, _ = case
    sound = tiny_clip(3.0, video=False)
    clean, silent = (model.prepare(clip, "what ?") for clip in (sound, sound.silenced()))
    assert transport(model, clean, silent, answers=ANSWERS).edges == ("audio -> text",)
    with pytest.raises(PositionError, match="no prompt has both ends"):
        transport(model, clean, silent, ["video -> text"], answers=ANSWERS)
    one = transport(model, clean, silent, answers=ANSWERS)
    with pytest.raises(PromptError, match="different edges"):
        one.agrees_with(transport(model, clean, silent, answers=ANSWERS, direction="noise"))
