"""Measure overhead and memory against the stock model, side by side, and print the table of docs/benchmarks.md.

    python tests/benchmarks/measure.py [S ...]

Times are CPU seconds of interleaved runs in one process (one thread), as ratios to the stock model's run of the same round.
Memory is the peak of the process during one run above its level before, each in a process of its own.
"""

import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).parents[2]))

import torch

from tests.benchmarks import workload

ROUNDS = 7


def times(length: int) -> dict[str, list[float]]:
    """CPU seconds of each piece of work in each round."""
    model = workload.model()
    inputs = workload.prompt(length, model)
    seconds: dict[str, list[float]] = {name: [] for name in workload.WORK}
    for work in workload.WORK.values():
        work(model, inputs)
    for _ in range(ROUNDS):
        for name, work in workload.WORK.items():
            start = time.process_time()
            work(model, inputs)
            seconds[name].append(time.process_time() - start)
    return seconds


def peak_mib(name: str, length: int) -> float:
    """Peak memory of one run above the level before it, in a process of its own."""
    command = [sys.executable, __file__, "--peak", name, str(length)]
    # Freed blocks go back at once: the peak of what is held, not of what the allocator keeps for later.
    env = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}
    return float(subprocess.run(command, check=True, capture_output=True, text=True, env=env).stdout)


def _peak_here(name: str, length: int) -> float:
    model = workload.model()
    inputs = workload.prompt(length, model)
    workload.WORK[name](model, workload.prompt(64, model))
    Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
    before = _status("VmRSS")
    workload.WORK[name](model, inputs)
    return (_status("VmHWM") - before) / 1024


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1])


def main(lengths: list[int]) -> None:
    """Print one table row per length and piece of work."""
    print("| S | work | CPU s (median) | ratio to stock (median, min to max) | extra peak MiB | ratio to stock |")
    print("|---|---|---|---|---|---|")
    for length in lengths:
        seconds = times(length)
        peaks = {name: peak_mib(name, length) for name in workload.WORK}
        for name in workload.WORK:
            ratios = [ours / stock for ours, stock in zip(seconds[name], seconds["stock"], strict=True)]
            print(
                f"| {length} | {name} | {median(seconds[name]):.2f} | {median(ratios):.3f} ({min(ratios):.3f} to "
                f"{max(ratios):.3f}) | {peaks[name]:.0f} | {peaks[name] / peaks['stock']:.2f} |"
            )


if __name__ == "__main__":
    torch.set_num_threads(1)
    if sys.argv[1:2] == ["--peak"]:
        print(_peak_here(sys.argv[2], int(sys.argv[3])))
    else:
        main([int(length) for length in sys.argv[1:]] or [1024, 3072, 4096])
