"""Run an experiment over a data set, and keep what it measures.

    records = run(EXPERIMENTS["tracing"], "avlens-tiny", data.samples, "out", read=data.read)

What the folder holds already is not measured again, but for what had a problem. Ctrl-C, a kill, or a full disk lose at most
what was being measured: run it again, and it goes on.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from avlens.errors import ExperimentError
from avlens.experiments.engine import Engine, InProcess, Workers
from avlens.experiments.estimate import Estimate, estimate_run
from avlens.experiments.experiment import Experiment, Item
from avlens.experiments.work import Load, Work
from avlens.media import Clip
from avlens.model import HookedAVModel
from avlens.records import Record, RecordFolder, RecordTable, refuse_other
from avlens.samples import Sample

PILOT = 8
"""So many items, spread over the whole run, are measured first for each worker, to estimate the rest; 3 or more a condition."""

HOPELESS = 20
"""So many problems, and not one success, end a run."""


def run(
    experiment: Experiment,
    model: HookedAVModel | str | Load,
    samples: Iterable[Sample],
    out: str | Path,
    *,
    read: Callable[[Sample], Clip] | None = None,
    engine: Engine | None = None,
    on_estimate: Callable[[Estimate], bool | None] | None = None,
    progress: bool = False,
) -> RecordTable:
    """Measure every sample under every condition, and return all records of it.

    Args:
        experiment: What is measured.
        model: A HookedAVModel, the name of a checkpoint, or a function that makes a model; engines with several workers take
            the last two, and each worker loads its own.
        samples: Of any reader in `avlens.datasets`.
        out: Folder of the records: new, or of the same experiment.
        read: Opens a sample's clip; by default at the rate of frames that the model's family samples. Several workers import it.
        engine: What runs it, `InProcess()` by default.
        on_estimate: Is told what the run will cost, after a few items; if it returns False, the run ends there.
        progress: Whether to show a bar.

    Raises:
        ExperimentError: If samples cannot be told apart, or none of the first can be measured.
        RecordError: If the folder is another experiment's, in use, or on a disk that stays full.
    """
    items = experiment.items(samples)
    refuse_other(out, experiment.identity)  # Before models are loaded.
    with (engine or InProcess()).start(Work(experiment, read), model) as workers:
        identity = {**experiment.identity, **{name: workers.made_by[name] for name in ("model", "dtype", "weights")}}
        with RecordFolder(out, identity) as folder:
            _measure_missing(workers, items, folder, experiment.name, on_estimate, progress)
            found = {item.key: folder.done[item.key] for item in items if item.key in folder.done}
    return RecordTable(tuple(found[key] for key in sorted(found)), identity)


def _measure_missing(
    workers: Workers, items: Sequence[Item], folder: RecordFolder, name: str,
    on_estimate: Callable[[Estimate], bool | None] | None, progress: bool,
) -> None:  # fmt: skip
    left = _left(items, folder)
    n_done = len(items) - len(left)
    with tqdm(total=len(items), initial=n_done, desc=name, unit="item", disable=not progress) as bar:
        recorder = _Recorder(workers, folder, bar, n_done > 0)
        first = _pilot(left, workers.n)
        pilot = recorder.measure(first)
        keys = {item.key for item in first}
        rest = [item for item in left if item.key not in keys]
        if on_estimate is not None and pilot:
            folder.write()
            counts = Counter(item.condition for item in rest)
            if on_estimate(estimate_run(pilot, counts, workers.n, folder.folder)) is False:
                return
        recorder.measure(rest)


def _pilot(left: Sequence[Item], workers: int) -> list[Item]:
    """Some items of each condition, spread over the whole run, conditions taking turns; half of a short run at most."""
    of: dict[str, list[Item]] = {}
    for item in left:
        of.setdefault(item.condition, []).append(item)
    each = max(3, math.ceil(PILOT * workers / max(1, len(of))))
    spread = [its[:: max(1, len(its) // each)][: max(1, min(each, len(its) // 2))] for its in of.values()]
    return [item for turn in zip_longest(*spread) for item in turn if item is not None]


def _left(items: Sequence[Item], folder: RecordFolder) -> list[Item]:
    """What the folder lacks, or holds with a problem."""
    before = [(item, folder.find(item.key, item.sample.asks)) for item in items]
    return [item for item, record in before if record is None or record.problem]


@dataclass
class _Recorder:
    """Keeps what workers measure, and says how it goes."""

    workers: Workers
    folder: RecordFolder
    bar: Any
    any_good: bool
    failed: int = 0

    def measure(self, items: Sequence[Item]) -> list[Record]:
        """The records of some items, which are in the folder then.

        Raises:
            ExperimentError: If nothing works at all.
        """
        records = []
        for record in self.workers.measure(items):
            self.folder.add(record)
            records.append(record)
            self.any_good = self.any_good or not record.problem
            self.failed += bool(record.problem)
            self.bar.update()
            said = {"failed": self.failed} if self.failed else {}
            self.bar.set_postfix(
                said | ({"waiting for the disk": self.folder.unwritten} if self.folder.trouble else {})
            )
            if self.failed >= HOPELESS and not self.any_good:
                raise ExperimentError(
                    f"the first {self.failed} items all had a problem, the last of them {record.sample!r}: {record.problem} "
                    "Put that right and run again."
                )
        return records
