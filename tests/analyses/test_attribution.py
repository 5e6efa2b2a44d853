import pytest
import torch

from avlens.analyses.attribution import direct_logit_attribution
from avlens.errors import PositionError, PromptError
from avlens.testing import tiny_clip, tiny_model
from tests.helpers import in_chunks_of


@pytest.mark.parametrize("family", ["qwen2_5_omni", "qwen3_omni", "video_salmonn2_plus", "video_salmonn_o1"])
def test_the_parts_add_up_to_the_logit(family):
    model = tiny_model(family)
    inputs = model.prepare(tiny_clip(2.0), "what do you hear ?")
    found = direct_logit_attribution(model, inputs, answer="dog", against=5)
    logits = model(inputs)[0, -1]
    dog = max(model.to_first_tokens("dog"), key=lambda token: float(logits[token]))
    assert found.logit == pytest.approx(float(logits[dog] - logits[5]), abs=1e-4)
    assert abs(found.error) < 1e-4
    assert sum(len(tokens) for tokens in found.groups.values()) == len(inputs.tokens)
    assert found.to_frame()["logit"].sum() == pytest.approx(found.logit, abs=1e-4)
    assert sum(found.by_group.values()) == pytest.approx(float(found.heads.sum()), abs=1e-5)


def test_a_head_is_split_by_what_it_reads(monkeypatch):
    in_chunks_of(5, monkeypatch)
    model = tiny_model(n_layers=2)
    inputs = model.prepare(tiny_clip(2.0), "what do you hear ?")
    found = direct_logit_attribution(model, inputs)
    logits, cache = model.run_with_cache(inputs, ["pattern", "v", "ln_final.hook_scale"])
    token, layer, head = int(logits[0, -1].argmax()), 1, 3
    audio = inputs.tokens.audio.positions
    group = head // (model.cfg.n_heads // model.cfg.n_key_value_heads)
    read = cache["pattern", layer][0, head, -1, audio] @ cache["v", layer][0, audio, group]
    written = read @ model.blocks[layer].attn.W_O[head]
    want = written @ model.tokens_to_residual_directions(token) / cache["ln_final.hook_scale"][0, -1]
    assert float(found.heads[layer, head, list(found.groups).index("audio")]) == pytest.approx(float(want), abs=1e-5)


def test_what_a_component_adds_is_what_is_lost_without_it():
    """Where nothing later reads it and the final norm's scale stays."""
    model = tiny_model(n_layers=2, seed=3)
    inputs = model.prepare(tiny_clip(2.0), "what do you hear ?")
    found = direct_logit_attribution(model, inputs)
    logits, cache = model.run_with_cache(inputs, ["ln_final.hook_scale"])
    freeze = ("ln_final.hook_scale", lambda x, hook: cache["ln_final.hook_scale"])
    gone = model.run_with_hooks(inputs, [("blocks.1.hook_mlp_out", lambda x, hook: torch.zeros_like(x)), freeze])
    token = int(logits[0, -1].argmax())
    assert float((logits - gone)[0, -1, token]) == pytest.approx(float(found.mlp[1]), abs=1e-4)


def test_refusals():
    model = tiny_model()
    inputs = model.prepare(tiny_clip(2.0), "what do you hear ?")
    tokens = inputs.tokens
    with pytest.raises(PromptError, match="same token"):
        direct_logit_attribution(model, inputs, answer=4, against=4)
    own = int(model(inputs)[0, -1].argmax())
    with pytest.raises(PromptError, match=f"the model's own answer and against={own} begin"):
        direct_logit_attribution(model, inputs, against=own)
    with pytest.raises(PositionError, match="shares"):
        direct_logit_attribution(model, inputs, groups={"media": tokens.media, "audio": tokens.audio})
