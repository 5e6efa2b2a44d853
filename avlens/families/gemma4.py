"""Gemma 4 (E2B, E4B): hears and sees with a small decoder of windows, shared keys and embeddings of each block's own.

Sight and sound stand apart. Each frame is up to 70 tokens of 48x48 pixels between `<|image>` and `<image|>`, with its time in
front (`00:03 <|image>...<image|>`); after the frames comes the sound, 25 tokens per second between `<|audio>` and `<audio|>`, at
most 30 s. Positions are those of the text, one after another. A clip's sound is written where the chat template writes a sound
that follows a video. The released processor reads 32 frames, evenly spaced.

Source: transformers 5.23, models/gemma4: modeling, processing (replace_video_token, replace_audio_token), image_processing,
feature_extraction; the model card of google/gemma-4-E2B-it.
Differs from the source: the larger models, which do not hear, are refused, with what they need (experts, keys that are values,
pictures read in both directions); a sound longer than 30 s is refused, where the processor cuts it; timestamps are tokenised
apart from the text before them.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from transformers import Gemma4Config, Gemma4ForConditionalGeneration
from transformers.models.gemma4.feature_extraction_gemma4 import Gemma4AudioFeatureExtractor

from avlens.chat import ChatFamily, Medium, assemble, grid_edges, grid_tokens, marker, media_of, write_chat
from avlens.decoder import DecoderConfig, device_of
from avlens.encoders.hooked import HookedEncoder, InBlocks
from avlens.errors import CheckpointError, PromptError
from avlens.family import Part, PromptOptions, Stock
from avlens.inputs import AVInputs, Media
from avlens.loading import (
    load_generation_config,
    load_tokenizer,
    load_weights,
    random_model,
    read_json,
    read_settings,
    save_settings,
    save_weights,
    tiny_sizes,
)
from avlens.media import Clip
from avlens.sandwich import LayerInputs, SandwichBlock
from avlens.settings import check_settings, known, one_of, passed_on
from avlens.tokens import Modality, Segment, TokenMap
from avlens.zoo.tokenizer import tiny_tokenizer

VIDEO_TOKENS, IMAGE_TOKENS = 70, 280
"""How many tokens a frame and an image have at most, where the checkpoint says nothing."""

LONGEST_SOUND = 30
"""In seconds."""

MEL_PER_TOKEN = 4
"""Mel frames of an audio token: two convolutions of stride 2."""


class Gemma4(ChatFamily):
    """Gemma 4, the models that hear."""

    name: ClassVar[str] = "gemma4"
    title: ClassVar[str] = "Gemma 4 E2B, E4B"
    tested: ClassVar[str] = "the stock transformers model, on tiny random weights; whole-size shapes"
    block: ClassVar[Any] = SandwichBlock
    sampling: Mapping[str, Any] = {"fps": 2.0, "max_frames": 32}

    def __init__(
        self, config: Gemma4Config, tokenizer: Any, processor: Mapping[str, Any], settings: Mapping[str, Any]
    ) -> None:
        self.config, self.tokenizer, self.processor, self.settings = config, tokenizer, processor, settings
        self.cfg = _decoder_config(config)
        self.mel = Gemma4AudioFeatureExtractor(**_section(processor, "feature_extractor", _MEL))

    # Loading and saving.

    @classmethod
    def matches(cls, config: Mapping[str, Any]) -> bool:
        """Whether config.json is Gemma 4's."""
        return config.get("model_type") == "gemma4"

    @classmethod
    def check(cls, config: Mapping[str, Any], ignore: Sequence[str] = ()) -> None:
        """Refuse a config with a setting that nobody handled, and a model that does not hear."""
        if not config.get("audio_config") or not config.get("vision_config"):
            raise CheckpointError(
                "this Gemma 4 has no audio_config or no vision_config, so it cannot both hear and see. E2B and E4B do."
            )
        check_settings(config, rules=_WHOLE, where="", ignore=ignore, needs=("text_config",))
        for name, rules in (("text_config", _TEXT), ("audio_config", _AUDIO), ("vision_config", _VISION)):
            check_settings(config[name], rules=rules, where=name, ignore=ignore)

    @classmethod
    def load(cls, folder: Path, **load_options: Any) -> tuple["Gemma4", Stock]:
        """Load a folder in the released key layout."""
        written = read_json(folder / "config.json")
        config = Gemma4Config.from_dict(passed_on(written))
        config.dtype = config.dtype or written.get("torch_dtype")
        model = load_weights(
            Gemma4ForConditionalGeneration,
            folder,
            config,
            embed="model.language_model.embed_tokens.weight",
            dropped=r"layers\.\d+\.self_attn\.(k_proj|v_proj|k_norm|v_norm)\.",
            **load_options | {"attn_implementation": _attention(load_options.get("attn_implementation"))},
        )
        tokenizer = load_tokenizer(folder, config)
        if tokenizer.chat_template is None:
            raise CheckpointError(f"{folder} has no chat template. Put chat_template.jinja beside config.json.")
        model.generation_config = load_generation_config(folder, tokenizer)
        processor = read_settings(folder / "processor_config.json") or read_settings(
            folder / "preprocessor_config.json"
        )
        return cls(model.config, tokenizer, processor, read_settings(folder / "avlens.json")), _stock(model)

    @classmethod
    def tiny(cls, seed: int, sizes: Mapping[str, Any]) -> tuple["Gemma4", Stock]:
        """A small model with random weights, norms and scales, and a byte-level tokenizer."""
        tokenizer = tiny_tokenizer(_SPECIALS, _TEMPLATE, {}, eos="<turn|>", pad="<pad>")
        config = _tiny_config(tokenizer, sizes)
        model = random_model(partial(Gemma4ForConditionalGeneration, config), tokenizer, seed, _rescaled)
        if config.tie_word_embeddings:
            model.lm_head.weight = model.model.language_model.embed_tokens.weight
        return cls(model.config, tokenizer, {}, _TINY_SETTINGS), _stock(model)

    def save(self, folder: Path, stock: Stock) -> None:
        """Write the checkpoint in the released key layout, with tokenizer, template and settings."""
        tied = save_weights(folder, stock.whole.state_dict(), "model.language_model.embed_tokens.weight")
        config = self.config.to_dict() | {
            "architectures": ["Gemma4ForConditionalGeneration"],
            "tie_word_embeddings": tied,
        }
        text = {name: value for name, value in config["text_config"].items() if name != "per_layer_config"}
        heads = {"head_dim": self.cfg.d_head, "global_head_dim": self.cfg.d_head_global}
        config["text_config"] = text | heads | {"tie_word_embeddings": tied}
        config |= {"dtype": str(stock.head.weight.dtype).removeprefix("torch.")}
        files = {"processor_config": self.processor, "avlens": self.settings}
        save_settings(folder, stock.whole, self.tokenizer, config=config, **files)

    # Prompts.

    def prepare(self, parts: Sequence[Part], question: str, options: PromptOptions) -> AVInputs:
        """One prompt, as the official processor writes it."""
        if options.min_pixels:
            raise PromptError(f"{self.title} has no lower bound of a frame's area. Leave min_pixels out.")
        pieces = [(index, piece) for index, part in enumerate(media_of(parts)) for piece in _apart(part)]
        written = [piece for part in parts for piece in ([part] if isinstance(part, str) else _apart(part))]
        chat = write_chat(self.tokenizer, written, question, options)
        media = [self.medium(piece, options, index) for index, piece in pieces]
        return AVInputs((assemble(self.tokenizer, chat, media, self.holes()),), self.stock_kwargs)

    def holes(self) -> set[int]:
        """The ids of the three placeholders."""
        return set(self._ids().values())

    def stock_kwargs(self, inputs: AVInputs) -> dict[str, Any]:
        """Keyword arguments for Gemma4ForConditionalGeneration."""
        media = [medium for prompt in inputs.prompts for medium in prompt.media]
        kwargs: dict[str, Any] = {"input_ids": inputs.ids, "attention_mask": inputs.attention_mask}
        for modality, pixels, places in (
            (Modality.VIDEO, "pixel_values_videos", "video_position_ids"),
            (Modality.IMAGE, "pixel_values", "image_position_ids"),
        ):
            if seen := [medium.tensors for medium in media if medium.modality == modality]:
                most = max(one["pixels"].shape[1] for one in seen)
                kwargs[pixels] = torch.cat([_filled(one["pixels"], most, 0) for one in seen])
                kwargs[places] = torch.cat([_filled(one["places"], most, -1) for one in seen])
                if modality == Modality.VIDEO:
                    kwargs["num_frames_per_video"] = torch.tensor([len(one["pixels"]) for one in seen])
        if heard := [medium.tensors["mel"] for medium in media if medium.modality == Modality.AUDIO]:
            most = max(len(mel) for mel in heard)
            kwargs["input_features"] = torch.cat([_filled(mel[None], most, 0) for mel in heard])
            kwargs["input_features_mask"] = torch.stack([torch.arange(most) < len(mel) for mel in heard])
        return kwargs

    def encode(self, encoders: Mapping[str, HookedEncoder], media: Media) -> Float[Tensor, "level media_pos d_model"]:
        """Run the audio or vision tower on one sound, video or image."""
        if media.modality == Modality.AUDIO:
            audio = encoders["audio"].tower
            mel = media.tensors["mel"].to(device_of(audio.tower.subsample_conv_projection.layer0.conv))
            heard: Tensor = audio(mel[None], torch.ones(1, len(mel), dtype=torch.bool, device=mel.device))
            return heard
        vision = encoders["vision"].tower
        device = device_of(vision.tower.patch_embedder)
        seen: Tensor = vision(media.tensors["pixels"].to(device), media.tensors["places"].to(device))
        return seen[None]

    def medium(self, part: Any, options: PromptOptions, clip: int) -> Medium:
        """A video's, sound's or image's encoder tensors, and its tokens in order."""
        if not isinstance(part, Clip):
            return self._image(part, options, clip)
        return self._sound(part, clip) if part.frames is None else self._sight(part, options, clip)

    def _image(self, image: Tensor, options: PromptOptions, clip: int) -> Medium:
        most = self.settings.get("image_tokens") or self.processor.get("image_processor", {}).get("max_soft_tokens")
        tensors, grid = self._cut(image[None], options, most or IMAGE_TOKENS)
        tokens = [self._marker("<|image>"), self._grid(grid, Modality.IMAGE, clip), self._marker("<image|>")]
        return _in_line(tokens, [(Modality.IMAGE, tensors)])

    def _sight(self, clip: Clip, options: PromptOptions, index: int) -> Medium:
        assert clip.frames is not None and clip.frame_seconds is not None
        most = self.settings.get("video_tokens") or self.processor.get("video_processor", {}).get("max_soft_tokens")
        tensors, (n_frames, rows, cols) = self._cut(clip.frames, options, most or VIDEO_TOKENS)
        edges = grid_edges(clip, 1, n_frames)
        said = edges[:-1] if options.nominal_fps is None else torch.arange(n_frames) / options.nominal_fps
        seen = self._grid((n_frames, rows, cols), Modality.VIDEO, index)
        seen = replace(seen, start=edges[seen.frame], end=edges[seen.frame + 1])
        runs: list[TokenMap] = []
        for frame, second in enumerate(said.tolist()):
            time = f"{' ' if frame else ''}{int(second // 60):02d}:{int(second % 60):02d} "
            runs += [self._time(time), self._marker("<|image>")]
            runs += [seen[slice(frame * rows * cols, (frame + 1) * rows * cols)], self._marker("<image|>")]
        return _in_line(runs, [(Modality.VIDEO, tensors)])

    def _sound(self, clip: Clip, index: int) -> Medium:
        clip = clip.resampled(self.mel.sampling_rate)
        assert clip.waveform is not None
        if clip.seconds > LONGEST_SOUND:
            raise PromptError(
                f"the sound of clip {index} lasts {clip.seconds:.1f} s, but the model hears at most {LONGEST_SOUND} s. Cut it "
                f"first: clip.cut(0, {LONGEST_SOUND})."
            )
        if len(clip.waveform) <= self.mel.frame_length // 2:
            raise PromptError(
                f"the sound of clip {index} has {len(clip.waveform)} samples, too few for one token. Pass a longer one."
            )
        heard = self.mel([clip.waveform.numpy()], pad_to_multiple_of=None, return_tensors="pt")
        mel = heard["input_features"][0].float()
        count = math.ceil(len(mel) / MEL_PER_TOKEN)
        frame = torch.arange(count)
        seconds = MEL_PER_TOKEN * self.mel.hop_length / self.mel.sampling_rate
        ids, strings = torch.full((count,), self._ids()[Modality.AUDIO]), ["<|audio|>"] * count
        tokens = TokenMap.of(
            ids, strings, Modality.AUDIO, Segment.MEDIA, clip=torch.full((count,), index), audio_frame=frame,
            start=frame.double() * seconds, end=(frame + 1).double() * seconds,
        )  # fmt: skip
        return _in_line([self._marker("<|audio>"), tokens, self._marker("<audio|>")], [(Modality.AUDIO, {"mel": mel})])

    def _cut(
        self, frames: UInt8[Tensor, "frame 3 height width"], options: PromptOptions, most: int
    ) -> tuple[dict[str, Tensor], tuple[int, int, int]]:
        """The patches of frames with their places, and how many tokens they make in time, down and across."""
        vision = self.config.vision_config
        patch, pool = vision.patch_size, vision.pooling_kernel_size
        patches = most * pool**2 if options.max_pixels is None else options.max_pixels // patch**2
        height, width = _fitted(frames.shape[-2], frames.shape[-1], patch, pool, patches)
        if (height, width) != frames.shape[-2:]:
            frames = F.interpolate(frames, size=(height, width), mode="bicubic", align_corners=False, antialias=True)
        rows, cols = height // patch, width // patch
        pixels = (frames.float() / 255).view(-1, 3, rows, patch, cols, patch).permute(0, 2, 4, 3, 5, 1)
        down, across = torch.meshgrid(torch.arange(rows), torch.arange(cols), indexing="ij")
        places = torch.stack([across, down], dim=-1).view(1, rows * cols, 2).expand(len(frames), -1, -1)
        tensors = {"pixels": pixels.reshape(len(frames), rows * cols, -1), "places": places.contiguous()}
        return tensors, (len(frames), rows // pool, cols // pool)

    def _grid(self, grid: tuple[int, int, int], modality: Modality, clip: int) -> TokenMap:
        token = self._ids()[modality]
        return grid_tokens(grid, modality, clip, token, str(self.tokenizer.convert_ids_to_tokens(token)))

    def _time(self, text: str) -> TokenMap:
        """A timestamp, which is text that nobody asked."""
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return TokenMap.of(
            torch.tensor(ids), [self.tokenizer.decode([token]) for token in ids], Modality.TEXT, Segment.TEMPLATE
        )

    def _marker(self, string: str) -> TokenMap:
        return marker(self.tokenizer, string)

    def _ids(self) -> dict[Modality, int]:
        """The ids that stand for media."""
        config = self.config
        return {
            Modality.AUDIO: config.audio_token_id, Modality.VIDEO: config.video_token_id, Modality.IMAGE: config.image_token_id,
        }  # fmt: skip


def _rescaled(model: Any) -> None:
    """Scales of blocks away from 1; norms of queries do what no other scale of scores does."""
    for layer in model.model.language_model.layers:
        layer.layer_scalar.uniform_(0.5, 1.0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("q_norm.weight"):
                weight.mul_(len(weight) ** -0.5)


def _apart(part: Any) -> list[Any]:
    """A clip's frames and its sound as clips of their own."""
    if not isinstance(part, Clip) or part.frames is None or part.waveform is None:
        return [part]
    return [part.without_audio(), part.without_video()]


def _in_line(runs: list[TokenMap], media: list[tuple[Modality, dict[str, Tensor]]]) -> Medium:
    tokens = TokenMap.join(runs)
    return Medium(tokens, torch.arange(len(tokens)).expand(3, -1), media, len(tokens))


def _filled(tensor: Tensor, most: int, value: int) -> Tensor:
    """With the second axis filled up."""
    return F.pad(tensor, (0, 0, 0, most - tensor.shape[1]), value=value)


def _fitted(height: int, width: int, patch: int, pool: int, most: int) -> tuple[int, int]:
    """The largest sides of about the same ratio that are whole tokens and hold at most so many patches.

    Raises:
        PromptError: If there are none.
    """
    side, scale = patch * pool, math.sqrt(most * patch**2 / (height * width))
    fitted = int(height * scale // side) * side, int(width * scale // side) * side
    longest = most // pool**2 * side
    if fitted[0] == 0 and fitted[1] == 0:
        raise PromptError(
            f"a frame of {most * patch**2} pixels is smaller than one token, {side}x{side}. Allow more pixels."
        )
    if fitted[0] == 0:
        fitted = side, min(width // height * side, longest)
    elif fitted[1] == 0:
        fitted = min(height // width * side, longest), side
    return fitted


# Towers.


class Tower(nn.Module):
    """A tower and what brings its outputs to the decoder's width."""

    def __init__(self, tower: nn.Module, embed: nn.Module) -> None:
        super().__init__()
        self.tower, self.embed = tower, embed

    def forward(self, *tensors: Tensor) -> Float[Tensor, "*medium d_model"]:
        """The embeddings of one medium."""
        out: Tensor = self.embed(inputs_embeds=self.tower(*tensors).last_hidden_state)
        return out


def _stock(model: Gemma4ForConditionalGeneration) -> Stock:
    whole, text = model.model, model.model.language_model
    config, vision, audio = model.config, model.model.vision_tower, model.model.audio_tower
    own = None
    if text.config.hidden_size_per_layer_input:
        own = LayerInputs(
            text.embed_tokens_per_layer, text.per_layer_model_projection, text.per_layer_projection_norm,
            n_layers=text.config.num_hidden_layers, pad=text.config.pad_token_id,
            media=(config.image_token_id, config.video_token_id, config.audio_token_id),
        )  # fmt: skip
    return Stock(
        embed=text.embed_tokens,
        layers=list(text.layers),
        norm=text.norm,
        head=model.lm_head,
        encoders={"vision": Tower(vision, whole.embed_vision), "audio": Tower(audio, whole.embed_audio)},
        encoder_blocks={"vision": list(vision.encoder.layers), "audio": list(audio.layers)},
        encoder_attention={
            "vision": [layer.self_attn for layer in vision.encoder.layers],
            "audio": [
                InBlocks(layer.self_attn, config.audio_config.attention_context_left - 1) for layer in audio.layers
            ],
        },
        layer_inputs=own,
        whole=model,
    )


# Checkpoints.


def _attention(wanted: Any) -> Any:
    """The same for each part, but for the audio tower, which transformers has in one version only."""
    return (
        {"text_config": wanted, "vision_config": wanted, "audio_config": "eager"} if isinstance(wanted, str) else wanted
    )


_MEL = (
    "feature_size", "sampling_rate", "padding_value", "frame_length_ms", "hop_length_ms", "min_frequency", "max_frequency",
    "preemphasis", "preemphasis_htk_flavor", "fft_overdrive", "dither", "input_scale_factor", "mel_floor", "per_bin_mean",
    "per_bin_stddev",
)  # fmt: skip


def _section(processor: Mapping[str, Any], name: str, known: Sequence[str]) -> dict[str, Any]:
    section = processor.get(name) or {}
    return {setting: section[setting] for setting in known if setting in section}


_WHOLE = known(
    "text_config", "audio_config", "vision_config", "boi_token_id", "eoi_token_id", "image_token_id", "video_token_id",
    "boa_token_id", "eoa_token_id", "eoa_token_index", "audio_token_id", "tie_word_embeddings",
)  # fmt: skip

_TEXT = {
    **known(
        "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
        "head_dim", "global_head_dim", "max_position_embeddings", "rms_norm_eps", "tie_word_embeddings", "sliding_window",
        "layer_types", "final_logit_softcapping", "vocab_size_per_layer_input", "hidden_size_per_layer_input",
        "num_kv_shared_layers", "use_double_wide_mlp", "num_experts", "top_k_experts", "moe_intermediate_size",
        "expert_intermediate_size",
        "num_global_key_value_heads",  # Read only where keys are values.
    ),
    "hidden_activation": one_of("gelu_pytorch_tanh"), "attention_bias": one_of(False), "attention_k_eq_v": one_of(False),
    "enable_moe_block": one_of(False), "use_bidirectional_attention": one_of(None),
    "rope_parameters": lambda rope: _known_rope(rope),
    "per_layer_config": lambda layers: all(set(own) <= {"head_dim"} for own in (layers or {}).values()),
}  # fmt: skip

# The towers are transformers' own modules, which compute whatever their config classes know.
_AUDIO = known(
    "hidden_size", "num_hidden_layers", "num_attention_heads", "hidden_act", "subsampling_conv_channels", "conv_kernel_size",
    "residual_weight", "attention_chunk_size", "attention_context_left", "attention_context_right", "attention_logit_cap",
    "attention_invalid_logits_value", "use_clipped_linears", "rms_norm_eps", "gradient_clipping", "output_proj_dims",
    "tie_word_embeddings",
)  # fmt: skip
_VISION = known(
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim",
    "global_head_dim", "hidden_activation", "rms_norm_eps", "max_position_embeddings", "attention_bias", "rope_parameters",
    "pooling_kernel_size", "patch_size", "position_embedding_size", "use_clipped_linears", "standardize",
    "default_output_length", "tie_word_embeddings",
)  # fmt: skip


def _known_rope(rope: Mapping[str, Any] | None) -> bool:
    """Whether rotary settings ask for plain frequencies, of which global blocks may turn the first share only."""
    if rope is None:
        return True
    if set(rope) != {"sliding_attention", "full_attention"} or not all(
        isinstance(one, Mapping) for one in rope.values()
    ):
        return False
    near, far = rope["sliding_attention"], rope["full_attention"]
    return (
        set(near) <= {"rope_type", "rope_theta"}
        and near.get("rope_type", "default") == "default"
        and set(far) <= {"rope_type", "rope_theta", "partial_rotary_factor"}
        and far.get("rope_type") in ("default", "proportional")
    )


def _decoder_config(config: Gemma4Config) -> DecoderConfig:
    text = config.text_config
    near, far = (text.rope_parameters[kind] for kind in ("sliding_attention", "full_attention"))
    kinds = {"sliding_attention": "local", "full_attention": "global"}
    # A model whose blocks are all of one kind has one size of heads.
    heads = {kind: text.per_layer_config[layer].head_dim for layer, kind in enumerate(text.layer_types)}
    wide = heads["full_attention"]
    return DecoderConfig(
        n_layers=text.num_hidden_layers, d_model=text.hidden_size, n_heads=text.num_attention_heads,
        n_key_value_heads=text.num_key_value_heads, d_head=heads.get("sliding_attention", wide),
        d_mlp=text.intermediate_size, d_vocab=text.vocab_size,
        n_ctx=text.max_position_embeddings, eps=text.rms_norm_eps, rotary_base=far["rope_theta"], mrope_section=None,
        act_fn=text.hidden_activation, model_name="gemma4", original_architecture=type(config).__name__,
        use_normalization_before_and_after=True, use_qk_norm=True, attn_types=tuple(kinds[kind] for kind in text.layer_types),
        window_size=text.sliding_window, d_head_global=wide,
        rotary_base_local=near["rope_theta"], n_shared=text.num_kv_shared_layers,
        rotary_share_global=far.get("partial_rotary_factor", 1.0) if far["rope_type"] == "proportional" else 1.0,
        d_layer_input=text.hidden_size_per_layer_input or None,
        output_logits_soft_cap=text.final_logit_softcapping or -1.0,
    )  # fmt: skip


# Small models.

_SPECIALS = (
    "<pad>", "<eos>", "<bos>", "<|turn>", "<turn|>", "<|image>", "<image|>", "<|audio>", "<audio|>", "<|image|>", "<|audio|>",
    "<|video|>",
)  # fmt: skip

_TEMPLATE = (
    "<bos>{% for message in messages %}<|turn>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|image|>"
    "{% elif part['type'] == 'audio' %}<|audio|>"
    "{% elif part['type'] == 'video' %}<|video|>"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<turn|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|turn>model\n{% endif %}"
)

_TINY_SETTINGS = {"video_tokens": 4, "image_tokens": 9}

_TINY_SIZES = {
    "n_layers": 3, "d_model": 64, "n_heads": 4, "n_key_value_heads": 2, "d_head": 16, "d_head_global": 32, "d_mlp": 96,
    "rotary_base": 1e6, "window_size": 96, "n_shared": None, "d_layer_input": 8, "tie_word_embeddings": False, "d_encoder": 32,
    "n_encoder_layers": 2, "d_vocab": None, "n_ctx": 32768, "attn_types": None, "output_logits_soft_cap": 30.0,
}  # fmt: skip


def _tiny_config(tokenizer: Any, sizes: Mapping[str, Any]) -> Gemma4Config:
    size = tiny_sizes(_TINY_SIZES, sizes)
    token, width, depth = tokenizer.convert_tokens_to_ids, size["d_encoder"], size["n_encoder_layers"]
    n_layers, vocabulary = size["n_layers"], size["d_vocab"] or len(tokenizer)
    n_shared = int(n_layers > 2) if size["n_shared"] is None else size["n_shared"]
    # A local block, a global one, and so on; the last is global, and reads the keys of the one before it.
    usual = ["local" if i % 2 == 0 and i < n_layers - 2 else "global" for i in range(n_layers)]
    kinds = {"local": "sliding_attention", "global": "full_attention"}
    return Gemma4Config(
        text_config={
            "hidden_size": size["d_model"], "intermediate_size": size["d_mlp"], "num_hidden_layers": n_layers,
            "num_attention_heads": size["n_heads"], "num_key_value_heads": size["n_key_value_heads"], "head_dim": size["d_head"],
            "global_head_dim": size["d_head_global"], "vocab_size": vocabulary, "vocab_size_per_layer_input": vocabulary,
            "hidden_size_per_layer_input": size["d_layer_input"] or 0, "num_kv_shared_layers": n_shared,
            "use_double_wide_mlp": True, "sliding_window": size["window_size"], "max_position_embeddings": size["n_ctx"],
            "final_logit_softcapping": size["output_logits_soft_cap"], "tie_word_embeddings": size["tie_word_embeddings"],
            "layer_types": [kinds[kind] for kind in size["attn_types"] or usual],
            "rope_parameters": {
                "full_attention": {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": size["rotary_base"]},
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            },
            "bos_token_id": token("<bos>"), "eos_token_id": token("<turn|>"), "pad_token_id": token("<pad>"),
        },
        vision_config={
            "hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": depth, "num_attention_heads": 2,
            "num_key_value_heads": 2, "head_dim": 16, "patch_size": 8, "pooling_kernel_size": 3, "position_embedding_size": 64,
        },
        audio_config={
            "hidden_size": width, "num_hidden_layers": depth, "num_attention_heads": 4, "output_proj_dims": width,
            "subsampling_conv_channels": [128, 4],
        },
        audio_token_id=token("<|audio|>"), image_token_id=token("<|image|>"), video_token_id=token("<|video|>"),
        boi_token_id=token("<|image>"), eoi_token_id=token("<image|>"), boa_token_id=token("<|audio>"),
        eoa_token_index=token("<audio|>"), tie_word_embeddings=size["tie_word_embeddings"],
    )  # fmt: skip
