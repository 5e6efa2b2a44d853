"""Gemma 4: windows, shared keys and inputs of each layer's own, as in the stock model; its clips; its released sizes."""

import copy
import math

import pytest
import torch
from transformers import Gemma4Config, Gemma4ForConditionalGeneration

from avlens import HookedAVModel, discard, knockout, patch
from avlens.analyses.attribution import direct_logit_attribution
from avlens.analyses.paths import path_patching
from avlens.analyses.transport import transport
from avlens.engine import sweep
from avlens.errors import CheckpointError, HookError, PromptError, UnsupportedSettingError
from avlens.families.gemma4 import Gemma4, _fitted, _stock
from avlens.inputs import AVInputs
from avlens.interventions import path_patch
from avlens.testing import tiny_clip, tiny_model
from tests.helpers import assert_equal, largest_difference, prompt_of

KINDS = ("local", "local", "global", "local", "global", "local", "global")
MODEL = tiny_model("gemma4", n_layers=7, attn_types=KINDS, n_shared=3, window_size=10, seed=1)
CLIP = tiny_clip(2.6, size=(84, 56), seed=3)


def asked(clip=CLIP, question="what do you hear ?"):
    return MODEL.prepare(clip, question)


# Equal to the stock model.


@pytest.mark.parametrize(
    "kind", ["video_and_audio", "question_first", "audio", "video", "image", "text", "interleaved"]
)
def test_logits_residuals_and_patterns_equal_the_stock_models(kind):
    inputs = prompt_of(MODEL, kind)
    stock = copy.deepcopy(MODEL.stock.whole)
    stock.set_attn_implementation({"text_config": "eager", "vision_config": "eager", "audio_config": "eager"})
    with torch.no_grad():
        out = stock(**inputs.hf_kwargs(), output_hidden_states=True, output_attentions=True)
    logits, cache = MODEL.run_with_cache(inputs, ["resid_pre", "pattern"], attn="eager")
    assert_equal(logits, out.logits)
    assert_equal(MODEL(inputs), out.logits)
    for layer in range(MODEL.cfg.n_layers):
        assert_equal(cache["resid_pre", layer], out.hidden_states[layer])
        assert_equal(cache["pattern", layer], out.attentions[layer])
    if len(inputs.tokens) > 10:
        past = cache["pattern", 0][0].tril(-10)
        assert not past.any() and cache["pattern", 2][0].tril(-10).any()


def test_it_writes_what_the_stock_model_writes():
    rows = [asked(), MODEL.prepare(tiny_clip(1.2, size=(56, 84), seed=5), "what do you see ?")]
    for row in rows:
        with torch.no_grad():
            wanted = MODEL.stock.whole.generate(
                **row.hf_kwargs(), max_new_tokens=12, min_new_tokens=12, do_sample=False
            )
        got = MODEL.generate(row, 12, min_new_tokens=12).tokens
        assert torch.equal(got, wanted[:, row.shape[1] :])
    together = MODEL.generate(AVInputs.batch(rows), 12, min_new_tokens=12).tokens
    for i, row in enumerate(rows):
        assert torch.equal(together[i], MODEL.generate(row, 12, min_new_tokens=12).tokens[0])


@pytest.mark.parametrize(
    "sizes", [{"n_shared": 0}, {"d_layer_input": None, "n_shared": 0}, {"output_logits_soft_cap": None}]
)
def test_what_a_checkpoint_may_leave_out_may_be_left_out(sizes):
    model = tiny_model("gemma4", **sizes)
    inputs = model.prepare(CLIP, "what ?")
    with torch.no_grad():
        assert_equal(model(inputs), model.stock.whole(**inputs.hf_kwargs()).logits)
    assert ("blocks.0.hook_layer_input" in model.hook_dict) == ("d_layer_input" not in sizes)


def test_logits_are_capped_and_the_stream_is_scaled():
    inputs = asked()
    logits, cache = MODEL.run_with_cache(inputs, ["mlp_out", "resid_mid", "resid_post", "layer_input_out"])
    plain = MODEL.unembed(MODEL.ln_final(cache["resid_post", 6]))
    assert_equal(logits, 30 * torch.tanh(plain / 30))
    for layer, block in enumerate(MODEL.blocks):
        said = cache["resid_mid", layer] + cache["mlp_out", layer] + cache["layer_input_out", layer]
        assert 0.5 <= float(block.resid_scale) <= 1 and torch.equal(
            said * block.resid_scale, cache["resid_post", layer]
        )


# Shared keys.


def test_an_edit_where_keys_are_made_reaches_all_who_read_them_and_an_edit_at_a_reader_is_its_own():
    """Layers 4, 5 and 6 read the keys of layers 2, 3 and 2."""
    inputs = asked()
    names = ["rot_k", "v", "pattern"]
    _, idle = MODEL.run_with_cache(inputs, names)
    assert idle.layers("v") == list(range(7)) and "blocks.4.attn.hook_k" not in MODEL.hook_dict
    for reader, source in ((4, 2), (5, 3), (6, 2)):
        assert torch.equal(idle["rot_k", reader], idle["rot_k", source]) and torch.equal(
            idle["v", reader], idle["v", source]
        )
    for where, reached in ((2, {2, 4, 6}), (4, {4})):
        _, moved = MODEL.run_with_cache(
            inputs, names, fwd_hooks=[(f"blocks.{where}.attn.hook_rot_k", lambda x, hook: -x)]
        )
        assert {layer for layer in range(7) if torch.equal(moved["rot_k", layer], -idle["rot_k", layer])} == reached


@pytest.mark.parametrize("layer", [1, 3, 5])
def test_discarding_equals_knocking_out_in_layers_that_make_keys_and_in_layers_that_read_them(layer):
    inputs = asked()
    video, rest = inputs.tokens.video, inputs.tokens.all - inputs.tokens.video
    short = MODEL.run_with_hooks(inputs, discard(video, layer=layer))
    blocked = MODEL.run_with_hooks(inputs, knockout(~video, video, layers=range(layer, 7)))
    assert_equal(short, blocked[:, rest.positions])
    edits = discard(video, layer=layer), knockout(~video, video, layers=range(layer, 7))
    one, other = (MODEL.generate(inputs, 6, fwd_hooks=edit, min_new_tokens=6, keep_logits=True) for edit in edits)
    assert_equal(one.logits[:, 0], other.logits[:, 0])


def test_keys_and_values_patched_everywhere_equal_residuals_patched_everywhere():
    """At the positions outside the set; layers without keys of their own follow those that made them."""
    clean, mute = asked(), asked(CLIP.silenced())
    audio = clean.tokens.audio
    _, cache = MODEL.run_with_cache(clean, ["resid_pre", "k", "v"])
    by_stream = MODEL.run_with_hooks(mute, patch(cache, audio))
    by_keys = MODEL.run_with_hooks(mute, patch(cache, audio, site="k") + patch(cache, audio, site="v"))
    rest = (clean.tokens.all - audio).positions
    assert_equal(by_keys[:, rest], by_stream[:, rest])
    assert largest_difference(by_stream[:, rest], MODEL(mute)[:, rest]) > 1e-3


def test_sweeps_run_in_full_and_logits_are_not_split_by_head():
    inputs = asked()
    edits = {"audio": knockout(inputs.tokens.last, inputs.tokens.audio), "video": discard(inputs.tokens.video, layer=3)}
    swept = sweep(MODEL, inputs, edits, logits_at=inputs.tokens.last)
    for row, edit in zip(swept, edits.values(), strict=True):
        assert_equal(row, MODEL.run_with_hooks(inputs, edit)[0, -1:])
    mute = asked(CLIP.silenced())
    _, cache = MODEL.run_with_cache(mute)
    for analysis in (
        cache.decompose_resid, cache.get_full_resid_decomposition,
        lambda: direct_logit_attribution(MODEL, inputs),
        lambda: transport(MODEL, inputs, mute),
        lambda: path_patching(MODEL, inputs, mute, ["audio -> last"]),
        lambda: path_patch(cache, inputs.tokens.last, inputs.tokens.audio),
    ):  # fmt: skip
        with pytest.raises(HookError, match="is not defined for Gemma 4 E2B, E4B, whose blocks read windows"):
            analysis()


def test_a_token_has_an_input_in_each_layer_and_media_have_that_of_padding():
    inputs = asked()
    _, cache = MODEL.run_with_cache(inputs, ["hook_embed", "layer_input"])
    text = MODEL.stock.whole.model.language_model
    ids = inputs.ids.clone()
    ids[:, inputs.tokens.media.positions] = text.config.pad_token_id
    wanted = text.project_per_layer_inputs(cache["hook_embed"], text.get_per_layer_inputs(ids, None))
    for layer in range(7):
        assert_equal(cache["layer_input", layer], wanted[:, :, layer])


# What it reads.


@pytest.mark.parametrize(("seconds", "fps"), [(0.4, 2.0), (1.0, 1.0), (3.7, 2.0), (70.0, 0.1)])
def test_each_frame_has_its_time_before_it_and_the_sound_is_after_the_last(seconds, fps):
    clip = tiny_clip(seconds, fps=fps, size=(48, 72))
    if seconds > 30:
        clip = clip.without_audio()
    tokens = asked(clip, "what ?").tokens
    strings, n_frames = "".join(tokens.strings), len(clip.frames)
    times = [f"{int(second // 60):02d}:{int(second % 60):02d} <|image>" for second in clip.frame_seconds.tolist()]
    places = [strings.index(time) for time in dict.fromkeys(times)]
    assert places == sorted(places) and strings.count("<|image>") == strings.count("<image|>") == n_frames
    video, audio = tokens.video.positions, tokens.audio.positions
    assert tokens.frame[video].unique().tolist() == list(range(n_frames))
    assert torch.equal(tokens.start[video], clip.frame_seconds.double()[tokens.frame[video]])
    if len(audio):
        # Frames of 20 ms every 10 ms, from 10 ms before the start; four of them to a token.
        mel = (len(clip.waveform) + 160 - 321) // 160 + 1
        assert len(audio) == math.ceil(mel / 4) and (audio.diff() == 1).all() and audio[0] > video[-1]
        assert_equal(tokens.start[audio], torch.arange(len(audio)).double() * 0.04)
        assert abs(float(tokens.end[audio[-1]]) - seconds) < 0.05


def test_frames_are_cut_as_the_official_processor_cuts_them():
    """Rows of patches, each by row, column and colour; the largest sides that fit."""
    for height, width, most in ((84, 56, 4), (720, 1280, 70), (1280, 720, 280), (30, 4000, 70), (48, 48, 70)):
        rows, cols = (side // 48 for side in _fitted(height, width, 16, 3, most * 9))
        assert 1 <= rows * cols <= most and (rows + 1) * (cols + 1) > min(most, rows * cols + 1)
    vision = MODEL.family.config.vision_config
    media = asked().prompt.media[0].tensors
    assert media["pixels"].shape == (5, 18, 3 * vision.patch_size**2) and float(media["pixels"].max()) <= 1
    exact = tiny_clip(0.5, size=(48, 24), seed=2)
    pixels = MODEL.prepare(exact, "", max_pixels=48 * 24).prompt.media[0].tensors
    assert torch.equal(pixels["places"][0, :4], torch.tensor([[0, 0], [1, 0], [2, 0], [0, 1]]))
    corner = exact.frames[0, :, 8:16, 16:24].permute(1, 2, 0).flatten().float() / 255
    assert torch.equal(pixels["pixels"][0, 5], corner)


def test_prompts_that_it_cannot_read_are_refused():
    with pytest.raises(PromptError, match="at most 30 s. Cut it"):
        asked(tiny_clip(31.0, video=False))
    with pytest.raises(PromptError, match="too few for one token"):
        asked(tiny_clip(0.009, video=False))
    with pytest.raises(PromptError, match="no lower bound"):
        MODEL.prepare(CLIP, "what ?", min_pixels=4)
    with pytest.raises(PromptError, match="smaller than one token, 24x24"):
        MODEL.prepare(CLIP, "what ?", max_pixels=100)


# Checkpoints.

E2B = {
    "hidden_size": 1536, "intermediate_size": 6144, "num_hidden_layers": 35, "num_attention_heads": 8, "num_key_value_heads": 1,
    "num_kv_shared_layers": 20, "use_double_wide_mlp": True,
    "layer_types": (["sliding_attention"] * 4 + ["full_attention"]) * 7,
}  # fmt: skip
E4B = {
    "hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 42, "num_attention_heads": 8,
    "num_key_value_heads": 2, "num_kv_shared_layers": 18, "use_double_wide_mlp": False,
    "layer_types": (["sliding_attention"] * 5 + ["full_attention"]) * 7,
}  # fmt: skip


def released(text):
    """A config.json as it is released, as far as it is known, with what transformers leaves at its defaults."""
    return {
        "architectures": ["Gemma4ForConditionalGeneration"], "model_type": "gemma4", "tie_word_embeddings": True,
        "dtype": "bfloat16", "eoa_token_index": 258883, "audio_token_id": 258881, "video_token_id": 258884,
        "text_config": {
            **text, "model_type": "gemma4_text", "vocab_size": 262144, "head_dim": 256, "global_head_dim": 512,
            "num_global_key_value_heads": None, "rms_norm_eps": 1e-6, "hidden_size_per_layer_input": 256,
            "vocab_size_per_layer_input": 262144, "sliding_window": 512, "max_position_embeddings": 131072,
            "final_logit_softcapping": 30.0, "attention_bias": False, "attention_k_eq_v": False, "enable_moe_block": False,
            "tie_word_embeddings": True, "hidden_activation": "gelu_pytorch_tanh", "use_bidirectional_attention": None,
            "rope_parameters": {
                "full_attention": {"partial_rotary_factor": 0.25, "rope_theta": 1e6, "rope_type": "proportional"},
                "sliding_attention": {"rope_theta": 1e4, "rope_type": "default"},
            },
        },
        "vision_config": {"model_type": "gemma4_vision"}, "audio_config": {"model_type": "gemma4_audio"},
    }  # fmt: skip


@pytest.mark.parametrize(("text", "billions"), [(E2B, 5.1), (E4B, 8.0)], ids=["E2B", "E4B"])
def test_released_sizes_are_taken_without_memory(text, billions):
    Gemma4.check(released(text))
    config = Gemma4Config.from_dict(released(text))
    with torch.device("meta"):
        whole = Gemma4ForConditionalGeneration(config)
    whole.lm_head.weight = whole.model.language_model.embed_tokens.weight
    model = HookedAVModel(Gemma4(config, MODEL.tokenizer, {}, {}), _stock(whole))
    assert {id(weight) for weight in model.parameters()} == {id(weight) for weight in whole.parameters()}
    assert abs(sum(weight.numel() for weight in model.parameters()) / 1e9 - billions) < 0.2
    first, far = model.blocks[0].attn, config.text_config.layer_types.index("full_attention")
    assert first.W_Q.shape == (8, text["hidden_size"], 256) and model.blocks[far].attn.W_Q.shape[-1] == 512
    readers = [i for i, block in enumerate(model.blocks) if block.attn.source is not None]
    assert readers == list(range(text["num_hidden_layers"] - text["num_kv_shared_layers"], text["num_hidden_layers"]))
    kinds = text["layer_types"]
    assert all(kinds[model.blocks[i].attn.source] == kinds[i] for i in readers)
    assert first.window == 512 and model.blocks[far].attn.window is None
    # Each layer: six norms and a scale around two projections, an MLP and a gate; keys, values and their norm, but for readers.
    keys = [key for key in whole.state_dict() if ".language_model.layers." in key]
    assert len(keys) == len(model.blocks) * 14 + (len(model.blocks) - len(readers)) * 3


@pytest.mark.parametrize(
    ("section", "setting", "value"),
    [
        ("text_config", "attention_k_eq_v", True), ("text_config", "enable_moe_block", True),
        ("text_config", "use_bidirectional_attention", "vision"), ("text_config", "hidden_activation", "silu"),
        ("text_config", "rope_parameters", {"full_attention": {"rope_type": "yarn"}, "sliding_attention": {}}),
        ("vision_config", "n_registers", 4), ("audio_config", "streaming", True),
    ],
)  # fmt: skip
def test_a_setting_that_changes_the_forward_pass_is_refused_by_name(section, setting, value):
    config = released(E2B)
    config[section][setting] = value
    with pytest.raises(UnsupportedSettingError, match=rf"sets {section}.{setting} = "):
        Gemma4.check(config)
    with pytest.raises(CheckpointError, match="cannot both hear and see"):
        Gemma4.check(released(E2B) | {"audio_config": None})
