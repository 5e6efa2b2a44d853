"""Measure what loading costs beside the weights themselves.

    python -m tests.benchmarks.loading FAMILY

Prints one line of JSON: for each way of loading, the weights and the peak in MiB. Each is a process of its own that loads a
checkpoint and runs one prompt. The peak is that of the memory which the process
holds for itself. Pages of the checkpoint's file are not counted: they are read when they are needed and can be given back at
any time, so weights that stay as they were saved cost next to nothing.
"""

import gc
import json
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import torch

from avlens import HookedAVModel
from avlens.testing import tiny_clip, tiny_model

WAYS = {"as saved": {}, "cast to fp32": {"dtype": "float32"}, 'device_map="auto"': {"device_map": "auto"}}
SIZES = {"d_model": 1024, "d_vocab": 100_000, "n_layers": 4}


def peak(folder: Path, way: str) -> tuple[float, float]:
    """The weights and the peak above the level before, in MiB, in a process of its own."""
    command = [sys.executable, "-m", "tests.benchmarks.loading", "--peak", str(folder), way]
    held, most = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-2:]
    return float(held), float(most)


def _peak_here(folder: str, way: str) -> None:
    # What is imported, and what the first load of all makes, is no matter of the checkpoint.
    with tempfile.TemporaryDirectory() as small:
        tiny_model(Path(folder).name).save_pretrained(small)
        _run(HookedAVModel.from_pretrained(small, **WAYS[way]))
    gc.collect()
    before, most, done = _own(), [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.001):
            most[0] = max(most[0], _own())

    watcher = threading.Thread(target=watch)
    watcher.start()
    model = HookedAVModel.from_pretrained(folder, **WAYS[way])
    _run(model)
    done.set()
    watcher.join()
    tensors = {one.data_ptr(): one.nbytes for one in [*model.parameters(), *model.buffers()]}
    print(sum(tensors.values()) / 2**20, (most[0] - before) / 1024)


def _run(model: HookedAVModel) -> None:
    model(model.prepare(tiny_clip(1.0, size=(56, 56)), "what ?"))


def _own() -> int:
    """Memory that is this process's own, in KiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("RssAnon")).split()[1])


def measured(family: str) -> dict[str, tuple[float, float]]:
    """The weights and the peak of each way of loading."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / family
        tiny_model(family, **SIZES).to(torch.bfloat16).save_pretrained(place)
        return {way: peak(place, way) for way in WAYS}


if __name__ == "__main__":
    if sys.argv[1] == "--peak":
        _peak_here(*sys.argv[2:])
    else:
        print(json.dumps(measured(sys.argv[1])))
