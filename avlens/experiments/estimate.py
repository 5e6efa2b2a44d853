"""What will a run cost, in time, memory and disk, judging from a few of its items?

The first items that are measured are a sample of all. With x_i their seconds, m items left and n workers,

    time = m mean(x) / n       interval: bootstrap of the mean

Memory is the largest peak so far, disk the mean length of a record times the number of records.
"""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from avlens.metrics.effects import Interval, bootstrap_mean
from avlens.records import Record, line_length


@dataclass(frozen=True)
class Estimate:
    """What is to come.

    Attributes:
        items: How many are left.
        workers: How many share them.
        seconds: Of one item, mean and interval.
        memory: Peak of one worker, in bytes.
        disk: Of all that is left, in bytes.
        free: What the disk has, in bytes.
        failed: How many of the items that were measured had a problem.
        measured: How many were.
    """

    items: int
    workers: int
    seconds: Interval
    memory: int
    disk: int
    free: int
    failed: int
    measured: int

    @property
    def duration(self) -> tuple[float, float, float]:
        """Seconds until the end: estimate, low, high."""
        share = self.items / self.workers
        return self.seconds.estimate * share, self.seconds.low * share, self.seconds.high * share

    def __str__(self) -> str:
        middle, low, high = map(duration, self.duration)
        short = f"; {self.failed} of {self.measured} had a problem" if self.failed else ""
        full = ", which is more than there is" if self.disk > self.free else ""
        return (
            f"{self.items} to go at {self.seconds.estimate:.2g} s each with {self.workers} worker{'s' * (self.workers > 1)}: "
            f"{middle} ({low} to {high}), {self.memory / 2**30:.1f} GiB of memory each, "
            f"{self.disk / 2**20:.1f} MiB of {self.free / 2**30:.0f} GiB free on the disk{full}{short}"
        )


def estimate_run(measured: Sequence[Record], items: int, workers: int, folder: Path) -> Estimate:
    """What the rest of a run will cost.

    Args:
        measured: Some records of it.
        items: How many are left.
        workers: How many share them.
        folder: Where records go.
    """
    mean_length = sum(map(line_length, measured)) / max(1, len(measured))
    return Estimate(
        items=items, workers=workers, seconds=bootstrap_mean([one.seconds for one in measured], n_draws=2000),
        memory=max((one.memory for one in measured), default=0), disk=round(mean_length * items),
        free=shutil.disk_usage(folder).free, failed=sum(1 for one in measured if one.problem), measured=len(measured),
    )  # fmt: skip


def duration(seconds: float) -> str:
    """Seconds as people say them: 40 s, 12 min, 3.5 h, 2.1 days."""
    if seconds != seconds:
        return "unknown"
    for unit, length in (("days", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * length:
            return f"{seconds / length:.3g} {unit}"
    return f"{seconds:.2g} s"
