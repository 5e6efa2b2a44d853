"""Qwen3-Omni (30B-A3B): a thinker with experts, and with frames added to the stream at several depths.

Queries and keys are normalised per head; the rotary axes take turns over the frequencies; each MLP is a router and many
experts; and the vision tower's earlier layers are added to the stream before the second block, the third and so on
(deepstack). A video's sound is merged with its frames by time, between `<|vision_start|><|audio_start|>` and
`<|audio_end|><|vision_end|>`: the patches of a pair of frames come before the first audio token that is not earlier. A
second of sound is 13 tokens of 80 ms, the last one shorter. Position ids count 13 per second in released checkpoints, in
fractions where a frame rate asks for it. The talker and code2wav are not loaded.

Source: transformers 5.23, models/qwen3_omni_moe: processing (replace_video_with_audio_token), modeling (get_rope_index,
the text model's forward); Xu et al. 2025, arXiv:2509.17765.
Differs from the source: tokens are merged at the checkpoint's rate of position ids, for which the processor has a constant.
A sound is encoded by itself; the stock model fills up the last window of each to the longest in the batch, so that a sound
of less than a second comes out slightly different (0.002) beside longer ones.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import Qwen3OmniMoeThinkerConfig, Qwen3OmniMoeThinkerForConditionalGeneration

from avlens.chat import Medium, marker
from avlens.decoder import DecoderConfig, device_of
from avlens.encoders.hooked import HookedEncoder
from avlens.encoders.patches import raster_order
from avlens.errors import CheckpointError, PromptError
from avlens.family import Stock
from avlens.inputs import Media
from avlens.loading import random_model, tiny_sizes
from avlens.media import Clip
from avlens.settings import known, one_of
from avlens.thinkers import (
    Thinker,
    check_thinker,
    thinker_stock,
)
from avlens.tokens import Modality, Segment, TokenMap
from avlens.zoo.tokenizer import chat_template, tiny_tokenizer

VIDEO_PIXELS = 128 * 32 * 32, 768 * 32 * 32
"""Bounds of a frame's area that the official processor imposes on videos, whatever the checkpoint says."""

IMAGE_PIXELS = 56 * 56, 28 * 28 * 1280
"""Bounds of an image's area where the checkpoint says none."""

TOKENS_PER_WINDOW, MEL_STRIDE = 13, 8
"""An audio window of 100 mel frames becomes so many tokens, each of so many mel frames."""


class Qwen3Omni(Thinker):
    """The thinker of Qwen3-Omni."""

    name: ClassVar[str] = "qwen3_omni"
    title: ClassVar[str] = "Qwen3-Omni 30B-A3B"
    tested: ClassVar[str] = "the stock transformers model, on tiny random weights; whole-size shapes"
    stock_class: ClassVar[Any] = Qwen3OmniMoeThinkerForConditionalGeneration
    whole: ClassVar[Mapping[str, Any]] = {
        "architectures": ["Qwen3OmniMoeForConditionalGeneration"], "model_type": "qwen3_omni_moe",
    }  # fmt: skip
    dropped: ClassVar[str] = r"^(talker|code2wav)\."
    # The official processor assumes one frame per second unless it is told, though its scripts choose two.
    reads: ClassVar[Mapping[str, Any]] = {
        "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5), "video_pixels": VIDEO_PIXELS, "image_pixels": IMAGE_PIXELS,
        "nominal_fps": 1.0,
    }  # fmt: skip

    @classmethod
    def check(cls, config: Mapping[str, Any], ignore: Sequence[str] = ()) -> None:
        """Refuse a config with a setting that nobody handled."""
        sections = {"text_config": _TEXT, "audio_config": _AUDIO, "vision_config": _VISION}
        check_thinker(config, outer=_OUTER, rules=_THINKER, sections=sections, ignore=ignore)

    @staticmethod
    def shape(config: Qwen3OmniMoeThinkerConfig) -> DecoderConfig:
        """The decoder's shape."""
        return _decoder_config(config)

    @classmethod
    def tiny(cls, seed: int, sizes: Mapping[str, Any]) -> tuple["Qwen3Omni", Stock]:
        """A small thinker with random weights, biases and norms, and a byte-level tokenizer."""
        tokenizer = tiny_tokenizer(_SPECIALS, _TEMPLATE, _NAMED)
        config = _tiny_config(tokenizer, sizes)
        build = partial(Qwen3OmniMoeThinkerForConditionalGeneration, config)
        model = random_model(build, tokenizer, seed, _widen_experts)
        return cls(model.config, tokenizer, _TINY_PREPROCESSOR, _TINY_SETTINGS), thinker_stock(model)

    @staticmethod
    def released(name: str, weight: Tensor) -> dict[str, Tensor]:
        """A weight under its released names; in memory the experts of a layer are one tensor."""
        return _by_expert(name, weight)

    def encode(self, encoders: Mapping[str, HookedEncoder], media: Media) -> Float[Tensor, "level media_pos d_model"]:
        """Run the audio or vision tower on one sound, video or image; a video has a level for each depth."""
        if media.modality == Modality.AUDIO:
            audio, mel = encoders["audio"].tower, media.tensors["mel"]
            weight = audio.conv2d1.weight
            mel = mel.to(device_of(audio.conv2d1), weight.dtype)
            heard: Tensor = audio(mel, feature_lens=torch.tensor([mel.shape[1]], device=mel.device)).last_hidden_state
            return heard[None]
        vision, first = encoders["vision"], encoders["vision"].tower.patch_embed.proj
        grid = media.tensors["grid"]
        vision.order = raster_order(grid, self.reading.rules.merge) if vision.watched else None
        pixels = media.tensors["pixels"].to(device_of(first), first.weight.dtype)
        seen = vision.tower(pixels, grid_thw=grid[None].to(device_of(first)))
        return torch.stack([seen.pooler_output, *seen.deepstack_features])

    def sound(self, clip: Clip, index: int) -> Medium:
        """A clip's mel frames, and 13 audio tokens for each second."""
        mel = self.reading.heard(clip, index)
        window = 2 * self.config.audio_config.n_window
        count = _n_audio_tokens(mel.shape[1], window)
        if count < 1:
            raise PromptError(f"the sound of clip {index} has no mel frame, too few for one token. Pass a longer one.")
        hop = self.reading.mel.hop_length / self.reading.mel.sampling_rate
        frame = torch.arange(count)
        begin, step = frame // TOKENS_PER_WINDOW * window, frame % TOKENS_PER_WINDOW
        rate = self.config.position_id_per_seconds
        ids = torch.full((count,), self.reading.token(Modality.AUDIO))
        tokens = TokenMap.of(
            ids, self.tokenizer.convert_ids_to_tokens(ids.tolist()), Modality.AUDIO, Segment.MEDIA,
            clip=torch.full((count,), index), audio_frame=frame,
            start=(begin + step * MEL_STRIDE).double() * hop,
            end=(begin + ((step + 1) * MEL_STRIDE).clamp(max=window)).double() * hop,
            nominal_start=frame.double() / rate, nominal_end=(frame + 1).double() / rate,
        )  # fmt: skip
        return Medium(tokens, frame.expand(3, -1), [(Modality.AUDIO, {"mel": mel})], count)

    def merged(self, sight: Medium, sound: Medium | None) -> Medium:
        """A video's tokens and its sound's in the order of time, video first, between begin and end of audio."""
        if sound is None:
            return sight
        both = TokenMap.join([sight.tokens, sound.tokens])
        # A stable sort keeps video before audio of the same time.
        order = torch.cat([sight.positions[0].float(), sound.positions[0].float()]).sort(stable=True).indices
        positions = torch.cat([sight.positions, sound.positions], dim=1)[:, order] + 1
        end = positions.max() + 1
        tokens = [marker(self.tokenizer, self._string("audio_bos_token")), both.take(order)]
        tokens.append(marker(self.tokenizer, self._string("audio_eos_token")))
        return Medium(
            tokens=TokenMap.join(tokens),
            positions=torch.cat([torch.zeros(3, 1), positions, end.expand(3, 1)], dim=1),
            media=[*sight.media, *sound.media],
            advance=float(end) + 1,
        )

    def _string(self, name: str) -> str:
        string = getattr(self.tokenizer, name, None)
        if not isinstance(string, str):
            raise PromptError(
                f"the tokenizer names no {name}. Take tokenizer_config.json from the released checkpoint."
            )
        return string


def _n_audio_tokens(n_mel: int, window: int) -> int:
    """Tokens of so many mel frames: of whole windows, and of the rest after three halvings."""
    rest = n_mel % window
    for _ in range(3):
        rest = (rest - 1) // 2 + 1
    return n_mel // window * TOKENS_PER_WINDOW + rest


# Checkpoints.


def _by_expert(name: str, weight: Tensor) -> dict[str, Tensor]:
    """A weight under its released names; in memory the experts of a layer are one tensor."""
    if name.endswith(".experts.gate_up_proj"):
        stem = name.removesuffix("gate_up_proj")
        halves = {"gate_proj": 0, "up_proj": 1}
        return {
            f"{stem}{i}.{half}.weight": one.chunk(2)[at].clone()
            for i, one in enumerate(weight)
            for half, at in halves.items()
        }
    if name.endswith(".experts.down_proj"):
        stem = name.removesuffix("down_proj")
        return {f"{stem}{i}.down_proj.weight": one.clone() for i, one in enumerate(weight)}
    return {name: weight}


_OUTER = frozenset(
    ["thinker_config", "talker_config", "code2wav_config", "enable_audio_output", "assistant_token_id", "im_end_token_id",
     "im_start_token_id", "system_token_id", "user_token_id", "tts_bos_token_id", "tts_eos_token_id", "tts_pad_token_id"]
)  # fmt: skip

_THINKER = known(
    "text_config", "audio_config", "vision_config", "audio_token_id", "image_token_id", "video_token_id",
    "position_id_per_seconds", "seconds_per_chunk", "audio_start_token_id", "audio_end_token_id", "vision_start_token_id",
    "vision_end_token_id", "user_token_id", "tie_word_embeddings",
)  # fmt: skip

_TEXT = {
    **known(
        "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
        "head_dim", "max_position_embeddings", "rms_norm_eps", "rope_theta", "sliding_window", "max_window_layers",
        "moe_intermediate_size", "num_experts_per_tok", "num_experts", "norm_topk_prob", "output_router_logits",
        "router_aux_loss_coef", "tie_word_embeddings",
    ),
    "hidden_act": one_of("silu"), "attention_bias": one_of(False), "use_sliding_window": one_of(False),
    "decoder_sparse_step": one_of(1), "mlp_only_layers": one_of([], None), "shared_expert_intermediate_size": one_of(0, None),
    "use_qk_norm": one_of(True), "rope_scaling": lambda rope: _plain_rope(rope),
    "rope_parameters": lambda rope: _plain_rope(rope),
}  # fmt: skip

# The towers are transformers' own modules, which compute whatever their config classes know.
_AUDIO = known(
    "num_mel_bins", "encoder_layers", "encoder_attention_heads", "encoder_ffn_dim", "d_model", "activation_function",
    "scale_embedding", "max_source_positions", "n_window", "output_dim", "n_window_infer", "conv_chunksize",
    "downsample_hidden_size", "num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size",
    "tie_word_embeddings",
)  # fmt: skip
_VISION = {
    **known(
        "depth", "hidden_size", "hidden_act", "intermediate_size", "num_heads", "in_channels", "in_chans", "patch_size",
        "spatial_merge_size", "spatial_patch_size", "temporal_patch_size", "out_hidden_size", "num_position_embeddings",
        "deepstack_visual_indexes", "rope_parameters", "rope_theta", "tokens_per_second", "image_size", "num_hidden_layers",
        "num_attention_heads", "tie_word_embeddings",
    ),
    "apply_vit_abs_pos_embed": one_of(True),
}  # fmt: skip


def _plain_rope(rope: Mapping[str, Any] | None) -> bool:
    """Whether rotary settings ask for nothing but a base and axes that take turns."""
    if rope is None:
        return True
    kinds = {rope.get("rope_type", "default"), rope.get("type", "default")}
    known = {"rope_type", "type", "rope_theta", "mrope_section", "interleaved", "mrope_interleaved"}
    turns = rope.get("mrope_interleaved", True) and rope.get("interleaved", True)
    return kinds <= {"default", "mrope"} and set(rope) <= known and bool(turns)


def _decoder_config(config: Qwen3OmniMoeThinkerConfig) -> DecoderConfig:
    text, depth = config.text_config, len(config.vision_config.deepstack_visual_indexes)
    if depth >= text.num_hidden_layers:
        raise CheckpointError(
            f"the vision tower adds to the stream before {depth} blocks after the first, but the decoder has "
            f"{text.num_hidden_layers} blocks."
        )
    rope = text.rope_parameters
    head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return DecoderConfig(
        n_layers=text.num_hidden_layers, d_model=text.hidden_size, n_heads=text.num_attention_heads,
        n_key_value_heads=text.num_key_value_heads, d_head=head, d_mlp=text.moe_intermediate_size, d_vocab=text.vocab_size,
        n_ctx=text.max_position_embeddings, eps=text.rms_norm_eps, rotary_base=rope["rope_theta"],
        mrope_section=tuple(rope.get("mrope_section", (24, 20, 20))), act_fn=text.hidden_act, model_name="qwen3_omni",
        original_architecture=type(config).__name__, mrope_interleaved=True, use_qk_norm=True,
        num_experts=text.num_experts, experts_per_token=text.num_experts_per_tok, norm_topk_prob=text.norm_topk_prob,
        n_deepstack=depth,
    )  # fmt: skip


# Small models.

_SPECIALS = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>",
    "<|audio_start|>", "<|audio_end|>", "<|audio_pad|>",
)  # fmt: skip

_NAMED = {
    "image_token": "<|image_pad|>", "audio_token": "<|audio_pad|>", "video_token": "<|video_pad|>",
    "vision_bos_token": "<|vision_start|>", "vision_eos_token": "<|vision_end|>", "audio_bos_token": "<|audio_start|>",
    "audio_eos_token": "<|audio_end|>",
}  # fmt: skip

_TEMPLATE = chat_template(
    image="<|vision_start|><|image_pad|><|vision_end|>",
    audio="<|audio_start|><|audio_pad|><|audio_end|>",
    video="<|vision_start|><|video_pad|><|vision_end|>",
)

_TINY_PREPROCESSOR = {
    "feature_extractor_type": "WhisperFeatureExtractor", "image_processor_type": "Qwen2VLImageProcessor",
    "processor_class": "Qwen3OmniMoeProcessor", "feature_size": 128, "sampling_rate": 16000, "hop_length": 160,
    "chunk_length": 300, "n_fft": 400, "n_samples": 4800000, "nb_max_frames": 30000, "padding_value": 0.0, "dither": 0.0,
    "padding_side": "right", "return_attention_mask": True, "patch_size": 16, "merge_size": 2, "temporal_patch_size": 2,
    "min_pixels": 4 * 32 * 32, "max_pixels": 16 * 32 * 32, "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5],
}  # fmt: skip

_TINY_SETTINGS = {"video_pixels": [4 * 32 * 32, 16 * 32 * 32]}

_TINY_SIZES = {
    "n_layers": 3, "d_model": 64, "n_heads": 4, "n_key_value_heads": 2, "d_head": None, "d_mlp": 32, "mrope_section": None,
    "rotary_base": 1e6, "tie_word_embeddings": False, "d_encoder": 32, "n_encoder_layers": 2, "d_vocab": None,
    "n_ctx": 32768, "num_experts": 4, "experts_per_token": 2, "n_deepstack": None,
}  # fmt: skip


def _tiny_config(tokenizer: Any, sizes: Mapping[str, Any]) -> Qwen3OmniMoeThinkerConfig:
    size = tiny_sizes(_TINY_SIZES, sizes)
    head = size["d_head"] or size["d_model"] // size["n_heads"]
    share = head // 2 * 3 // 10
    section = list(size["mrope_section"] or (head // 2 - 2 * share, share, share))
    token, width, depth = tokenizer.convert_tokens_to_ids, size["d_encoder"], size["n_encoder_layers"]
    wanted = size["n_deepstack"]
    n_deepstack = min(2, depth, size["n_layers"] - 1) if wanted is None else wanted
    return Qwen3OmniMoeThinkerConfig(
        text_config={
            "hidden_size": size["d_model"], "moe_intermediate_size": size["d_mlp"], "intermediate_size": size["d_mlp"],
            "num_hidden_layers": size["n_layers"], "num_attention_heads": size["n_heads"], "head_dim": head,
            "num_key_value_heads": size["n_key_value_heads"], "vocab_size": size["d_vocab"] or len(tokenizer),
            "num_experts": size["num_experts"], "num_experts_per_tok": size["experts_per_token"],
            "max_position_embeddings": size["n_ctx"], "tie_word_embeddings": size["tie_word_embeddings"],
            "rope_parameters": {
                "rope_type": "default", "rope_theta": size["rotary_base"], "mrope_section": section,
                "mrope_interleaved": True,
            },
            "bos_token_id": None, "eos_token_id": token("<|im_end|>"), "pad_token_id": token("<|endoftext|>"),
        },
        audio_config={
            "d_model": width, "encoder_layers": depth, "encoder_attention_heads": 4, "encoder_ffn_dim": 2 * width,
            "num_mel_bins": 128, "output_dim": size["d_model"], "downsample_hidden_size": 8,
        },
        vision_config={
            "depth": depth, "hidden_size": width, "intermediate_size": 2 * width, "num_heads": 4, "patch_size": 16,
            "out_hidden_size": size["d_model"], "num_position_embeddings": 64,
            "deepstack_visual_indexes": list(range(n_deepstack)),
        },
        audio_token_id=token("<|audio_pad|>"), image_token_id=token("<|image_pad|>"), video_token_id=token("<|video_pad|>"),
        audio_start_token_id=token("<|audio_start|>"), audio_end_token_id=token("<|audio_end|>"),
        vision_start_token_id=token("<|vision_start|>"), vision_end_token_id=token("<|vision_end|>"),
        position_id_per_seconds=13, user_token_id=token("user"), tie_word_embeddings=size["tie_word_embeddings"],
    )  # fmt: skip


def _widen_experts(model: nn.Module) -> None:
    """Experts, which hold all of theirs in one tensor, at the size of any other weight."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if ".experts." in name:
                weight.normal_(0, 0.8 / weight.shape[-1] ** 0.5)
