"""`avlens table`: causal effects of cross-modal hubs over a data set."""

import math
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from avlens.cli.options import DEFAULT_MODEL, AsJson, Device, Direction, Dtype, ModelName, load
from avlens.cli.output import bars, echo, rows_of, show
from avlens.errors import PositionError, ViewError


class Corruption(StrEnum):
    """How a modality is corrupted."""

    ZERO = "zero"
    SWAP = "swap"
    NOISE = "noise"
    MEAN = "mean"


def table(
    data: Annotated[
        str, typer.Argument(help="synthetic:N, or a csv, json or jsonl file of clips with options.", metavar="[DATA]")
    ] = "synthetic:40",
    clips: Annotated[Path, typer.Option(help="Folder with the clips of the file.")] = Path(),
    limit: Annotated[int | None, typer.Option(help="At most how many clips to judge.", min=1)] = None,
    corrupt: Annotated[Corruption, typer.Option(help="How the deciding modality is corrupted.")] = Corruption.ZERO,
    n: Annotated[str, typer.Option(help="The N of each sink(N), with commas.")] = "2,3,4",
    draws: Annotated[int, typer.Option(help="Random sets per clip and control.", min=1)] = 10,
    direction: Annotated[
        Direction, typer.Option(help="Clean into corrupted, or corrupted into clean.")
    ] = Direction.DENOISE,
    site: Annotated[str, typer.Option(help="Activations to patch.")] = "resid_pre",
    seed: Annotated[int, typer.Option(help="Of synthetic clips, draws and intervals.", min=0, max=2**32 - 1)] = 0,
    out: Annotated[Path | None, typer.Option(help="Folder for csv, LaTeX, figures and resumable judgements.")] = None,
    model: ModelName = DEFAULT_MODEL,
    device: Device = None,
    dtype: Dtype = None,
    as_json: AsJson = False,
) -> None:
    """Causal effects over a data set: clips that one modality decides, sets, controls, intervals."""
    from avlens.analyses.selection import unimodal_dominance
    from avlens.data import read_data
    from avlens.hub_table import hub_table

    numbers = _numbers(n)
    loaded = load(model, device, dtype)
    found = read_data(data, clips, limit=limit, sampling=loaded.family.sampling, seed=seed)
    if out is not None:
        _make_folder(out)
    judged = unimodal_dominance(
        loaded, found.samples, corrupt=corrupt.value, ask=found.ask, seed=seed, read=found.read, progress=bars(as_json),
        save_to=None if out is None else out / "judged",
    )  # fmt: skip
    result = hub_table(
        loaded, found.samples, judged, read=found.read, n=numbers, draws=draws, direction=direction.value,
        site=tuple(site.split(",")), seed=seed, progress=bars(as_json),
    )  # fmt: skip
    if out is not None:
        _write_table(result, out)
    rows = {case: rows_of(one.to_frame().reset_index()) for case, one in result.tables.items()}
    value = {"selection": rows_of(judged.to_frame().reset_index()), "tables": rows, "made_by": dict(result.made_by)}
    show(value, as_json, lambda: echo(repr(result), "" if out is None else f"written to {out}"))


def _numbers(given: str) -> list[float]:
    """The numbers of an option.

    Raises:
        PositionError: If one is none, or below 1.
    """
    try:
        numbers = [float(one) for one in given.split(",")]
    except ValueError:
        numbers = [0.0]
    if not all(1 <= number < math.inf for number in numbers):
        raise PositionError(f"--n is {given!r}. Pass numbers of at least 1 with commas, such as 2,3,4.")
    return numbers


def _make_folder(out: Path) -> None:
    """The folder of the table, before hours are spent on it.

    Raises:
        ViewError: If it cannot be made.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ViewError(
            f"the folder {out} cannot be made ({error.strerror}). Pass with --out one that is new, or that can be written to."
        ) from error


def _write_table(result: Any, out: Path) -> None:
    from avlens import views

    result.to_frame().to_csv(out / "effects.csv")
    (out / "effects.tex").write_text(result.to_latex(), encoding="utf-8")
    for case, one in result.tables.items():
        views.plot(one).write_html(out / f"{case.replace(' ', '_')}.html", include_plotlyjs=True)
