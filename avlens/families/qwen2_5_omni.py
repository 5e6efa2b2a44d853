"""Qwen2.5-Omni (3B, 7B): the thinker, which hears, sees and answers in text.

A video's sound is interleaved with its frames, two seconds at a time (V video tokens, then up to 50 audio tokens),
between `<|vision_bos|><|audio_bos|>` and `<|audio_eos|><|vision_eos|>`. A video token is a 28x28 pixel patch of two
frames; an audio token is 40 ms. Position ids (TMRoPE) count 25 per second: audio token k has (k, k, k), a video
token (25 x seconds, row, column), both from the start of the block. The talker and token2wav are not loaded.

Source: transformers 5.23, models/qwen2_5_omni: processing (replace_video_with_audio_token), modeling
(get_rope_index, get_audio_features, get_video_features); Xu et al. 2025, arXiv:2503.20215.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import (
    AutoTokenizer,
    GenerationConfig,
    Qwen2_5OmniThinkerConfig,
    Qwen2_5OmniThinkerForConditionalGeneration,
    WhisperFeatureExtractor,
)
from transformers.utils import logging
from transformers.vision_utils import get_vision_window_index

from avlens.chat import Medium, assemble, marker, write_chat
from avlens.decoder import DecoderConfig
from avlens.encoders.hooked import HookedEncoder
from avlens.encoders.mel import log_mel
from avlens.encoders.patches import Patches, PatchRules, cut_patches
from avlens.errors import CheckpointError, PromptError
from avlens.family import GENERIC_SETTINGS, Family, Part, PromptOptions, Stock, any_value, check_settings, one_of
from avlens.inputs import AVInputs, Media, Prompt
from avlens.media import Clip
from avlens.tokens import Modality, Segment, TokenMap
from avlens.zoo.tokenizer import tiny_tokenizer

VIDEO_PIXELS = 128 * 28 * 28, 768 * 28 * 28
"""Bounds of a frame's area that the official processor imposes on videos, whatever the checkpoint says."""

IMAGE_PIXELS = 56 * 56, 28 * 28 * 1280
"""Bounds of an image's area where the checkpoint says none."""


class Qwen25Omni(Family):
    """The thinker of Qwen2.5-Omni."""

    name: ClassVar[str] = "qwen2_5_omni"
    title: ClassVar[str] = "Qwen2.5-Omni 3B, 7B"
    tested: ClassVar[str] = "the stock transformers model, on tiny random weights; whole-size shapes"

    def __init__(
        self,
        config: Qwen2_5OmniThinkerConfig,
        tokenizer: Any,
        preprocessor: Mapping[str, Any],
        settings: Mapping[str, Any],
    ) -> None:
        self.config, self.tokenizer, self.preprocessor, self.settings = config, tokenizer, preprocessor, settings
        self.cfg = _decoder_config(config)
        self.mel = WhisperFeatureExtractor(**{name: preprocessor[name] for name in _MEL if name in preprocessor})
        vision = config.vision_config
        self.rules = PatchRules(
            patch=vision.patch_size,
            merge=vision.spatial_merge_size,
            temporal=vision.temporal_patch_size,
            mean=tuple(preprocessor.get("image_mean", (0.48145466, 0.4578275, 0.40821073))),
            std=tuple(preprocessor.get("image_std", (0.26862954, 0.26130258, 0.27577711))),
        )

    # Loading and saving.

    @classmethod
    def matches(cls, config: Mapping[str, Any]) -> bool:
        """Whether config.json is of a whole Qwen2.5-Omni or of its thinker."""
        return config.get("model_type") in ("qwen2_5_omni", "qwen2_5_omni_thinker")

    @classmethod
    def check(cls, config: Mapping[str, Any], ignore: Sequence[str] = ()) -> None:
        """Refuse a config with a setting that nobody handled."""
        whole = config.get("model_type") == "qwen2_5_omni"
        outer = {"thinker_config", "talker_config", "token2wav_config", "enable_audio_output", "enable_talker"}
        if whole:
            check_settings(
                config, rules={"tie_word_embeddings": any_value}, where="", ignore=ignore,
                harmless=GENERIC_SETTINGS | outer | {"hidden_size", "num_attention_heads"},
            )  # fmt: skip
        thinker, where = (config.get("thinker_config", {}), "thinker_config.") if whole else (config, "")
        check_settings(thinker, rules=_THINKER, harmless=GENERIC_SETTINGS, where=where[:-1], ignore=ignore)
        for section, rules in (("text_config", _TEXT), ("audio_config", _AUDIO), ("vision_config", _VISION)):
            check_settings(
                thinker.get(section) or {}, rules=rules, harmless=GENERIC_SETTINGS, where=where + section, ignore=ignore
            )

    @classmethod
    def load(cls, folder: Path, **load_options: Any) -> tuple["Qwen25Omni", Stock]:
        """Load the thinker from a folder in any of the three key layouts (hub, in-memory, written from scratch)."""
        written = _read_json(folder / "config.json")
        # The thinker's part alone: transformers' class for the whole would build a talker's settings too.
        config = Qwen2_5OmniThinkerConfig.from_dict(written.get("thinker_config", written))
        config.dtype = config.dtype or written.get("dtype", written.get("torch_dtype"))
        with _quiet(folder):
            model, info = Qwen2_5OmniThinkerForConditionalGeneration.from_pretrained(
                folder,
                config=config,
                output_loading_info=True,
                use_safetensors=True,
                ignore_mismatched_sizes=True,
                trust_remote_code=False,
                **load_options,
            )
        _require_all_weights(folder, model, info)
        tokenizer = AutoTokenizer.from_pretrained(folder, config=config, trust_remote_code=False)
        if tokenizer.chat_template is None:
            tokenizer.chat_template = _chat_template(folder)
        return cls(model.config, tokenizer, _preprocessor(folder), _read_json(folder / "avlens.json")), _stock(model)

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
        return cls(model.config, tokenizer, preprocessor, settings), _stock(model)

    @classmethod
    def tiny(cls, seed: int, sizes: Mapping[str, Any]) -> tuple["Qwen25Omni", Stock]:
        """A small thinker with random weights, biases and norms, and a byte-level tokenizer."""
        tokenizer = tiny_tokenizer()
        config = _tiny_config(tokenizer, sizes)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = Qwen2_5OmniThinkerForConditionalGeneration(config).eval()
            _randomise(model)
        model.generation_config = GenerationConfig(
            eos_token_id=tokenizer.convert_tokens_to_ids("<|im_end|>"),
            pad_token_id=tokenizer.convert_tokens_to_ids("<|endoftext|>"),
        )
        return cls(model.config, tokenizer, _TINY_PREPROCESSOR, _TINY_SETTINGS), _stock(model)

    def save(self, folder: Path, stock: Stock) -> None:
        """Write the thinker as the released checkpoints lay it out: keys under `thinker.`, one config.json."""
        folder.mkdir(parents=True, exist_ok=True)
        state = {_released(name): weight.contiguous() for name, weight in stock.whole.state_dict().items()}
        if state["thinker.lm_head.weight"].data_ptr() == state["thinker.model.embed_tokens.weight"].data_ptr():
            del state["thinker.lm_head.weight"]
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
        thinker = self.config.to_dict() | {"tie_word_embeddings": "thinker.lm_head.weight" not in state}
        config = {
            "architectures": ["Qwen2_5OmniModel"], "model_type": "qwen2_5_omni", "enable_audio_output": False,
            "thinker_config": thinker, "torch_dtype": str(stock.head.weight.dtype).removeprefix("torch."),
        }  # fmt: skip
        _write_json(folder / "config.json", config)
        _write_json(folder / "preprocessor_config.json", dict(self.preprocessor))
        if self.settings:
            _write_json(folder / "avlens.json", dict(self.settings))
        stock.whole.generation_config.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)

    # Prompts.

    def prepare(self, parts: Sequence[Part], question: str, options: PromptOptions) -> AVInputs:
        """One prompt, as the official processor writes it."""
        options = replace(options, nominal_fps=float(self.settings.get("nominal_fps", options.nominal_fps)))
        chat = write_chat(self.tokenizer, parts, question, options)
        media = [self._medium(part, options, index) for index, part in enumerate(_media_of(parts))]
        holes = {self.config.audio_token_id, self.config.video_token_id, self.config.image_token_id}
        prompt = assemble(self.tokenizer, chat, media, holes)
        return AVInputs((prompt,), self.stock_kwargs)

    def text_inputs(self, ids: Tensor) -> AVInputs:
        """Bare token ids as prompts of text."""
        rows = []
        for row in ids.cpu().long():
            strings = self.tokenizer.convert_ids_to_tokens(row.tolist())
            tokens = TokenMap.of(row, strings, Modality.TEXT, Segment.QUESTION)
            positions = torch.arange(len(row)).expand(3, -1)
            rows.append(Prompt(row, tokens, (), positions, len(row)))
        return AVInputs(tuple(rows), self.stock_kwargs)

    def stock_kwargs(self, inputs: AVInputs) -> dict[str, Any]:
        """Keyword arguments for Qwen2_5OmniThinkerForConditionalGeneration."""
        media = [medium for prompt in inputs.prompts for medium in prompt.media]
        kwargs: dict[str, Any] = {"input_ids": inputs.ids, "attention_mask": inputs.attention_mask}
        for modality, pixels, grid in (
            (Modality.VIDEO, "pixel_values_videos", "video_grid_thw"),
            (Modality.IMAGE, "pixel_values", "image_grid_thw"),
        ):
            if seen := [medium.tensors for medium in media if medium.modality == modality]:
                kwargs[pixels] = torch.cat([tensors["pixels"] for tensors in seen])
                kwargs[grid] = torch.stack([tensors["grid"] for tensors in seen])
        if heard := [medium.tensors["mel"] for medium in media if medium.modality == Modality.AUDIO]:
            longest = max(mel.shape[1] for mel in heard)
            kwargs["input_features"] = torch.stack([F.pad(mel, (0, longest - mel.shape[1])) for mel in heard])
            kwargs["feature_attention_mask"] = torch.stack(
                [(torch.arange(longest) < mel.shape[1]).long() for mel in heard]
            )
        if "video_grid_thw" in kwargs:
            videos = [medium for medium in media if medium.modality == Modality.VIDEO]
            kwargs["video_second_per_grid"] = torch.tensor([float(v.tensors["seconds_per_grid"]) for v in videos])
            kwargs["use_audio_in_video"] = _all_alike([bool(v.tensors["with_audio"]) for v in videos])
        return kwargs

    def encode(self, encoders: Mapping[str, HookedEncoder], media: Media) -> Float[Tensor, "media_pos d_model"]:
        """Run the audio or vision tower on one sound, video or image."""
        if media.modality == Modality.AUDIO:
            audio, mel = encoders["audio"].tower, media.tensors["mel"]
            weight = audio.conv1.weight
            mel = mel.to(weight.device, weight.dtype)
            heard: Tensor = audio(mel, feature_lens=torch.tensor([mel.shape[1]], device=mel.device)).last_hidden_state
            return heard
        vision, weight = encoders["vision"], encoders["vision"].tower.patch_embed.proj.weight
        grid = media.tensors["grid"][None].to(weight.device)
        vision.order = self._window_order(media.tensors["grid"]) if vision.watched else None
        seen: Tensor = vision.tower(
            media.tensors["pixels"].to(weight.device, weight.dtype), grid_thw=grid
        ).pooler_output
        return seen

    def _window_order(self, grid: Int[Tensor, "3"]) -> Int[Tensor, " patch"]:
        """The natural index of each patch in the order of windows in which the tower holds them."""
        vision = self.config.vision_config
        index, _ = get_vision_window_index(grid[None], vision.spatial_merge_size, vision.window_size, vision.patch_size)
        unit = vision.spatial_merge_size**2
        merged_first = (index[:, None] * unit + torch.arange(unit)).flatten()
        return _raster(grid, vision.spatial_merge_size)[merged_first]

    def _medium(self, part: Any, options: PromptOptions, clip: int) -> Medium:
        """A clip's or image's encoder tensors, and its tokens in order with their positions from 0."""
        if not isinstance(part, Clip):
            return self._image(part, options, clip)
        sound = self._sound(part, clip) if part.waveform is not None else None
        if part.frames is None:
            assert sound is not None
            return sound
        sight = self._sight(part, options, clip, with_audio=sound is not None)
        return sight if sound is None else self._interleave(sight, sound)

    def _image(self, image: Any, options: PromptOptions, clip: int) -> Medium:
        size = self.preprocessor.get("size") or {}
        low = self.preprocessor.get("min_pixels") or size.get("shortest_edge") or IMAGE_PIXELS[0]
        high = self.preprocessor.get("max_pixels") or size.get("longest_edge") or IMAGE_PIXELS[1]
        patches = cut_patches(image[None], self.rules, options.min_pixels or low, options.max_pixels or high)
        tokens = self._grid_tokens(patches, Modality.IMAGE, clip)
        positions = torch.stack([torch.zeros(len(tokens), dtype=torch.long), tokens.row, tokens.col])
        tensors = {"pixels": patches.pixels, "grid": torch.tensor(patches.grid)}
        return Medium(tokens, positions, [(Modality.IMAGE, tensors)], int(positions.max()) + 1)

    def _sight(self, clip: Clip, options: PromptOptions, index: int, *, with_audio: bool) -> Medium:
        assert clip.frames is not None and clip.frame_seconds is not None
        low, high = self.settings.get("video_pixels", VIDEO_PIXELS)
        patches = cut_patches(clip.frames, self.rules, options.min_pixels or low, options.max_pixels or high)
        per_grid, rate = self.rules.temporal / options.nominal_fps, self.config.position_id_per_seconds
        tokens = self._grid_tokens(patches, Modality.VIDEO, index)
        edges = _grid_edges(clip, self.rules.temporal, patches.grid[0])
        tokens = replace(
            tokens,
            start=edges[tokens.frame], end=edges[tokens.frame + 1],
            nominal_start=tokens.frame * per_grid, nominal_end=(tokens.frame + 1) * per_grid,
        )  # fmt: skip
        # In single precision, as the stock model computes them.
        seconds = torch.tensor(per_grid, dtype=torch.float32)
        time = (torch.arange(patches.grid[0]) * seconds * rate).long()[tokens.frame]
        tensors = {
            "pixels": patches.pixels, "grid": torch.tensor(patches.grid), "seconds_per_grid": torch.tensor(per_grid),
            "with_audio": torch.tensor(with_audio),
        }  # fmt: skip
        positions = torch.stack([time, tokens.row, tokens.col])
        return Medium(tokens, positions, [(Modality.VIDEO, tensors)], int(positions.max()) + 1)

    def _sound(self, clip: Clip, index: int) -> Medium:
        clip = clip.resampled(self.mel.sampling_rate)
        assert clip.waveform is not None
        longest = self.preprocessor.get("chunk_length", 30)
        if len(clip.waveform) > longest * self.mel.sampling_rate:
            raise PromptError(
                f"the sound of clip {index} lasts {len(clip.waveform) / self.mel.sampling_rate:.1f} s, but the model reads "
                f"at most {longest} s. Cut it first: clip.cut(0, {longest})."
            )
        mel = log_mel(clip.waveform, self.mel)
        count = ((mel.shape[1] - 1) // 2 + 1 - 2) // 2 + 1
        if count < 1:
            raise PromptError(
                f"the sound of clip {index} has {len(clip.waveform)} samples, too few for one token. Pass a longer one."
            )
        seconds = 4 * self.mel.hop_length / self.mel.sampling_rate
        frame = torch.arange(count)
        times = {name: (frame + int("end" in name)) * seconds for name in ("start", "end")}
        times |= {
            f"nominal_{name}": (frame + int("end" in name)) / self.config.position_id_per_seconds
            for name in ("start", "end")
        }
        times = {name: time.double() for name, time in times.items()}
        tokens = self._media_tokens(Modality.AUDIO, count, clip=torch.full((count,), index), audio_frame=frame, **times)
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
        # Begin of audio shares its position id with begin of vision before it; both ends share one too.
        return Medium(
            tokens=TokenMap.join([self._marker("<|audio_bos|>"), *runs, self._marker("<|audio_eos|>")]),
            positions=torch.cat([torch.full((3, 1), -1), *places, torch.full((3, 1), end)], dim=1),
            media=[*sight.media, *sound.media],
            advance=end + 1,
            closes_with_next=True,
        )

    def _marker(self, string: str) -> TokenMap:
        return marker(self.tokenizer, string)

    def _grid_tokens(self, patches: Patches, modality: Modality, clip: int) -> TokenMap:
        time, rows, cols = patches.grid[0], patches.grid[1] // self.rules.merge, patches.grid[2] // self.rules.merge
        index = torch.cartesian_prod(torch.arange(time), torch.arange(rows), torch.arange(cols)).view(-1, 3)
        columns = {"frame": index[:, 0], "row": index[:, 1], "col": index[:, 2]}
        return self._media_tokens(modality, len(index), clip=torch.full((len(index),), clip), **columns)

    def _media_tokens(self, modality: Modality, count: int, **columns: Tensor) -> TokenMap:
        token = {
            "AUDIO": self.config.audio_token_id,
            "VIDEO": self.config.video_token_id,
            "IMAGE": self.config.image_token_id,
        }[modality.name]
        string = f"<|{modality.name}|>"
        return TokenMap.of(torch.full((count,), token), [string] * count, modality, Segment.MEDIA, **columns)


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


def _grid_edges(clip: Clip, temporal: int, n_grids: int) -> Float[Tensor, " edge"]:
    """True seconds at which each group of `temporal` frames begins, and the last one ends."""
    assert clip.frame_seconds is not None and clip.fps is not None
    starts = clip.frame_seconds.double()[::temporal][:n_grids]
    end = len(clip.frame_seconds) / clip.fps
    end = end if end > float(clip.frame_seconds[-1]) else float(clip.frame_seconds[-1]) + 1 / clip.fps
    return torch.cat([starts, torch.tensor([end], dtype=torch.float64)])


def _raster(grid: Int[Tensor, "3"], merge: int) -> Int[Tensor, " patch"]:
    """For each patch in the processor's order (merged neighbours together), its index by frame, row and column."""
    time, rows, cols = grid.tolist()
    index = torch.arange(time * rows * cols).view(time, rows // merge, merge, cols // merge, merge)
    return index.permute(0, 1, 3, 2, 4).flatten()


def _media_of(parts: Sequence[Part]) -> list[Any]:
    return [part for part in parts if not isinstance(part, str)]


def _all_alike(flags: list[bool]) -> bool:
    if len(set(flags)) > 1:
        raise PromptError(
            "the stock model takes videos either all with sound or all without, but these prompts mix them. "
            "Compare with it on prompts of one kind."
        )
    return flags[0]


# Checkpoints.

_MEL = ("feature_size", "sampling_rate", "hop_length", "chunk_length", "n_fft", "padding_value", "dither")

_THINKER = {
    "text_config": any_value, "audio_config": any_value, "vision_config": any_value, "audio_token_index": any_value,
    "image_token_index": any_value, "video_token_index": any_value, "audio_token_id": any_value, "image_token_id": any_value,
    "video_token_id": any_value, "position_id_per_seconds": any_value, "seconds_per_chunk": any_value,
    "audio_start_token_id": any_value, "audio_end_token_id": any_value, "vision_start_token_id": any_value,
    "vision_end_token_id": any_value, "vision_token_id": any_value, "user_token_id": any_value, "tie_word_embeddings": any_value,
    "hidden_size": any_value, "num_attention_heads": any_value,
}  # fmt: skip

_TEXT = {
    "vocab_size": any_value, "hidden_size": any_value, "intermediate_size": any_value, "num_hidden_layers": any_value,
    "num_attention_heads": any_value, "num_key_value_heads": any_value, "head_dim": any_value, "hidden_act": one_of("silu"),
    "max_position_embeddings": any_value, "rms_norm_eps": any_value, "tie_word_embeddings": any_value,
    "use_sliding_window": one_of(False), "sliding_window": any_value, "max_window_layers": any_value,
    "layer_types": lambda kinds: kinds is None or set(kinds) <= {"full_attention"},
    "rope_theta": any_value, "rope_scaling": lambda rope: _plain_rope(rope), "rope_parameters": lambda rope: _plain_rope(rope),
}  # fmt: skip

# The towers are transformers' own modules, which compute whatever their config classes know.
_AUDIO = dict.fromkeys(
    [
        "num_mel_bins",
        "encoder_layers",
        "encoder_attention_heads",
        "encoder_ffn_dim",
        "d_model",
        "activation_function",
        "scale_embedding",
        "max_source_positions",
        "n_window",
        "output_dim",
        "num_hidden_layers",
        "hidden_size",
        "num_attention_heads",
        "intermediate_size",
        "tie_word_embeddings",
    ],
    any_value,
)
_VISION = dict.fromkeys(
    [
        "depth",
        "hidden_size",
        "hidden_act",
        "intermediate_size",
        "num_heads",
        "in_channels",
        "in_chans",
        "embed_dim",
        "patch_size",
        "spatial_merge_size",
        "spatial_patch_size",
        "temporal_patch_size",
        "window_size",
        "out_hidden_size",
        "fullatt_block_indexes",
        "rope_parameters",
        "rope_theta",
        "tokens_per_second",
        "num_hidden_layers",
        "num_attention_heads",
        "tie_word_embeddings",
    ],
    any_value,
)


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


def _stock(model: Any) -> Stock:
    decoder = model.model.language_model
    vision, audio = model.model.visual, model.model.audio_tower
    return Stock(
        embed=decoder.embed_tokens,
        layers=list(decoder.layers),
        norm=decoder.norm,
        head=model.lm_head,
        encoders={"vision": vision, "audio": audio},
        encoder_blocks={"vision": list(vision.blocks), "audio": list(audio.layers)},
        whole=model,
    )


@contextmanager
def _quiet(folder: Path) -> Iterator[None]:
    """No progress bar for a checkpoint that loads in a moment."""
    small = sum(file.stat().st_size for file in folder.glob("*.safetensors")) < 2**28
    if not small or not logging.is_progress_bar_enabled():
        yield
        return
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.enable_progress_bar()


def _require_all_weights(folder: Path, model: Any, info: Mapping[str, Any]) -> None:
    """Tie the unembedding where the checkpoint has none; refuse any other gap."""
    missing = set(info["missing_keys"])
    if "lm_head.weight" in missing:
        model.lm_head.weight = model.model.language_model.embed_tokens.weight
        model.config.tie_word_embeddings = True
    missing -= {"lm_head.weight", "model.audio_tower.audio_bos_eos_token.weight"}
    unknown = {key for key in info["unexpected_keys"] if not key.startswith(("talker.", "token2wav."))}
    if missing or unknown or info["mismatched_keys"]:
        raise CheckpointError(
            f"the weights in {folder} do not fit its config: {len(missing)} missing {sorted(missing)[:3]}, {len(unknown)} "
            f"unknown {sorted(unknown)[:3]}, {len(info['mismatched_keys'])} of another shape. Download it again."
        )


def _released(name: str) -> str:
    """A key of the model in memory as the released checkpoints name it."""
    return "thinker." + re.sub(
        r"^model\.(language_model\.|(?=visual|audio_tower))", lambda m: "model." if m[1] else "", name
    )


def _chat_template(folder: Path) -> str:
    """The chat template of a folder whose tokenizer has none."""
    if (jinja := folder / "chat_template.jinja").exists():
        return jinja.read_text(encoding="utf-8")
    template = _read_json(folder / "chat_template.json").get("chat_template")
    if template is None:
        raise CheckpointError(
            f"{folder} has no chat template. Put chat_template.jinja or chat_template.json beside config.json."
        )
    return str(template)


def _preprocessor(folder: Path) -> dict[str, Any]:
    """How sound and images are read: one file in released checkpoints, two sections of another in recent ones."""
    sections = _read_json(folder / "processor_config.json")
    recent = sections.get("image_processor", {}) | sections.get("feature_extractor", {})
    return _read_json(folder / "preprocessor_config.json") or recent


def _read_json(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else {}


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


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
    if unknown := set(sizes) - set(_TINY_SIZES):
        raise CheckpointError(f"{sorted(unknown)[0]!r} is no size of a tiny model. Sizes are {', '.join(_TINY_SIZES)}.")
    size = dict(_TINY_SIZES) | dict(sizes)
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


def _randomise(model: nn.Module) -> None:
    """Weights of a size at which every part matters; biases and norms away from 0 and 1, so that errors show."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim > 1:
                weight.normal_(0, 0.8 / weight[0].numel() ** 0.5)
            elif "bias" in name:
                weight.normal_(0, 0.2)
            else:
                weight.normal_(1, 0.1)
