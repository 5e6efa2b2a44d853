"""`avlens sinks`: sinks and cross-modal hubs of a prompt."""

from typing import Annotated

import typer

from avlens.cli.options import DEFAULT_MODEL, HEAR, AsJson, ClipPath, Device, Dtype, ModelName, Question, load, prepare
from avlens.cli.output import bars, echo, rows_of, show


def sinks(
    clip: ClipPath,
    question: Question = HEAR,
    model: ModelName = DEFAULT_MODEL,
    device: Device = None,
    dtype: Dtype = None,
    top: Annotated[int, typer.Option(help="How many to print.", min=0)] = 20,
    as_json: AsJson = False,
) -> None:
    """Which tokens are sinks, and whether later video or later audio reads them."""
    from avlens.analyses.sinks import find_sink_dims
    from avlens.hubs import find_hubs

    loaded = load(model, device, dtype)
    inputs = prepare(loaded, clip, question)
    dims = find_sink_dims(loaded)
    story = find_hubs(loaded, inputs, dims, progress=bars(as_json))
    found, hubs = story.sinks, story.hubs
    table = found.to_frame().join(story.dominance.to_frame()[["mds", "one_sided"]])
    table["hub"] = ["cross" if p in hubs.cross else "uni" if p in hubs.uni else "" for p in table.index]
    value = {
        "dims": rows_of(dims.to_frame()), "threshold": found.threshold, "sinks": rows_of(table.reset_index()),
        "per_layer": rows_of(found.per_layer().reset_index()), "made_by": found.made_by,
    }  # fmt: skip
    more = f"... and {len(table) - top} more (--top)" if len(table) > top else ""
    show(value, as_json, lambda: echo(f"{found!r}; {hubs!r}", table.head(top).to_string(), more))
