"""video-SALMONN-o1 (7B) and video-SALMONN 2 (7B): LLaVA-OneVision's Qwen2 with SigLIP, Whisper and a Q-Former.

A frame is 27 x 27 patches of SigLIP's last layer but one, pooled to 13 x 13 by their maxima (o1 before the projector, 2
after it), with a learned separator after each row: 182 tokens. A sound is cut into pieces of 30 s, the last padded with
silence; each becomes one token per window (o1 0.2 s, 2 0.5 s), and from the second piece on the piece's number is added
as a sinusoid. The tokens of all pieces, padding included, are stretched by nearest neighbours to a multiple of the
number of frames and dealt out evenly: so the sound that follows a frame is not the sound of its time. The TokenMap tells
for each audio token which seconds it really holds, and `is_pad` where that is silence after the end. Positions are plain
counts, without time, so nominal times are NaN. No media token has an id (-1): embeddings are put in the place of `<image>`.

The released scripts read 2 frames per second, at most 60 (o1), or 1 and 30 (2). Sizes of the encoders, the window and the
rates are no part of the released config.json; another checkpoint's can be said in avlens.json.

Source: github.com/BriansIDP/video-SALMONN-o1, videosalmonno1: inference.py:96-111,
llava/model/language_model/videosalmonno1.py:446-472, llava/dataset/av_test_dataset.py; Sun et al. 2025, arXiv:2502.11775.
github.com/bytedance/video-SALMONN-2, scripts/run.sh, llava/model/language_model/video_salmonn_2.py.
Differs from the source: several clips may be interleaved with text; single images are refused.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn
from transformers import (
    Blip2QFormerConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen2Model,
    SiglipVisionConfig,
    SiglipVisionModel,
    WhisperConfig,
)

from avlens.chat import ChatFamily, Medium, grid_edges
from avlens.decoder import DecoderConfig, device_of
from avlens.encoders.hooked import HookedEncoder
from avlens.encoders.qformer import (
    PIECE_SECONDS,
    QFormerAudio,
    audio_attention,
    mel_pieces,
    qformer_config,
    qformer_renames,
    whisper_config,
    whisper_mel,
)
from avlens.errors import PromptError
from avlens.family import PromptOptions, Stock
from avlens.inputs import Media
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
from avlens.settings import check_settings, known, one_of
from avlens.tokens import Modality, Segment, TokenMap
from avlens.zoo.tokenizer import chat_template, tiny_tokenizer

HOLE = "<image>"
"""Where media go in the text of a prompt; the released code cuts the text there."""

TEMPLATE = chat_template(image=f"{HOLE}\n", audio=f"{HOLE}\n", video=f"{HOLE}\n")

FRONT_PER_SECOND = 50
"""So many audio tokens per second of video are dealt out to frames at most; any others come after the last frame."""

VARIANTS = {
    "videosalmonno1": {"window_seconds": 0.2, "fps": 2.0, "max_frames": 60},
    "video_salmonn_2": {"window_seconds": 0.5, "fps": 1.0, "max_frames": 30},
}
"""What only the released scripts say, by model_type."""

ENCODERS: Mapping[str, Mapping[str, Any]] = {
    "vision": {
        "hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 26, "num_attention_heads": 16, "image_size": 384,
        "patch_size": 14,
    },
    "whisper": {
        "num_mel_bins": 128, "encoder_layers": 32, "encoder_attention_heads": 20, "encoder_ffn_dim": 5120, "d_model": 1280,
        "max_source_positions": 1500,
    },
    "qformer": {
        "hidden_size": 768, "num_hidden_layers": 2, "num_attention_heads": 12, "intermediate_size": 3072, "hidden_act": "gelu",
        "layer_norm_eps": 1e-12,
    },
}  # fmt: skip
"""SigLIP so400m without its last layer, Whisper large v3, and BERT base with two layers."""


class VideoSalmonnO1Config(PreTrainedConfig):  # type: ignore[misc]
    """The settings of the parts, as transformers' classes want them."""

    model_type = "avlens_video_salmonn_o1"
    sub_configs: ClassVar[dict[str, type]] = {
        "text_config": Qwen2Config, "vision_config": SiglipVisionConfig, "audio_config": WhisperConfig,
        "qformer_config": Blip2QFormerConfig,
    }  # fmt: skip
    text_config: Any = None
    vision_config: Any = None
    audio_config: Any = None
    qformer_config: Any = None
    window_seconds: float = 0.2
    pool_first: bool = True
    pool_stride: int = 2


class FrameEncoder(nn.Module):
    """SigLIP, pooling, projector and row separators: one frame after the other."""

    def __init__(self, config: VideoSalmonnO1Config) -> None:
        super().__init__()
        vision, width = config.vision_config, config.text_config.hidden_size
        self.siglip = SiglipVisionModel._from_config(vision)
        self.projector = nn.Sequential(nn.Linear(vision.hidden_size, width), nn.GELU(), nn.Linear(width, width))
        self.newline = nn.Parameter(torch.zeros(width))
        self.side, self.stride, self.pool_first = _patches(config), config.pool_stride, config.pool_first

    def forward(self, pixels: Float[Tensor, "frame 3 height width"]) -> Float[Tensor, "frame token d_model"]:
        """The tokens of each frame: rows of patches, a separator after each."""
        # The output of the last layer that is there, without the norm after it.
        seen = self.siglip.encoder(inputs_embeds=self.siglip.embeddings(pixels)).last_hidden_state
        seen = self.projector(self._pool(seen)) if self.pool_first else self._pool(self.projector(seen))
        grid = seen.unflatten(1, (self.side // self.stride, -1))  # frame row col d_model
        separators = self.newline.expand(*grid.shape[:2], 1, -1)
        return torch.cat([grid, separators], dim=2).flatten(1, 2)

    def _pool(self, seen: Float[Tensor, "frame patch d"]) -> Float[Tensor, "frame pooled d"]:
        grid = seen.transpose(1, 2).unflatten(2, (self.side, self.side))
        return F.max_pool2d(grid, self.stride).flatten(2).transpose(1, 2)


class SpeechEncoder(nn.Module):
    """Whisper and the Q-Former, a two-layer map, and the number of the piece."""

    def __init__(self, config: VideoSalmonnO1Config) -> None:
        super().__init__()
        width = config.text_config.hidden_size
        self.tokens = QFormerAudio(
            config.audio_config, config.qformer_config, width, window_seconds=config.window_seconds, norm=True
        )
        self.final = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))

    def forward(self, mel: Float[Tensor, "piece mel mel_pos"]) -> Float[Tensor, "token d_model"]:
        """The tokens of all pieces."""
        heard = self.final(self.tokens(mel))
        return (heard + _piece_numbers(*heard.shape[::2]).to(heard)[:, None]).flatten(0, 1)


class VideoSalmonnO1Model(PreTrainedModel):  # type: ignore[misc]
    """The parts."""

    config_class = VideoSalmonnO1Config
    _no_split_modules: ClassVar[list[str]] = ["Qwen2DecoderLayer", "FrameEncoder", "SpeechEncoder"]
    _supports_sdpa = True
    _keys_to_ignore_on_load_unexpected: ClassVar[list[str]] = [r"embeddings\.position_ids$"]

    def __init__(self, config: VideoSalmonnO1Config) -> None:
        super().__init__(config)
        text = config.text_config
        self.model = Qwen2Model._from_config(text)
        self.lm_head = nn.Linear(text.hidden_size, text.vocab_size, bias=False)
        self.vision = FrameEncoder(config)
        self.speech = SpeechEncoder(config)
        self.post_init()


class VideoSalmonnO1(ChatFamily):
    """video-SALMONN-o1, and video-SALMONN 2 as a variant of it."""

    name: ClassVar[str] = "video_salmonn_o1"
    title: ClassVar[str] = "video-SALMONN-o1 7B, video-SALMONN 2 7B"
    tested: ClassVar[str] = "the original code of o1, on tiny random weights; whole-size shapes"
    has_stock: ClassVar[bool] = False

    def __init__(self, raw: Mapping[str, Any], tokenizer: Any, settings: Mapping[str, Any]) -> None:
        self.raw, self.tokenizer, self.settings = raw, tokenizer, settings
        tokenizer.chat_template = TEMPLATE
        tokenizer.add_tokens([HOLE], special_tokens=True)
        self.config = _configs(raw, settings)
        self.cfg = _decoder_config(self.config, raw["model_type"])
        self.mel = whisper_mel(self.config.audio_config.num_mel_bins)
        rates = VARIANTS[raw["model_type"]] | dict(settings)
        self.max_frames, self.sampling = rates["max_frames"], {name: rates[name] for name in ("fps", "max_frames")}

    # Loading and saving.

    @classmethod
    def matches(cls, config: Mapping[str, Any]) -> bool:
        """Whether config.json is of o1 or of 2."""
        return config.get("model_type") in VARIANTS

    @classmethod
    def check(cls, config: Mapping[str, Any], ignore: Sequence[str] = ()) -> None:
        """Refuse a config with a setting that nobody handled."""
        needs = (*_SHAPE, "rope_theta")
        check_settings(config, rules=_RULES, where="", ignore=ignore, harmless=_HARMLESS, needs=needs)

    @classmethod
    def load(cls, folder: Path, **load_options: Any) -> tuple["VideoSalmonnO1", Stock]:
        """Load a folder in the released key layout."""
        raw, settings = read_json(folder / "config.json"), read_settings(folder / "avlens.json")
        config = _configs(raw, settings)
        config.dtype = raw.get("dtype", raw.get("torch_dtype"))
        model = load_weights(
            VideoSalmonnO1Model, folder, config, embed="model.embed_tokens.weight", renames=_RENAMES, **load_options
        )
        tokenizer = load_tokenizer(folder, config)
        model.generation_config = load_generation_config(folder, tokenizer)
        return cls(raw, tokenizer, settings), _stock(model)

    @classmethod
    def tiny(cls, seed: int, sizes: Mapping[str, Any]) -> tuple["VideoSalmonnO1", Stock]:
        """A small model with random weights, biases and norms, and a byte-level tokenizer; `variant` is a model_type."""
        tokenizer = tiny_tokenizer(_SPECIALS, TEMPLATE, {})
        raw, settings = _tiny_config(tokenizer, sizes)
        model = random_model(lambda: VideoSalmonnO1Model(_configs(raw, settings)), tokenizer, seed)
        if raw["tie_word_embeddings"]:
            model.lm_head.weight = model.model.embed_tokens.weight
        return cls(raw, tokenizer, settings), _stock(model)

    def save(self, folder: Path, stock: Stock) -> None:
        """Write the checkpoint in the released key layout, with tokenizer, template and settings."""
        state = {_released(name): weight for name, weight in stock.whole.state_dict().items()}
        tied = save_weights(folder, state, "model.embed_tokens.weight")
        dtype = str(stock.head.weight.dtype).removeprefix("torch.")
        config = dict(self.raw) | {"tie_word_embeddings": tied, "torch_dtype": dtype}
        save_settings(folder, stock.whole, self.tokenizer, config=config, avlens=self.settings)

    # Prompts.

    def holes(self) -> set[int]:
        """The one placeholder."""
        return {self.tokenizer.convert_tokens_to_ids(HOLE)}

    def encode(self, encoders: Mapping[str, HookedEncoder], media: Media) -> Float[Tensor, "level media_pos d_model"]:
        """Run the audio or vision tower on one sound or video."""
        if media.modality == Modality.AUDIO:
            speech = encoders["audio"].tower
            mel = media.tensors["mel"].to(device_of(speech.final[0]), speech.tokens.whisper.conv1.weight.dtype)
            heard: Tensor = speech(mel)
            return heard[media.tensors["source"].to(heard.device)][None]
        vision = encoders["vision"].tower
        first = vision.siglip.embeddings.patch_embedding
        seen: Tensor = vision(media.tensors["pixels"].to(device_of(first), first.weight.dtype))
        return seen.flatten(0, 1)[None]

    def medium(self, part: Any, options: PromptOptions, clip: int) -> Medium:
        """A clip's encoder tensors, and its tokens in order."""
        if not isinstance(part, Clip):
            raise PromptError(f"{self.title} reads clips, not single images. Pass Clip(frames=image[None], fps=1.0).")
        if options.min_pixels or options.max_pixels or options.nominal_fps:
            raise PromptError(
                f"frames of {self.title} have one size and no position in time. Leave pixels and rates out."
            )
        if part.frames is None:
            return self._sound(part, clip)
        return self.interleave(_normalised(part.frames, self.config.vision_config.image_size), part, clip)

    def interleave(self, pixels: Float[Tensor, "frame 3 height width"], clip: Clip, index: int) -> Medium:
        """The tokens of each frame, then its share of the sound's.

        Args:
            pixels: What the vision tower reads of each frame.
            clip: When the frames are, and the sound; silence where it has none, as in the released code.
            index: Which clip of the prompt it is.
        """
        n_frames = len(pixels)
        if n_frames > self.max_frames:
            raise PromptError(
                f"clip {index} has {n_frames} frames, but the model reads at most {self.max_frames}. Choose fewer: "
                f"Clip.from_file(..., max_frames={self.max_frames})."
            )
        edges = grid_edges(clip, 1, n_frames)
        sound = self._heard(clip, float(edges[-1]))
        count = round(len(sound) * PIECE_SECONDS / self.config.window_seconds)
        front = min(count, round(float(edges[-1]) * FRONT_PER_SECOND))
        source = torch.cat([_stretched(front, n_frames), torch.arange(front, count)])
        heard = self._audio_tokens(source, index, clip, float(edges[-1]))
        share = (len(source) - (count - front)) // n_frames
        runs = []
        for frame in range(n_frames):
            runs.append(self._frame_tokens(frame, index, edges))
            runs.append(heard[slice(frame * share, (frame + 1) * share)])
        tokens = TokenMap.join([*runs, heard[slice(n_frames * share, len(source))]])
        media = [(Modality.VIDEO, {"pixels": pixels}), (Modality.AUDIO, {"mel": sound, "source": source})]
        return _in_line(tokens, media)

    def _sound(self, clip: Clip, index: int) -> Medium:
        if clip.seconds > PIECE_SECONDS:
            raise PromptError(
                f"the sound of clip {index} lasts {clip.seconds:.1f} s, but without frames the model reads at most "
                f"{PIECE_SECONDS} s. Cut it first: clip.cut(0, {PIECE_SECONDS})."
            )
        mel = self._heard(clip, clip.seconds)
        source = torch.arange(round(len(mel) * PIECE_SECONDS / self.config.window_seconds))
        tokens = self._audio_tokens(source, index, clip, clip.seconds)
        return _in_line(tokens, [(Modality.AUDIO, {"mel": mel, "source": source})])

    def _heard(self, clip: Clip, seconds: float) -> Float[Tensor, "piece mel mel_pos"]:
        """The sound of the clip's seconds as Whisper reads it."""
        rate = self.mel.sampling_rate
        if clip.waveform is None:
            return mel_pieces(torch.zeros(round(rate * seconds)), self.mel)
        waveform = clip.resampled(rate).waveform
        assert waveform is not None
        return mel_pieces(waveform[: max(1, round(rate * seconds))], self.mel)

    def _audio_tokens(self, source: Int[Tensor, " token"], index: int, clip: Clip, seconds: float) -> TokenMap:
        """Audio tokens and the seconds of the window that each holds."""
        window, count = self.config.window_seconds, len(source)
        heard = 0.0 if clip.waveform is None or clip.sample_rate is None else len(clip.waveform) / clip.sample_rate
        start = source.double() * window
        return TokenMap.of(
            torch.full((count,), -1), ["<audio>"] * count, Modality.AUDIO, Segment.MEDIA, audio_frame=source,
            clip=torch.full((count,), index), start=start, end=start + window, is_pad=start >= min(heard, seconds),
        )  # fmt: skip

    def _frame_tokens(self, frame: int, index: int, edges: Float[Tensor, " edge"]) -> TokenMap:
        side = self.config_side
        place = torch.cartesian_prod(torch.arange(side), torch.arange(side + 1))
        newline, count = place[:, 1] == side, len(place)
        modality = torch.full((count,), int(Modality.VIDEO)).masked_fill(newline, int(Modality.SEPARATOR))
        tokens = TokenMap.of(
            torch.full((count,), -1), ["<newline>" if end else "<video>" for end in newline.tolist()], Modality.VIDEO,
            Segment.MEDIA, clip=torch.full((count,), index), frame=torch.full((count,), frame),
            row=place[:, 0].masked_fill(newline, -1), col=place[:, 1].masked_fill(newline, -1),
            start=edges[frame].expand(count), end=edges[frame + 1].expand(count),
        )  # fmt: skip
        return replace(tokens, modality=modality)

    @property
    def config_side(self) -> int:
        """Rows, and columns, of a frame's tokens."""
        return _patches(self.config) // self.config.pool_stride


def _in_line(tokens: TokenMap, media: list[tuple[Modality, dict[str, Tensor]]]) -> Medium:
    return Medium(tokens, torch.arange(len(tokens)).expand(3, -1), media, len(tokens))


def _stretched(count: int, n_frames: int) -> Int[Tensor, " token"]:
    """Which of `count` tokens stands in each place when they are stretched to a multiple of the number of frames."""
    index = torch.arange(count)
    if count % n_frames == 0:
        return index
    size = count + n_frames - count % n_frames
    return F.interpolate(index[None, None].float(), size=size, mode="nearest")[0, 0].long()


def _piece_numbers(n_pieces: int, width: int) -> Float[Tensor, "piece d_model"]:
    """A sinusoid of each piece's number, counted from the second; nothing for the first."""
    number = torch.arange(n_pieces - 1).float()[:, None]
    rates = torch.exp(torch.arange(0, width, 2).float() * -(torch.log(torch.tensor(10000.0)) / width))
    numbers = torch.zeros(n_pieces, width)
    numbers[1:, 0::2], numbers[1:, 1::2] = (number * rates).sin(), (number * rates).cos()
    return numbers


def _normalised(frames: UInt8[Tensor, "frame 3 height width"], side: int) -> Float[Tensor, "frame 3 side side"]:
    """Frames squeezed into a square, as SigLIP reads them: from -1 to 1."""
    if frames.shape[-2:] != (side, side):
        frames = F.interpolate(frames, size=(side, side), mode="bicubic", align_corners=False, antialias=True)
    return (frames.float() / 255 - 0.5) / 0.5


def _patches(config: VideoSalmonnO1Config) -> int:
    return int(config.vision_config.image_size // config.vision_config.patch_size)


# Checkpoints.

_NAMES = {
    "model.vision_tower.vision_tower.vision_model.": "vision.siglip.", "model.mm_projector.": "vision.projector.",
    "model.image_newline": "vision.newline", "speech_encoder.": "speech.tokens.whisper.", "ln_speech.": "speech.tokens.norm.",
    "speech_query_tokens": "speech.tokens.query", "speech_llama_proj.": "speech.tokens.projection.",
    "final_linear.": "speech.final.",
}  # fmt: skip

_RENAMES = qformer_renames("speech_Qformer", "speech.tokens.qformer") | {
    "^" + theirs.replace(".", r"\."): ours for theirs, ours in _NAMES.items()
}


def _released(name: str) -> str:
    """A key of the model in memory as the released checkpoints name it."""
    if name.startswith("speech.tokens.qformer."):
        name = name.removeprefix("speech.tokens.qformer.").replace("attention.attention.", "attention.self.")
        return "speech_Qformer.bert." + ("embeddings.LayerNorm" + name[9:] if name.startswith("layernorm") else name)
    for theirs, ours in _NAMES.items():
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    return name


_SHAPE = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
          "num_key_value_heads", "hidden_act", "max_position_embeddings", "rms_norm_eps")  # fmt: skip

_RULES = {
    **known(
        "rope_theta", "sliding_window", "max_window_layers", "tie_word_embeddings", "mm_spatial_pool_stride",
        "mm_hidden_size",
    ),
    **known(*_SHAPE), "hidden_act": one_of("silu"), "rope_scaling": one_of(None),
    "use_sliding_window": one_of(False),
    "mm_projector_type": one_of("mlp2x_gelu"), "multi_frame_projector": one_of(False),
    "mm_patch_merge_type": one_of("spatial_unpad"), "use_mm_proj": one_of(True), "mm_vision_select_layer": one_of(-2),
    "mm_vision_select_feature": one_of("patch"), "mm_newline_position": one_of("grid"),
    "mm_pooling_position": one_of("before", "after"), "mm_spatial_pool_mode": one_of("max"),
    "mm_resampler_type": one_of("spatial_pool", None), "mm_use_im_start_end": one_of(False),
    "modality_max_length": one_of("None", None), "mf_split_init": one_of(False), "use_pos_skipping": one_of(False),
    "add_faster_video": one_of(False),
}  # fmt: skip

_HARMLESS = frozenset(
    ["add_time_token", "multi_frame_num", "mm_vision_tower", "tokenizer_padding_side", "tokenizer_model_max_length",
     "image_aspect_ratio", "image_grid_pinpoints", "image_crop_resolution", "image_split_resolution",
     "mm_spatial_pool_out_channels", "mm_use_im_patch_token", "mm_tunable_parts", "mm_projector_lr", "mm_vision_tower_lr",
     "tune_mm_mlp_adapter", "tune_mm_vision_resampler", "unfreeze_mm_vision_tower", "freeze_mm_mlp_adapter",
     "freeze_mm_vision_resampler", "pos_skipping_range", "vision_tower_pretrained", "faster_token_stride", "force_sample"]
)  # fmt: skip
"""What the sound-and-video path of the released code never reads."""


def _configs(raw: Mapping[str, Any], settings: Mapping[str, Any]) -> VideoSalmonnO1Config:
    """A released config.json and what it leaves to the scripts, as transformers' classes want them."""
    sizes = {part: dict(known) | dict(settings.get(part, {})) for part, known in ENCODERS.items()}
    vision = {"hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6} | sizes["vision"]
    window = settings.get("window_seconds", VARIANTS[raw["model_type"]]["window_seconds"])
    return VideoSalmonnO1Config(
        text_config=Qwen2Config(
            **{name: raw[name] for name in _SHAPE}, bos_token_id=None, eos_token_id=None,
            rope_parameters={"rope_type": "default", "rope_theta": raw["rope_theta"]},
        ),
        vision_config=SiglipVisionConfig(**vision, vision_use_head=False),
        audio_config=whisper_config(sizes["whisper"]),
        qformer_config=qformer_config(sizes["qformer"], sizes["whisper"]["d_model"]),
        window_seconds=window, pool_first=raw.get("mm_pooling_position", "before") == "before",
        pool_stride=raw.get("mm_spatial_pool_stride", 2),
    )  # fmt: skip


def _decoder_config(config: VideoSalmonnO1Config, model_type: str) -> DecoderConfig:
    text = config.text_config
    return DecoderConfig(
        n_layers=text.num_hidden_layers, d_model=text.hidden_size, n_heads=text.num_attention_heads,
        n_key_value_heads=text.num_key_value_heads, d_head=text.hidden_size // text.num_attention_heads,
        d_mlp=text.intermediate_size, d_vocab=text.vocab_size, n_ctx=text.max_position_embeddings, eps=text.rms_norm_eps,
        rotary_base=text.rope_parameters["rope_theta"], mrope_section=None, act_fn=text.hidden_act,
        model_name="video_salmonn_o1", original_architecture=model_type,
    )  # fmt: skip


def _stock(model: VideoSalmonnO1Model) -> Stock:
    whisper, qformer, siglip = model.speech.tokens.whisper, model.speech.tokens.qformer, model.vision.siglip
    return Stock(
        embed=model.model.embed_tokens,
        layers=list(model.model.layers),
        norm=model.model.norm,
        head=model.lm_head,
        encoders={"vision": model.vision, "audio": model.speech, "qformer": qformer},
        encoder_blocks={
            "vision": list(siglip.encoder.layers),
            "audio": list(whisper.layers),
            "qformer": list(qformer.encoder.layer),
        },
        encoder_attention={
            "vision": [layer.self_attn for layer in siglip.encoder.layers],
            **audio_attention(model.speech.tokens),
        },
        whole=model,
    )


# Small models.

_SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", HOLE)

_TINY_SIZES = {
    "n_layers": 3, "d_model": 64, "n_heads": 4, "n_key_value_heads": 2, "d_mlp": 96, "rotary_base": 1e6,
    "tie_word_embeddings": False, "d_encoder": 32, "n_encoder_layers": 2, "d_vocab": None, "n_ctx": 32768,
    "image_size": 84, "variant": "videosalmonno1",
}  # fmt: skip


def _tiny_config(tokenizer: Any, sizes: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    size = tiny_sizes(_TINY_SIZES, sizes)
    width, depth = size["d_encoder"], size["n_encoder_layers"]
    raw = {
        "model_type": size["variant"], "vocab_size": size["d_vocab"] or len(tokenizer), "hidden_size": size["d_model"],
        "intermediate_size": size["d_mlp"], "num_hidden_layers": size["n_layers"], "num_attention_heads": size["n_heads"],
        "num_key_value_heads": size["n_key_value_heads"], "hidden_act": "silu", "max_position_embeddings": size["n_ctx"],
        "rms_norm_eps": 1e-6, "rope_theta": size["rotary_base"], "rope_scaling": None,
        "tie_word_embeddings": size["tie_word_embeddings"], "mm_projector_type": "mlp2x_gelu",
        "mm_newline_position": "grid", "mm_spatial_pool_mode": "max", "mm_spatial_pool_stride": 2,
        "mm_pooling_position": "before" if size["variant"] == "videosalmonno1" else "after",
    }  # fmt: skip
    settings = {
        "vision": {
            "hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": depth, "num_attention_heads": 4,
            "image_size": size["image_size"], "patch_size": 14,
        },
        "whisper": {
            "d_model": width, "encoder_layers": depth, "encoder_attention_heads": 4, "encoder_ffn_dim": 2 * width,
            "num_mel_bins": 128,
        },
        "qformer": {
            "hidden_size": width, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 2 * width,
        },
    }  # fmt: skip
    return raw, settings
