"""Measure what loading costs beside the weights themselves, and print the table of docs/benchmarks.md.

    python tests/benchmarks/loading.py [FAMILY ...]

Each row is a process of its own that loads a checkpoint and runs one prompt. The peak is that of the memory which the process
holds for itself. Pages of the checkpoint's file are not counted: they are read when they are needed and can be given back at
any time, so weights that stay as they were saved cost next to nothing.
"""

import gc
import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import torch

from avlens import HookedAVModel
from avlens.families import FAMILIES
from avlens.testing import tiny_clip, tiny_model

WAYS = {"as saved": {}, "cast to fp32": {"dtype": "float32"}, 'device_map="auto"': {"device_map": "auto"}}
SIZES = {"d_model": 1024, "d_vocab": 100_000, "n_layers": 4}


def peak(folder: Path, way: str) -> tuple[float, float]:
    """The weights and the peak above the level before, in MiB, in a process of its own."""
    command = [sys.executable, __file__, "--peak", str(folder), way]
    env = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}
    held, most = subprocess.run(command, check=True, capture_output=True, text=True, env=env).stdout.split()[-2:]
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


def table(families: list[str]) -> None:
    """Print a row for each family and way of loading."""
    print("| family | loaded | weights MiB | peak MiB | ratio |\n|---|---|---|---|---|")
    for family in families:
        with tempfile.TemporaryDirectory() as folder:
            place = Path(folder) / family
            tiny_model(family, **SIZES).to(torch.bfloat16).save_pretrained(place)
            for way in WAYS:
                held, most = peak(place, way)
                print(f"| `{family}` | {way} | {held:.0f} | {most:.0f} | {most / held:.2f} |", flush=True)


if __name__ == "__main__":
    if "--peak" in sys.argv:
        _peak_here(*sys.argv[2:])
    else:
        table(sys.argv[1:] or [family.name for family in FAMILIES])
