"""What must a model family say, so that the rest of avlens can run it?

A family is one file in `families/` with one class: which checkpoints are its own, how to load them, how a prompt
becomes encoder tensors, token ids, position ids and a TokenMap, and how an encoder turns one sound or video into
embeddings. A checkpoint is taken only if every setting of its config is known (`settings.check_settings`).
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from avlens.decoder import DecoderConfig, HookedBlock
from avlens.encoders.hooked import HookedEncoder, InBlocks
from avlens.errors import UnsupportedSettingError
from avlens.inputs import AVInputs, Media
from avlens.media import Clip

Part = Clip | UInt8[Tensor, "3 _ _"] | str
"""A piece of an interleaved prompt: a clip, an image (3, height, width; each of its own size), or text."""

Order = Literal["media_first", "question_first"]
Positions = Literal["released", "trained"]


@dataclass(frozen=True)
class PromptOptions:
    """How a prompt is put together.

    Attributes:
        order: Whether the question follows the media or precedes them.
        options: Answer options of a multiple-choice question, listed below it with letters.
        system: The system message; None for the template's own.
        answer_prefix: The beginning of the answer, which generation continues.
        nominal_fps: The frame rate that position ids assume; None for the family's.
        min_pixels: Lower bound of a frame's area; None for the family's.
        max_pixels: Upper bound of a frame's area; None for the family's.
        positions: Which position ids: those of the released inference code, or those of training where they differ.
    """

    order: Order = "media_first"
    options: tuple[str, ...] = ()
    system: str | None = None
    answer_prefix: str = ""
    nominal_fps: float | None = None
    min_pixels: int | None = None
    max_pixels: int | None = None
    positions: Positions = "released"


@dataclass(frozen=True, eq=False)
class Stock:
    """A checkpoint's own modules, as transformers built and loaded them.

    Attributes:
        embed: Token embedding.
        layers: Decoder layers.
        norm: The norm after the last layer.
        head: Unembedding.
        encoders: Towers by name: "audio", "vision".
        encoder_blocks: The blocks of each tower.
        encoder_attention: The attention module of each of those blocks, for towers whose attention can be watched.
        whole: The model they are parts of.
        layer_inputs: What embeds something for each layer by itself, from token ids and embeddings.
    """

    embed: nn.Module
    layers: Sequence[nn.Module]
    norm: nn.Module
    head: nn.Module
    encoders: Mapping[str, nn.Module]
    encoder_blocks: Mapping[str, Sequence[nn.Module]]
    whole: Any
    encoder_attention: Mapping[str, Sequence[nn.Module | InBlocks]] = field(default_factory=dict)
    layer_inputs: nn.Module | None = None


class Family(ABC):
    """One model family at work on one checkpoint.

    Attributes:
        name: What the family is called in avlens.
        title: What its models are called.
        tested: What its tests compare it with.
        schemes: Which position ids it can write.
        has_stock: Whether there is a model of transformers to compare with.
        block: What its decoder blocks are.
        sampling: How the released scripts choose frames, as options of `Clip.from_file`.
        cfg: The decoder's shape.
        tokenizer: The checkpoint's tokenizer.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    tested: ClassVar[str]
    schemes: ClassVar[tuple[Positions, ...]] = ("released",)
    has_stock: ClassVar[bool] = True
    block: ClassVar[Any] = HookedBlock
    sampling: Mapping[str, Any] = {"fps": 2.0}
    cfg: DecoderConfig
    tokenizer: Any

    @classmethod
    @abstractmethod
    def matches(cls, config: Mapping[str, Any]) -> bool:
        """Whether a raw config.json is of this family."""

    @classmethod
    @abstractmethod
    def check(cls, config: Mapping[str, Any], ignore: Sequence[str] = ()) -> None:
        """Refuse a raw config.json with a setting that nobody handled, naming it."""

    @classmethod
    @abstractmethod
    def load(cls, folder: Path, **load_options: Any) -> tuple["Family", Stock]:
        """Load a checkpoint; options are those of transformers' from_pretrained."""

    @classmethod
    @abstractmethod
    def tiny(cls, seed: int, sizes: Mapping[str, Any]) -> tuple["Family", Stock]:
        """A small model with random weights."""

    @abstractmethod
    def prepare(self, parts: Sequence[Part], question: str, options: PromptOptions) -> AVInputs:
        """One prompt."""

    @abstractmethod
    def text_inputs(self, ids: Tensor) -> AVInputs:
        """Bare token ids [batch, pos] as prompts."""

    @abstractmethod
    def encode(self, encoders: Mapping[str, HookedEncoder], media: Media) -> Float[Tensor, "level media_pos d_model"]:
        """The embeddings of one sound, video or image; further levels are added to the stream before later blocks."""

    @abstractmethod
    def save(self, folder: Path, stock: Stock) -> None:
        """Write the checkpoint in the released key layout, with tokenizer, template and settings."""


def dtype_of(name: str | torch.dtype | None) -> torch.dtype | Literal["auto"]:
    """A dtype by name; "auto", the checkpoint's own, for None."""
    if name is None or name == "auto":
        return "auto"
    found = name if isinstance(name, torch.dtype) else getattr(torch, str(name).removeprefix("torch."), None)
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise UnsupportedSettingError(
            f"{name!r} is no dtype that a model can have. Pass 'float32', 'bfloat16' or 'float16'."
        )
    return found
