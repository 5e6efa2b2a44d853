"""Kill -9 at random moments, resume, and compare with a run that nothing disturbed.

    python -m tests.experiments.kill --kills 50 --clips 200

Each run is a process of its own, which is killed after a time drawn from a seed, until there have been as many kills; the
last one ends by itself.
"""

import argparse
import json
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch

from avlens import records
from avlens.data import read_data
from avlens.experiments import EXPERIMENTS, InProcess, run
from avlens.experiments.work import ModelSource


def measure(out, n_clips, engine, model, every):
    """One run, from wherever the folder stands."""
    torch.set_num_threads(1)
    records.SHORTEST = every  # Files are written as often as can be, so that kills meet writing.
    data = read_data(f"synthetic:{n_clips}")
    experiment = replace(EXPERIMENTS["lens"], name="lens, killed")
    run(experiment, model, data.samples, out, read=data.read, engine=engine)


def disturbed(out, n_clips, engine, model, *, kills, seed, longest, every=0.02):
    """Kill so many runs, then let one end. Returns how many records there were at each kill."""
    generator, context, there = random.Random(seed), multiprocessing.get_context("fork"), []
    while True:
        process = context.Process(target=measure, args=(out, n_clips, engine, model, every))
        process.start()
        process.join(generator.uniform(0, longest) if len(there) < kills else None)
        if process.exitcode is None:
            os.kill(process.pid, signal.SIGKILL)
            process.join()
            there.append(n_records(out))
        elif process.exitcode != 0:
            raise SystemExit(f"a run ended by itself with {process.exitcode}")
        elif len(there) >= kills:
            return there
        else:  # Done before it could be killed: the kills that are left meet a run that has nothing to do.
            there.append(n_records(out))


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


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--clips", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--longest", type=float, default=1.0, help="seconds until a kill, at most")
    given = parser.parse_args()
    torch.set_num_threads(1)
    model = ModelSource("avlens-tiny")
    with tempfile.TemporaryDirectory() as folder:
        whole, cut = Path(folder) / "whole", Path(folder) / "cut"
        start = time.monotonic()
        measure(whole, given.clips, InProcess(), model(), 10.0)
        undisturbed = time.monotonic() - start
        there = disturbed(
            cut, given.clips, InProcess(), model(), kills=given.kills, seed=given.seed, longest=given.longest
        )
        equal = same(whole, cut)
        sys.stdout.write(
            f"{given.kills} kills of a run over {given.clips} clips ({undisturbed:.1f} s undisturbed); records at each: {there}; "
            f"{len(list(cut.glob('*.jsonl')))} files; equal to the undisturbed run, nothing twice: {equal}\n"
        )
        raise SystemExit(0 if equal else 1)


if __name__ == "__main__":
    main()
