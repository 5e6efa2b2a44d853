"""Qwen2.5-Omni (3B, 7B): the thinker, which hears, sees and answers in text.

A video's sound is interleaved with its frames, two seconds at a time (V video tokens, then up to 50 audio tokens),
between `<|vision_bos|><|audio_bos|>` and `<|audio_eos|><|vision_eos|>`. A video token is a 28x28 pixel patch of two
frames; an audio token is 40 ms. Position ids (TMRoPE) count 25 per second: audio token k has (k, k, k), a video
token (25 x seconds, row, column), both from the start of the block. The talker and token2wav are not loaded.

Source: transformers 5.23, models/qwen2_5_omni: processing (replace_video_with_audio_token), modeling
(get_rope_index, get_audio_features, get_video_features); Xu et al. 2025, arXiv:2503.20215.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import (
    Qwen2_5OmniThinkerConfig,
    Qwen2_5OmniThinkerForConditionalGeneration,
)

from avlens.chat import Medium, marker
from avlens.decoder import DecoderConfig, device_of
from avlens.encoders.hooked import HookedEncoder
from avlens.encoders.patches import window_order
from avlens.errors import PromptError
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
from avlens.zoo.tokenizer import tiny_tokenizer

VIDEO_PIXELS = 128 * 28 * 28, 768 * 28 * 28
"""Bounds of a frame's area that the official processor imposes on videos, whatever the checkpoint says."""

IMAGE_PIXELS = 56 * 56, 28 * 28 * 1280
"""Bounds of an image's area where the checkpoint says none."""


class Qwen25Omni(Thinker):
    """The thinker of Qwen2.5-Omni."""

    name: ClassVar[str] = "qwen2_5_omni"
    title: ClassVar[str] = "Qwen2.5-Omni 3B, 7B"
    tested: ClassVar[str] = "the stock transformers model, on tiny random weights; whole-size shapes"
    stock_class: ClassVar[Any] = Qwen2_5OmniThinkerForConditionalGeneration
    whole: ClassVar[Mapping[str, Any]] = {"architectures": ["Qwen2_5OmniModel"], "model_type": "qwen2_5_omni"}
    dropped: ClassVar[str] = r"^(talker|token2wav)\."
    spare: ClassVar[frozenset[str]] = frozenset({"model.audio_tower.audio_bos_eos_token.weight"})
    reads: ClassVar[Mapping[str, Any]] = {
        "mean": (0.48145466, 0.4578275, 0.40821073), "std": (0.26862954, 0.26130258, 0.27577711),
        "video_pixels": VIDEO_PIXELS, "image_pixels": IMAGE_PIXELS, "nominal_fps": 2.0,
    }  # fmt: skip

    @classmethod
    def check(cls, config: Mapping[str, Any], ignore: Sequence[str] = ()) -> None:
        """Refuse a config with a setting that nobody handled."""
        sections = {"text_config": _TEXT, "audio_config": _AUDIO, "vision_config": _VISION}
        check_thinker(config, outer=_OUTER, rules=_THINKER, sections=sections, ignore=ignore)

    @staticmethod
    def shape(config: Qwen2_5OmniThinkerConfig) -> DecoderConfig:
        """The decoder's shape."""
        return _decoder_config(config)

    @classmethod
    def fresh(
        cls,
        config: Qwen2_5OmniThinkerConfig,
        tokenizer: Any,
        preprocessor: Mapping[str, Any],
        settings: Mapping[str, Any],
    ) -> tuple["Qwen25Omni", Stock]:
        """A thinker of this config with untrained weights."""
        model = Qwen2_5OmniThinkerForConditionalGeneration(config).eval()
        return cls(model.config, tokenizer, preprocessor, settings), thinker_stock(model)

    @classmethod
    def tiny(cls, seed: int, sizes: Mapping[str, Any]) -> tuple["Qwen25Omni", Stock]:
        """A small thinker with random weights, biases and norms, and a byte-level tokenizer."""
        tokenizer = tiny_tokenizer()
        config = _tiny_config(tokenizer, sizes)
        model = random_model(partial(Qwen2_5OmniThinkerForConditionalGeneration, config), tokenizer, seed)
        return cls(model.config, tokenizer, _TINY_PREPROCESSOR, _TINY_SETTINGS), thinker_stock(model)

    def encode(self, encoders: Mapping[str, HookedEncoder], media: Media) -> Float[Tensor, "level media_pos d_model"]:
        """Run the audio or vision tower on one sound, video or image."""
        if media.modality == Modality.AUDIO:
            audio, mel = encoders["audio"].tower, media.tensors["mel"]
            weight = audio.conv1.weight
            mel = mel.to(device_of(audio.conv1), weight.dtype)
            heard: Tensor = audio(mel, feature_lens=torch.tensor([mel.shape[1]], device=mel.device)).last_hidden_state
            return heard[None]
        vision, first = encoders["vision"], encoders["vision"].tower.patch_embed.proj
        grid = media.tensors["grid"][None].to(device_of(first))
        vision.order = self._window_order(media.tensors["grid"]) if vision.watched else None
        seen: Tensor = vision.tower(
            media.tensors["pixels"].to(device_of(first), first.weight.dtype), grid_thw=grid
        ).pooler_output
        return seen[None]

    def _window_order(self, grid: Int[Tensor, "3"]) -> Int[Tensor, " patch"]:
        """The natural index of each patch in the order of windows in which the tower holds them."""
        vision = self.config.vision_config
        return window_order(grid, vision.spatial_merge_size, vision.window_size, vision.patch_size)

    def merged(self, sight: Medium, sound: Medium | None) -> Medium:
        """A video's tokens and its sound's, two seconds of each in turn; position ids are whole, as the stock model's."""
        positions = sight.positions.long()
        sight = replace(sight, positions=positions, advance=int(positions.max()) + 1)
        return sight if sound is None else self._interleave(sight, sound)

    def sound(self, clip: Clip, index: int) -> Medium:
        """A clip's mel frames, and an audio token for every four of them."""
        mel = self.reading.heard(clip, index)
        count = ((mel.shape[1] - 1) // 2 + 1 - 2) // 2 + 1
        if count < 1:
            raise PromptError(
                f"the sound of clip {index} has {_samples(clip)} samples, too few for one token. Pass a longer one."
            )
        seconds = 4 * self.reading.mel.hop_length / self.reading.mel.sampling_rate
        frame = torch.arange(count)
        times = {name: (frame + int("end" in name)) * seconds for name in ("start", "end")}
        times |= {
            f"nominal_{name}": (frame + int("end" in name)) / self.config.position_id_per_seconds
            for name in ("start", "end")
        }
        times = {name: time.double() for name, time in times.items()}
        ids, strings = torch.full((count,), self.reading.token(Modality.AUDIO)), ["<|AUDIO|>"] * count
        tokens = TokenMap.of(
            ids, strings, Modality.AUDIO, Segment.MEDIA, clip=torch.full((count,), index), audio_frame=frame, **times
        )
        return Medium(tokens, frame.expand(3, -1), [(Modality.AUDIO, {"mel": mel})], count)

    def _interleave(self, sight: Medium, sound: Medium) -> Medium:
        """A video's tokens and its sound's, two seconds of each in turn, between begin and end of audio."""
        rate = self.config.position_id_per_seconds
        per_chunk = int(rate * self.config.seconds_per_chunk)
        heard = _chunks(range(len(sound.tokens)), per_chunk)
        turns = _turns(_chunks((sight.tokens.nominal_start * rate).tolist(), per_chunk), heard)
        runs = [(sight if is_video else sound).tokens[part] for is_video, part in turns]
        # The stock model cuts its position ids by itself, from times in single precision.
        turns = _turns(_chunks(sight.positions[0].tolist(), per_chunk), heard)
        places = [(sight if is_video else sound).positions[:, part] for is_video, part in turns]
        end = int(places[-1].max()) + 1
        bos, eos = (marker(self.tokenizer, string) for string in ("<|audio_bos|>", "<|audio_eos|>"))
        # Begin of audio shares its position id with begin of vision before it; both ends share one too.
        return Medium(
            tokens=TokenMap.join([bos, *runs, eos]),
            positions=torch.cat([torch.full((3, 1), -1), *places, torch.full((3, 1), end)], dim=1),
            media=[*sight.media, *sound.media],
            advance=end + 1,
            closes_with_next=True,
        )


def _samples(clip: Clip) -> int:
    return 0 if clip.waveform is None else len(clip.waveform)


def _chunks(times: Any, per_chunk: float) -> list[slice]:
    """Cut increasing times at multiples of `per_chunk`, at most once per token."""
    cuts, chunk = [0], 1
    for i, time in enumerate(times):
        if time >= chunk * per_chunk:
            cuts.append(i)
            chunk += 1
    return [slice(start, end) for start, end in zip(cuts, [*cuts[1:], len(times)], strict=True)]


def _turns(video: list[slice], audio: list[slice]) -> list[tuple[bool, slice]]:
    """Chunks of video and audio in turn, video first."""
    turns = []
    for i in range(max(len(video), len(audio))):
        turns += [(True, video[i])] if i < len(video) else []
        turns += [(False, audio[i])] if i < len(audio) else []
    return turns


# Checkpoints.

_OUTER = frozenset(
    ["thinker_config", "talker_config", "token2wav_config", "enable_audio_output", "enable_talker", "hidden_size",
     "num_attention_heads"]
)  # fmt: skip

_THINKER = {
    **known(
        "text_config", "audio_config", "vision_config", "audio_token_index", "image_token_index", "video_token_index",
        "audio_token_id", "image_token_id", "video_token_id", "position_id_per_seconds", "seconds_per_chunk",
        "audio_start_token_id", "audio_end_token_id", "vision_start_token_id", "vision_end_token_id", "vision_token_id",
        "user_token_id", "tie_word_embeddings", "hidden_size", "num_attention_heads",
    ),
}  # fmt: skip

_TEXT = {
    **known(
        "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
        "head_dim", "max_position_embeddings", "rms_norm_eps", "tie_word_embeddings", "sliding_window", "max_window_layers",
        "rope_theta",
    ),
    "hidden_act": one_of("silu"),
    "use_sliding_window": one_of(False),
    "layer_types": lambda kinds: kinds is None or set(kinds) <= {"full_attention"},
    "rope_scaling": lambda rope: _plain_rope(rope), "rope_parameters": lambda rope: _plain_rope(rope),
}  # fmt: skip

# The towers are transformers' own modules, which compute whatever their config classes know.
_AUDIO = known(
    "num_mel_bins", "encoder_layers", "encoder_attention_heads", "encoder_ffn_dim", "d_model", "activation_function",
    "scale_embedding", "max_source_positions", "n_window", "output_dim", "num_hidden_layers", "hidden_size",
    "num_attention_heads", "intermediate_size", "tie_word_embeddings",
)  # fmt: skip
_VISION = known(
    "depth", "hidden_size", "hidden_act", "intermediate_size", "num_heads", "in_channels", "in_chans", "embed_dim",
    "patch_size", "spatial_merge_size", "spatial_patch_size", "temporal_patch_size", "window_size", "out_hidden_size",
    "fullatt_block_indexes", "rope_parameters", "rope_theta", "tokens_per_second", "num_hidden_layers", "num_attention_heads",
    "tie_word_embeddings",
)  # fmt: skip


def _plain_rope(rope: Mapping[str, Any] | None) -> bool:
    """Whether rotary settings ask for nothing but a base and a section per axis."""
    if rope is None:
        return True
    kinds = {rope.get("rope_type", "default"), rope.get("type", "default")}
    return kinds <= {"default", "mrope"} and set(rope) <= {"rope_type", "type", "rope_theta", "mrope_section"}


def _decoder_config(config: Qwen2_5OmniThinkerConfig) -> DecoderConfig:
    text = config.text_config
    rope = text.rope_parameters
    head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return DecoderConfig(
        n_layers=text.num_hidden_layers, d_model=text.hidden_size, n_heads=text.num_attention_heads,
        n_key_value_heads=text.num_key_value_heads, d_head=head, d_mlp=text.intermediate_size,
        d_vocab=text.vocab_size, n_ctx=text.max_position_embeddings, eps=text.rms_norm_eps,
        rotary_base=rope["rope_theta"], mrope_section=tuple(rope.get("mrope_section", (16, 24, 24))),
        act_fn=text.hidden_act, model_name="qwen2_5_omni", original_architecture=type(config).__name__,
    )  # fmt: skip


# Small models.

_TINY_PREPROCESSOR = {
    "feature_extractor_type": "WhisperFeatureExtractor", "image_processor_type": "Qwen2VLImageProcessor",
    "processor_class": "Qwen2_5OmniProcessor", "feature_size": 128, "sampling_rate": 16000, "hop_length": 160,
    "chunk_length": 300, "n_fft": 400, "n_samples": 4800000, "nb_max_frames": 30000, "padding_value": 0.0, "dither": 0.0,
    "padding_side": "right", "return_attention_mask": True, "patch_size": 14, "merge_size": 2, "temporal_patch_size": 2,
    "min_pixels": 4 * 28 * 28, "max_pixels": 16 * 28 * 28,
    "image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711],
}  # fmt: skip

_TINY_SETTINGS = {"video_pixels": [4 * 28 * 28, 16 * 28 * 28]}

_TINY_SIZES = {
    "n_layers": 3, "d_model": 64, "n_heads": 4, "n_key_value_heads": 2, "d_head": None, "d_mlp": 96, "mrope_section": None,
    "rotary_base": 1e6, "tie_word_embeddings": False, "d_encoder": 32, "n_encoder_layers": 2, "d_vocab": None,
    "n_ctx": 32768,
}  # fmt: skip


def _tiny_config(tokenizer: Any, sizes: Mapping[str, Any]) -> Qwen2_5OmniThinkerConfig:
    size = tiny_sizes(_TINY_SIZES, sizes)
    head = size["d_head"] or size["d_model"] // size["n_heads"]
    share = head // 2 * 3 // 8
    section = list(size["mrope_section"] or (head // 2 - 2 * share, share, share))
    token, width, depth = tokenizer.convert_tokens_to_ids, size["d_encoder"], size["n_encoder_layers"]
    return Qwen2_5OmniThinkerConfig(
        text_config={
            "hidden_size": size["d_model"], "intermediate_size": size["d_mlp"], "num_hidden_layers": size["n_layers"],
            "num_attention_heads": size["n_heads"], "num_key_value_heads": size["n_key_value_heads"], "head_dim": head,
            "vocab_size": size["d_vocab"] or len(tokenizer), "max_position_embeddings": size["n_ctx"],
            "rope_parameters": {"rope_type": "default", "rope_theta": size["rotary_base"], "mrope_section": section},
            "tie_word_embeddings": size["tie_word_embeddings"], "bos_token_id": None,
            "eos_token_id": token("<|im_end|>"), "pad_token_id": token("<|endoftext|>"),
        },
        audio_config={
            "d_model": width, "encoder_layers": depth, "encoder_attention_heads": 4, "encoder_ffn_dim": 2 * width,
            "num_mel_bins": 128, "output_dim": size["d_model"],
        },
        vision_config={
            "depth": depth, "hidden_size": width, "intermediate_size": 2 * width, "num_heads": 4,
            "out_hidden_size": size["d_model"], "fullatt_block_indexes": [depth - 1],
        },
        audio_token_index=token("<|AUDIO|>"), image_token_index=token("<|IMAGE|>"), video_token_index=token("<|VIDEO|>"),
        audio_start_token_id=token("<|audio_bos|>"), audio_end_token_id=token("<|audio_eos|>"),
        vision_start_token_id=token("<|vision_bos|>"), vision_end_token_id=token("<|vision_eos|>"),
        user_token_id=token("user"), tie_word_embeddings=size["tie_word_embeddings"],
    )  # fmt: skip
