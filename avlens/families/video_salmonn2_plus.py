"""video-SALMONN 2+ (3B, 7B): Qwen2.5-VL that also hears, through Whisper and a Q-Former.

A sound is cut into pieces of 30 s, the last padded with silence; each becomes 60 tokens of half a second, so a clip of 5 s
has 50 tokens of padding (`is_pad`). After the tokens of each pair of frames come the audio tokens of their time, and
after the last pair all that remain. There are two schemes of position ids (time, row, column):

    trained     a video token has (2 x seconds, row, column), audio token k has (k, 0, k), both from the start of the block
    released    what the released inference code feeds, which forgets that there is sound: the first slots of the block get
                the grid's ids in order, whatever stands there, with 2 per pair of frames; all that follows counts as text

Published outputs were made with `released`, the default. The released scripts read 10 frames per second, at most 768.

Source: github.com/bytedance/video-SALMONN-2, video_SALMONN2_plus: data/dataset.py:61-88, 156-173, 473-492, 707,
data/rope2d.py, model/modeling_qwen2_5_vl.py; Tang et al. 2025, arXiv:2506.15220.
Differs from the source: audio tokens never exceed the sound's, also where frames go on after it; several clips may be
interleaved with text; frames are chosen by `Clip.from_file`, at the same rate.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import Blip2QFormerConfig, PreTrainedConfig, PreTrainedModel, WhisperConfig
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLTextConfig, Qwen2_5_VLVisionConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import (
    Qwen2_5_VisionTransformerPretrainedModel,
    Qwen2_5_VLTextModel,
)

from avlens.chat import ChatFamily, Medium, grid_edges, grid_tokens
from avlens.decoder import DecoderConfig, device_of
from avlens.encoders.hooked import HookedEncoder
from avlens.encoders.patches import PatchRules, cut_patches, window_order
from avlens.encoders.qformer import (
    QFormerAudio,
    audio_attention,
    mel_pieces,
    n_pieces,
    qformer_config,
    qformer_renames,
    whisper_config,
    whisper_mel,
)
from avlens.errors import PromptError
from avlens.family import Part, Positions, PromptOptions, Stock
from avlens.inputs import AVInputs, Media
from avlens.loading import (
    load_generation_config,
    load_preprocessor,
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

POSITIONS_PER_SECOND = 2
"""Of the time axis of position ids, for video and audio alike."""

MAX_FRAMES, MIN_PIXELS, VIDEO_PIXELS = 768, 28 * 28, 61250
"""How the released scripts read videos: frames at most, and the area of one of so many frames; fewer may be larger."""

IMAGE_PIXELS = 176400
"""Upper bound of an image's area in the released scripts."""

TEMPLATE = chat_template(
    image="<|vision_start|><|image_pad|><|vision_end|>\n",
    audio="<|vision_start|><|audio_pad|><|vision_end|>\n",
    video="<|vision_start|><|video_pad|><|vision_end|>\n",
)


class VideoSalmonn2PlusConfig(PreTrainedConfig):  # type: ignore[misc]
    """The settings of the parts, as transformers' classes want them."""

    model_type = "avlens_video_salmonn2_plus"
    sub_configs: ClassVar[dict[str, type]] = {
        "text_config": Qwen2_5_VLTextConfig, "vision_config": Qwen2_5_VLVisionConfig, "audio_config": WhisperConfig,
        "qformer_config": Blip2QFormerConfig,
    }  # fmt: skip
    text_config: Any = None
    vision_config: Any = None
    audio_config: Any = None
    qformer_config: Any = None
    window_seconds: float = 0.5


class VideoSalmonn2PlusModel(PreTrainedModel):  # type: ignore[misc]
    """The parts under the names of the released checkpoints, as far as they are the same."""

    config_class = VideoSalmonn2PlusConfig
    _no_split_modules: ClassVar[list[str]] = ["Qwen2_5_VLDecoderLayer", "Qwen2_5_VLVisionBlock", "QFormerAudio"]
    _supports_sdpa = True
    _keys_to_ignore_on_load_unexpected: ClassVar[list[str]] = [r"embeddings\.position_ids$"]

    def __init__(self, config: VideoSalmonn2PlusConfig) -> None:
        super().__init__(config)
        text = config.text_config
        self.visual = Qwen2_5_VisionTransformerPretrainedModel._from_config(config.vision_config)
        self.audio = QFormerAudio(
            config.audio_config,
            config.qformer_config,
            text.hidden_size,
            window_seconds=config.window_seconds,
            norm=False,
        )
        self.model = Qwen2_5_VLTextModel._from_config(text)
        self.lm_head = nn.Linear(text.hidden_size, text.vocab_size, bias=False)
        self.post_init()


class VideoSalmonn2Plus(ChatFamily):
    """video-SALMONN 2+."""

    name: ClassVar[str] = "video_salmonn2_plus"
    title: ClassVar[str] = "video-SALMONN 2+ 3B, 7B"
    tested: ClassVar[str] = "the original code, on tiny random weights; whole-size shapes"
    schemes: ClassVar[tuple[Positions, ...]] = ("released", "trained")
    has_stock: ClassVar[bool] = False
    sampling: Mapping[str, Any] = {"fps": 10.0, "max_frames": MAX_FRAMES}

    def __init__(
        self, raw: Mapping[str, Any], tokenizer: Any, preprocessor: Mapping[str, Any], settings: Mapping[str, Any]
    ) -> None:
        self.raw, self.tokenizer, self.preprocessor, self.settings = raw, tokenizer, preprocessor, settings
        tokenizer.chat_template = TEMPLATE
        self.config = _configs(raw)
        self.cfg = _decoder_config(self.config)
        self.mel = whisper_mel(self.config.audio_config.num_mel_bins)
        self.video_pixels = int(settings.get("video_pixels") or 0)
        vision = self.config.vision_config
        self.rules = PatchRules(
            patch=vision.patch_size, merge=vision.spatial_merge_size, temporal=vision.temporal_patch_size,
            mean=tuple(preprocessor.get("image_mean", (0.48145466, 0.4578275, 0.40821073))),
            std=tuple(preprocessor.get("image_std", (0.26862954, 0.26130258, 0.27577711))),
        )  # fmt: skip

    # Loading and saving.

    @classmethod
    def matches(cls, config: Mapping[str, Any]) -> bool:
        """Whether config.json is Qwen2.5-VL's with an audio encoder and a Q-Former beside the vision tower."""
        audio = config.get("audio_config")
        return config.get("model_type") == "qwen2_5_vl" and isinstance(audio, Mapping) and "qformer_config" in audio

    @classmethod
    def check(cls, config: Mapping[str, Any], ignore: Sequence[str] = ()) -> None:
        """Refuse a config with a setting that nobody handled."""
        audio = config["audio_config"]
        sections = (
            ("", config, _TEXT, _NEEDED), ("vision_config", config.get("vision_config"), _VISION, ()),
            ("audio_config", audio, _AUDIO, ("d_model", "second_per_window", "second_stride")),
            ("audio_config.qformer_config", audio["qformer_config"], _QFORMER, ()),
        )  # fmt: skip
        for where, section, rules, needs in sections:
            check_settings(section, rules=rules, where=where, ignore=ignore, needs=needs)

    @classmethod
    def load(cls, folder: Path, **load_options: Any) -> tuple["VideoSalmonn2Plus", Stock]:
        """Load a folder in the released key layout."""
        raw = read_json(folder / "config.json")
        config = _configs(raw)
        config.dtype = raw.get("dtype", raw.get("torch_dtype"))
        model = load_weights(
            VideoSalmonn2PlusModel, folder, config, embed="model.embed_tokens.weight", renames=_RENAMES, **load_options
        )
        tokenizer = load_tokenizer(folder, config)
        model.generation_config = load_generation_config(folder, tokenizer)
        settings = read_settings(folder / "avlens.json")
        return cls(raw, tokenizer, load_preprocessor(folder), settings), _stock(model)

    @classmethod
    def tiny(cls, seed: int, sizes: Mapping[str, Any]) -> tuple["VideoSalmonn2Plus", Stock]:
        """A small model with random weights, biases and norms, and a byte-level tokenizer."""
        tokenizer = tiny_tokenizer(_SPECIALS, TEMPLATE, {})
        raw = _tiny_config(tokenizer, sizes)
        model = random_model(lambda: VideoSalmonn2PlusModel(_configs(raw)), tokenizer, seed)
        if raw["tie_word_embeddings"]:
            model.lm_head.weight = model.model.embed_tokens.weight
        return cls(raw, tokenizer, {}, {}), _stock(model)

    def save(self, folder: Path, stock: Stock) -> None:
        """Write the checkpoint in the released key layout, with tokenizer, template and settings."""
        state = {_released(name): weight for name, weight in stock.whole.state_dict().items()}
        tied = save_weights(folder, state, "model.embed_tokens.weight")
        dtype = str(stock.head.weight.dtype).removeprefix("torch.")
        config = dict(self.raw) | {"tie_word_embeddings": tied, "torch_dtype": dtype}
        files = {"preprocessor_config": self.preprocessor, "avlens": self.settings}
        save_settings(folder, stock.whole, self.tokenizer, config=config, **files)

    # Prompts.

    def prepare(self, parts: Sequence[Part], question: str, options: PromptOptions) -> AVInputs:
        """One prompt, as the released code writes it."""
        inputs, merge = super().prepare(parts, question, options), self.rules.merge
        if options.positions == "trained":
            return inputs
        prompt = inputs.prompt
        grids = [(m.modality, m.tensors["grid"]) for m in prompt.media if m.modality != Modality.AUDIO]
        sights = [(kind, grid // torch.tensor([1, merge, merge])) for kind, grid in grids]
        positions = released_positions(prompt.tokens.modality, sights)
        prompt = replace(prompt, positions=positions, next_position=int(positions.max()) + 1)
        return AVInputs((prompt,), self.stock_kwargs)

    def holes(self) -> set[int]:
        """The ids of the three placeholders."""
        return {self._token(kind) for kind in (Modality.AUDIO, Modality.VIDEO, Modality.IMAGE)}

    def encode(self, encoders: Mapping[str, HookedEncoder], media: Media) -> Float[Tensor, "level media_pos d_model"]:
        """Run the audio or vision tower on one sound, video or image."""
        if media.modality == Modality.AUDIO:
            audio = encoders["audio"].tower
            conv = audio.whisper.conv1
            heard: Tensor = audio(media.tensors["mel"].to(device_of(conv), conv.weight.dtype))
            return heard.flatten(0, 1)[None]
        vision, first = encoders["vision"], encoders["vision"].tower.patch_embed.proj
        grid, rules = media.tensors["grid"], self.rules
        window = self.config.vision_config.window_size
        vision.order = window_order(grid, rules.merge, window, rules.patch) if vision.watched else None
        pixels = media.tensors["pixels"].to(device_of(first), first.weight.dtype)
        seen: Tensor = vision.tower(pixels, grid_thw=grid[None].to(device_of(first))).pooler_output
        return seen[None]

    def medium(self, part: Any, options: PromptOptions, clip: int) -> Medium:
        """A clip's or image's encoder tensors, and its tokens in order with their positions from 0, as trained."""
        if not isinstance(part, Clip):
            return self._image(part, options, clip)
        sound = self._sound(part, clip, options) if part.waveform is not None else None
        if part.frames is None:
            assert sound is not None
            # A sound alone counts as text.
            steps = torch.arange(len(sound.tokens)).expand(3, -1)
            return replace(sound, positions=steps, advance=len(sound.tokens))
        sight = self._sight(part, options, clip)
        return sight if sound is None else self._interleave(sight, sound)

    def _image(self, image: Any, options: PromptOptions, clip: int) -> Medium:
        low = options.min_pixels or self.preprocessor.get("min_pixels") or MIN_PIXELS
        high = options.max_pixels or self.settings.get("image_pixels") or IMAGE_PIXELS
        patches = cut_patches(image[None], self.rules, low, high)
        grid = self._merged(patches.grid)
        tokens = grid_tokens(grid, Modality.IMAGE, clip, self._token(Modality.IMAGE), "<|image_pad|>")
        positions = torch.stack([torch.zeros(len(tokens), dtype=torch.long), tokens.row, tokens.col])
        tensors = {"pixels": patches.pixels, "grid": torch.tensor(patches.grid)}
        return Medium(tokens, positions, [(Modality.IMAGE, tensors)], int(positions.max()) + 1)

    def _sight(self, clip: Clip, options: PromptOptions, index: int) -> Medium:
        assert clip.frames is not None and clip.fps is not None
        if len(clip.frames) > MAX_FRAMES:
            raise PromptError(
                f"clip {index} has {len(clip.frames)} frames, but the model reads at most {MAX_FRAMES}. Choose fewer: "
                f"Clip.from_file(..., max_frames={MAX_FRAMES})."
            )
        scale = 0.95 * MAX_FRAMES / len(clip.frames) if len(clip.frames) < MAX_FRAMES else 1.0
        low = options.min_pixels or self.settings.get("min_pixels") or MIN_PIXELS
        high = options.max_pixels or self.video_pixels or int(scale * VIDEO_PIXELS)
        patches = cut_patches(clip.frames, self.rules, low, high)
        per_grid = self.rules.temporal / (options.nominal_fps or clip.fps)
        said = 1.0 if options.positions == "released" else per_grid
        tokens = grid_tokens(
            self._merged(patches.grid), Modality.VIDEO, index, self._token(Modality.VIDEO), "<|video_pad|>"
        )
        edges = grid_edges(clip, self.rules.temporal, patches.grid[0])
        frame = tokens.frame.double()
        tokens = replace(
            tokens, start=edges[tokens.frame], end=edges[tokens.frame + 1],
            nominal_start=frame * said, nominal_end=(frame + 1) * said,
        )  # fmt: skip
        time = (torch.arange(patches.grid[0]) * per_grid * POSITIONS_PER_SECOND).long()[tokens.frame]
        positions = torch.stack([time, tokens.row, tokens.col])
        tensors = {
            "pixels": patches.pixels, "grid": torch.tensor(patches.grid), "seconds_per_grid": torch.tensor(per_grid),
        }  # fmt: skip
        return Medium(tokens, positions, [(Modality.VIDEO, tensors)], int(positions.max()) + 1)

    def _sound(self, clip: Clip, index: int, options: PromptOptions) -> Medium:
        clip = clip.resampled(self.mel.sampling_rate)
        assert clip.waveform is not None
        seconds, samples = self.config.window_seconds, len(clip.waveform)
        mel = mel_pieces(clip.waveform, self.mel)
        assert len(mel) == n_pieces(samples, self.mel.sampling_rate)
        count = len(mel) * round(self.mel.chunk_length / seconds)
        k = torch.arange(count)
        start = k.double() * seconds
        # The released scheme lays these tokens over slots that say nothing about their time.
        said = start if options.positions == "trained" else torch.full_like(start, torch.nan)
        tokens = TokenMap.of(
            torch.full((count,), self._token(Modality.AUDIO)), ["<|audio_pad|>"] * count, Modality.AUDIO, Segment.MEDIA,
            clip=torch.full((count,), index), audio_frame=k, start=start, end=start + seconds,
            nominal_start=said, nominal_end=said + seconds, is_pad=start >= samples / self.mel.sampling_rate,
        )  # fmt: skip
        positions = torch.stack([k, torch.zeros_like(k), k])
        return Medium(tokens, positions, [(Modality.AUDIO, {"mel": mel})], count)

    def _interleave(self, sight: Medium, sound: Medium) -> Medium:
        """The tokens of each pair of frames, then those of the sound until the next pair; at the end all that remain."""
        per_grid = float(sight.media[0][1]["seconds_per_grid"])
        n_grids, n_audio = int(sight.tokens.frame.max()) + 1, len(sound.tokens)
        starts = (torch.arange(n_grids) * per_grid * POSITIONS_PER_SECOND).long().clamp(max=n_audio).tolist()
        size = len(sight.tokens) // n_grids
        tokens, positions = [], []
        for grid, (start, end) in enumerate(zip(starts, [*starts[1:], n_audio], strict=True)):
            for medium, part in ((sight, slice(grid * size, (grid + 1) * size)), (sound, slice(start, end))):
                tokens.append(medium.tokens[part])
                positions.append(medium.positions[:, part])
        together = torch.cat(positions, dim=1)
        media = [*sight.media, *sound.media]
        return Medium(TokenMap.join(tokens), together, media, int(together[0].max()) + 1)

    def _merged(self, grid: tuple[int, int, int]) -> tuple[int, int, int]:
        return grid[0], grid[1] // self.rules.merge, grid[2] // self.rules.merge

    def _token(self, modality: Modality) -> int:
        return int(self.raw[f"{modality.name.lower()}_token_id"])


def released_positions(
    modality: Int[Tensor, " pos"], sights: Sequence[tuple[Modality, Int[Tensor, "3"]]]
) -> Int[Tensor, "3 pos"]:
    """Position ids of a prompt as the released inference code computes them, which knows of no sound.

    Args:
        modality: What stands where.
        sights: Kind and merged grid of each video and image, in order.
    """
    pieces, at, following, left = [], 0, 0, list(sights)
    while left:
        # Whichever of the kinds that remain comes first; after sound, that may be the tail of a video already counted.
        kinds = torch.tensor(sorted({int(kind) for kind, _ in left}))
        hits = torch.isin(modality[at:], kinds).nonzero()[:, 0]
        if not len(hits):
            break
        first = at + int(hits[0])
        chosen = next(i for i, (kind, _) in enumerate(left) if kind == int(modality[first]))
        kind, grid = left.pop(chosen)
        time, rows, cols = (torch.arange(n) for n in grid.tolist())
        time = time * POSITIONS_PER_SECOND if kind == Modality.VIDEO else time * 0
        begin = following + first - at
        pieces.append(torch.arange(following, begin).expand(3, -1))
        pieces.append(torch.cartesian_prod(time, rows, cols).view(-1, 3).T + begin)
        at, following = first + int(grid.prod()), int(pieces[-1].max()) + 1
    pieces.append(torch.arange(max(0, len(modality) - at)).expand(3, -1) + following)
    return torch.cat(pieces, dim=1)[:, : len(modality)]


# Checkpoints.

_RENAMES = qformer_renames(r"audio\.qformer", "audio.qformer") | {
    r"^audio\.(conv1|conv2|embed_positions|layers|layer_norm)\.": r"audio.whisper.\1.",
    r"^audio\.q_tokens$": "audio.query",
    r"^audio\.audio_proj\.": "audio.projection.",
}


def _released(name: str) -> str:
    """A key of the model in memory as the released checkpoints name it."""
    if name.startswith("audio.qformer."):
        name = name.replace("audio.qformer.layernorm.", "audio.qformer.embeddings.LayerNorm.")
        name = name.replace("attention.attention.", "attention.self.")
        return name.replace("audio.qformer.", "audio.qformer.bert.", 1)
    for ours, theirs in (("whisper.", ""), ("query", "q_tokens"), ("projection.", "audio_proj.")):
        if name.startswith(f"audio.{ours}"):
            return f"audio.{theirs}{name.removeprefix(f'audio.{ours}')}"
    return name


_SHAPE = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
          "num_key_value_heads", "hidden_act", "max_position_embeddings", "rms_norm_eps")  # fmt: skip

_NEEDED = (
    *_SHAPE, "rope_theta", "rope_scaling", "vision_config", "audio_config", "image_token_id", "video_token_id", "audio_token_id",
)  # fmt: skip

_TEXT = {
    **known(
        "vision_config", "audio_config", "image_token_id", "video_token_id", "audio_token_id", "vision_token_id",
        "vision_start_token_id", "vision_end_token_id", "tie_word_embeddings", "sliding_window", "max_window_layers",
        "rope_theta",
    ),
    **known(*_SHAPE), "hidden_act": one_of("silu"), "use_sliding_window": one_of(False),
    "rope_scaling": lambda rope: _plain_rope(rope),
}  # fmt: skip

_VISION_SHAPE = (
    "depth", "hidden_size", "hidden_act", "intermediate_size", "num_heads", "in_channels", "patch_size", "spatial_merge_size",
    "temporal_patch_size", "window_size", "out_hidden_size", "fullatt_block_indexes",
)  # fmt: skip
_VISION = known(*_VISION_SHAPE, "in_chans", "spatial_patch_size", "tokens_per_second", "tie_word_embeddings")

_AUDIO = known(
    "qformer_config", "num_mel_bins", "d_model", "encoder_layers", "encoder_attention_heads", "encoder_ffn_dim",
    "activation_function", "num_hidden_layers", "scale_embedding", "max_source_positions", "second_per_window",
    "second_stride", "tie_word_embeddings",
)  # fmt: skip

_QFORMER = {
    **known(
        "hidden_size", "num_hidden_layers", "num_attention_heads", "hidden_act", "intermediate_size", "layer_norm_eps",
        "encoder_width", "cross_attention_freq", "out_hidden_size", "hidden_dropout_prob", "attention_probs_dropout_prob",
        "max_position_embeddings", "type_vocab_size", "classifier_dropout", "tie_word_embeddings",
    ),
    "query_length": one_of(1), "position_embedding_type": one_of("absolute"),
}  # fmt: skip


def _plain_rope(rope: Mapping[str, Any] | None) -> bool:
    """Whether rotary settings ask for nothing but a section per axis."""
    if rope is None or "mrope_section" not in rope:
        return False
    kinds = {rope.get("rope_type", "default"), rope.get("type", "default")}
    return kinds <= {"default", "mrope"} and set(rope) <= {"rope_type", "type", "mrope_section"}


def _configs(raw: Mapping[str, Any]) -> VideoSalmonn2PlusConfig:
    """A released config.json as transformers' classes want it."""
    audio, vision = raw["audio_config"], raw["vision_config"]
    if audio["second_stride"] != audio["second_per_window"]:
        raise PromptError(
            f"windows of {audio['second_per_window']} s every {audio['second_stride']} s overlap, which is not handled."
        )
    rope = {"rope_theta": raw["rope_theta"], "mrope_section": list(raw["rope_scaling"]["mrope_section"])}
    return VideoSalmonn2PlusConfig(
        text_config=Qwen2_5_VLTextConfig(
            **{name: raw[name] for name in _SHAPE},
            rope_parameters={"rope_type": "default", **rope},
            bos_token_id=None,
            eos_token_id=None,
        ),
        vision_config=Qwen2_5_VLVisionConfig(**{name: vision[name] for name in _VISION_SHAPE if name in vision}),
        audio_config=whisper_config(audio),
        qformer_config=qformer_config(audio["qformer_config"], audio["d_model"]),
        window_seconds=audio["second_per_window"],
    )


def _decoder_config(config: VideoSalmonn2PlusConfig) -> DecoderConfig:
    text, rope = config.text_config, config.text_config.rope_parameters
    return DecoderConfig(
        n_layers=text.num_hidden_layers, d_model=text.hidden_size, n_heads=text.num_attention_heads,
        n_key_value_heads=text.num_key_value_heads, d_head=text.hidden_size // text.num_attention_heads,
        d_mlp=text.intermediate_size, d_vocab=text.vocab_size, n_ctx=text.max_position_embeddings, eps=text.rms_norm_eps,
        rotary_base=rope["rope_theta"], mrope_section=tuple(rope["mrope_section"]), act_fn=text.hidden_act,
        model_name="video_salmonn2_plus", original_architecture="video_SALMONN2_plus",
    )  # fmt: skip


def _stock(model: VideoSalmonn2PlusModel) -> Stock:
    return Stock(
        embed=model.model.embed_tokens,
        layers=list(model.model.layers),
        norm=model.model.norm,
        head=model.lm_head,
        encoders={"vision": model.visual, "audio": model.audio, "qformer": model.audio.qformer},
        encoder_blocks={
            "vision": list(model.visual.blocks),
            "audio": list(model.audio.whisper.layers),
            "qformer": list(model.audio.qformer.encoder.layer),
        },
        encoder_attention={
            "vision": [block.attn for block in model.visual.blocks],
            **audio_attention(model.audio),
        },
        whole=model,
    )


# Small models.

_SPECIALS = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>",
    "<|video_pad|>", "<|audio_pad|>",
)  # fmt: skip

_TINY_SIZES = {
    "n_layers": 3, "d_model": 64, "n_heads": 4, "n_key_value_heads": 2, "d_mlp": 96, "mrope_section": None,
    "rotary_base": 1e6, "tie_word_embeddings": False, "d_encoder": 32, "n_encoder_layers": 2, "d_vocab": None,
    "n_ctx": 32768,
}  # fmt: skip


def _tiny_config(tokenizer: Any, sizes: Mapping[str, Any]) -> dict[str, Any]:
    size = tiny_sizes(_TINY_SIZES, sizes)
    head = size["d_model"] // size["n_heads"]
    share = head // 2 * 3 // 8
    section = list(size["mrope_section"] or (head // 2 - 2 * share, share, share))
    token, width, depth = tokenizer.convert_tokens_to_ids, size["d_encoder"], size["n_encoder_layers"]
    return {
        "architectures": ["video_SALMONN2_plus"], "model_type": "qwen2_5_vl", "vocab_size": size["d_vocab"] or len(tokenizer),
        "hidden_size": size["d_model"], "intermediate_size": size["d_mlp"], "num_hidden_layers": size["n_layers"],
        "num_attention_heads": size["n_heads"], "num_key_value_heads": size["n_key_value_heads"], "hidden_act": "silu",
        "max_position_embeddings": size["n_ctx"], "rms_norm_eps": 1e-6, "rope_theta": size["rotary_base"],
        "rope_scaling": {"type": "mrope", "mrope_section": section}, "tie_word_embeddings": size["tie_word_embeddings"],
        "image_token_id": token("<|image_pad|>"), "video_token_id": token("<|video_pad|>"),
        "audio_token_id": token("<|audio_pad|>"), "vision_start_token_id": token("<|vision_start|>"),
        "vision_end_token_id": token("<|vision_end|>"),
        "vision_config": {
            "depth": depth, "hidden_size": width, "intermediate_size": 2 * width, "num_heads": 4, "in_channels": 3,
            "patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2, "window_size": 112, "hidden_act": "silu",
            "out_hidden_size": size["d_model"], "fullatt_block_indexes": [depth - 1],
        },
        "audio_config": {
            "d_model": width, "encoder_layers": depth, "encoder_attention_heads": 4, "encoder_ffn_dim": 2 * width,
            "num_mel_bins": 128, "max_source_positions": 1500, "activation_function": "gelu", "scale_embedding": False,
            "second_per_window": 0.5, "second_stride": 0.5,
            "qformer_config": {
                "hidden_size": width, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 2 * width,
                "hidden_act": "gelu", "layer_norm_eps": 1e-12, "encoder_width": width, "cross_attention_freq": 1,
                "query_length": 1,
            },
        },
    }  # fmt: skip
