"""Several workers on this machine: each a process with its own model.

Python's own pool of processes runs them. A worker that dies (killed, or by the system for want of memory) breaks the pool, and
it is not known of which item: a new pool is started, and those that were being measured are measured again one by one. An item
that kills its worker even alone is tried once more with what is let go where memory is short; then its record says so. Workers
end with the process that started them, however it ends.
"""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing import connection
from multiprocessing.reduction import ForkingPickler
from typing import Any, TypeVar

import torch

from avlens.errors import ExperimentError
from avlens.experiments.experiment import Item
from avlens.experiments.work import DEATHS, Load, ModelSource, Work, Worker, described, lost, not_loaded, own_loader
from avlens.model import HookedAVModel
from avlens.records import Record

T = TypeVar("T")


@dataclass(frozen=True)
class Processes:
    """Workers on this machine.

    Attributes:
        n: How many. Each holds a model: on one GPU, as many as fit.
        devices: Where each worker's model is put, in turn, such as `("cuda:0", "cuda:1")`; by default where its loader puts it.
    """

    n: int = 2
    devices: tuple[str, ...] = ()

    @contextmanager
    def start(self, work: Work, model: Any) -> Iterator["_Pool"]:
        """Workers that have loaded their models.

        Raises:
            ExperimentError: If the model cannot be loaded by each worker, or no worker comes up.
        """
        if self.n < 1:
            raise ExperimentError(f"n is {self.n}. Start one worker or more.")
        load = own_loader(model)
        _check_sendable((work, load))
        pool = _Pool(self, work, load)
        try:
            yield pool
        finally:
            pool.close()


class _Pool:
    """A pool that is started anew when it breaks."""

    def __init__(self, engine: Processes, work: Work, load: Load) -> None:
        self.engine, self.n, self.work, self.load = engine, engine.n, work, load
        self.open()

    def open(self) -> None:
        context = multiprocessing.get_context("spawn")
        numbers, failures = context.SimpleQueue(), context.SimpleQueue()
        for number in range(self.n):
            numbers.put(number)
        threads, self.others = max(1, torch.get_num_threads() // self.n), set(multiprocessing.active_children())
        self.executor = ProcessPoolExecutor(
            self.n,
            context,
            initializer=_start,
            initargs=(self.work, self.load, self.engine.devices, numbers, failures, threads),
        )
        try:
            first, *_ = [self._submit(_made_by) for _ in range(self.n)]  # Each starts a process.
            self.made_by = first.result()
        except KeyboardInterrupt:
            self._kill()  # They would load their models first.
            self.executor.shutdown()
            raise
        except BrokenProcessPool as error:
            self.executor.shutdown()
            if not failures.empty():
                raise not_loaded(failures.get()) from None
            raise ExperimentError(
                "no worker came up. Each loads the model by itself, and imports the functions that measure and read: define "
                'them in a module, and start a script\'s run below if __name__ == "__main__". What the worker said is above.'
            ) from error

    def close(self) -> None:
        """End the workers when each has measured what it has begun; at once if that is interrupted."""
        try:
            self.executor.shutdown(wait=True, cancel_futures=True)
        except KeyboardInterrupt:
            self._kill()
            raise

    def _kill(self) -> None:
        for worker in set(multiprocessing.active_children()) - self.others:
            worker.kill()

    def _submit(self, function: Callable[..., T], *args: Any) -> Future[T]:
        with _interrupts_later():  # Submitting may start a process.
            return self.executor.submit(function, *args)

    def measure(self, items: Iterable[Item]) -> Iterator[Record]:
        """The record of each item as it comes."""
        left = iter(items)
        while True:
            suspects: list[Item] = []
            yield from self._together(left, suspects)
            if not suspects:
                return
            self.open()
            for item in suspects:
                yield self._alone(item)

    def _together(self, left: Iterator[Item], suspects: list[Item]) -> Iterator[Record]:
        """Records of what is left, until a worker dies: then `suspects` are those that it may have died of."""
        running: dict[Future[Record], Item] = {}
        while not suspects:
            while len(running) < 2 * self.n and (item := next(left, None)) is not None:
                try:
                    running[self._submit(_measure, item, 0)] = item
                except BrokenProcessPool:
                    suspects.append(item)
                    break
            if not running:
                return
            yield from self._finished(running, suspects)
        while running:
            yield from self._finished(running, suspects)

    def _finished(self, running: dict[Future[Record], Item], suspects: list[Item]) -> Iterator[Record]:
        done, _ = wait(running, return_when=FIRST_COMPLETED)
        for future in done:
            item = running.pop(future)
            try:
                yield self._result(future, item)
            except BrokenProcessPool:
                suspects.append(item)

    def _alone(self, item: Item) -> Record:
        for death in range(DEATHS):
            try:
                return self._result(self._submit(_measure, item, death), item)
            except BrokenProcessPool:
                self.open()
        return lost(self.work, item, self.made_by)

    def _result(self, future: Future[Record], item: Item) -> Record:
        try:
            return future.result()
        except BrokenProcessPool:
            raise
        except Exception as error:  # noqa: BLE001 - workers raise nothing: what did was on the way to one
            return lost(self.work, item, self.made_by, f"it could not be sent to a worker: {described(error)}")


def _check_sendable(what: Any) -> None:
    """Refuse what other processes cannot import.

    Raises:
        ExperimentError: If something in it is a lambda, or defined within a function.
    """
    try:
        ForkingPickler.dumps(what)
    except Exception as error:
        raise ExperimentError(
            f"workers are other processes, and cannot be sent what to do ({described(error)}). Define the functions that "
            "measure, read and load at the top of a module, or run in-process."
        ) from error


@contextmanager
def _interrupts_later() -> Iterator[None]:
    """Ctrl-C is for this process, after the block; those that are started inside never get it."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


_here: list[Worker] = []
"""In a worker's process: the worker."""


def _start(work: Work, load: Load, devices: Sequence[str], numbers: Any, failures: Any, threads: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Where it could not be held back.
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    try:
        _here[:] = [Worker(work, _on(devices, numbers.get(), load))]
    except Exception as error:  # noqa: BLE001 - said by the process that started this one, as an error of the run
        failures.put(described(error))
        os._exit(1)


def _on(devices: Sequence[str], number: int, load: Load) -> HookedAVModel:
    """The model of one worker, on its device."""
    if not devices:
        return load()
    device = devices[number % len(devices)]
    if isinstance(load, ModelSource):
        return replace(load, options={**load.options, "device": device})()
    return load().to(device)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os._exit(1)


def _made_by() -> dict[str, Any]:
    return _here[0].made_by


def _measure(item: Item, deaths: int) -> Record:
    return _here[0].measure(item, deaths)
