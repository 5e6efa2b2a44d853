"""`avlens tokens`: the token map of a prompt."""

from typing import Any

from avlens.cli.options import DEFAULT_MODEL, HEAR, AsJson, ClipPath, Device, Dtype, ModelName, Question, load, prepare
from avlens.cli.output import echo, rows_of, show


def tokens(
    clip: ClipPath,
    question: Question = HEAR,
    model: ModelName = DEFAULT_MODEL,
    device: Device = None,
    dtype: Dtype = None,
    as_json: AsJson = False,
) -> None:
    """Which position of the prompt is what, when and where."""
    inputs = prepare(load(model, device, dtype), clip, question)
    table, runs = inputs.tokens.to_frame(), _runs(inputs.tokens)
    value = {"prompt": inputs.tokens.prompt, "tokens": rows_of(table), "runs": rows_of(runs)}
    show(value, as_json, lambda: echo(f"{inputs.tokens!r}", runs.to_string(index=False)))


def _runs(token_map: Any) -> Any:
    """Neighbours of one modality and segment, as one row each."""
    frame = token_map.to_frame().reset_index()
    key = frame["modality"] + frame["segment"] + frame["clip"].astype(str)
    grouped = frame.groupby((key != key.shift()).cumsum(), sort=False)
    runs = grouped.agg(
        first=("position", "first"), last=("position", "last"), modality=("modality", "first"), segment=("segment", "first"),
        start=("start", "min"), end=("end", "max"), begins=("label", "first"), ends=("label", "last"),
    )  # fmt: skip
    runs.insert(2, "tokens", runs["last"] - runs["first"] + 1)
    return runs
