"""`avlens lens`: the logit lens at some tokens of a prompt."""

from enum import StrEnum
from typing import Annotated, Any

import typer

from avlens.cli.options import DEFAULT_MODEL, HEAR, AsJson, ClipPath, Device, Dtype, ModelName, Question, load, prepare
from avlens.cli.output import echo, rows_of, show
from avlens.errors import PromptError


class Where(StrEnum):
    """At which tokens a lens reads."""

    AUDIO = "audio"
    VIDEO = "video"
    MEDIA = "media"
    QUESTION = "question"
    LAST = "last"


def lens(
    clip: ClipPath,
    question: Question = HEAR,
    at: Annotated[Where, typer.Option(help="At which tokens to read.")] = Where.AUDIO,
    top: Annotated[int, typer.Option(help="How many words per layer to print.", min=1)] = 5,
    words: Annotated[str, typer.Option(help="Words to follow, such as bell,drum.")] = "",
    norm: Annotated[bool, typer.Option(help="Whether to apply the final norm.")] = True,
    model: ModelName = DEFAULT_MODEL,
    device: Device = None,
    dtype: Dtype = None,
    as_json: AsJson = False,
) -> None:
    """What each layer would say at audio, video or the last token, as words."""
    from avlens.analyses.logit_lens import logit_lens

    loaded = load(model, device, dtype)
    inputs = prepare(loaded, clip, question)
    chosen = getattr(inputs.tokens, at.value)
    if not chosen:
        raise PromptError(f"--at {at.value}: the clip has no such token. Choose another.")
    followed = [word for word in words.split(",") if word.strip()]
    read = logit_lens(loaded, inputs, chosen, k=top, words=followed, norm=norm)
    table = _said_by_layer(read, top)
    value = {"layers": rows_of(table), "tokens": rows_of(read.to_frame()), "made_by": read.made_by}
    show(value, as_json, lambda: echo(f"{read!r}", table.to_string(index=False, float_format=lambda x: f"{x:.3f}")))


def _said_by_layer(read: Any, top: int) -> Any:
    """One row per layer: at one token its likeliest words, at many the words that are first at most of them."""
    import pandas as pd

    rows = []
    for i, layer in enumerate(read.layers):
        if len(read.tokens) == 1:
            its = zip(read.top_ids[i, 0].tolist(), read.top_p[i, 0].tolist(), strict=True)
            said = [f"{read.top_strings[token].strip() or '␣'} {p:.3f}" for token, p in its]
        else:
            said = [f"{text.strip() or '␣'} x{n}" for text, n in read.common(layer, top)]
        row = {"layer": layer, "says": ", ".join(said)}
        rows.append(row | {f"mean P({word})": float(read.p_words[i, :, n].mean()) for n, word in enumerate(read.words)})
    return pd.DataFrame(rows)
