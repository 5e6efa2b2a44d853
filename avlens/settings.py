"""Which settings may a checkpoint's files hold, and what may stand there?

A config is taken only if every setting in it is known: read and handled, or unable to change the forward pass. What is read
must be of its kind (a size, a token id, a flag, ...) and within bounds that no model comes near, so that nonsense is refused
before anything is built or allocated. transformers is shown the settings that are read, and no others.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from avlens.errors import CheckpointError, UnsupportedSettingError

Rule = Callable[[Any], bool]
"""Whether a value of a setting is handled."""


@dataclass(frozen=True)
class Kind:
    """What may stand at a setting.

    Attributes:
        said: In words.
        holds: Whether a value is of this kind.
    """

    said: str
    holds: Rule

    def __call__(self, value: Any) -> bool:
        """Whether a value is of this kind."""
        return self.holds(value)


def one_of(*values: Any) -> Rule:
    """A rule for settings that are handled at these values only."""
    return lambda value: any(type(value) is type(one) and value == one for one in values)


def _whole(low: int, high: int) -> Kind:
    return Kind(
        f"a whole number from {low} to {high}",
        lambda value: isinstance(value, int) and not isinstance(value, bool) and low <= value <= high,
    )


def _number(low: float, high: float) -> Kind:
    def holds(value: Any) -> bool:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and low <= value <= high

    return Kind(f"a number from {low:g} to {high:g}", holds)


def _listed(kind: Kind, least: int, most: int) -> Kind:
    many = f"{least}" if least == most else f"{least} to {most}"

    def holds(value: Any) -> bool:
        return isinstance(value, (list, tuple)) and least <= len(value) <= most and all(map(kind, value))

    return Kind(f"a list of {many} values, each {kind.said}", holds)


def _or(*kinds: Kind) -> Kind:
    return Kind(" or ".join(kind.said for kind in kinds), lambda value: any(kind(value) for kind in kinds))


_NULL = Kind("null", lambda value: value is None)
_FLAG = Kind("true or false", lambda value: isinstance(value, bool))
_TEXT = Kind("a short text", lambda value: isinstance(value, str) and len(value) <= 1000)
_SECTION = Kind("an object", lambda value: isinstance(value, Mapping))
_LAYERS, _HEADS, _SIZE = _whole(1, 1000), _whole(1, 2**14), _whole(1, 2**22)
_COUNT = _whole(0, 2**22)
_LENGTH = _whole(1, 2**31)
_TOKEN = _whole(0, 2**31)
_SHARE, _POSITIVE = _number(0, 1), _number(1e-12, 1e12)
_ANY_NUMBER = _number(-1e12, 1e12)
_DTYPE = Kind(
    "the name of a dtype", one_of(*(f"{p}{n}" for p in ("", "torch.") for n in ("float32", "float16", "bfloat16")))
)
_ACTIVATION = Kind(
    "the name of an activation function",
    one_of("gelu", "gelu_fast", "gelu_new", "gelu_pytorch_tanh", "quick_gelu", "relu", "silu", "swish"),
)
_COLOURS = _listed(_number(1e-6, 1), 3, 3)
_AT_LEAST, _AT_MOST = _whole(1, 2**22), _whole(1, 2**31)
_BOUNDS = Kind(
    f"a list of two values, {_AT_LEAST.said} and {_AT_MOST.said}",
    lambda value: isinstance(value, (list, tuple)) and len(value) == 2 and _AT_LEAST(value[0]) and _AT_MOST(value[1]),
)


def _rope(value: Any) -> bool:
    """Whether the values of rotary settings can be computed with; what they may ask for is a family's to say."""
    if not isinstance(value, Mapping):
        return value is None
    kinds = {
        "rope_theta": _POSITIVE, "mrope_section": _listed(_COUNT, 3, 3), "partial_rotary_factor": _SHARE, "rope_type": _TEXT,
        "type": _TEXT,
    }  # fmt: skip
    return all(
        _rope(one) if isinstance(one, Mapping) else (name not in kinds or kinds[name](one))
        for name, one in value.items()
    )


_ROPE = Kind("an object of rotary settings", _rope)


def _named(kind: Kind, *names: str) -> dict[str, Kind]:
    return dict.fromkeys(names, kind)


KINDS: Mapping[str, Kind] = {
    # Sizes.
    **_named(_LAYERS, "num_hidden_layers", "depth", "encoder_layers"),
    **_named(
        _HEADS, "num_attention_heads", "num_key_value_heads", "encoder_attention_heads", "num_heads", "num_experts_per_tok",
    ),
    **_named(
        _SIZE, "vocab_size", "hidden_size", "intermediate_size", "moe_intermediate_size", "encoder_ffn_dim", "d_model",
        "output_dim", "out_hidden_size", "embed_dim", "mm_hidden_size", "encoder_width", "num_position_embeddings",
        "position_embedding_size", "type_vocab_size", "downsample_hidden_size", "output_proj_dims",
    ),
    **_named(_whole(1, 2**13), "num_mel_bins", "in_channels", "in_chans", "query_length"),
    **_named(
        _whole(1, 2**12), "patch_size", "spatial_patch_size", "spatial_merge_size", "merge_size", "temporal_patch_size",
        "pooling_kernel_size", "conv_kernel_size", "cross_attention_freq", "mm_spatial_pool_stride",
    ),
    **_named(
        _whole(1, 2**16), "window_size", "image_size", "n_window", "n_window_infer", "conv_chunksize", "max_source_positions",
        "default_output_length", "attention_chunk_size",
    ),
    **_named(_COUNT, "attention_context_left", "attention_context_right", "num_kv_shared_layers", "max_window_layers"),
    **_named(_or(_COUNT, _NULL), "hidden_size_per_layer_input", "vocab_size_per_layer_input"),
    **_named(
        _or(_SIZE, _NULL), "head_dim", "global_head_dim", "num_global_key_value_heads", "num_experts", "top_k_experts",
        "expert_intermediate_size",
    ),
    "moe_intermediate_size": _or(_SIZE, _NULL),
    "max_position_embeddings": _LENGTH,
    "sliding_window": _or(_LENGTH, _NULL),
    "subsampling_conv_channels": _listed(_whole(1, 2**14), 2, 2),
    "fullatt_block_indexes": _listed(_COUNT, 0, 1000),
    "deepstack_visual_indexes": _listed(_COUNT, 0, 1000),
    "layer_types": _or(_listed(_TEXT, 1, 1000), _NULL),
    # Numbers.
    **_named(_number(0, 1), "rms_norm_eps", "layer_norm_eps", "hidden_dropout_prob", "attention_probs_dropout_prob"),
    **_named(_or(_SHARE, _NULL), "classifier_dropout"),
    **_named(_POSITIVE, "rope_theta", "gradient_clipping"),
    **_named(_number(1e-2, 1e4), "position_id_per_seconds", "tokens_per_second"),
    **_named(_number(1e-2, 30), "second_per_window", "second_stride", "window_seconds"),
    **_named(_number(1e-2, 3600), "seconds_per_chunk"),
    **_named(_ANY_NUMBER, "router_aux_loss_coef", "residual_weight", "attention_logit_cap", "attention_invalid_logits_value"),
    "final_logit_softcapping": _or(_POSITIVE, _NULL),
    # Flags, names and sections.
    **_named(
        _or(_FLAG, _NULL), "tie_word_embeddings", "scale_embedding", "norm_topk_prob", "output_router_logits",
        "use_double_wide_mlp", "use_clipped_linears", "standardize", "attention_bias",
    ),
    **_named(_ACTIVATION, "hidden_act", "activation_function", "hidden_activation"),
    **_named(_SECTION, "text_config", "audio_config", "vision_config", "thinker_config", "qformer_config"),
    **_named(_or(_SECTION, _NULL), "quantization_config", "per_layer_config"),
    **_named(_ROPE, "rope_parameters", "rope_scaling"),
    **_named(_or(_DTYPE, _NULL), "dtype", "torch_dtype"),
    "model_type": _or(_TEXT, _NULL),
    # Tokens.
    **_named(
        _or(_TOKEN, _NULL), *(f"{name}_token_id" for name in (
            "audio", "image", "video", "vision", "vision_start", "vision_end", "audio_start", "audio_end", "user", "boi", "eoi",
            "boa", "eoa", "pad", "bos", "decoder_start",
        )),
        "audio_token_index", "image_token_index", "video_token_index", "eoa_token_index",
    ),
    "eos_token_id": _or(_TOKEN, _listed(_TOKEN, 1, 1000), _NULL),
    # How sound and pictures are read: preprocessor_config.json, processor_config.json and avlens.json.
    "feature_size": _whole(1, 2**13),
    "sampling_rate": _whole(1000, 768_000),
    **_named(_whole(1, 2**16), "hop_length", "n_fft"),
    "chunk_length": _whole(1, 36_000),
    **_named(_ANY_NUMBER, "padding_value", "dither", "mel_floor", "input_scale_factor", "preemphasis"),
    **_named(_number(0.1, 1e4), "frame_length_ms", "hop_length_ms"),
    **_named(_number(0, 1e6), "min_frequency", "max_frequency"),
    **_named(_FLAG, "fft_overdrive", "preemphasis_htk_flavor"),
    **_named(_or(_listed(_ANY_NUMBER, 1, 2**13), _NULL), "per_bin_mean", "per_bin_stddev"),
    **_named(_COLOURS, "image_mean", "image_std"),
    **_named(_or(_AT_LEAST, _NULL), "min_pixels", "shortest_edge"),
    **_named(_or(_AT_MOST, _NULL), "max_pixels", "image_pixels", "longest_edge"),
    "video_pixels": _or(_AT_MOST, _BOUNDS),
    **_named(_or(_SECTION, _NULL), "size", "vision", "whisper", "qformer", "image_processor", "video_processor",
             "feature_extractor"),
    **_named(_number(1e-3, 1e3), "fps", "nominal_fps"),
    "max_frames": _whole(2, 2**16),
    **_named(_or(_whole(1, 2**16), _NULL), "image_tokens", "video_tokens", "max_soft_tokens"),
    # generation_config.json.
    **_named(
        _or(_FLAG, _NULL), "do_sample", "use_cache", "renormalize_logits", "remove_invalid_values",
        "output_scores", "output_logits", "output_attentions", "output_hidden_states", "return_dict_in_generate",
        "token_healing", "use_mtp", "low_memory",
    ),
    **_named(
        _or(_LENGTH, _NULL), "max_length", "max_new_tokens", "num_beams", "num_beam_groups", "num_return_sequences",
    ),
    **_named(
        _or(_COUNT, _NULL), "top_k", "min_length", "min_new_tokens", "no_repeat_ngram_size", "encoder_no_repeat_ngram_size",
        "forced_bos_token_id",
    ),
    **_named(_or(_POSITIVE, _NULL), "repetition_penalty", "encoder_repetition_penalty", "max_time"),
    **_named(_or(_number(0, 1e6), _NULL), "temperature", "diversity_penalty", "penalty_alpha", "guidance_scale"),
    **_named(_or(_ANY_NUMBER, _NULL), "length_penalty"),
    "early_stopping": _or(_FLAG, _TEXT, _NULL),
    **_named(_or(_SHARE, _NULL), "top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff", "top_h"),
    **_named(_or(_TOKEN, _listed(_TOKEN, 1, 1000), _NULL), "forced_eos_token_id"),
    **_named(_or(_listed(_TOKEN, 1, 10**6), _NULL), "suppress_tokens", "begin_suppress_tokens"),
    **_named(_or(_listed(_listed(_TOKEN, 1, 1000), 1, 10**6), _NULL), "bad_words_ids", "force_words_ids"),
}  # fmt: skip
"""What may stand at each setting that is read, in whichever file and section."""

Rules = Mapping[str, Rule]


def known(*names: str) -> dict[str, Rule]:
    """Rules for settings that are read and handled whatever they are, as long as they are of their kind."""
    return {name: KINDS[name] for name in names}


def check_settings(
    config: Any, *, rules: Rules, where: str, ignore: Sequence[str], harmless: frozenset[str] = frozenset(),
    needs: Sequence[str] = (),
) -> None:  # fmt: skip
    """Hold each setting of one section of a config against the closed world.

    Args:
        config: The section.
        rules: For each setting that changes the forward pass, which values are handled.
        where: The section's place in config.json, for the message.
        ignore: Full names of settings that the caller takes responsibility for.
        harmless: Settings that cannot change the forward pass, beside those that transformers writes everywhere.
        needs: Settings that must be there.

    Raises:
        CheckpointError: If the section is none, or a setting is missing.
        UnsupportedSettingError: At the first setting that is unknown, of another kind, or has a value nobody handles.
    """
    if not isinstance(config, Mapping):
        raise CheckpointError(
            f"config.json holds {shown(config)} where its section {where} belongs. Download it again."
        )
    for name, value in config.items():
        full = f"{where}.{name}" if where else name
        if full in ignore or (name not in rules and (name in GENERIC_SETTINGS | harmless or name.startswith("_"))):
            check_kinds({name: value} if name in PASSED_ON else {}, "config.json", where)
            continue
        check_kinds({name: value} if name in rules else {}, "config.json", where)
        if name not in rules or not rules[name](value):
            raise UnsupportedSettingError(
                f"config.json sets {full} = {shown(value)}, "
                + (
                    "a value that avlens does not compute. "
                    if name in rules
                    else "a setting that avlens does not know. "
                )
                + "If you know that it does not change the forward pass, load with "
                f"HookedAVModel.from_pretrained(..., ignore_settings=[{shown(full)}])."
            )
    if missing := [name for name in needs if name not in config]:
        raise CheckpointError(
            f"config.json does not say {f'{where}.' if where else ''}{missing[0]}, without which the model cannot be built. "
            "Download it again."
        )


def check_kinds(settings: Mapping[str, Any], file: str, where: str = "") -> None:
    """Hold whatever settings are known, also in sections, against their kinds; others are left alone.

    Raises:
        UnsupportedSettingError: At the first that is of another kind.
    """
    for name, value in settings.items():
        full = f"{where}.{name}" if where else str(name)
        if name in KINDS and not KINDS[name](value):
            raise UnsupportedSettingError(
                f"{file} sets {full} = {shown(value)}, where {KINDS[name].said} belongs. Download it again, or put it right."
            )
        if isinstance(value, Mapping) and name in KINDS and KINDS[name] is not _ROPE and file != "config.json":
            check_kinds(value, file, full)


def passed_on(config: Mapping[str, Any]) -> dict[str, Any]:
    """What transformers is shown of a config that was checked: what is read, and not what it writes into every config."""
    return {
        name: passed_on(value) if isinstance(value, Mapping) and name.endswith("_config") else value
        for name, value in config.items()
        if name in PASSED_ON or not (name in GENERIC_SETTINGS or str(name).startswith("_"))
    }


def shown(value: Any) -> str:
    """A value in a message: no longer than a line."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


PASSED_ON = frozenset(
    [
        "model_type",
        "dtype",
        "torch_dtype",
        "pad_token_id",
        "bos_token_id",
        "eos_token_id",
        "quantization_config",
        "vocab_size",
    ]
)
"""What is read of the settings below."""

GENERIC_SETTINGS = frozenset(
    [
        "architectures",
        "attn_implementation",
        "bad_words_ids",
        "begin_suppress_tokens",
        "bos_token_id",
        "chunk_size_feed_forward",
        "cross_attention_hidden_size",
        "decoder_start_token_id",
        "diversity_penalty",
        "do_sample",
        "dtype",
        "early_stopping",
        "encoder_no_repeat_ngram_size",
        "eos_token_id",
        "exponential_decay_length_penalty",
        "finetuning_task",
        "forced_bos_token_id",
        "forced_eos_token_id",
        "id2label",
        "initializer_range",
        "init_std",
        "is_decoder",
        "is_encoder_decoder",
        "add_cross_attention",
        "label2id",
        "length_penalty",
        "max_length",
        "max_new_tokens",
        "min_length",
        "model_type",
        "name_or_path",
        "no_repeat_ngram_size",
        "num_beam_groups",
        "num_beams",
        "num_return_sequences",
        "output_attentions",
        "output_hidden_states",
        "output_scores",
        "pad_token_id",
        "prefix",
        "problem_type",
        "pruned_heads",
        "remove_invalid_values",
        "repetition_penalty",
        "return_dict",
        "return_dict_in_generate",
        "sep_token_id",
        "suppress_tokens",
        "task_specific_params",
        "temperature",
        "tf_legacy_loss",
        "tie_encoder_decoder",
        "tokenizer_class",
        "top_k",
        "top_p",
        "torch_dtype",
        "torchscript",
        "transformers_version",
        "typical_p",
        "use_bfloat16",
        "use_cache",
        "attention_dropout",
        "activation_dropout",
        "dropout",
        "encoder_layerdrop",
        "gradient_checkpointing",
        "quantization_config",
        "ignore_index",
        "vocab_size",
    ]
)
"""What transformers writes into every config, or what matters in training only."""
