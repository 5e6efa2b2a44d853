"""Qwen3-Omni beside the unmodified transformers code: experts, deepstack, interleaved rotary axes, order, positions, keys."""

import json
import re
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import Qwen3OmniMoeThinkerConfig, Qwen3OmniMoeThinkerForConditionalGeneration
from transformers.models.qwen3_omni_moe.modeling_qwen3_omni_moe import _get_feat_extract_output_lengths
from transformers.models.qwen3_omni_moe.processing_qwen3_omni_moe import Qwen3OmniMoeProcessor

from avlens import Clip, HookedAVModel
from avlens.errors import CheckpointError, UnsupportedSettingError
from avlens.families.qwen3_omni import Qwen3Omni, _by_expert, _n_audio_tokens
from avlens.inputs import AVInputs
from avlens.testing import tiny_clip, tiny_model
from avlens.thinkers import thinker_config, thinker_key, thinker_stock
from avlens.tokens import Modality
from tests.helpers import assert_equal, prompt_of, real_positions, stock_run

MODEL = tiny_model("qwen3_omni")
LONG = tiny_clip(1.3, video=False, seed=5)


def clip_of(video_seconds, audio_seconds, fps, size=(64, 64)):
    seen = tiny_clip(video_seconds, fps=fps, size=size, audio=False)
    return Clip(seen.frames, fps, torch.randn(round(audio_seconds * 16000)) / 10, 16000)


def prompts(kind):
    if kind == "interleaved":  # sounds of more than a second, for the stock model fills up shorter ones
        clip, other = tiny_clip(2.6, size=(84, 56), seed=3), tiny_clip(1.1, size=(56, 56), seed=4)
        return MODEL.prepare([clip, "and then", LONG, "and", clip.frames[1], other], "which is louder ?")
    return prompt_of(MODEL, kind)


@pytest.mark.parametrize("attn", ["eager", "sdpa"])
@pytest.mark.parametrize(
    "kind", ["video_and_audio", "question_first", "audio", "video", "image", "text", "interleaved", "batch"]
)
def test_logits_residuals_and_patterns_equal_the_stock_models(attn, kind):
    inputs = prompts(kind)
    stock = stock_run(MODEL, inputs, attn)
    names = ["resid_pre", "resid_post", "deepstack", "router_logits"]
    names += ["pattern"] if attn == "eager" else []
    if kind in ("text", "audio"):
        names.remove("deepstack")
    logits, cache = MODEL.run_with_cache(inputs, names, attn=attn)
    real = real_positions(inputs)
    assert_equal(logits[real], stock.logits[real])
    for layer in range(3):
        # The stock model records the stream before frames are added to it.
        before = cache["resid_post", layer - 1] if layer else cache["resid_pre", 0]
        assert_equal(before[real], stock.hidden_states[layer][real])
        if layer and "deepstack" in names:
            assert_equal(before + cache["deepstack", layer], cache["resid_pre", layer])
        if attn == "eager":
            assert_equal(cache["pattern", layer].transpose(1, 2)[real], stock.attentions[layer].transpose(1, 2)[real])
    routed = MODEL.stock.whole(**inputs.hf_kwargs(), output_router_logits=True).router_logits
    for layer in range(3):
        assert_equal(cache["router_logits", layer][real], routed[layer].view(*inputs.shape, -1)[real])


@given(
    n_experts=st.integers(2, 6), top=st.integers(1, 2), seed=st.integers(0, 9), heads=st.sampled_from([(4, 2), (2, 2), (6, 1)]),
    half=st.sampled_from([4, 8]), depth=st.integers(0, 2), tied=st.booleans(),
)  # fmt: skip
@settings(max_examples=10)
def test_models_of_any_shape_equal_the_stock_model(n_experts, top, seed, heads, half, depth, tied):
    model = tiny_model(
        "qwen3_omni", seed=seed, num_experts=n_experts, experts_per_token=top, n_heads=heads[0], n_key_value_heads=heads[1],
        d_head=2 * half, d_model=48, n_deepstack=depth, tie_word_embeddings=tied,
    )  # fmt: skip
    inputs = AVInputs.batch([model.prepare(clip_of(2.2, 1.7, 2.0), "what ?"), model.prepare([], "is it red ?")])
    real = real_positions(inputs)
    assert_equal(model(inputs)[real], stock_run(model, inputs, "sdpa").logits[real])


def test_generated_tokens_equal_the_stock_models():
    inputs = prompts("video_and_audio")
    stock = MODEL.stock.whole.generate(**inputs.hf_kwargs(), max_new_tokens=8, min_new_tokens=8, do_sample=False)
    assert torch.equal(MODEL.generate(inputs, 8, min_new_tokens=8).tokens, stock[:, inputs.shape[1] :])


# Experts.


def test_what_the_experts_say_adds_up_to_the_mlp():
    inputs = prompts("video_and_audio")
    names = ["router_logits", "expert_weights", "expert_indices", "expert_out", "mlp_out", "ln2.normalized"]
    _, cache = MODEL.run_with_cache(inputs, names)
    for layer in range(3):
        weights, chosen = cache["expert_weights", layer], cache["expert_indices", layer]
        assert_equal(weights, cache["router_logits", layer].softmax(-1))
        shares = weights.gather(-1, chosen)
        shares = shares / shares.sum(-1, keepdim=True)
        assert_equal((shares[..., None] * cache["expert_out", layer]).sum(2), cache["mlp_out", layer])
        mlp = MODEL.blocks[layer].mlp
        x = cache["ln2.normalized", layer] * MODEL.blocks[layer].ln2.w
        for slot in range(2):
            gate, up, out = (w[chosen[..., slot]] for w in (mlp.W_gate, mlp.W_in, mlp.W_out))
            hidden = torch.nn.functional.silu(torch.einsum("bpm,bpmd->bpd", x, gate)) * torch.einsum(
                "bpm,bpmd->bpd", x, up
            )
            assert_equal(torch.einsum("bpd,bpdm->bpm", hidden, out), cache["expert_out", layer][:, :, slot])
        assert_equal(x @ mlp.W_router, cache["router_logits", layer])


def test_experts_can_be_chosen_and_silenced_by_hooks():
    inputs = prompts("video_and_audio")
    same = MODEL.run_with_hooks(inputs, [("blocks.1.mlp.hook_expert_indices", lambda x, hook: x.flip(-1))])
    assert_equal(same, MODEL(inputs))
    _, cache = MODEL.run_with_cache(
        inputs,
        ["expert_indices", "mlp_out"],
        fwd_hooks=[("blocks.1.mlp.hook_expert_indices", lambda x, hook: x * 0 + 3)],
    )
    assert (cache["expert_indices", 1] == 3).all()
    _, silent = MODEL.run_with_cache(
        inputs, "mlp_out", fwd_hooks=[("blocks.1.mlp.hook_expert_out", lambda x, hook: torch.zeros_like(x))]
    )
    assert (silent["mlp_out", 1] == 0).all() and (cache["mlp_out", 1] != 0).any()


def test_a_hook_on_the_deepstack_decides_what_is_added():
    inputs = prompts("video_and_audio")
    _, cache = MODEL.run_with_cache(
        inputs, ["resid_pre", "resid_post", "deepstack"],
        fwd_hooks=[("blocks.1.hook_deepstack", lambda x, hook: torch.zeros_like(x))],
    )  # fmt: skip
    assert torch.equal(cache["resid_pre", 1], cache["resid_post", 0])
    elsewhere = ~inputs.tokens.video.mask
    assert (cache["deepstack", 2][:, elsewhere] == 0).all() and (cache["deepstack", 2][:, ~elsewhere] != 0).any()


@pytest.mark.parametrize("kind", ["video_and_audio", "image", "audio", "text"])
def test_parts_of_the_stream_hold_what_encoders_add_later(kind):
    inputs = prompts(kind)
    logits, cache = MODEL.run_with_cache(inputs, lambda name: True)
    later = (
        [f"{at}_deepstack" for at in range(1, MODEL.cfg.n_deepstack + 1)]
        if kind in ("video_and_audio", "image")
        else []
    )
    for layer in range(4):
        parts, labels = cache.decompose_resid(layer, return_labels=True)
        assert_equal(parts.sum(0), cache["resid_pre", layer] if layer < 3 else cache["resid_post", 2])
        assert len(labels) == len(parts) and [name for name in labels if "deepstack" in name] == later[:layer]
    last, labels = cache.decompose_resid(apply_ln=True, pos_slice=-1, return_labels=True)
    assert len(labels) == len(last)
    directions = MODEL.ln_final.w[:, None] * MODEL.W_U
    assert_equal(last.sum(0) @ directions, logits[:, -1])
    projected = cache.get_full_resid_decomposition(
        expand_neurons=False, apply_ln=True, pos_slice=-1, project_output_onto=directions[:, 5]
    )
    assert_equal(projected.sum(0), logits[:, -1, 5])


# Order and positions.


@pytest.mark.parametrize("nominal_fps", [None, 2.0, 1.0, 3.0, 0.9, 0.3])
def test_positions_equal_the_stock_models_over_a_grid_of_clips(nominal_fps):
    for video_seconds, audio_seconds, fps in [(1, 1, 2.0), (5, 5, 1.0), (6.5, 2.1, 2.0), (2, 9.3, 5.0), (12, 0.2, 2.0)]:
        for order in ("media_first", "question_first"):
            clip = clip_of(video_seconds, audio_seconds, fps, (64, 96))
            inputs = MODEL.prepare([clip, "and", clip.frames[0]], "what ?", order=order, nominal_fps=nominal_fps)
            kwargs = inputs.hf_kwargs()
            positions, delta = MODEL.stock.whole.model.get_rope_index(
                kwargs["input_ids"], kwargs["image_grid_thw"], kwargs["video_grid_thw"], kwargs["attention_mask"], True,
                kwargs["feature_attention_mask"].sum(1), kwargs["video_second_per_grid"],
            )  # fmt: skip
            assert_equal(inputs.positions.float(), positions, 1e-6)
            assert_equal(inputs.next_positions.float(), inputs.shape[1] + delta[0].float(), 1e-6)


@given(
    n_frames=st.integers(1, 24), audio_seconds=st.floats(0.1, 12.0), nominal_fps=st.sampled_from([0.25, 0.5, 1.0, 2.0, 4.0]),
    size=st.sampled_from([(64, 64), (32, 96)]),
)  # fmt: skip
@settings(max_examples=30)
def test_tokens_come_in_the_order_of_the_official_processor(n_frames, audio_seconds, nominal_fps, size):
    tokens = MODEL.prepare(clip_of(n_frames / 2, audio_seconds, 2.0, size), "", nominal_fps=nominal_fps).tokens
    grid = int(tokens.frame.max()) + 1, int(tokens.row.max()) + 1, int(tokens.col.max()) + 1
    processor = SimpleNamespace(
        video_processor=SimpleNamespace(merge_size=2), audio_bos_token="B", audio_eos_token="E", video_token="V",
        audio_token="A",
    )  # fmt: skip
    wanted = Qwen3OmniMoeProcessor.replace_video_with_audio_token(
        processor,
        {
            "video_grid_thw": torch.tensor([[grid[0], 2 * grid[1], 2 * grid[2]]]).numpy(),
            "video_second_per_grid": [2 / nominal_fps],
        },
        0, {"num_audio_tokens": [len(tokens.audio)]}, 0, position_id_per_seconds=13.0,
    )  # fmt: skip
    first = int(tokens.media.positions.min()) - 1
    ours = "".join({Modality.AUDIO: "A", Modality.VIDEO: "V"}.get(kind, "-") for kind in tokens.modality.tolist())
    assert tokens.strings[first] == "<|audio_start|>"
    assert ours[first : first + len(wanted)] == wanted.replace("B", "-").replace("E", "-")


@given(n_mel=st.integers(1, 3000))
def test_the_number_of_audio_tokens_is_the_stock_models(n_mel):
    assert _n_audio_tokens(n_mel, 100) == int(_get_feat_extract_output_lengths(torch.tensor(n_mel), 50))


def test_an_audio_token_is_eighty_milliseconds_and_the_last_of_a_second_forty():
    audio = MODEL.prepare(clip_of(2, 2.5, 2.0), "").tokens
    audio = audio.to_frame().loc[audio.audio.positions]
    spans = (audio.end - audio.start).round(6).tolist()
    assert spans[:13] == [0.08] * 12 + [0.04] and spans[13:26] == spans[:13]
    assert audio.start.iloc[13] == 1.0 and (audio.start.diff().dropna() > 0).all()


def test_vision_hooks_see_patches_in_the_order_of_frame_row_and_column():
    inputs = MODEL.prepare(clip_of(2.0, 1.0, 2.0, (64, 96)), "what ?")
    grid = inputs.prompt.media[0].tensors["grid"].tolist()
    _, plain = MODEL.run_with_cache(inputs, "hook_video_embed")
    for index in (0, 5, 17, 40):

        def bump(x, hook, index=index):
            out = x.clone()
            out[:, index] += torch.randn(x.shape[-1])
            return out

        last = ("vision.blocks.1.hook_resid_post", bump)
        _, bumped = MODEL.run_with_cache(inputs, "hook_video_embed", fwd_hooks=[last])
        moved = (bumped["hook_video_embed"] != plain["hook_video_embed"]).any(-1)[0].nonzero()[:, 0].tolist()
        frame, row, col = index // (grid[1] * grid[2]), index // grid[2] % grid[1], index % grid[2]
        tokens, video = inputs.tokens, inputs.tokens.video.positions
        here = [[int(column[video[at]]) for column in (tokens.frame, tokens.row, tokens.col)] for at in moved]
        assert here == [[frame, row // 2, col // 2]]


# Checkpoints.


def test_a_saved_model_has_the_released_keys_and_loads_with_equal_logits(tmp_path):
    MODEL.save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    assert state["thinker.model.layers.2.mlp.experts.3.gate_proj.weight"].shape == (32, 64)
    talker = {"talker.model.norm.weight": torch.ones(2), "code2wav.decoder.weight": torch.ones(2)}
    save_file(state | talker, tmp_path / "model.safetensors", metadata={"format": "pt"})
    inputs = prompts("video_and_audio")
    loaded = HookedAVModel.from_pretrained(tmp_path)
    assert torch.equal(loaded(inputs), MODEL(inputs))
    prepared = loaded.prepare(tiny_clip(2.6, size=(84, 56), seed=3), "what do you hear ?")
    assert torch.equal(prepared.positions, inputs.positions) and prepared.layouts == inputs.layouts
    stock = Qwen3OmniMoeThinkerForConditionalGeneration.from_pretrained(
        tmp_path, config=loaded.stock.whole.config, attn_implementation="sdpa"
    )
    with torch.no_grad():
        assert_equal(stock.eval()(**inputs.hf_kwargs()).logits, MODEL(inputs))
    key = "thinker.model.layers.1.self_attn.q_norm.weight"
    save_file({k: v for k, v in state.items() if k != key}, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"1 missing \['model.language_model.layers.1.self_attn.q_norm.weight'\]"):
        HookedAVModel.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("section", "setting", "value"),
    [
        ("text_config", "decoder_sparse_step", 2), ("text_config", "mlp_only_layers", [1]),
        ("text_config", "attention_bias", True),
        ("text_config", "shared_expert_intermediate_size", 64), ("text_config", "use_sliding_window", True),
        ("text_config", "rope_parameters", {"rope_type": "default", "mrope_interleaved": False}),
        ("vision_config", "register_tokens", 4), ("audio_config", "n_future", 3),
    ],
)  # fmt: skip
def test_a_setting_that_changes_the_forward_pass_is_refused_by_name(section, setting, value):
    config = MODEL.stock.whole.config.to_dict()
    whole = {"model_type": "qwen3_omni_moe", "thinker_config": config, "talker_config": {}, "code2wav_config": {}}
    Qwen3Omni.check(config)
    Qwen3Omni.check(whole)
    config[section][setting] = value
    with pytest.raises(UnsupportedSettingError, match=rf"sets {section}.{setting} = "):
        Qwen3Omni.check(config)
    with pytest.raises(UnsupportedSettingError, match=rf"sets thinker_config.{section}.{setting} = "):
        Qwen3Omni.check(whole)


def test_the_settings_of_the_released_config_are_known():
    """Those that Qwen3-Omni-30B-A3B-Instruct's config.json sets in each section, beside what transformers writes into all."""
    everywhere = {
        "add_cross_attention": False, "architectures": None, "bad_words_ids": None, "chunk_size_feed_forward": 0,
        "do_sample": False, "dtype": None, "eos_token_id": None, "exponential_decay_length_penalty": None, "is_decoder": False,
        "length_penalty": 1.0, "num_beams": 1, "output_attentions": False, "pruned_heads": {}, "return_dict": True,
        "temperature": 1.0, "tf_legacy_loss": False, "torchscript": False, "typical_p": 1.0, "use_bfloat16": False,
        "initializer_range": 0.02,
    }  # fmt: skip
    audio = everywhere | {
        "activation_dropout": 0, "activation_function": "gelu", "attention_dropout": 0, "conv_chunksize": 500, "d_model": 1280,
        "downsample_hidden_size": 480, "dropout": 0, "encoder_attention_heads": 20, "encoder_ffn_dim": 5120,
        "encoder_layers": 32, "max_source_positions": 1500, "model_type": "qwen3_omni_moe_audio_encoder", "n_window": 50,
        "n_window_infer": 800, "num_hidden_layers": 32, "num_mel_bins": 128, "output_dim": 2048, "scale_embedding": False,
        "tie_word_embeddings": True,
    }  # fmt: skip
    text = everywhere | {
        "attention_bias": False, "attention_dropout": 0.0, "decoder_sparse_step": 1, "head_dim": 128, "hidden_act": "silu",
        "hidden_size": 2048, "intermediate_size": 768, "max_position_embeddings": 65536, "mlp_only_layers": [],
        "model_type": "qwen3_omni_moe_text", "moe_intermediate_size": 768, "norm_topk_prob": True, "num_attention_heads": 32,
        "num_experts": 128, "num_experts_per_tok": 8, "num_hidden_layers": 48, "num_key_value_heads": 4,
        "output_router_logits": False, "rms_norm_eps": 1e-6, "rope_theta": 1000000, "router_aux_loss_coef": 0.001,
        "rope_scaling": {
            "interleaved": True, "mrope_interleaved": True, "mrope_section": [24, 20, 20], "rope_type": "default",
            "type": "default",
        },
        "shared_expert_intermediate_size": 0, "sliding_window": None, "tie_word_embeddings": False, "use_cache": True,
        "use_qk_norm": True, "use_sliding_window": False, "vocab_size": 152064,
    }  # fmt: skip
    vision = everywhere | {
        "apply_vit_abs_pos_embed": True, "deepstack_visual_indexes": [8, 16, 24], "depth": 27, "hidden_act": "gelu_pytorch_tanh",
        "hidden_size": 1152, "image_size": 768, "in_channels": 3, "in_chans": 3, "intermediate_size": 4304,
        "model_type": "qwen3_omni_moe_vision_encoder", "num_heads": 16, "num_position_embeddings": 2304, "out_hidden_size": 2048,
        "patch_size": 16, "spatial_merge_size": 2, "spatial_patch_size": 16, "temporal_patch_size": 2,
        "tie_word_embeddings": True, "tokens_per_second": 2,
    }  # fmt: skip
    whole = {
        "architectures": ["Qwen3OmniMoeForConditionalGeneration"], "assistant_token_id": 77091, "code2wav_config": {},
        "dtype": "bfloat16", "enable_audio_output": True, "im_end_token_id": 151645, "im_start_token_id": 151644,
        "model_type": "qwen3_omni_moe", "system_token_id": 8948, "talker_config": {}, "transformers_version": "4.57.0.dev0",
        "tts_bos_token_id": 151672, "tts_eos_token_id": 151673, "tts_pad_token_id": 151671, "user_token_id": 872,
        "thinker_config": {
            "audio_config": audio, "text_config": text, "vision_config": vision, "audio_end_token_id": 151670,
            "audio_start_token_id": 151669, "audio_token_id": 151675, "dtype": "bfloat16", "image_token_id": 151655,
            "initializer_range": 0.02, "model_type": "qwen3_omni_moe_thinker", "position_id_per_seconds": 13,
            "seconds_per_chunk": 2, "user_token_id": 872, "video_token_id": 151656, "vision_end_token_id": 151653,
            "vision_start_token_id": 151652,
        },
    }  # fmt: skip
    Qwen3Omni.check(whole)
    config = thinker_config(Qwen3OmniMoeThinkerConfig, whole)
    cfg = Qwen3Omni(config, MODEL.tokenizer, {}, {}).cfg
    assert (cfg.n_layers, cfg.d_head, cfg.mrope_section, cfg.n_deepstack) == (48, 128, (24, 20, 20), 3)
    assert (cfg.num_experts, cfg.experts_per_token, cfg.rotary_base) == (128, 8, 1000000)


def test_every_key_of_the_released_size_is_consumed_without_memory():
    config = Qwen3OmniMoeThinkerConfig(
        text_config={
            "hidden_size": 2048, "num_hidden_layers": 48, "num_attention_heads": 32, "num_key_value_heads": 4, "head_dim": 128,
            "moe_intermediate_size": 768, "num_experts": 128, "num_experts_per_tok": 8, "vocab_size": 152064,
            "rope_parameters": {
                "rope_type": "default", "rope_theta": 1e6, "mrope_section": [24, 20, 20], "mrope_interleaved": True,
            },
        },
        audio_config={"output_dim": 2048}, vision_config={"out_hidden_size": 2048},
    )  # fmt: skip
    with torch.device("meta"):
        whole = Qwen3OmniMoeThinkerForConditionalGeneration(config)
    model = HookedAVModel(Qwen3Omni(config, MODEL.tokenizer, {}, {}), thinker_stock(whole))
    cfg, block = model.cfg, model.blocks[47]
    assert (cfg.n_layers, cfg.num_experts, cfg.experts_per_token, cfg.n_deepstack) == (48, 128, 8, 3)
    assert block.attn.W_Q.shape == (32, 2048, 128) and block.attn.W_K.shape == (4, 2048, 128)
    assert block.mlp.W_gate.shape == (128, 2048, 768) and block.mlp.W_out.shape == (128, 768, 2048)
    assert {id(weight) for weight in model.parameters()} == {id(weight) for weight in whole.parameters()}
    # Each layer: two norms, two head norms, four projections, a router, and three matrices of each expert.
    state = {key: weight for key, weight in whole.state_dict().items() if ".experts." not in key}
    one = {key: weight for key, weight in whole.state_dict().items() if ".layers.47.mlp.experts." in key}
    released = {part for key in state for part in _by_expert(thinker_key(key), state[key])}
    experts = {part for key in one for part in _by_expert(thinker_key(key), one[key])}
    decoder = {key for key in released if re.match(r"thinker\.(model\.|lm_head)", key)}
    assert len(decoder) == 48 * 9 + 3 and len(experts) == 128 * 3
    assert {key.split(".")[1] for key in released - decoder} == {"audio_tower", "visual"}
    assert json.dumps(sorted(experts)[0]) == '"thinker.model.layers.47.mlp.experts.0.down_proj.weight"'
