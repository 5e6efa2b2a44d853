"""What do the records say? Ratios to the stock model's forward pass, peaks of memory, and whether all peers found the same."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from tests.benchmarks.workload import Shape, Workload


@dataclass(frozen=True, eq=False)
class Found:
    """All that was measured.

    Attributes:
        records: As `compare` wrote them.
    """

    records: Sequence[Mapping[str, Any]]

    def of(self, part: str, who: str) -> list[Any]:
        """What a peer found in each round of a part."""
        mine = [one for one in self.records if (one["part"], one["who"]) == (part, who) and "found" in one]
        return [one["found"] for one in mine]

    def ratios(self, part: str, who: str, task: str) -> list[float]:
        """Times of the stock forward pass right before, of each turn; none if the peer does not do that."""
        turns = [one[task] for one in self.of(part, who) if task in one]
        return [a / b for turn in turns for a, b in zip(turn["seconds"], turn["stock"], strict=True)]

    def ratio(self, part: str, who: str, task: str) -> float:
        """Their median; NaN if there are none."""
        ratios = self.ratios(part, who, task)
        return median(ratios) if ratios else float("nan")

    def seconds(self, part: str) -> float:
        """Of a stock forward pass: the median of all that were run; NaN if none."""
        every = [one["found"] for one in self.records if one["part"] == part and "found" in one]
        seconds = [second for one in every for task in one.values() for second in task["stock"]]
        return median(seconds) if seconds else float("nan")

    def peak(self, part: str, who: str, task: str) -> float:
        """The most that a task holds above what was held before, in MiB; NaN if not measured."""
        peaks = [one[task]["peak"] for one in self.of(part, who) if task in one]
        return median(peaks) if peaks else float("nan")

    def apart(self) -> float:
        """The largest difference of a peer's numbers from the first peer's."""
        first: dict[tuple[str, str], list[float]] = {}
        largest = 0.0
        for record in self.records:
            for task, turn in record.get("found", {}).items():
                if isinstance(turn, Mapping) and "answer" in turn:
                    told = first.setdefault((record["part"], task), turn["answer"])
                    largest = max([largest, *(abs(a - b) for a, b in zip(told, turn["answer"], strict=True))])
        return largest

    def failures(self) -> dict[str, str]:
        """Peers that could not be run, and why."""
        return {one["who"]: one["error"] for one in self.records if "error" in one}

    def machines(self) -> list[str]:
        """Where it was measured."""
        return list(dict.fromkeys(one["on"] for one in self.records))


def operations(sizes: Shape, length: int, leave_at: int | None = None) -> float:
    """Of a prompt whose last position is unembedded: multiplications and additions of all blocks, by hand.

    Of a row: its keys and values, then query, output and MLP; for each key that it reads, one product each with it and its
    value. The last block needs the keys and values of all rows, but no more than its last row.
    """
    media = len(Workload(sizes, length).media)
    width = sizes.d_model // sizes.n_heads * sizes.n_key_value_heads
    total = 0.0
    for layer in range(sizes.n_layers):
        n = length if leave_at is None or layer < leave_at else length - media
        last = layer == sizes.n_layers - 1
        rows, pairs = (1, n) if last else (n, n * (n + 1) / 2)
        total += n * 4 * sizes.d_model * width
        total += rows * (4 * sizes.d_model**2 + 6 * sizes.d_model * sizes.d_mlp) + 4 * pairs * sizes.d_model
    return total
