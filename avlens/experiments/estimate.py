"""What will a run cost, in time, memory and disk, judging from a few of its items?

Some items of each condition are measured first. With x_ci their seconds, m_c items left of condition c and n workers,

    time = sum_c m_c mean(x_c) / n       interval: Student's t of a stratified mean

where the first item of each worker, which bears what is found at first use, does not count if others of its condition do.
Memory is the largest peak so far, disk the mean length of a condition's records times their number.
"""

import math
import shutil
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from avlens.cost import duration, size
from avlens.metrics.effects import Interval
from avlens.records import Record, line_length

LEVEL, _Z = 0.95, 1.96


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
            f"{middle}{'' if low == 'unknown' else f' ({low} to {high})'}, {size(self.memory)} of memory each, "
            f"{size(self.disk)} of {size(self.free)} free on the disk{full}{short}"
        )


def estimate_run(measured: Sequence[Record], left: Mapping[str, int], workers: int, folder: Path) -> Estimate:
    """What the rest of a run will cost.

    Args:
        measured: Some records of it, in the order in which they were made.
        left: How many items are left, by condition.
        workers: How many share them.
        folder: Where records go.
    """
    times, sizes = _by_condition(measured[workers:], "seconds"), _by_condition(measured, "length")
    times |= {name: its for name, its in _by_condition(measured, "seconds").items() if name not in times}
    mean_size = statistics.fmean(sum(sizes.values(), [])) if sizes else 0.0
    return Estimate(
        items=sum(left.values()), workers=workers, seconds=_stratified(times, left),
        memory=max((one.memory for one in measured), default=0),
        disk=round(sum(n * statistics.fmean(sizes.get(name, [mean_size])) for name, n in left.items())),
        free=shutil.disk_usage(folder).free, failed=sum(1 for one in measured if one.problem), measured=len(measured),
    )  # fmt: skip


def _by_condition(measured: Sequence[Record], what: str) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for one in measured:
        found.setdefault(one.condition, []).append(one.seconds if what == "seconds" else float(line_length(one)))
    return found


def _stratified(values: Mapping[str, Sequence[float]], left: Mapping[str, int]) -> Interval:
    """The mean of what is left; NaN where a condition has no value, its ends where none has two."""
    total = sum(left.values()) or 1
    shares = {name: n / total for name, n in left.items() if n}
    n = sum(len(values.get(name, ())) for name in shares)
    if not shares or any(name not in values for name in shares):
        return Interval(math.nan, math.nan, math.nan, LEVEL, n, n, 0)
    mean = sum(share * statistics.fmean(values[name]) for name, share in shares.items())
    several = {name: share for name, share in shares.items() if len(values[name]) > 1}
    free = sum(len(values[name]) - 1 for name in several)
    if not free:
        return Interval(mean, math.nan, math.nan, LEVEL, n, n, 0)
    error = (
        sum(share**2 * statistics.variance(values[name]) / len(values[name]) for name, share in several.items()) ** 0.5
    )
    half = _student(free) * error
    return Interval(mean, max(0.0, mean - half), mean + half, LEVEL, n, n, 0)


def _student(free: int) -> float:
    """The quantile of Student's t that holds 95% between its signs, by the series of Cornish and Fisher; 4% short at 3."""
    z = _Z
    return z + (z**3 + z) / (4 * free) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * free**2)
