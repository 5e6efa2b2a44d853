"""What do thinkers share: models that are the reading and writing half of one that also speaks?

Their checkpoints hold the thinker under `thinker.` beside a talker, which is left out; frames are cut into patches and a
sound into mel frames as their official processors do; and transformers has them, so that a prompt can be written as its
keyword arguments. What differs (the order of video and audio tokens, position ids, towers) is each family's own.
"""

import re
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from transformers import WhisperFeatureExtractor

from avlens.chat import ChatFamily, Medium, grid_edges, grid_tokens
from avlens.decoder import DecoderConfig
from avlens.encoders.mel import log_mel
from avlens.encoders.patches import Patches, PatchRules, cut_patches
from avlens.errors import CheckpointError, PromptError
from avlens.family import PromptOptions, Stock
from avlens.inputs import AVInputs
from avlens.loading import (
    load_preprocessor,
    load_tokenizer,
    load_weights,
    read_json,
    read_settings,
    save_settings,
    save_weights,
)
from avlens.media import Clip
from avlens.settings import Rules, check_settings, known, passed_on
from avlens.tokens import Modality

_MEL = ("feature_size", "sampling_rate", "hop_length", "chunk_length", "n_fft", "padding_value", "dither")


@dataclass(frozen=True, eq=False)
class Reading:
    """How a checkpoint reads clips and images.

    Attributes:
        tokenizer: Which knows the strings of media tokens.
        config: The thinker's.
        preprocessor: The checkpoint's own rules for images and sound.
        settings: What avlens.json says beyond them.
        rules: How frames are cut.
        mel: How sound is cut.
        video_pixels: Bounds of a frame's area that the official processor imposes, whatever the checkpoint says.
        image_pixels: Bounds of an image's area where the checkpoint says none.
        nominal_fps: The frame rate that position ids assume unless told otherwise.
    """

    tokenizer: Any
    config: Any
    preprocessor: Mapping[str, Any]
    settings: Mapping[str, Any]
    rules: PatchRules
    mel: WhisperFeatureExtractor
    video_pixels: tuple[int, int]
    image_pixels: tuple[int, int]
    nominal_fps: float

    @classmethod
    def of(
        cls, config: Any, tokenizer: Any, preprocessor: Mapping[str, Any], settings: Mapping[str, Any], *,
        mean: tuple[float, float, float], std: tuple[float, float, float], video_pixels: tuple[int, int],
        image_pixels: tuple[int, int], nominal_fps: float,
    ) -> "Reading":  # fmt: skip
        """A checkpoint's own rules, and the family's where it has none."""
        vision = config.vision_config
        rules = PatchRules(
            patch=vision.patch_size, merge=vision.spatial_merge_size, temporal=vision.temporal_patch_size,
            mean=tuple(preprocessor.get("image_mean", mean)), std=tuple(preprocessor.get("image_std", std)),
        )  # fmt: skip
        bands = config.audio_config.num_mel_bins
        said = {name: preprocessor[name] for name in _MEL if name in preprocessor}
        mel = WhisperFeatureExtractor(**{"feature_size": bands} | said)
        if mel.feature_size != bands:
            raise CheckpointError(
                f"preprocessor_config.json cuts sound into {mel.feature_size} mel bands (feature_size), but config.json says "
                f"that the audio encoder reads {bands}. Download both again."
            )
        return cls(
            tokenizer, config, preprocessor, settings, rules, mel, tuple(settings.get("video_pixels", video_pixels)),
            image_pixels, float(settings.get("nominal_fps", nominal_fps)),
        )  # fmt: skip

    def token(self, modality: Modality) -> int:
        """The placeholder of a modality."""
        config = self.config
        ids = {"AUDIO": config.audio_token_id, "VIDEO": config.video_token_id, "IMAGE": config.image_token_id}
        return int(ids[modality.name])

    def image(self, image: Tensor, options: PromptOptions, clip: int) -> Medium:
        """An image's pixels, and its tokens with their positions."""
        size = self.preprocessor.get("size") or {}
        low = self.preprocessor.get("min_pixels") or size.get("shortest_edge") or self.image_pixels[0]
        high = self.preprocessor.get("max_pixels") or size.get("longest_edge") or self.image_pixels[1]
        patches = cut_patches(image[None], self.rules, options.min_pixels or low, options.max_pixels or high)
        tokens = self._grid(patches, Modality.IMAGE, clip)
        positions = torch.stack([torch.zeros(len(tokens), dtype=torch.long), tokens.row, tokens.col])
        tensors = {"pixels": patches.pixels, "grid": torch.tensor(patches.grid)}
        return Medium(tokens, positions, [(Modality.IMAGE, tensors)], int(positions.max()) + 1)

    def sight(self, clip: Clip, options: PromptOptions, index: int, *, with_audio: bool) -> Medium:
        """A video's pixels, and its tokens with their positions, in fractions on the axis of time."""
        assert clip.frames is not None
        low, high = self.video_pixels
        patches = cut_patches(clip.frames, self.rules, options.min_pixels or low, options.max_pixels or high)
        per_grid = self.rules.temporal / (options.nominal_fps or self.nominal_fps)
        tokens = self._grid(patches, Modality.VIDEO, index)
        edges = grid_edges(clip, self.rules.temporal, patches.grid[0])
        tokens = replace(
            tokens,
            start=edges[tokens.frame], end=edges[tokens.frame + 1],
            nominal_start=tokens.frame.double() * per_grid, nominal_end=(tokens.frame + 1).double() * per_grid,
        )  # fmt: skip
        # In single precision, as the stock model computes them.
        seconds = torch.tensor(per_grid, dtype=torch.float32)
        time = (torch.arange(patches.grid[0]) * seconds * self.config.position_id_per_seconds)[tokens.frame]
        tensors = {
            "pixels": patches.pixels, "grid": torch.tensor(patches.grid), "seconds_per_grid": torch.tensor(per_grid),
            "with_audio": torch.tensor(with_audio),
        }  # fmt: skip
        positions = torch.stack([time, tokens.row, tokens.col])
        return Medium(tokens, positions, [(Modality.VIDEO, tensors)], float(positions.max()) + 1)

    def heard(self, clip: Clip, index: int) -> Float[Tensor, "mel mel_pos"]:
        """The mel frames of a clip's sound.

        Raises:
            PromptError: If it is longer than the model reads.
        """
        clip = clip.resampled(self.mel.sampling_rate)
        assert clip.waveform is not None
        longest = self.preprocessor.get("chunk_length", 30)
        if len(clip.waveform) > longest * self.mel.sampling_rate:
            raise PromptError(
                f"the sound of clip {index} lasts {len(clip.waveform) / self.mel.sampling_rate:.1f} s, but the model reads "
                f"at most {longest} s. Cut it first: clip.cut(0, {longest})."
            )
        return log_mel(clip.waveform, self.mel)

    def _grid(self, patches: Patches, modality: Modality, clip: int) -> Any:
        time, rows, cols = patches.grid
        token = self.token(modality)
        string = str(self.tokenizer.convert_ids_to_tokens(token))
        return grid_tokens((time, rows // self.rules.merge, cols // self.rules.merge), modality, clip, token, string)


class Thinker(ChatFamily):
    """A family of thinkers: what is left to it is a class of transformers with its settings, and how sound meets sight.

    Attributes:
        stock_class: transformers' class of the thinker.
        whole: What config.json says of the whole model.
        dropped: Pattern of the weights of what is not loaded.
        spare: Weights that the forward pass never uses, so that they may be missing.
        reads: How clips are read where the checkpoint does not say, as arguments of `Reading.of`.
    """

    stock_class: ClassVar[Any]
    whole: ClassVar[Mapping[str, Any]]
    dropped: ClassVar[str]
    spare: ClassVar[frozenset[str]] = frozenset()
    reads: ClassVar[Mapping[str, Any]]

    def __init__(
        self, config: Any, tokenizer: Any, preprocessor: Mapping[str, Any], settings: Mapping[str, Any]
    ) -> None:
        self.config, self.tokenizer, self.cfg = config, tokenizer, self.shape(config)
        self.reading = Reading.of(config, tokenizer, preprocessor, settings, **self.reads)

    @staticmethod
    @abstractmethod
    def shape(config: Any) -> DecoderConfig:
        """The decoder's shape."""

    @abstractmethod
    def sound(self, clip: Clip, index: int) -> Medium:
        """A clip's mel frames, and its audio tokens with their positions from 0."""

    @abstractmethod
    def merged(self, sight: Medium, sound: Medium | None) -> Medium:
        """A video's tokens and its sound's, if it has one, in the order in which the model reads them."""

    # Loading and saving.

    @classmethod
    def matches(cls, config: Mapping[str, Any]) -> bool:
        """Whether config.json is of the whole model or of its thinker."""
        return config.get("model_type") in (cls.whole["model_type"], f"{cls.whole['model_type']}_thinker")

    @classmethod
    def load(cls, folder: Path, **load_options: Any) -> tuple["Thinker", Stock]:
        """Load the thinker from a folder in the hub's key layout, or as transformers writes it."""
        config = thinker_config(cls.stock_class.config_class, read_json(folder / "config.json"))
        model = load_weights(
            cls.stock_class, folder, config, embed="model.language_model.embed_tokens.weight", dropped=cls.dropped,
            spare=cls.spare, **load_options,
        )  # fmt: skip
        tokenizer, preprocessor = thinker_tokenizer(folder, config), load_preprocessor(folder)
        return cls(model.config, tokenizer, preprocessor, read_settings(folder / "avlens.json")), thinker_stock(model)

    def save(self, folder: Path, stock: Stock) -> None:
        """Write the thinker as released checkpoints lay it out: keys under `thinker.`, one config.json."""
        state = {
            key: part
            for name, weight in stock.whole.state_dict().items()
            for key, part in self.released(thinker_key(name), weight).items()
        }
        tied = save_weights(folder, state, "thinker.model.embed_tokens.weight", "thinker.lm_head.weight")
        config = {
            **self.whole, "enable_audio_output": False,
            "thinker_config": self.config.to_dict() | {"tie_word_embeddings": tied},
            "torch_dtype": str(stock.head.weight.dtype).removeprefix("torch."),
        }  # fmt: skip
        files = {"preprocessor_config": dict(self.reading.preprocessor), "avlens": dict(self.reading.settings)}
        save_settings(folder, stock.whole, self.tokenizer, config=config, **files)

    @staticmethod
    def released(name: str, weight: Tensor) -> dict[str, Tensor]:
        """A weight under its released names."""
        return {name: weight}

    # Prompts.

    def medium(self, part: Any, options: PromptOptions, clip: int) -> Medium:
        """A clip's or image's encoder tensors, and its tokens in order with their positions from 0."""
        if not isinstance(part, Clip):
            return self.reading.image(part, options, clip)
        sound = self.sound(part, clip) if part.waveform is not None else None
        if part.frames is None:
            assert sound is not None
            return sound
        return self.merged(self.reading.sight(part, options, clip, with_audio=sound is not None), sound)

    def holes(self) -> set[int]:
        """The ids of the three placeholders."""
        return {self.reading.token(kind) for kind in (Modality.AUDIO, Modality.VIDEO, Modality.IMAGE)}

    def stock_kwargs(self, inputs: AVInputs) -> dict[str, Any]:
        """Prompts as keyword arguments of transformers' thinker."""
        return thinker_kwargs(inputs)


def thinker_kwargs(inputs: AVInputs) -> dict[str, Any]:
    """Prompts as keyword arguments of transformers' thinkers."""
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
        kwargs["feature_attention_mask"] = torch.stack([(torch.arange(longest) < mel.shape[1]).long() for mel in heard])
    if "video_grid_thw" in kwargs:
        videos = [medium for medium in media if medium.modality == Modality.VIDEO]
        kwargs["video_second_per_grid"] = torch.tensor([float(v.tensors["seconds_per_grid"]) for v in videos])
        kwargs["use_audio_in_video"] = _all_alike([bool(v.tensors["with_audio"]) for v in videos])
    return kwargs


def _all_alike(flags: list[bool]) -> bool:
    if len(set(flags)) > 1:
        raise PromptError(
            "the stock model takes videos either all with sound or all without, but these prompts mix them. "
            "Compare with it on prompts of one kind."
        )
    return flags[0]


# Checkpoints.


def check_thinker(
    config: Mapping[str, Any], *, outer: frozenset[str], rules: Rules, sections: Mapping[str, Rules], ignore: Sequence[str],
) -> None:  # fmt: skip
    """Refuse a setting that nobody handled, in the config of a thinker or of a whole that holds one.

    Args:
        config: The raw config.json.
        outer: Settings of the whole that do not concern the thinker.
        rules: For the thinker's settings.
        sections: For those of its sections.
        ignore: Full names that the caller takes responsibility for.
    """
    whole = "thinker_config" in config
    if whole:
        check_settings(config, rules=known("tie_word_embeddings"), where="", ignore=ignore, harmless=outer)
    thinker, where = (config["thinker_config"], "thinker_config.") if whole else (config, "")
    check_settings(thinker, rules=rules, where=where[:-1], ignore=ignore)
    for name, section in sections.items():
        check_settings(thinker.get(name, {}), rules=section, where=where + name, ignore=ignore)


def thinker_config(kind: Any, written: Mapping[str, Any]) -> Any:
    """The thinker's part of a config.json: transformers' class for the whole would build a talker's settings too."""
    config = kind.from_dict(passed_on(written.get("thinker_config", written)))
    config.dtype = config.dtype or written.get("dtype", written.get("torch_dtype"))
    return config


def thinker_tokenizer(folder: Path, config: Any) -> Any:
    """The tokenizer of a folder.

    Raises:
        CheckpointError: If it has no chat template.
    """
    tokenizer = load_tokenizer(folder, config)
    if tokenizer.chat_template is None:
        raise CheckpointError(
            f"{folder} has no chat template. Put chat_template.jinja or chat_template.json beside config.json."
        )
    return tokenizer


def thinker_key(name: str) -> str:
    """A key of the model in memory as the released checkpoints name it."""
    short = re.sub(r"^model\.(language_model\.|(?=visual|audio_tower))", lambda m: "model." if m[1] else "", name)
    return f"thinker.{short}"


def thinker_stock(model: Any) -> Stock:
    """The modules of a transformers thinker."""
    decoder, vision, audio = model.model.language_model, model.model.visual, model.model.audio_tower
    return Stock(
        embed=decoder.embed_tokens,
        layers=list(decoder.layers),
        norm=decoder.norm,
        head=model.lm_head,
        encoders={"vision": vision, "audio": audio},
        encoder_blocks={"vision": list(vision.blocks), "audio": list(audio.layers)},
        encoder_attention={
            "vision": [block.attn for block in vision.blocks],
            "audio": [layer.self_attn for layer in audio.layers],
        },
        whole=model,
    )
