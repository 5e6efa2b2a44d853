"""Measure every peer side by side: one process for each, in turn, round by round; what was measured is kept in a file of lines.

What a file already holds is not measured again, so that a long comparison can be stopped and taken up, and so that each part
can be run when the machine is free.
"""

import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

from tests.benchmarks.peers import PEERS
from tests.benchmarks.tasks import TASKS
from tests.benchmarks.workload import SHAPES, Weights, save_weights

ROOT = Path(__file__).parents[2]
RECORDS = Path(__file__).parent / "measured.jsonl"


@dataclass(frozen=True)
class Comparison:
    """Peers on one shape and length.

    Attributes:
        shape: Name of the decoder's sizes.
        length: Of the prompts.
        peers: Who takes part.
        rounds: How often each is measured.
        repeats: How often short tasks are within a round.
        every: Of sets and cells, every how many-th is run.
        tasks: Which; all by default.
        memory: Whether peaks of memory are measured, instead of time.
    """

    shape: str
    length: int
    peers: tuple[str, ...] = tuple(PEERS)
    rounds: int = 1
    repeats: int = 1
    every: int = 1
    tasks: tuple[str, ...] = tuple(TASKS)
    memory: bool = False

    def options(self, peer: str, weights: Weights) -> list[str]:
        """What tells a worker to measure a peer once."""
        options = {"device": weights.device, "every": self.every, "repeats": self.repeats}
        asked = [f"--{name}={value}" for name, value in options.items()] + ["--memory"] * self.memory
        return [peer, self.shape, str(weights.folder), str(self.length), *asked, "--tasks", *self.tasks]


@dataclass(frozen=True)
class Script:
    """A script of its own that prints what it measured.

    Attributes:
        name: Of its file.
        cases: What it is run on, one after another: options by name.
        memory: Whether it measures memory.
    """

    name: str
    cases: dict[str, tuple[str, ...]]
    memory: bool = False


LENGTHS = (512, 1024, 2048, 4096, 8192)
MEMORY_LENGTHS = (2048, 8192)
SINGLE = ("forward", "every `resid_pre`", "sinks and dominance")
SWEEPS = ("knockouts, 3 groups", "patch grid", "trace, modalities", "prompt, media leave at half")

PARTS: dict[str, Comparison | Script] = {
    "1024": Comparison("narrow", 1024, rounds=2, repeats=2),
    "2048": Comparison("narrow", 2048, ("avlens", "plain hooks", "published procedure")),
    "wide": Comparison("wide", 1024, ("avlens", "plain hooks", "published procedure")),
    **{f"length {n}": Comparison("narrow", n, ("avlens",), every=8, tasks=SINGLE + SWEEPS) for n in LENGTHS},
    "memory": Comparison("narrow", 1024, every=8, tasks=SINGLE + SWEEPS, memory=True),
    **{f"memory {n}": Comparison("narrow", n, ("avlens",), tasks=SINGLE, memory=True) for n in MEMORY_LENGTHS},
    "loading": Script("loading", {name: (name,) for name in ("qwen2_5_omni", "qwen3_omni")}, memory=True),
    "decoding": Script("decoding", {"bfloat16": ("1024", "bfloat16"), "float32": ("512", "float32")}),
    "smoke": Comparison("tiny", 400, every=8),
    "smoke memory": Comparison("tiny", 400, every=8, memory=True),
}


@dataclass(frozen=True)
class Job:
    """One process.

    Attributes:
        part: What it belongs to.
        who: The peer, or the case of a script.
        turn: The round.
    """

    part: str
    who: str
    turn: int


def jobs(part: str) -> Iterator[Job]:
    """Those of a part, peers in turn within a round."""
    given = PARTS[part]
    if isinstance(given, Script):
        yield from (Job(part, case, 0) for case in given.cases)
    else:
        yield from (Job(part, peer, turn) for turn in range(given.rounds) for peer in given.peers)


Start = Callable[[str, Sequence[str], bool], dict[str, Any]]
"""Runs a module of this package with options, and with memory given back at once or not; what it found, or its error."""


def in_a_process(module: str, options: Sequence[str], memory: bool) -> dict[str, Any]:
    """Run it in a process of its own, on one thread."""
    env = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    if memory:  # freed blocks go back at once: the peak of what is held, not of what the allocator keeps for later
        env["MALLOC_MMAP_THRESHOLD_"] = "65536"
    command = [sys.executable, "-m", f"tests.benchmarks.{module}", *options]
    ran = subprocess.run(command, capture_output=True, text=True, env=env, cwd=ROOT)
    lines = (ran.stderr if ran.returncode else ran.stdout).strip().splitlines()
    return {"error": lines[-1]} if ran.returncode else {"found": json.loads(lines[-1])}


def measure(
    parts: Sequence[str],
    records: Path = RECORDS,
    *,
    peers: Sequence[str] = tuple(PEERS),
    device: str = "cpu",
    start: Start = in_a_process,
) -> None:
    """Measure what the file does not hold yet, and add it line by line.

    Args:
        parts: Of `PARTS`.
        records: The file.
        peers: Who takes part.
        device: Where models run.
        start: How a worker is run.
    """
    done = {(one["part"], one["who"], one["turn"]) for one in read(records)}
    with tempfile.TemporaryDirectory() as folder:
        saved: dict[str, Weights] = {}
        for job in (job for part in parts for job in jobs(part)):
            if (job.part, job.who, job.turn) in done or (job.who in PEERS and job.who not in peers):
                continue
            since = time.monotonic()
            found = start(*_asked(job, saved, Path(folder), device))
            with records.open("a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(job) | {"on": where(device)} | found) + "\n")
            took = f"{time.monotonic() - since:.0f} s"
            print(f"{job.part}, {job.who}, round {job.turn + 1}: {took}", found.get("error", ""), flush=True)


def forget(parts: Sequence[str], records: Path) -> None:
    """Drop what was measured of some parts."""
    kept = [one for one in read(records) if one["part"] not in parts]
    records.write_text("".join(json.dumps(one) + "\n" for one in kept), encoding="utf-8")


def read(records: Path) -> list[dict[str, Any]]:
    """All that was measured."""
    return [json.loads(line) for line in records.read_text(encoding="utf-8").splitlines()] if records.exists() else []


def where(device: str) -> str:
    """The machine and the versions, in a few words."""
    made = torch.cuda.get_device_name(device) if device != "cpu" else f"one thread of an {platform.machine()} processor"
    return f"{made}, torch {torch.__version__.split('+')[0]}, transformers {transformers.__version__}"


def _asked(job: Job, saved: dict[str, Weights], folder: Path, device: str) -> tuple[str, list[str], bool]:
    """What is to be run for a job; weights are saved when they are first needed."""
    given = PARTS[job.part]
    if isinstance(given, Script):
        return given.name, list(given.cases[job.who]), given.memory
    if given.shape not in saved:
        saved[given.shape] = save_weights(SHAPES[given.shape], folder / given.shape, device)
    return "worker", given.options(job.who, saved[given.shape]), given.memory
