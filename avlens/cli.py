"""The command line: parsing and printing only.

Every command takes `--model` (a name of the zoo, a folder, or a hub id) and `--json` (one JSON object on stdout and nothing
else). Bad input ends with a message on stderr and exit code 2.
"""

import json
import math
import sys
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import typer

from avlens.errors import AVLensError, LayerError, MediaError, PositionError, PromptError, ViewError
from avlens.version import __version__

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)

ClipPath = Annotated[Path, typer.Argument(help="A video or sound file.", metavar="CLIP")]
Question = Annotated[str, typer.Option("-q", "--question", help="What to ask about the clip.")]
ModelName = Annotated[str, typer.Option(help="A name of the zoo, a folder, or a hub id.", rich_help_panel="Model")]
Dtype = Annotated[str | None, typer.Option(help="float32, bfloat16, ...", rich_help_panel="Model")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, ...", rich_help_panel="Model")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]

DEFAULT_MODEL = "avlens-tiny"
HEAR = "what do you hear ?"


class Corrupt(StrEnum):
    """Which part of a clip a trace corrupts."""

    AUDIO = "audio"
    VIDEO = "video"


class Direction(StrEnum):
    """Which run a trace patches into which."""

    DENOISE = "denoise"
    NOISE = "noise"


class Where(StrEnum):
    """At which tokens a lens reads."""

    AUDIO = "audio"
    VIDEO = "video"
    MEDIA = "media"
    QUESTION = "question"
    LAST = "last"


class Corruption(StrEnum):
    """How a modality is corrupted."""

    ZERO = "zero"
    SWAP = "swap"
    NOISE = "noise"
    MEAN = "mean"


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


class Decoding(StrEnum):
    """How a caption is decoded."""

    GREEDY = "greedy"
    ASD = "asd"
    VCD = "vcd"
    PAI = "pai"
    AVCD = "avcd"
    FMD = "fmd"


def main() -> None:
    """Run the command line; our errors, and files that cannot be read or written, become a message and exit code 2."""
    try:
        app()
    except (AVLensError, OSError) as error:
        typer.echo(f"avlens: {error}", err=True)
        sys.exit(2)


def _version(asked: bool) -> bool:
    if asked:
        typer.echo(f"avlens {__version__}")
        raise typer.Exit
    return asked


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """TransformerLens for models that hear and see."""


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for the clip and the report.")] = Path("avlens-demo"),
    model: ModelName = DEFAULT_MODEL,
    device: Device = None,
    dtype: Dtype = None,
    as_json: AsJson = False,
) -> None:
    """Make a clip and tell the whole story on it: tokens, sinks, dominance, a patch that restores an answer, ASD."""
    from avlens.demo import run_demo

    story = run_demo(_load(model, device, dtype), out, progress=not as_json)
    _show(story.summary, as_json, lambda: typer.echo(story.text))


@app.command()
def tokens(
    clip: ClipPath,
    question: Question = HEAR,
    model: ModelName = DEFAULT_MODEL,
    device: Device = None,
    dtype: Dtype = None,
    as_json: AsJson = False,
) -> None:
    """Which position of the prompt is what, when and where."""
    inputs = _prepare(_load(model, device, dtype), clip, question)
    table, runs = inputs.tokens.to_frame(), _runs(inputs.tokens)
    value = {"prompt": inputs.tokens.prompt, "tokens": _records(table), "runs": _records(runs)}
    _show(value, as_json, lambda: _echo(f"{inputs.tokens!r}", runs.to_string(index=False)))


@app.command()
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

    loaded = _load(model, device, dtype)
    inputs = _prepare(loaded, clip, question)
    dims = find_sink_dims(loaded)
    story = find_hubs(loaded, inputs, dims, progress=not as_json)
    found, hubs = story.sinks, story.hubs
    table = found.to_frame().join(story.dominance.to_frame()[["mds", "one_sided"]])
    table["hub"] = ["cross" if p in hubs.cross else "uni" if p in hubs.uni else "" for p in table.index]
    value = {
        "dims": _records(dims.to_frame()), "threshold": found.threshold, "sinks": _records(table.reset_index()),
        "per_layer": _records(found.per_layer().reset_index()), "made_by": found.made_by,
    }  # fmt: skip
    more = f"... and {len(table) - top} more (--top)" if len(table) > top else ""
    _show(value, as_json, lambda: _echo(f"{found!r}; {hubs!r}", table.head(top).to_string(), more))


@app.command()
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

    loaded = _load(model, device, dtype)
    source = _clip(clip, loaded)
    broken = _corrupted(source, corrupt)
    clean = loaded.prepare(source, question)
    result = causal_trace(
        loaded, clean, loaded.prepare(broken, question), token_sets(loaded, clean), direction=direction.value,
        site=tuple(site.split(",")), layers=_layers(layers), progress=not as_json,
    )  # fmt: skip
    value = {
        "answers": {"clean": result.answers[0], "corrupt": result.answers[1]}, "TE_clean": result.te_clean,
        "TE_corrupt": result.te_corrupt, "sets": _records(result.to_frame().reset_index()), "made_by": result.made_by,
    }  # fmt: skip
    said = f"clean {result.answers[0]!r}, {corrupt.value} corrupted {result.answers[1]!r}, total effect {result.te_clean:.3f}"
    _show(value, as_json, lambda: _echo(said, result.to_frame().to_string(float_format=lambda x: f"{x:.4f}")))


@app.command()
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

    loaded = _load(model, device, dtype)
    inputs = _prepare(loaded, clip, question)
    chosen = getattr(inputs.tokens, at.value)
    if not chosen:
        raise PromptError(f"--at {at.value}: the clip has no such token. Choose another.")
    followed = [word for word in words.split(",") if word.strip()]
    read = logit_lens(loaded, inputs, chosen, k=top, words=followed, norm=norm)
    table = _said_by_layer(read, top)
    value = {"layers": _records(table), "tokens": _records(read.to_frame()), "made_by": read.made_by}
    _show(value, as_json, lambda: _echo(f"{read!r}", table.to_string(index=False, float_format=lambda x: f"{x:.3f}")))


@app.command()
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
    loaded = _load(model, device, dtype)
    found = read_data(data, clips, limit=limit, sampling=loaded.family.sampling, seed=seed)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
    judged = unimodal_dominance(
        loaded, found.samples, corrupt=corrupt.value, ask=found.ask, seed=seed, read=found.read, progress=not as_json,
        save_to=None if out is None else out / "judged",
    )  # fmt: skip
    result = hub_table(
        loaded, found.samples, judged, read=found.read, n=numbers, draws=draws, direction=direction.value,
        site=tuple(site.split(",")), seed=seed, progress=not as_json,
    )  # fmt: skip
    if out is not None:
        _write_table(result, out)
    rows = {case: _records(one.to_frame().reset_index()) for case, one in result.tables.items()}
    value = {"selection": _records(judged.to_frame().reset_index()), "tables": rows, "made_by": dict(result.made_by)}
    _show(value, as_json, lambda: _echo(repr(result), "" if out is None else f"written to {out}"))


@app.command()
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
    loaded = _load(model, device, dtype)
    source = _clip(clip, loaded)
    inputs = loaded.prepare(
        source, question, order=order.value, options=tuple(option or ()), answer_prefix=answer_prefix
    )
    groups = token_groups(inputs.tokens, correct=correct)
    n = min(7, loaded.cfg.n_layers // 4 | 1) if window is None else window
    found = information_flow(
        loaded, inputs, edge or usual_edges(inputs.tokens, groups), groups=groups, window=n, sweep=sweep.value,
        controls=Controls(controls) if controls else None, progress=not as_json,
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
        "flow": _records(table), "made_by": found.made_by,
    }  # fmt: skip
    said = f"answers {answer!r} (P = {float(found.p_base[0]):.3f}); change of P in percent by layer, {sweep.value}, {n} layers"
    curves = table.pivot(index="edge", columns="layer", values="change").reindex([str(one) for one in found.edges])
    curves.insert(0, "pairs", table.groupby("edge")["pairs"].first().astype(int))
    _show(value, as_json, lambda: _echo(said, curves.to_string(float_format=lambda x: f"{x:.1f}")))


@app.command()
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

    loaded = _load(model, device, dtype)
    method = None if decoding is Decoding.GREEDY else getattr(methods, decoding.name)()
    written = loaded.generate(_prepare(loaded, clip, question), max_new_tokens, decoding=method)
    steps = {name: value[0].tolist() for name, value in written.records.items() if isinstance(value, Tensor)}
    value = {"text": written.text, "decoding": decoding.value, "steps": steps, "made_by": dict(written.made_by)}
    _show(value, as_json, lambda: typer.echo(written.text))


@app.command()
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
                progress=not as_json,
            )  # fmt: skip
    except KeyboardInterrupt:
        typer.echo(f"interrupted; what was measured is in {out}. Run the same command again to go on.", err=True)
        raise typer.Exit(130) from None
    tables = {} if estimate else chosen.summarise(records)
    cost = {"estimate": _estimated(told[0])} if told else {}
    value = {
        "experiment": chosen.name, "made_by": records.made_by, "records": len(records), "problems": _records(records.problems()),
        "summaries": {name: _records(table.to_frame().reset_index()) for name, table in tables.items()}, "folder": str(out),
    } | cost  # fmt: skip
    problems = "" if records.problems().empty else records.problems().to_string(index=False, max_colwidth=100)
    more = f"kept in {out}; the same command without --estimate goes on from there" if estimate and told else ""
    _show(value, as_json, lambda: _echo(repr(records), more, problems, *(f"\n{table!r}" for table in tables.values())))


@app.command()
def models(as_json: AsJson = False) -> None:
    """Which models avlens knows."""
    from avlens.checkpoint import zoo_names
    from avlens.families import FAMILIES

    families = pd.DataFrame([{"family": f.name, "models": f.title, "tested against": f.tested} for f in FAMILIES])
    value = {"zoo": zoo_names(), "families": _records(families)}
    zoo = "comes with avlens: " + ", ".join(zoo_names())
    _show(value, as_json, lambda: _echo(families.to_string(index=False), "", zoo))


@app.command()
def check(
    model: Annotated[str, typer.Argument(help="A name of the zoo, a folder, or a hub id.")],
    device: Device = None,
    dtype: Dtype = None,
    as_json: AsJson = False,
) -> None:
    """Run the laws on a checkpoint; exit code 1 if one is broken."""
    from avlens.datasets.synthetic import ball_and_bell
    from avlens.laws import check_laws, laws_table

    loaded = _load(model, device, dtype)
    laws = check_laws(loaded, loaded.prepare(ball_and_bell(4.0, fps=2.0), HEAR))
    table = laws_table(laws)
    value = {"model": model, "holds": all(law.holds for law in laws), "laws": _records(table.reset_index())}
    _show(value, as_json, lambda: typer.echo(table.to_string(float_format=lambda x: f"{x:.1e}")))
    if not value["holds"]:
        raise typer.Exit(1)


def _load(name: str, device: str | None = None, dtype: str | None = None) -> Any:
    from avlens.checkpoint import check_device
    from avlens.model import HookedAVModel

    if device is not None:
        check_device(device)
    return HookedAVModel.from_pretrained(name, device=device, dtype=dtype)


def _clip(path: Path, model: Any) -> Any:
    from avlens.media import Clip

    return Clip.from_file(path, **model.family.sampling)


def _prepare(model: Any, path: Path, question: str) -> Any:
    return model.prepare(_clip(path, model), question)


def _corrupted(clip: Any, corrupt: Corrupt) -> Any:
    if corrupt is Corrupt.AUDIO and clip.waveform is None:
        raise MediaError(f"--corrupt audio silences a clip, but {clip!r} has no sound. Use --corrupt video.")
    if corrupt is Corrupt.VIDEO and clip.frames is None:
        raise MediaError(f"--corrupt video blanks a clip, but {clip!r} has no video. Use --corrupt audio.")
    return clip.silenced() if corrupt is Corrupt.AUDIO else clip.blanked()


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


def _each_gpu(device: str | None) -> tuple[str, ...]:
    """The GPUs that workers share where `cuda` is asked for: all."""
    import torch

    return tuple(f"cuda:{i}" for i in range(torch.cuda.device_count())) if device == "cuda" else ()


def _check_page(out: Path | None) -> None:
    """Refuse a page that could not be written, before hours are spent on it.

    Raises:
        ViewError: If it is a folder, or would lie in none.
    """
    if out is not None and (out.is_dir() or not out.parent.is_dir()):
        raise ViewError(
            f"--out is {str(out)!r}, which cannot be written. Pass a file in a folder that exists, such as flow.html."
        )


def _write_table(result: Any, out: Path) -> None:
    from avlens import views

    result.to_frame().to_csv(out / "effects.csv")
    (out / "effects.tex").write_text(result.to_latex(), encoding="utf-8")
    for case, one in result.tables.items():
        views.plot(one).write_html(out / f"{case.replace(' ', '_')}.html", include_plotlyjs=True)


def _layers(given: str) -> Any:
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
    return range(int(first), int(last or first) + 1)


def _estimated(cost: Any) -> dict[str, Any]:
    seconds, low, high = cost.duration
    return {
        "items": cost.items, "workers": cost.workers, "seconds": seconds, "seconds_low": low, "seconds_high": high,
        "memory_bytes": cost.memory, "disk_bytes": cost.disk, "disk_free_bytes": cost.free,
        "measured": cost.measured, "failed": cost.failed,
    }  # fmt: skip


def _said_by_layer(read: Any, top: int) -> pd.DataFrame:
    """One row per layer: at one token its likeliest words, at many the words that are first at most of them."""
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


def _runs(token_map: Any) -> pd.DataFrame:
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


def _records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    return json.loads(frame.to_json(orient="records"))


def _show(value: Any, as_json: bool, otherwise: Callable[[], None]) -> None:
    if as_json:
        typer.echo(json.dumps(_plain(value), default=str))
    else:
        otherwise()


def _plain(value: Any) -> Any:
    """JSON has no NaN: what could not be computed is null."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {str(key): _plain(one) for key, one in value.items()}
    return [_plain(one) for one in value] if isinstance(value, (list, tuple)) else value


def _echo(*lines: str) -> None:
    for line in lines:
        if line:
            typer.echo(line)
