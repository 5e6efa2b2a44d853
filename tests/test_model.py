import inspect
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from avlens import HookedAVModel, discard, knockout
from avlens.errors import BatchError, HookError, LayerError, PositionError, PromptError
from avlens.inputs import AVInputs
from avlens.model import _check_part
from avlens.testing import tiny_clip, tiny_model
from tests.helpers import assert_equal, largest_difference, points_that_run, prompt_of, stock_run

MODEL = tiny_model(n_layers=3)
CLIP = tiny_clip(1.6, size=(84, 56))
INPUTS = MODEL.prepare(CLIP, "what do you hear ?")
TOKENS = INPUTS.tokens


@pytest.fixture
def calls():
    """How often each tower runs, from an empty store."""
    counted = {"audio": 0, "vision": 0}
    MODEL.forget_encodings()
    MODEL.reset_hooks()

    def count(name):
        def counting(module, args, output):
            counted[name] += 1

        return counting

    handles = [tower.register_forward_hook(count(name)) for name, tower in MODEL.stock.encoders.items()]
    yield counted
    for handle in handles:
        handle.remove()
    MODEL.forget_encodings()


# Gradients.


def test_gradients_of_activations_equal_the_stock_models_and_finite_differences():
    answer = 77
    logits, cache = MODEL.run_with_cache(INPUTS, ["resid_pre", "pattern", "embed"], grad=True)
    loss = logits[0, -1, answer]
    got = torch.autograd.grad(
        loss, [cache["resid_pre", 1], cache["pattern", 1], cache["hook_embed"]], retain_graph=True
    )
    for name, activation, gradient in [
        ("blocks.1.hook_resid_pre", cache["resid_pre", 1], got[0]),
        ("blocks.1.attn.hook_pattern", cache["pattern", 1], got[1]),
    ]:
        step = torch.randn_like(activation)
        ahead, back = (
            MODEL.run_with_hooks(
                INPUTS, fwd_hooks=[(name, lambda x, hook, d=d, step=step: x + d * step)], attn="eager"
            )[0, -1, answer]
            for d in (1e-3, -1e-3)
        )
        assert abs(float((ahead - back) / 2e-3 - (gradient * step).sum())) < 2e-2 * float(gradient.norm())
    whole = MODEL.stock.whole
    embeds = cache["hook_embed"].detach().clone().requires_grad_()
    position_ids = INPUTS.positions
    with torch.enable_grad():
        hidden = whole.model.language_model(inputs_embeds=embeds, position_ids=position_ids).last_hidden_state
        stock = torch.autograd.grad(whole.lm_head(hidden)[0, -1, answer], embeds)[0]
    assert_equal(got[2], stock, 1e-4)


@pytest.mark.parametrize(
    "name", ["blocks.1.hook_resid_pre", "blocks.0.attn.hook_pattern", "blocks.2.ln1.hook_scale", "hook_embed"]
)
def test_backward_hooks_see_the_gradient_that_autograd_gives(name):
    seen = {}
    try:
        logits = MODEL.run_with_hooks(
            INPUTS, bwd_hooks=[(name, lambda g, hook: seen.update(g=g.clone()))], reset_hooks_end=False, attn="eager"
        )
        logits[0, -1, 5].backward()
    finally:
        MODEL.reset_hooks()
    logits, cache = MODEL.run_with_cache(INPUTS, [name], grad=True, attn="eager")
    assert_equal(seen["g"], torch.autograd.grad(logits[0, -1, 5], cache[name])[0])
    assert all(weight.grad is None for weight in MODEL.parameters())


def test_weights_get_gradients_when_they_are_asked_for():
    model = tiny_model(n_layers=1)
    weight = model.blocks[0].attn.q_proj.weight.requires_grad_()
    model(INPUTS, grad=True)[0, -1, 3].backward()
    assert weight.grad.abs().max() > 0


def test_nothing_is_tracked_unless_asked_for_also_in_other_threads():
    results = {}

    def run():
        results["logits"], results["cache"] = MODEL.run_with_cache(INPUTS, "resid_pre")

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert not results["logits"].requires_grad and not results["cache"]["resid_pre", 0].requires_grad
    with torch.enable_grad():
        assert not MODEL(INPUTS).requires_grad
    assert torch.is_grad_enabled()
    with torch.no_grad():
        assert MODEL(INPUTS, grad=True).requires_grad
    # Not an inference tensor: it can train a probe.
    nn.Linear(64, 2)(results["cache"]["resid_pre", 0]).sum().backward()


# One at a time.


def test_runs_in_two_threads_do_not_mix_their_hooks():
    wanted = {}
    for sign in (1.0, -1.0):
        wanted[sign] = MODEL.run_with_hooks(INPUTS, fwd_hooks=[("hook_embed", lambda x, hook, s=sign: x + s)])
    wanted[0.0] = MODEL(INPUTS)
    wrong, start = [], threading.Barrier(3)

    def run(sign):
        hooks = [] if sign == 0 else [("hook_embed", lambda x, hook: x + sign)]
        start.wait()
        for _ in range(15):
            got = MODEL.run_with_hooks(INPUTS, fwd_hooks=hooks) if hooks else MODEL(INPUTS)
            wrong.extend([sign] if not torch.equal(got, wanted[sign]) else [])

    threads = [threading.Thread(target=run, args=(sign,)) for sign in (1.0, -1.0, 0.0)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_hook_may_run_the_model_itself():
    inner = []

    def ask(x, hook):
        if not inner:
            inner.append(None)
            inner[0] = MODEL.run_with_cache(INPUTS, "resid_pre")[1]["resid_pre", 0]

    plain = MODEL(INPUTS)
    assert_equal(MODEL.run_with_hooks(INPUTS, fwd_hooks=[("blocks.1.hook_resid_post", ask)]), plain)
    assert inner[0].shape == (1, len(TOKENS), 64)


# The store of encodings.


def test_encoders_run_once_per_content(calls):
    for _ in range(2):
        MODEL(INPUTS)
        MODEL.run_with_cache(INPUTS, ["resid_pre"], fwd_hooks=knockout(TOKENS.question, TOKENS.audio))
        MODEL.generate(INPUTS, 3)
    MODEL(MODEL.prepare(tiny_clip(1.6, size=(84, 56)), "another question ?", order="question_first"))
    assert calls == {"audio": 1, "vision": 1}
    MODEL(MODEL.prepare(CLIP.silenced(), "what do you hear ?"))
    assert calls == {"audio": 2, "vision": 1}
    MODEL(MODEL.prepare(CLIP.blanked(), "what do you hear ?"))
    assert calls == {"audio": 2, "vision": 2}
    MODEL(AVInputs.batch([INPUTS, INPUTS, MODEL.prepare(CLIP.silenced(), "?")]))
    assert calls == {"audio": 2, "vision": 2}


@pytest.mark.parametrize("name", ["hook_audio_embed", "audio.blocks.0.hook_resid_post", "hook_video_embed"])
def test_a_hook_on_the_embedding_side_runs_the_encoder_again_and_never_writes_the_store(calls, name):
    plain = MODEL(INPUTS)

    def wreck(x, hook):
        return x.mul_(0).add_(7.0)

    before = dict(calls)
    wrecked = MODEL.run_with_hooks(INPUTS, fwd_hooks=[(name, wreck)])
    assert largest_difference(wrecked, plain) > 1e-3
    tower = "vision" if "video" in name else "audio"
    assert calls[tower] == before[tower] + 1
    assert torch.equal(MODEL(INPUTS), plain)


@pytest.mark.parametrize("name", ["hook_embed", "hook_token_embed", "blocks.0.hook_resid_pre", "blocks.0.attn.hook_v"])
def test_hooks_that_edit_in_place_do_not_reach_the_weights_or_the_store(name):
    plain, weights = MODEL(INPUTS), [weight.clone() for weight in MODEL.parameters()]
    MODEL.run_with_hooks(INPUTS, fwd_hooks=[(name, lambda x, hook: x.mul_(0))])
    assert torch.equal(MODEL(INPUTS), plain)
    assert all(torch.equal(a, b) for a, b in zip(MODEL.parameters(), weights, strict=True))


def test_an_edited_encoder_is_seen_after_its_encodings_are_forgotten(calls):
    plain = MODEL(INPUTS)
    bias = MODEL.stock.encoders["audio"].proj.bias
    bias.data += 1
    try:
        MODEL.forget_encodings()
        assert largest_difference(MODEL(INPUTS), plain) > 1e-3
    finally:
        bias.data -= 1
        MODEL.forget_encodings()


def test_a_hook_that_changes_an_encoders_length_is_refused():
    with pytest.raises(
        PromptError, match="made 3 embeddings for .* places in the prompt. A hook on an encoder must keep"
    ):
        MODEL.run_with_hooks(INPUTS, fwd_hooks=[("hook_audio_embed", lambda x, hook: x[:, :3])])


def test_many_clips_do_not_fill_the_store(calls, monkeypatch):
    monkeypatch.setattr("avlens.model.KEPT_ENCODINGS", 3)
    for seed in range(5):
        MODEL(MODEL.prepare(tiny_clip(0.4, seed=seed, video=False), "?"))
    assert len(MODEL._encoded) == 3


# Names and modes.


def test_misspelt_hooks_and_layers_that_do_not_exist_are_refused():
    def run(name):
        MODEL.run_with_hooks(INPUTS, fwd_hooks=[(name, lambda x, hook: None)])

    with pytest.raises(
        HookError, match="no activation is called 'blocks.0.hook_resid_prev'. Near names: .*blocks.0.hook_resid_pre"
    ):
        run("blocks.0.hook_resid_prev")
    with pytest.raises(LayerError, match=r"is in layer 3, but the model has 3 \(0 to 2\)"):
        run("blocks.3.hook_resid_pre")
    with pytest.raises(
        HookError, match="'resid_pre' is a short name. A hook needs the full one, such as 'blocks.0.hook_resid_pre'"
    ):
        run("resid_pre")
    with pytest.raises(HookError, match="would never run"):
        run(lambda name: "nothing" in name)
    with pytest.raises(LayerError, match="layer 7"):
        MODEL.run_with_hooks(INPUTS, fwd_hooks=knockout(TOKENS.question, TOKENS.audio, layers=[1, 7]))
    with pytest.raises(HookError, match="Near names"):
        MODEL.generate(INPUTS, 2, fwd_hooks=[("hook_embedd", lambda x, hook: None)])


def test_pinned_fused_attention_refuses_to_show_its_pattern():
    with pytest.raises(HookError, match="listens at blocks.0.attn.hook_pattern.*Run with attn='auto' or attn='eager'"):
        MODEL.run_with_cache(INPUTS, "pattern", attn="sdpa")
    pinned = tiny_model(n_layers=3, attn="sdpa")
    with pytest.raises(HookError, match="pinned to 'sdpa'"):
        pinned.run_with_cache(INPUTS, "pattern")
    assert_equal(pinned(INPUTS), MODEL(INPUTS, attn="eager"))
    assert_equal(pinned.run_with_cache(INPUTS, "pattern", attn="eager")[0], MODEL(INPUTS, attn="eager"))


def test_an_attention_that_does_not_exist_is_refused():
    unchecked = inspect.unwrap(type(MODEL)._pass)  # without the run-time check of types that tests run under
    with pytest.raises(HookError, match="attn is 'flash'. Pass 'auto', 'eager' or 'sdpa'"):
        unchecked(MODEL, None, INPUTS.positions, None, "flash")


def test_only_the_layer_that_is_watched_leaves_the_fused_kernel(monkeypatch):
    from avlens import attention

    fused, real = [], attention.fused
    monkeypatch.setattr(attention, "fused", lambda *args, **kwargs: fused.append(1) or real(*args, **kwargs))
    MODEL.run_with_cache(INPUTS, "blocks.1.attn.hook_pattern")
    assert len(fused) == 2
    MODEL(INPUTS, attn="eager")
    assert len(fused) == 2


# Prompts.


def test_what_is_no_prompt_is_refused_with_what_to_do():
    with pytest.raises(
        PromptError, match=r"was given a tensor of shape \[3\] and torch.int64. Pass what model.prepare"
    ):
        MODEL.as_inputs(torch.ones(3, dtype=torch.long))
    check_part = inspect.unwrap(_check_part)  # without the run-time check of types that tests run under
    with pytest.raises(
        PromptError, match=r"was given a tensor of shape \[3, 28, 28\] and torch.float32. Pass clips, text"
    ):
        check_part(torch.rand(3, 28, 28))
    with pytest.raises(PromptError, match="was given a PosixPath. Pass clips, text"):
        check_part(Path("dog.mp4"))
    with pytest.raises(
        PromptError, match="holds 2 media placeholders for 1 clips and images. Leave .*out of the question"
    ):
        MODEL.prepare(CLIP, "what is <|VIDEO|> ?")
    with pytest.raises(BatchError, match=r"these inputs hold 2 prompts. Choose one, such as inputs\[0\]"):
        _ = AVInputs.batch([INPUTS, INPUTS]).tokens
    with pytest.raises(BatchError, match="has no prompts"):
        AVInputs.batch([])
    with pytest.raises(BatchError, match="Prepare each and use AVInputs.batch"):
        MODEL.to_tokens(["what", "what do you hear ?"])
    with pytest.raises(PromptError, match="is 2 tokens: .*Pass a text that is one token"):
        MODEL.to_single_token(" what ?")


def test_text_becomes_tokens_and_back():
    ids = MODEL.to_tokens("what do you hear ?")
    assert MODEL.to_string(ids) == "what do you hear ?"
    assert MODEL.to_string(torch.tensor([MODEL.to_single_token(" dog")])) == " dog"
    assert MODEL(ids).shape == (1, ids.shape[1], MODEL.cfg.d_vocab)


# Logits at some positions.


def test_logits_can_be_had_at_some_positions_only():
    full, chosen = MODEL(INPUTS), TOKENS.at([3, len(TOKENS) - 1, 50])
    assert_equal(MODEL(INPUTS, logits_at=chosen), full[:, chosen.positions])
    batch = AVInputs.batch([INPUTS, INPUTS])
    assert_equal(MODEL(batch, logits_at=TOKENS.last)[1], full[0, -1:])
    other = MODEL.prepare([], "what ?")
    with pytest.raises(PositionError, match="another layout than those that run. Take it from inputs.tokens"):
        MODEL(INPUTS, logits_at=other.tokens.last)
    gone = discard(TOKENS.audio, layer=1)
    assert_equal(
        MODEL.run_with_hooks(INPUTS, fwd_hooks=gone, logits_at=TOKENS.last),
        MODEL.run_with_hooks(INPUTS, fwd_hooks=gone)[:, -1:],
    )
    with pytest.raises(PositionError, match="were discarded on the way, so they have no logits"):
        MODEL.run_with_hooks(INPUTS, fwd_hooks=gone, logits_at=TOKENS.audio)


# Weights of other kinds.


class Int8Linear(nn.Module):
    """What bitsandbytes does, without it: int8 weights with a scale per row, made whole when used."""

    def __init__(self, linear):
        super().__init__()
        self.scale = linear.weight.abs().amax(1, keepdim=True) / 127
        self.weight = nn.Parameter((linear.weight / self.scale).round().to(torch.int8), requires_grad=False)
        self.bias, self.out_features = linear.bias, linear.out_features

    def forward(self, x):
        return nn.functional.linear(x, self.weight.to(x.dtype) * self.scale, self.bias)


def test_quantised_linears_run_and_their_views_are_refused():
    stock = tiny_model(n_layers=2)
    for layer in stock.stock.layers:
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            setattr(layer.self_attn, name, Int8Linear(getattr(layer.self_attn, name)))
        layer.mlp.down_proj = Int8Linear(layer.mlp.down_proj)
    model = HookedAVModel(stock.family, stock.stock)
    assert_equal(model(INPUTS), stock_run(model, INPUTS, "sdpa").logits)
    watched = [name for name in points_that_run(MODEL, INPUTS) if name in model.hook_dict and "hook_result" not in name]
    assert_equal(model.run_with_cache(INPUTS, watched)[0], model(INPUTS))
    assert model.blocks[1].attn.b_O.tolist() == [0.0] * 64
    with pytest.raises(HookError, match=r"Int8Linear is quantised \(torch.int8\).*Read activations instead"):
        _ = model.blocks[0].attn.W_Q
    with pytest.raises(HookError, match="quantised"):
        _ = model.blocks[0].mlp.W_out
    assert model.W_U.shape == (64, model.cfg.d_vocab)


def test_half_precision_runs_as_the_stock_model_does():
    model = tiny_model(n_layers=2).to(torch.bfloat16)
    inputs = prompt_of(model, "interleaved")
    assert model.cfg.dtype == torch.bfloat16
    logits, cache = model.run_with_cache(inputs, ["resid_pre", "pattern", "ln1.scale"], attn="eager")
    assert logits.dtype == cache["resid_pre", 1].dtype == cache["pattern", 0].dtype == torch.bfloat16
    stock = stock_run(model, inputs, "eager")
    assert_equal(logits, stock.logits, 2e-2)
    assert torch.equal(model(inputs), model.run_with_cache(inputs)[0])
    out = model.generate(inputs, 3, fwd_hooks=knockout(inputs.tokens.question, inputs.tokens.audio))
    assert out.tokens.shape[1] <= 3


@pytest.mark.parametrize("device_map", [{"": "cpu"}, "disk"])
def test_models_spread_by_accelerate_run_and_show_their_weights(tmp_path, device_map):
    pytest.importorskip("accelerate")
    plain = tiny_model(n_layers=3)
    plain.save_pretrained(tmp_path / "model")
    options = {"device_map": device_map}
    if device_map == "disk":
        layers = {f"model.language_model.layers.{i}": "disk" if i else "cpu" for i in range(3)}
        rest = dict.fromkeys(
            ["model.visual", "model.audio_tower", "model.language_model.embed_tokens", "model.language_model.norm",
             "model.language_model.rotary_emb", "lm_head"], "cpu",
        )  # fmt: skip
        options = {"device_map": layers | rest, "offload_folder": str(tmp_path / "off")}
    model = HookedAVModel.from_pretrained(tmp_path / "model", **options)
    assert_equal(model(INPUTS), plain(INPUTS))
    hooks = knockout(TOKENS.question, TOKENS.audio)
    names = ["resid_post", "pattern", "result"]
    got, cache = model.run_with_cache(INPUTS, names, fwd_hooks=hooks)
    wanted, plain_cache = plain.run_with_cache(INPUTS, names, fwd_hooks=hooks)
    assert_equal(got, wanted)
    assert_equal(cache["result", 2], plain_cache["result", 2])
    assert torch.equal(model.generate(INPUTS, 4).tokens, plain.generate(INPUTS, 4).tokens)
    assert torch.equal(model.blocks[2].attn.W_Q, plain.blocks[2].attn.W_Q)
    assert torch.equal(model.blocks[1].attn.b_K, plain.blocks[1].attn.b_K)
    assert torch.equal(model.blocks[2].ln1.w, plain.blocks[2].ln1.w)


def test_a_model_says_what_it_is():
    cfg = MODEL.cfg
    assert (cfg.n_layers, cfg.d_model, cfg.n_heads, cfg.n_key_value_heads, cfg.d_head) == (3, 64, 4, 2, 16)
    assert cfg.device == "cpu" and cfg.dtype == torch.float32 and cfg.model_name == "tiny-qwen2_5_omni-0"
    assert replace(cfg, n_layers=4).n_layers == 4
    made = MODEL.made_by(INPUTS, note="x")
    assert (
        made["model"] == cfg.model_name
        and made["note"] == "x"
        and made["prompts"][0]["question"] == "what do you hear ?"
    )
    assert not any(weight.requires_grad for weight in MODEL.parameters()) and not MODEL.training
