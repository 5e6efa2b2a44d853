"""`avlens trace`: causal tracing between a clip and the same clip silenced or blanked."""

from enum import StrEnum
from typing import Annotated, Any

import typer

from avlens.cli.options import (
    DEFAULT_MODEL,
    HEAR,
    AsJson,
    ClipPath,
    Device,
    Direction,
    Dtype,
    ModelName,
    Question,
    load,
    read_clip,
)
from avlens.cli.output import bars, echo, rows_of, show
from avlens.errors import LayerError, MediaError


class Corrupt(StrEnum):
    """Which part of a clip a trace corrupts."""

    AUDIO = "audio"
    VIDEO = "video"


def trace(
    clip: ClipPath,
    question: Question = HEAR,
    corrupt: Annotated[Corrupt, typer.Option(help="What to silence or blank.")] = Corrupt.AUDIO,
    direction: Annotated[
        Direction, typer.Option(help="Clean into corrupted, or corrupted into clean.")
    ] = Direction.DENOISE,
    site: Annotated[
        str, typer.Option(help="Activations to patch, such as resid_pre, ln1.normalized or k,v.")
    ] = "resid_pre",
    layers: Annotated[str, typer.Option(help="Blocks to patch: all, 3, or first-last such as 2-5.")] = "all",
    model: ModelName = DEFAULT_MODEL,
    device: Device = None,
    dtype: Dtype = None,
    as_json: AsJson = False,
) -> None:
    """Which tokens, patched from the clean run into a corrupted one, restore the answer."""
    from avlens.analyses.tracing import causal_trace
    from avlens.demo import token_sets

    loaded = load(model, device, dtype)
    source = read_clip(clip, loaded)
    broken = _corrupted(source, corrupt)
    clean = loaded.prepare(source, question)
    result = causal_trace(
        loaded, clean, loaded.prepare(broken, question), token_sets(loaded, clean), direction=direction.value,
        site=tuple(site.split(",")), layers=_layers(layers, loaded.cfg.n_layers), progress=bars(as_json),
    )  # fmt: skip
    value = {
        "answers": {"clean": result.answers[0], "corrupt": result.answers[1]}, "TE_clean": result.te_clean,
        "TE_corrupt": result.te_corrupt, "sets": rows_of(result.to_frame().reset_index()), "made_by": result.made_by,
    }  # fmt: skip
    said = f"clean {result.answers[0]!r}, {corrupt.value} corrupted {result.answers[1]!r}, total effect {result.te_clean:.3f}"
    show(value, as_json, lambda: echo(said, result.to_frame().to_string(float_format=lambda x: f"{x:.4f}")))


def _corrupted(clip: Any, corrupt: Corrupt) -> Any:
    if corrupt is Corrupt.AUDIO and clip.waveform is None:
        raise MediaError(f"--corrupt audio silences a clip, but {clip!r} has no sound. Use --corrupt video.")
    if corrupt is Corrupt.VIDEO and clip.frames is None:
        raise MediaError(f"--corrupt video blanks a clip, but {clip!r} has no video. Use --corrupt audio.")
    return clip.silenced() if corrupt is Corrupt.AUDIO else clip.blanked()


def _layers(given: str, n_layers: int) -> Any:
    """Which blocks `--layers` names.

    Raises:
        LayerError: If it names none.
    """
    first, dash, last = given.partition("-")
    if given == "all":
        return "all"
    if not first.isdecimal() or (dash and not last.isdecimal()) or int(last or first) < int(first):
        raise LayerError(
            f"--layers is {given!r}. Pass all, one block such as 3, or first-last such as 2-5, counted from 0."
        )
    if int(last or first) >= n_layers:
        raise LayerError(f"--layers is {given!r}, but the model has {n_layers} layers (0 to {n_layers - 1}).")
    return range(int(first), int(last or first) + 1)
