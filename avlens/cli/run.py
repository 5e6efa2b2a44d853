"""`avlens run`: an experiment over a data set."""

import math
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from avlens.cli.options import DEFAULT_MODEL, AsJson, Device, Dtype, ModelName
from avlens.cli.output import bars, echo, rows_of, show


class Choice(StrEnum):
    """Which experiment is run."""

    SELECTION = "selection"
    TRACING = "tracing"
    LAYERS = "layers"
    SINKS = "sinks"
    DECODING = "decoding"
    DYNAMICS = "dynamics"
    FIDELITY = "fidelity"
    LENS = "lens"
    PROBES = "probes"
    ATTENTION = "attention"
    SHIFT = "shift"
    FLOW = "flow"
    DISCARDING = "discarding"
    PATHS = "paths"


class Engine(StrEnum):
    """What runs an experiment."""

    IN_PROCESS = "in-process"
    PROCESSES = "processes"
    RAY = "ray"


def run(
    experiment: Annotated[Choice, typer.Argument(help="What is measured.", metavar="EXPERIMENT")],
    data: Annotated[str, typer.Option(help="synthetic:N, or a csv, json or jsonl file of clips.")],
    out: Annotated[Path, typer.Option(help="Folder of the records; one that exists goes on.")],
    clips: Annotated[Path, typer.Option(help="The folder with the clips.")] = Path(),
    limit: Annotated[int | None, typer.Option(help="Only so many samples.", min=1)] = None,
    condition: Annotated[list[str] | None, typer.Option(help="Only this condition; may be given again.")] = None,
    seed: Annotated[
        int, typer.Option(help="Of synthetic clips, corruptions and random sets.", min=0, max=2**32 - 1)
    ] = 0,
    estimate: Annotated[bool, typer.Option("--estimate", help="Say what it will cost, and stop.")] = False,
    engine: Annotated[Engine, typer.Option(help="What runs it.")] = Engine.IN_PROCESS,
    workers: Annotated[int, typer.Option(help="How many, with processes or ray.", min=1)] = 2,
    address: Annotated[str | None, typer.Option(help="Of a Ray cluster; without it Ray is started here.")] = None,
    gpus_per_worker: Annotated[
        float | None, typer.Option(help="With ray; 0.5 puts two workers on one GPU.", min=0)
    ] = None,
    model: ModelName = DEFAULT_MODEL,
    device: Device = None,
    device_map: Annotated[str | None, typer.Option(help="auto: spread over GPUs.", rich_help_panel="Model")] = None,
    dtype: Dtype = None,
    as_json: AsJson = False,
) -> None:
    """Run an experiment over a data set; run it again after an interruption, and it goes on."""
    from contextlib import redirect_stdout
    from dataclasses import replace

    from tqdm.auto import tqdm

    from avlens.data import read_data
    from avlens.experiments import EXPERIMENTS, Estimate, InProcess, ModelSource, Processes, Ray, for_data
    from avlens.experiments import run as run_experiment

    asked = EXPERIMENTS[experiment.value]
    asked = asked.only(condition) if condition else asked
    found = read_data(data, clips, task=asked.task, limit=limit, seed=seed)
    chosen = replace(for_data(asked, found), seeds=(seed,))
    read = (
        found.read if data.partition(":")[0] == "synthetic" else None
    )  # Files are read as the model's family samples them.

    engines: dict[Engine, Any] = {
        Engine.IN_PROCESS: InProcess(), Engine.PROCESSES: Processes(workers, _each_gpu(device)),
        Engine.RAY: Ray(workers, gpus=gpus_per_worker, address=address),
    }  # fmt: skip
    given = {"device": device, "dtype": dtype, "device_map": device_map}
    source = ModelSource(model, {name: value for name, value in given.items() if value is not None})

    told: list[Estimate] = []

    def said(cost: Estimate) -> bool:
        told.append(cost)
        tqdm.write(f"estimate: {cost}", file=sys.stderr)
        return not estimate

    try:
        with redirect_stdout(sys.stderr):  # Where Ray says that a worker died.
            records = run_experiment(
                chosen, source, found.samples, out, read=read, engine=engines[engine], on_estimate=said,
                progress=bars(as_json),
            )  # fmt: skip
    except KeyboardInterrupt:
        typer.echo(f"interrupted; what was measured is in {out}. Run the same command again to go on.", err=True)
        raise typer.Exit(130) from None
    tables = {} if estimate else chosen.summarise(records)
    cost = {"estimate": _estimated(told[0])} if told else {}
    value = {
        "experiment": chosen.name, "made_by": records.made_by, "records": len(records), "problems": rows_of(records.problems()),
        "chance": found.chance,
        "summaries": {name: rows_of(table.to_frame().reset_index()) for name, table in tables.items()}, "folder": str(out),
    } | cost  # fmt: skip
    problems = "" if records.problems().empty else records.problems().to_string(index=False, max_colwidth=100)
    more = f"kept in {out}; the same command without --estimate goes on from there" if estimate and told else ""
    chance = "" if math.isnan(found.chance) else f"by chance {found.chance:.1%} of the answers are right"
    lines = (repr(records), chance, more, problems, *(f"\n{table!r}" for table in tables.values()))
    show(value, as_json, lambda: echo(*lines))


def _each_gpu(device: str | None) -> tuple[str, ...]:
    """The GPUs that workers share where `cuda` is asked for: all."""
    import torch

    return tuple(f"cuda:{i}" for i in range(torch.cuda.device_count())) if device == "cuda" else ()


def _estimated(cost: Any) -> dict[str, Any]:
    seconds, low, high = cost.duration
    return {
        "items": cost.items, "workers": cost.workers, "seconds": seconds, "seconds_low": low, "seconds_high": high,
        "memory_bytes": cost.memory, "disk_bytes": cost.disk, "disk_free_bytes": cost.free,
        "measured": cost.measured, "failed": cost.failed,
    }  # fmt: skip
