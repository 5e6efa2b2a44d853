"""What several commands are given: options, and the model and clip that they name."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

ClipPath = Annotated[Path, typer.Argument(help="A video or sound file.", metavar="CLIP")]
Question = Annotated[str, typer.Option("-q", "--question", help="What to ask about the clip.")]
ModelName = Annotated[str, typer.Option(help="A name of the zoo, a folder, or a hub id.", rich_help_panel="Model")]
Dtype = Annotated[str | None, typer.Option(help="float32, bfloat16, ...", rich_help_panel="Model")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, ...", rich_help_panel="Model")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]

DEFAULT_MODEL = "avlens-tiny"
HEAR = "what do you hear ?"
"""The question where none is asked."""


class Direction(StrEnum):
    """Which run a trace patches into which."""

    DENOISE = "denoise"
    NOISE = "noise"


def load(name: str, device: str | None = None, dtype: str | None = None) -> Any:
    """The model of `--model`."""
    from avlens.checkpoint import check_device
    from avlens.model import HookedAVModel

    if device is not None:
        check_device(device)
    return HookedAVModel.from_pretrained(name, device=device, dtype=dtype)


def read_clip(path: Path, model: Any) -> Any:
    """A clip as the model's family samples it."""
    from avlens.media import Clip

    return Clip.from_file(path, **model.family.sampling)


def prepare(model: Any, path: Path, question: str) -> Any:
    """A question about a clip, as the model sees it."""
    return model.prepare(read_clip(path, model), question)
