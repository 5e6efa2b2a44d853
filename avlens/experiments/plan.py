"""How long will so many workers take, and how many are worth having?

Engines give the next item to the first worker that is free. With x_1 ... x_m the seconds of the items, n workers that load their
model in s seconds, h seconds that the one process which gives out work and takes records spends on each item, and w seconds for
each file of records that it writes,

    makespan     simulated: list scheduling in the given order, one item handed over at a time
    efficiency   sum(x) / (n makespan)
    tail         from when the first worker has nothing left to do until the end
    limit        mean(x) / h workers: with more, that process is what all wait for
"""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from avlens.errors import ExperimentError
from avlens.records import SHORTEST


@dataclass(frozen=True)
class Schedule:
    """What so many workers do.

    Attributes:
        workers: How many.
        makespan: Seconds until the last item is done.
        efficiency: Share of the workers' time that is spent measuring, in [0, 1].
        tail: Seconds from when the first worker finds nothing left to do until the end.
        limit: How many workers one process can keep busy.
    """

    workers: int
    makespan: float
    efficiency: float
    tail: float
    limit: float


def simulate(
    seconds: Sequence[float], workers: int, *, overhead: float = 0.0, start: float = 0.0, write: float = 0.0
) -> Schedule:
    """Give items to workers as an engine does.

    Args:
        seconds: Of each item, in order; `drawn` makes them from a few that were measured.
        workers: How many.
        overhead: Seconds that handing over one item and writing its record take, one at a time.
        start: Seconds until a worker has its model.
        write: Seconds that writing a file of records takes, as often as `RecordFolder` does.

    Raises:
        ExperimentError: If there is no item or no worker, or a time is negative.
    """
    if not seconds or workers < 1 or min(*seconds, overhead, start, write) < 0:
        raise ExperimentError(
            f"{len(seconds)} items on {workers} workers, overhead {overhead} s, start {start} s, write {write} s: give one or "
            "more of each, and no negative time."
        )
    free = [start] * workers
    heapq.heapify(free)
    hands, end, written = 0.0, 0.0, start
    for one in seconds:
        hands = max(hands, heapq.heappop(free)) + overhead
        if hands - written >= max(SHORTEST, (hands - start) / 100):
            hands = written = hands + write
        end = max(end, hands + one)
        heapq.heappush(free, hands + one)
    mean = sum(seconds) / len(seconds)
    return Schedule(
        workers, makespan=end, efficiency=sum(seconds) / (workers * end) if end else 1.0, tail=end - free[0],
        limit=mean / overhead if overhead else float("inf"),
    )  # fmt: skip


def drawn(measured: Sequence[float], n: int, *, mean: float | None = None, seed: int = 0) -> list[float]:
    """Seconds of `n` items, drawn from those that were measured; stretched to another mean, if one is given.

    Raises:
        ExperimentError: If nothing was measured.
    """
    if not measured:
        raise ExperimentError("no times to draw from. Pass the seconds of some records.")
    times = np.random.default_rng(seed).choice(np.asarray(measured, dtype=float), n)
    return (times * (1.0 if mean is None else mean / float(np.mean(measured)))).tolist()
