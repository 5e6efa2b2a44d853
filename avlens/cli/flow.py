"""`avlens flow`: information flow between groups of tokens."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from avlens.cli.options import (
    DEFAULT_MODEL,
    HEAR,
    AsJson,
    ClipPath,
    Device,
    Dtype,
    ModelName,
    Question,
    load,
    read_clip,
)
from avlens.cli.output import bars, echo, rows_of, show
from avlens.errors import ViewError


class Order(StrEnum):
    """Whether the question follows the media or precedes them."""

    MEDIA_FIRST = "media_first"
    QUESTION_FIRST = "question_first"


class Sweep(StrEnum):
    """Which layers are cut at each layer l."""

    WINDOW = "window"
    INVERSE = "inverse"
    TOP_DOWN = "top_down"
    BOTTOM_UP = "bottom_up"


def flow(
    clip: ClipPath,
    question: Question = HEAR,
    edge: Annotated[
        list[str] | None,
        typer.Option("-e", "--edge", help="An edge to cut, such as 'audio -> last'; several times for several."),
    ] = None,
    option: Annotated[list[str] | None, typer.Option(help="An answer option; several times for several.")] = None,
    correct: Annotated[str | None, typer.Option(help="The letter of the right option.")] = None,
    order: Annotated[Order, typer.Option(help="Question after or before the media.")] = Order.MEDIA_FIRST,
    answer_prefix: Annotated[str, typer.Option(help="The beginning of the answer; its next word is watched.")] = "",
    sweep: Annotated[Sweep, typer.Option(help="Which layers are cut at each layer.")] = Sweep.WINDOW,
    window: Annotated[
        int | None, typer.Option(help="Layers per window; by default a quarter of them, up to 7.")
    ] = None,
    controls: Annotated[int, typer.Option(help="How often to cut as many random edges instead.", min=0)] = 0,
    out: Annotated[Path | None, typer.Option(help="A page to write with the curves and the graph.")] = None,
    model: ModelName = DEFAULT_MODEL,
    device: Device = None,
    dtype: Dtype = None,
    as_json: AsJson = False,
) -> None:
    """Through which layers the answer's information flows from which tokens to which: edges are cut, one after the other."""
    from avlens.analyses.flow import Controls, information_flow
    from avlens.edges import usual_edges
    from avlens.groups import token_groups

    _check_page(out)
    loaded = load(model, device, dtype)
    source = read_clip(clip, loaded)
    inputs = loaded.prepare(
        source, question, order=order.value, options=tuple(option or ()), answer_prefix=answer_prefix
    )
    groups = token_groups(inputs.tokens, correct=correct)
    n = min(7, loaded.cfg.n_layers // 4 | 1) if window is None else window
    found = information_flow(
        loaded, inputs, edge or usual_edges(inputs.tokens, groups), groups=groups, window=n, sweep=sweep.value,
        controls=Controls(controls) if controls else None, progress=bars(as_json),
    )  # fmt: skip
    table, answer = found.to_frame(), found.answers[0]
    if out is not None:
        from avlens import views

        section = views.Section(
            "Information flow", str(found), figures=[views.plot(found), views.flow_graph(found)], table=table
        )
        views.report(out, title=f"Information flow: {question}", clip=source, tokens=inputs.tokens, sections=[section])
    counts = {name: len(chosen) for name, chosen in groups.items() if len(chosen)}
    value = {
        "answer": answer, "p": float(found.p_base[0]), "order": order.value, "window": n, "sweep": sweep.value, "groups": counts,
        "flow": rows_of(table), "made_by": found.made_by,
    }  # fmt: skip
    said = f"answers {answer!r} (P = {float(found.p_base[0]):.3f}); change of P in percent by layer, {_cut(sweep, n)}"
    curves = table.pivot(index="edge", columns="layer", values="change").reindex([str(one) for one in found.edges])
    curves.insert(0, "pairs", table.groupby("edge")["pairs"].first().astype(int))
    show(value, as_json, lambda: echo(said, curves.to_string(float_format=lambda x: f"{x:z.1f}")))


def _cut(sweep: Sweep, n: int) -> str:
    of_windows = sweep in (Sweep.WINDOW, Sweep.INVERSE)
    return f"{sweep.value} of {n} layer{'' if n == 1 else 's'}" if of_windows else sweep.value


def _check_page(out: Path | None) -> None:
    """Refuse a page that could not be written, before hours are spent on it.

    Raises:
        ViewError: If it is a folder, or would lie in none.
    """
    if out is not None and (out.is_dir() or not out.parent.is_dir()):
        raise ViewError(
            f"--out is {str(out)!r}, which cannot be written. Pass a file in a folder that exists, such as flow.html."
        )
