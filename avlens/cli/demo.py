"""`avlens demo`: the whole story on a clip that it makes."""

from pathlib import Path
from typing import Annotated

import typer

from avlens.cli.options import DEFAULT_MODEL, AsJson, Device, Dtype, ModelName, load
from avlens.cli.output import bars, show


def demo(
    out: Annotated[Path, typer.Option(help="Folder for the clip and the report.")] = Path("avlens-demo"),
    model: ModelName = DEFAULT_MODEL,
    device: Device = None,
    dtype: Dtype = None,
    as_json: AsJson = False,
) -> None:
    """Make a clip and tell the whole story on it: tokens, sinks, dominance, a patch that restores an answer, ASD."""
    from avlens.demo import run_demo

    story = run_demo(load(model, device, dtype), out, progress=bars(as_json))
    show(story.summary, as_json, lambda: typer.echo(story.text))
