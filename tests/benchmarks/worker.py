"""One peer, measured in this process: seconds as ratios to the stock model's forward pass, or the peak of its memory.

    python -m tests.benchmarks.worker PEER SHAPE FOLDER LENGTH [--tasks TASK ...] [--every N] [--memory] [--device cuda]

Prints one line of JSON. `compare` starts these, one after another.
"""

import argparse
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.benchmarks import peers
from tests.benchmarks.tasks import SAMPLE, TASKS, Timed
from tests.benchmarks.workload import SHAPES, Weights, Workload

WARM = 384
"""Length of the prompt on which everything is done once before."""

LIGHT = ("forward", "every `resid_pre`", "sinks and dominance", "prompt")
"""Tasks that are short enough to be repeated within a round, by the start of their names."""


class Yardstick:
    """The stock model's forward pass, timed again when what it measured since has taken twice as long as it."""

    def __init__(self, weights: Weights, work: Workload) -> None:
        self.model, self.work = weights.stock(), work
        self.forward()
        self.seconds = self.since = 0.0

    @torch.no_grad()
    def forward(self) -> Tensor:
        """Logits of every position."""
        return self.model(self.work.ids, use_cache=False).logits

    def beside(self, run: Callable[[], Tensor]) -> tuple[float, float, Tensor]:
        """Seconds of a run, those of a forward pass shortly before, and what the run gives."""
        if self.since >= 2 * self.seconds:
            self.seconds, self.since = clock(self.forward, self.work.device)[0], 0.0
        seconds, given = clock(run, self.work.device)
        self.since += seconds
        return seconds, self.seconds, given


def times(tasks: Mapping[str, Timed], weights: Weights, work: Workload, repeats: int) -> dict[str, Any]:
    """Of each task: seconds of the whole, and of a stock forward pass, each as often as it was repeated."""
    yardstick, found = Yardstick(weights, work), {}
    for name, task in tasks.items():
        turns = [yardstick.beside(task.run) for _ in range(repeats if name.startswith(LIGHT) else 1)]
        found[name] = {
            "seconds": [seconds * task.scale for seconds, _, _ in turns],
            "stock": [stock for _, stock, _ in turns],
            "answer": answer(turns[0][2]),
        }
    return found


def peaks(tasks: Mapping[str, Timed], device: str) -> dict[str, Any]:
    """Of each task: the most that it holds above what was held before, in MiB."""
    return {name: {"peak": peak(task, device)} for name, task in tasks.items()}


def clock(run: Callable[[], Tensor], device: str) -> tuple[float, Tensor]:
    """Processor seconds of a run, on a GPU those that pass, and what it gives."""
    now = time.process_time if device == "cpu" else time.perf_counter
    _wait(device)
    start = now()
    given = run()
    _wait(device)
    return now() - start, given


def peak(task: Timed, device: str) -> float:
    """Peak of one run above the level before it, in MiB."""
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        task.run()
        return (torch.cuda.max_memory_allocated(device) - before) / 2**20
    Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
    before = _status("VmRSS")
    task.run()
    return max(0, _status("VmHWM") - before) / 1024


def answer(rows: Tensor) -> list[float]:
    """A few numbers of the first rows, on which peers must agree."""
    return rows[:SAMPLE].reshape(len(rows[:SAMPLE]), -1)[:, :4].flatten().tolist()


def _wait(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize(device)


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1])


def measured(told: argparse.Namespace) -> dict[str, Any]:
    """Load a peer, let it do everything once on a short prompt, then measure."""
    weights = Weights(SHAPES[told.shape], Path(told.folder), told.device)
    peer, work = peers.load(told.peer, weights), Workload(weights.shape, told.length, told.device, told.every)
    short, tasks = (
        {name: task for name, task in peer.tasks(asked).items() if name in told.tasks}
        for asked in (Workload(weights.shape, WARM, told.device, every=8), work)
    )
    for task in short.values():
        task.run()
    return peaks(tasks, told.device) if told.memory else times(tasks, weights, work, told.repeats)


def options(given: list[str] | None = None) -> argparse.Namespace:
    """What is asked for."""
    asked = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    for name in ("peer", "shape", "folder"):
        asked.add_argument(name)
    asked.add_argument("length", type=int)
    asked.add_argument("--tasks", nargs="*", default=list(TASKS), choices=TASKS)
    asked.add_argument("--every", type=int, default=1)
    asked.add_argument("--repeats", type=int, default=1)
    asked.add_argument("--memory", action="store_true")
    asked.add_argument("--device", default="cpu")
    return asked.parse_args(given)


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps(measured(options())))
