"""What are the embedded models made of: the real Qwen2.5-Omni thinker, at a width of 128 and a depth of 6.

One second of a clip is 9 video tokens (84x84 pixels, two frames a second) and then 10 audio tokens (64 mel bands, 40
frames a second), so a clip of 3 s is 57 tokens.
"""

from typing import Any

import torch
from transformers import GenerationConfig, Qwen2_5OmniThinkerConfig

from avlens.families.qwen2_5_omni import Qwen25Omni
from avlens.model import HookedAVModel
from avlens.zoo.tokenizer import EMBEDDED_WORDS, tiny_tokenizer

VIDEO_PER_SECOND, AUDIO_PER_SECOND, MEL_PER_SECOND = 9, 10, 40
PATCHES_PER_SECOND, FRAMES_PER_SECOND, SIDE = 36, 2, 84

PREPROCESSOR = {
    "feature_extractor_type": "WhisperFeatureExtractor", "image_processor_type": "Qwen2VLImageProcessor",
    "processor_class": "Qwen2_5OmniProcessor", "feature_size": 64, "sampling_rate": 16000, "hop_length": 400,
    "chunk_length": 300, "n_fft": 400, "n_samples": 4800000, "nb_max_frames": 12000, "padding_value": 0.0, "dither": 0.0,
    "padding_side": "right", "return_attention_mask": True, "patch_size": 14, "merge_size": 2, "temporal_patch_size": 2,
    "min_pixels": SIDE**2, "max_pixels": SIDE**2,
    "image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711],
}  # fmt: skip

SETTINGS = {"video_pixels": [SIDE**2, SIDE**2]}


def untrained_model(seed: int = 0, *, n_layers: int = 6, name: str = "avlens-tiny") -> HookedAVModel:
    """The model before training."""
    tokenizer = tiny_tokenizer(vocabulary_of=EMBEDDED_WORDS)
    end, pad = (tokenizer.convert_tokens_to_ids(token) for token in ("<|im_end|>", "<|endoftext|>"))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        family, stock = Qwen25Omni.fresh(_config(tokenizer, n_layers, end, pad), tokenizer, PREPROCESSOR, SETTINGS)
    stock.whole.generation_config = GenerationConfig(eos_token_id=end, pad_token_id=pad)
    return HookedAVModel(family, stock, name=name)


def _config(tokenizer: Any, n_layers: int, end: int, pad: int) -> Qwen2_5OmniThinkerConfig:
    token = tokenizer.convert_tokens_to_ids
    config = Qwen2_5OmniThinkerConfig(
        text_config={
            "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": n_layers, "num_attention_heads": 4,
            "num_key_value_heads": 2, "head_dim": 32, "vocab_size": len(tokenizer), "max_position_embeddings": 4096,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 6, 6]},
            "bos_token_id": None, "eos_token_id": end, "pad_token_id": pad, "initializer_range": 0.02,
        },
        audio_config={
            "d_model": 64, "encoder_layers": 2, "encoder_attention_heads": 4, "encoder_ffn_dim": 192, "num_mel_bins": 64,
            "max_source_positions": 200, "n_window": 100, "output_dim": 128,
        },
        vision_config={
            "depth": 2, "hidden_size": 64, "intermediate_size": 128, "num_heads": 4, "patch_size": 14,
            "spatial_merge_size": 2, "temporal_patch_size": 2, "window_size": 112, "out_hidden_size": 128,
            "fullatt_block_indexes": [1],
        },
        audio_token_index=token("<|AUDIO|>"), image_token_index=token("<|IMAGE|>"), video_token_index=token("<|VIDEO|>"),
        audio_start_token_id=token("<|audio_bos|>"), audio_end_token_id=token("<|audio_eos|>"),
        vision_start_token_id=token("<|vision_bos|>"), vision_end_token_id=token("<|vision_eos|>"),
        user_token_id=token("user"), position_id_per_seconds=AUDIO_PER_SECOND, seconds_per_chunk=1,
        tie_word_embeddings=False,
    )  # fmt: skip
    config._attn_implementation = "sdpa"
    return config
