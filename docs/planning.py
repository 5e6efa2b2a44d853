"""The tables of planning.md, counted anew and written into it: `python docs/planning.py`.

Works are counted on thin models: the depth and the prompts of the real ones, small widths, random weights.
"""

import argparse
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from unittest.mock import patch

import pandas as pd
from tqdm.auto import tqdm

from avlens import Clip, HookedAVModel
from avlens.analyses.selection import judge
from avlens.cost import duration
from avlens.experiments import EXPERIMENTS, asking, cross_modal_hubs
from avlens.experiments.ledger import H100, H200, QWEN2_5_OMNI, Ledger, Widths, Work
from avlens.experiments.plan import drawn, simulate
from avlens.hub_table import hub_sets
from avlens.samples import LETTERS, Opened, Sample
from avlens.testing import tiny_clip, tiny_model

PAGE = Path(__file__).with_suffix(".md")
SECONDS, FRAME = 10.0, (336, 336)
"""A clip of the papers: 20 frames of 12 x 12 tokens in pairs, and 250 tokens of sound."""

PUBLISHED: Mapping[str, Mapping[str, int]] = {
    "audio": {
        "all": 1440, "object": 613, "sink 2": 603, "sink 3": 362, "sink 4": 256, "random": 603, "uni 2": 301, "cross 2": 301,
        "uni 3": 181, "cross 3": 181,
    },
    "video": {
        "all": 249, "object": 149, "sink 2": 144, "sink 3": 86, "sink 4": 60, "random": 144, "uni 2": 72, "cross 2": 72,
        "uni 3": 43, "cross 3": 43, "uni 4": 30, "cross 4": 30,
    },
}  # fmt: skip
"""The sets of the table of causal effects, Qwen2.5-Omni 7B: how many tokens, by the modality that decides."""


@dataclass(frozen=True, eq=False)
class Line:
    """One line of a paper's results: an experiment under one condition, over so many clips.

    Attributes:
        paper: Which.
        name: Of the experiment.
        condition: Of its conditions.
        clips: How many.
        said: What it is.
        more: Settings that differ from the experiment's.
        dominant: The modality that decides, where only such clips are traced.
        controls: Whether the sets are those of the experiment, with all draws, rather than the published ones.
    """

    paper: str
    name: str
    condition: str
    clips: int
    said: str
    more: Mapping[str, object] | None = None
    dominant: str = ""
    controls: bool = False


SENTENCE = {"max_new_tokens": 32}
DEVICES = (H100, H200)

LOADING = 60.0
"""Seconds until a worker has its model: 18 GB (7B in bf16) at 0.3 GB a second. An assumption."""

HANDOVER, WRITING = 0.003, 0.015
"""Seconds that an item costs the process that hands them out, on Ray, and a file of records: measured with 308 rows a record,
the first by `python tests/benchmarks/experiment_cost.py engines 40 308` with items of 0.1 s."""

TIMES = (
    0.97, 0.07, 1.49, 1.82, 0.91, 0.96, 1.03, 1.06, 1.12, 0.06, 0.83, 0.06, 0.08, 1.19, 0.77, 0.93, 1.02, 0.95, 0.80, 1.23,
    0.96, 0.90, 1.42, 0.10, 0.09, 1.29, 1.12, 1.16, 1.23, 1.64, 0.96, 1.14, 1.43, 1.13, 1.07, 1.04, 1.04, 1.26, 1.36, 1.49,
    1.03, 0.72, 0.76, 0.80, 0.84, 1.06, 0.92, 1.36, 0.88, 0.69, 0.84, 0.84, 1.26, 1.18, 1.20, 1.12, 1.39, 1.05, 1.61, 1.31,
)  # fmt: skip
"""How long each of 60 clips took in `tracing` on the embedded model, by the mean."""

LINES = (
    Line("P1", "selection", "zero", 1000, "which modality decides, for each 1,000 candidates"),
    Line("P1", "tracing", "zero", 349, "the published sets, audio decides", dominant="audio"),
    Line("P1", "tracing", "zero", 548, "the published sets, video decides", dominant="video"),
    Line("P1", "tracing", "zero", 349, "with all controls and draws, audio decides", dominant="audio", controls=True),
    Line("P1", "layers", "zero", 349, "figure 10", dominant="audio"),
    Line("P1", "sinks", "N=2", 100, "figure 7, table 12"),
    *(Line("P1", "decoding", name, 364, f"captions, {name}", SENTENCE) for name in cross_modal_hubs.METHODS),
    Line("P1", "dynamics", "N=3", 364, "attention while objects are written", SENTENCE),
    *(Line("P2", "fidelity", name, 500, f"captions, {name}", SENTENCE) for name in ("plain", "video cut late")),
    Line("P2", "attention", "question first", 500, "attention by modality"),
    Line("P2", "lens", "audio", 500, "logit lens at audio tokens"),
    Line("P2", "shift", "no audio", 500, "token-distribution shift", SENTENCE),
    Line("P3", "flow", "media first", 2281, "eleven edges in every window"),
    Line("P3", "discarding", "as published", 2281, "table 4 with random controls and FastV"),
)


Works = Mapping[tuple[Line, str], Work]
"""By line, and by the model's size."""


def thin(name: str, n_layers: int | None = None) -> HookedAVModel:
    """A model of the depth of a real one, whose widths tell each other apart."""
    sizes = {"d_model": 40, "n_heads": 2, "n_key_value_heads": 1, "d_head": 12, "d_mlp": 56}
    model = tiny_model(
        n_layers=n_layers or QWEN2_5_OMNI[name].n_layers, n_encoder_layers=32 if n_layers is None else 2, **sizes
    )
    model.stock.encoders["vision"].fullatt_block_indexes = [7, 15, 23, 31]
    model.family.reading = replace(model.family.reading, video_pixels=(128 * 28 * 28, 768 * 28 * 28))
    return model


def asked(line: Line, clip: Clip) -> Opened:
    """A question as long as the papers': 20 options, four, or a request to describe the clip."""
    record = {"objects": ["bell"], "audio_captions": ["a bell"], "video_captions": ["a drum"]}
    if EXPERIMENTS[line.name].task == "describe":
        return Opened(
            Sample("x", Path(), "describe what you see and hear in a single sentence", record=record), clip, ""
        )
    n = 4 if line.paper == "P3" else 20
    options = tuple(f"{LETTERS[i].lower()} bell rings" for i in range(n))
    return Opened(Sample("x", Path(), "which sound does it make ?", options, "A", record=record), clip, "")


@contextmanager
def decided(line: Line) -> Iterator[None]:
    """As if one modality decided, and sinks were as many as published: random weights have neither."""

    def judged(model, opened, **options):
        return replace(judge(model, opened, **options), dominant=line.dominant or "neither", o_clean="A", o_corrupt="B")

    def sets(model, clean, corrupt, dominant, *, n, draws, seed):
        hub_sets(model, clean, corrupt, dominant, n=n, draws=0, seed=seed)  # For the pass in which sinks are found.
        base = clean.tokens.video if dominant == "audio" else clean.tokens.audio
        sizes = PUBLISHED[dominant]
        if line.controls:
            per_n = {2: ("sink 2", "cross 2"), 3: ("sink 3", "cross 3"), 4: ("sink 4", "cross 4")}
            sizes = {"all": len(base)}
            for one in n:
                sink, cross = (PUBLISHED[dominant].get(name, PUBLISHED[dominant]["sink 4"] // 2) for name in per_n[one])
                sizes |= {f"sink {one}": sink, f"uni {one}": sink - cross, f"cross {one}": cross}
                sizes |= {f"random {one} #{i}": sink for i in range(draws)}
                sizes |= {f"matched {one} {match} #{i}": cross for match in range(4) for i in range(draws)}
        alike = {name: base.sorted().positions[: min(size, len(base))].tolist() for name, size in sizes.items()}
        return {
            name: clean.tokens.random_like(clean.tokens.at(which), seed=i, within=base)
            for i, (name, which) in enumerate(alike.items())
        }

    with patch.object(asking, "judge", judged), patch.object(cross_modal_hubs, "hub_sets", sets):
        yield


def counted(line: Line, model: HookedAVModel, clip: Clip) -> Work:
    """What one item of a line multiplies in a thin model."""
    experiment = EXPERIMENTS[line.name]
    settings = {**experiment.conditions[line.condition], **(line.more or {}), "seed": 0}
    model.forget_encodings()
    with decided(line), Ledger() as ledger:
        experiment.measure(model, asked(line, clip), settings)
    return ledger.work()


def works(sizes: Sequence[str] = tuple(QWEN2_5_OMNI), lines: Sequence[Line] = LINES) -> Works:
    """What one clip of each line multiplies in each real model."""
    clip, found = tiny_clip(SECONDS, size=FRAME), {}
    for name in sizes:
        model = thin(name)
        for line in tqdm(lines, desc=name, unit="line"):
            found[line, name] = counted(line, model, clip).widened(Widths.of(model), QWEN2_5_OMNI[name])
    return found


def per_clip(found: Works) -> pd.DataFrame:
    """Operations and seconds of one clip, by line."""
    rows = {}
    for line in _lines(found):
        row = {"clips": f"{line.clips:,}"}
        for name in _sizes(found):
            work = found.get((line, name))
            row |= {f"{name}: TFLOP": f"{work.operations / 1e12:,.0f}" if work else ""}
            row |= {f"{name}: s on {one.name}": f"{work.seconds(one):.2g}" if work else "" for one in DEVICES}
        rows[f"{line.paper} `{line.name}`: {line.said}"] = row
    return pd.DataFrame(rows).T.rename_axis("one clip of")


def whole(found: Works) -> pd.DataFrame:
    """Hours of each paper's lines, on one device and on eight, for the models in which all were counted."""
    rows = {}
    complete = [name for name in _sizes(found) if all((line, name) in found for line in _lines(found))]
    for paper in dict.fromkeys(line.paper for line in _lines(found)):
        for said, controls in (("", False), (", the controls alone", True)):
            some = [line for line in _lines(found) if line.paper == paper and line.controls is controls]
            if some:
                rows[paper + said] = {
                    f"{name} on {device.name}": _one_and_eight(
                        [found[line, name].seconds(device) for line in some], some
                    )
                    for name in complete
                    for device in DEVICES
                }
    return pd.DataFrame(rows).T.rename_axis("all lines of")


def workers(found: Works) -> pd.DataFrame:
    """How long all clips of some lines take with so many workers, by simulation."""
    rows = {}
    for line in (line for line in _lines(found) if line.name in ("flow", "tracing") and line.dominant != "video"):
        times = drawn(TIMES, line.clips, mean=found[line, "7B"].seconds(H100))
        for n in (1, 8, 32, 128, 512):
            done = simulate(times, n, overhead=HANDOVER, start=LOADING, write=WRITING)
            rows[f"`{line.name}`: {line.said}, {n} worker{'s' * (n > 1)}"] = {
                "until done": duration(done.makespan), "efficiency": f"{done.efficiency:.2f}",
                "without loading": f"{sum(times) / n / (done.makespan - LOADING):.2f}", "tail": duration(done.tail),
            }  # fmt: skip
    return pd.DataFrame(rows).T.rename_axis("7B on H100")


TABLES: dict[str, Callable[[Works], pd.DataFrame]] = {"per_clip": per_clip, "whole": whole, "workers": workers}


def written(page: str, name: str, table: str) -> str:
    """The page with a table in its place."""
    return re.sub(
        rf"(<!-- {name} -->\n).*?(\n<!-- end -->)", lambda found: found[1] + table + found[2], page, flags=re.DOTALL
    )


def write_tables(found: Works) -> None:
    """Write every table into the page."""
    page = PAGE.read_text(encoding="utf-8")
    for name, table in TABLES.items():
        page = written(page, name, _markdown(table(found)))
    PAGE.write_text(page, encoding="utf-8")


def _lines(found: Works) -> list[Line]:
    return list(dict.fromkeys(line for line, _ in found))


def _sizes(found: Works) -> list[str]:
    return [name for name in QWEN2_5_OMNI if any(name == its for _, its in found)]


def _one_and_eight(seconds: Sequence[float], lines: Sequence[Line]) -> str:
    """Device time of all clips on one device, and the time until eight are done, which load a model each first."""
    total = sum(one * line.clips for one, line in zip(seconds, lines, strict=True))
    return f"{duration(total)} / {duration(LOADING + total / 8)}"


def _markdown(table: pd.DataFrame) -> str:
    head = [table.index.name or "", *map(str, table.columns)]
    body = [[str(name), *map(str, row)] for name, row in zip(table.index, table.itertuples(index=False), strict=True)]
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *body))


if __name__ == "__main__":
    asked_for = argparse.ArgumentParser(description=__doc__)
    asked_for.add_argument("--sizes", nargs="+", default=list(QWEN2_5_OMNI), choices=list(QWEN2_5_OMNI))
    write_tables(works(asked_for.parse_args().sizes))
