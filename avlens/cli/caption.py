"""`avlens caption`: what a model writes, by any decoding method."""

from enum import StrEnum
from typing import Annotated

import typer

from avlens.cli.options import DEFAULT_MODEL, AsJson, ClipPath, Device, Dtype, ModelName, load, prepare
from avlens.cli.output import show


class Decoding(StrEnum):
    """How a caption is decoded."""

    GREEDY = "greedy"
    ASD = "asd"
    VCD = "vcd"
    PAI = "pai"
    AVCD = "avcd"
    FMD = "fmd"


def caption(
    clip: ClipPath,
    question: Annotated[str, typer.Option("-q", "--question", help="The request.")] = "describe the clip .",
    decoding: Annotated[Decoding, typer.Option(help="How to decode.")] = Decoding.GREEDY,
    max_new_tokens: Annotated[int, typer.Option(help="At most how many tokens.", min=1)] = 64,
    model: ModelName = DEFAULT_MODEL,
    device: Device = None,
    dtype: Dtype = None,
    as_json: AsJson = False,
) -> None:
    """Let the model describe the clip, greedily or by a decoding method."""
    from torch import Tensor

    from avlens import decoding as methods

    loaded = load(model, device, dtype)
    method = None if decoding is Decoding.GREEDY else getattr(methods, decoding.name)()
    written = loaded.generate(prepare(loaded, clip, question), max_new_tokens, decoding=method)
    steps = {name: value[0].tolist() for name, value in written.records.items() if isinstance(value, Tensor)}
    value = {"text": written.text, "decoding": decoding.value, "steps": steps, "made_by": dict(written.made_by)}
    show(value, as_json, lambda: typer.echo(written.text))
