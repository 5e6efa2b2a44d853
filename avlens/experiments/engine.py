"""What runs the items of an experiment: an engine gives its workers items, and yields their records as they come.

`InProcess` has one worker, which is this process; `avlens.experiments.processes` has several. Whichever runs them, records are
the same but for when they were made and how long they took.
"""

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol, runtime_checkable

from avlens.experiments.experiment import Item
from avlens.experiments.work import ModelSource, Work, Worker
from avlens.model import HookedAVModel
from avlens.records import Record


@runtime_checkable
class Workers(Protocol):
    """Workers that have their models.

    Attributes:
        n: How many.
        made_by: Their model, dtype and versions.
    """

    n: int
    made_by: dict[str, Any]

    def measure(self, items: Iterable[Item]) -> Iterator[Record]:
        """The record of each item, in any order."""
        ...


@runtime_checkable
class Engine(Protocol):
    """What makes workers."""

    def start(self, work: Work, model: Any) -> AbstractContextManager[Workers]:
        """Workers that are gone when the block is left.

        Args:
            work: What they do.
            model: A HookedAVModel, a name, or a function that makes a model; engines with several workers take the last two.
        """
        ...


class InProcess:
    """One worker: this process."""

    @contextmanager
    def start(self, work: Work, model: Any) -> Iterator["_Here"]:
        """The model itself, or loaded now."""
        load = ModelSource(model) if isinstance(model, str) else model
        yield _Here(Worker(work, load if isinstance(load, HookedAVModel) else load()))


class _Here:
    n = 1

    def __init__(self, worker: Worker) -> None:
        self.worker, self.made_by = worker, worker.made_by

    def measure(self, items: Iterable[Item]) -> Iterator[Record]:
        return map(self.worker.measure, items)
