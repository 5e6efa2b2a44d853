"""Kill -9 at random moments, resume, and compare with a run that nothing disturbed.

    python -m tests.experiments.kill --kills 50 --clips 200
    python -m tests.experiments.kill --kills 50 --clips 200 --engine ray

Each run is a process of its own. At moments drawn from a seed it is killed and started again, or one of its workers on Ray is
killed; after so many kills it is left to end by itself.
"""

import argparse
import importlib
import json
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from avlens import records
from avlens.data import read_data, read_synthetic
from avlens.experiments import EXPERIMENTS, InProcess, Processes, Ray, run
from avlens.experiments.cluster import started
from avlens.experiments.work import ModelSource

SPREAD = 1.8
"""Seconds until the next kill are at most this part of an undisturbed run's, shared among the kills: so they meet all of it."""

EARLY = 0.2
"""Share of kills that may meet a run before its workers are up."""


def read_slowly(sample, pause):
    """As a clip that takes its time to be read."""
    time.sleep(pause)
    return read_synthetic(sample)


def measure(out, n_clips, engine, model, every, pause=0.0):
    """One run, from wherever the folder stands."""
    torch.set_num_threads(1)
    records.SHORTEST = every  # Files are written as often as can be, so that kills meet writing.
    data = read_data(f"synthetic:{n_clips}")
    experiment = replace(EXPERIMENTS["lens"], name="lens, killed")
    run(experiment, model, data.samples, out, read=partial(read_slowly, pause=pause), engine=engine)


@dataclass(frozen=True)
class Telling:
    """An engine that tells when its workers are up."""

    engine: Any
    up: Any

    @contextmanager
    def start(self, work, model):
        with self.engine.start(work, model) as workers:
            self.up.set()
            yield workers


class Run:
    """A run in a process of its own."""

    def __init__(self, out, n_clips, engine, model, every, pause):
        context = multiprocessing.get_context("fork")
        self.up = context.Event()
        self.process = context.Process(
            target=measure, args=(out, n_clips, Telling(engine, self.up), model, every, pause)
        )
        self.process.start()

    def wait_until_up(self):
        while self.process.is_alive() and not self.up.wait(0.1):
            pass

    def ended(self, timeout=None):
        """Whether it ended by itself."""
        self.process.join(timeout)
        if self.process.exitcode:
            raise SystemExit(f"a run ended by itself with {self.process.exitcode}")
        return self.process.exitcode == 0

    def kill(self):
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.join()


def disturbed(out, n_clips, engine, model, *, kills, seed, longest, every=0.02, pause=0.0, workers=None):
    """Kill a run so many times, or one of `workers()`, then let it end.

    Returns:
        What was killed each time, and how many records there were then.
    """
    generator, there, going = random.Random(seed), [], None
    while len(there) < kills:
        going = going or Run(out, n_clips, engine, model, every, pause)
        if generator.random() >= EARLY:
            going.wait_until_up()
        if going.ended(generator.uniform(0, longest)):  # Done already: this kill meets a run that has nothing to do.
            killed, going = "nothing", None
        elif workers is not None and generator.random() < 0.5 and (pids := workers()):
            os.kill(generator.choice(pids), signal.SIGKILL)
            killed = "worker"
        else:
            going.kill()
            killed, going = "run", None
        there.append((killed, n_records(out)))
    (going or Run(out, n_clips, engine, model, every, pause)).ended()
    return there


def n_records(out):
    """How many whole records a folder holds; raises if one is not whole."""
    return len(records.read_records(out)) if (Path(out) / records.MANIFEST).exists() else 0


def same(one, other):
    """Whether two folders hold equal records, each key once among the lines."""
    first, second = records.read_records(one), records.read_records(other)
    keys = [
        tuple(json.loads(line)[name] for name in ("sample", "condition", "seed"))
        for path in Path(other).glob("*.jsonl")
        for line in path.read_text().splitlines()
    ]
    return [r.result for r in first.records] == [r.result for r in second.records] and len(keys) == len(set(keys))


@contextmanager
def cluster(cpus, gpus=0):
    """A Ray that goes on whatever happens to runs: its address, and what lists its actors' processes."""
    with started(num_cpus=cpus, num_gpus=gpus) as address:
        yield address, partial(actors, os.getpid())


def below(root):
    """The ids of the processes that one started, and those started, with their names."""
    parents, names = {}, {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            names[int(path.name)] = (path / "cmdline").read_bytes()
            parents[int(path.name)] = int((path / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue  # It has ended meanwhile.

    def is_below(pid):
        while pid in parents and pid != root:
            pid = parents[pid]
        return pid == root

    return {pid: name for pid, name in names.items() if pid != root and is_below(pid)}


def actors(root):
    """The processes below one that are Ray's actors."""
    return sorted(pid for pid, name in below(root).items() if name.startswith(b"ray::_Actor"))


@contextmanager
def chosen(engine):
    """An engine by name, the model as it takes it, and what lists its workers."""
    source = ModelSource("avlens-tiny")
    if engine == "ray":
        importlib.import_module("ray")  # Once, so that each run is only a fork.
        with cluster(2) as (address, workers):
            yield Ray(2, address=address), source, workers
    elif engine == "processes":
        yield Processes(2), source, None
    else:
        yield InProcess(), source(), None


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--clips", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--engine", choices=("in-process", "processes", "ray"), default="in-process")
    parser.add_argument("--pause", type=float, default=0.2, help="seconds that each clip takes longer to read")
    given = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder, chosen(given.engine) as (engine, model, workers):
        whole, cut = Path(folder) / "whole", Path(folder) / "cut"
        start = time.monotonic()
        measure(whole, given.clips, InProcess(), ModelSource("avlens-tiny")(), 10.0, given.pause)
        undisturbed, start = time.monotonic() - start, time.monotonic()
        longest = SPREAD * undisturbed / given.kills
        there = disturbed(
            cut, given.clips, engine, model, kills=given.kills, seed=given.seed, longest=longest, pause=given.pause,
            workers=workers,
        )  # fmt: skip
        equal = same(whole, cut)
        sys.stdout.write(
            f"{given.kills} kills of a run over {given.clips} clips, {given.engine}: {dict(Counter(one for one, _ in there))}; "
            f"{undisturbed:.0f} s undisturbed in-process, {time.monotonic() - start:.0f} s with kills; records at each: "
            f"{[n for _, n in there]}; {len(list(cut.glob('*.jsonl')))} files; equal to the undisturbed run, nothing twice: "
            f"{equal}\n"
        )
    raise SystemExit(0 if equal else 1)


if __name__ == "__main__":
    main()
