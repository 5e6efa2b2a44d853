"""Workers on Ray, which places them, starts those anew that die, and carries items and records.

Each worker is an actor with its own model, placed by the cores and GPUs that it needs; where it has several GPUs,
`device_map="auto"` spreads the model over them. Ray restarts an actor that dies, and gives it its item a second time; an item
that ends that one too is tried once more with the settings for little memory, and then its record says so. A worker that
comes up late, or again, is given items from then on.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch

from avlens.errors import ExperimentError
from avlens.experiments.cluster import connected
from avlens.experiments.experiment import Item
from avlens.experiments.work import DEATHS, Load, ModelSource, Work, Worker, described, lost, not_loaded, own_loader
from avlens.records import Record

RESTARTS = 3
"""So often Ray starts an actor anew. One that dies more often is replaced; if it did so while loading its model, the run ends."""


@dataclass(frozen=True)
class Ray:
    """Workers on Ray.

    Attributes:
        n: How many. Each holds a model.
        gpus: GPUs of each; a share such as 0.5 where several fit on one. By default 1 if the model is to be put on GPUs, else 0.
        cpus: Cores of each; by default its share of those that torch uses here.
        address: Of a cluster, such as `"auto"` or `"10.0.0.1:6379"`; by default what RAY_ADDRESS says, else Ray is started here.
            A process that is connected to Ray already stays so.
    """

    n: int = 2
    gpus: float | None = None
    cpus: int | None = None
    address: str | None = None

    @contextmanager
    def start(self, work: Work, model: Any) -> Iterator["_Actors"]:
        """Workers, one of which at least has loaded its model.

        Raises:
            ExperimentError: If Ray is missing, does not start, or lacks cores or GPUs, or a worker cannot load the model.
        """
        if self.n < 1:
            raise ExperimentError(f"n is {self.n}. Start one worker or more.")
        load = own_loader(model)
        cpus = self.cpus or max(1, torch.get_num_threads() // self.n)
        gpus = (1.0 if _wants_gpu(load) else 0.0) if self.gpus is None else self.gpus
        with connected(self.address, self.n * cpus) as ray:
            _check_room(ray, self.n, {"CPU": cpus, "GPU": gpus})
            actors = _Actors(ray, self.n, work, load, {"num_cpus": cpus, "num_gpus": gpus})
            try:
                actors.begin()
                yield actors
            finally:
                actors.end()


@dataclass(frozen=True)
class _Doing:
    """What an actor does: it measures an item that so many died of, or loads its model."""

    actor: Any
    item: Item | None = None
    deaths: int = 0


class _Actors:
    """Actors that measure, load, or have nothing to do."""

    def __init__(self, ray: Any, n: int, work: Work, load: Load, needs: Mapping[str, float]) -> None:
        self.ray, self.n, self.work = ray, n, work
        self.kind = ray.remote(**needs, max_restarts=RESTARTS)(_Actor)
        self.given = (work, load, int(needs["num_cpus"]), needs["num_gpus"] > 0)
        self.doing: dict[Any, _Doing] = {}
        self.free: list[Any] = []
        self.made_by: dict[str, Any] = {}

    def begin(self) -> None:
        """Start all, and wait until one has its model."""
        for _ in range(self.n):
            self._await(self.kind.remote(*self.given))
        while not self.free:
            self._outcome(*self._next())

    def end(self) -> None:
        """Let go of all, whatever they do."""
        for actor in (*self.free, *(one.actor for one in self.doing.values())):
            with suppress(self.ray.exceptions.RayError):
                self.ray.kill(actor)

    def measure(self, items: Iterable[Item]) -> Iterator[Record]:
        """The record of each item as it comes."""
        left = deque((item, 0) for item in items)
        while left or any(one.item for one in self.doing.values()):
            while left and self.free:
                self._give(self.free.pop(), *left.popleft())
            ref, one = self._next()
            record = self._outcome(ref, one)
            if record is not None:
                yield record
            elif one.item is not None:
                left.appendleft((one.item, one.deaths + 1))

    def _next(self) -> tuple[Any, _Doing]:
        (ref, *_), _ = self.ray.wait(list(self.doing))
        return ref, self.doing.pop(ref)

    def _give(self, actor: Any, item: Item, deaths: int) -> None:
        last = deaths + 1 == DEATHS
        ref = actor.measure.options(max_task_retries=0 if last else 1).remote(item, deaths)
        self.doing[ref] = _Doing(actor, item, deaths)

    def _await(self, actor: Any) -> None:
        self.doing[actor.made_by.options(max_task_retries=-1).remote()] = _Doing(actor)

    def _outcome(self, ref: Any, one: _Doing) -> Record | None:
        """The record that an actor made; None if it died, or has loaded its model."""
        errors = self.ray.exceptions
        try:
            said = self.ray.get(ref)
        except errors.RayTaskError:
            raise  # A bug in the worker, whose error this is too.
        except errors.RayError as error:
            self._died(one, error)
            return lost(self.work, one.item, self.made_by) if one.item and one.deaths + 1 == DEATHS else None
        if one.item is None and isinstance(said, str):
            raise not_loaded(said)
        self.free.append(one.actor)
        if one.item is None:
            self._check(said)
            return None
        return said

    def _died(self, one: _Doing, error: Any) -> None:
        gone = isinstance(error, self.ray.exceptions.ActorDiedError)
        if gone and (one.item is None or error.actor_init_failed):
            raise ExperimentError(
                "a worker did not come up. Each loads the model by itself, and imports the functions that measure and read: "
                f"where it runs, they must be found as they are here. It said: {_last_line(str(error))}"
            ) from error
        self._await(self.kind.remote(*self.given) if gone else one.actor)

    def _check(self, made_by: dict[str, Any]) -> None:
        """All workers must have one model.

        Raises:
            ExperimentError: If one has another.
        """
        self.made_by = self.made_by or made_by
        other = [name for name, value in made_by.items() if value != self.made_by[name]]
        if other:
            raise ExperimentError(
                f"workers differ in {other[0]}: {self.made_by[other[0]]} and {made_by[other[0]]}. Give all nodes the same "
                "checkpoint and the same versions."
            )


class _Actor:
    """In a worker's process: the worker."""

    def __init__(self, work: Work, load: Load, threads: int, on_gpu: bool) -> None:
        torch.set_num_threads(threads)
        self.failure = ""
        try:
            model = load()
            if on_gpu and all(weight.device.type == "cpu" for weight in model.parameters()):
                model = model.to("cuda")
            self.worker = Worker(work, model)
        except Exception as error:  # noqa: BLE001 - said where the run is, as an error of the run
            self.failure = described(error)

    def made_by(self) -> dict[str, Any] | str:
        """Why it has no model, if it has none."""
        return self.failure or self.worker.made_by

    def measure(self, item: Item, deaths: int) -> Record:
        return self.worker.measure(item, deaths)


def _wants_gpu(load: Load) -> bool:
    options = load.options if isinstance(load, ModelSource) else {}
    return "device_map" in options or str(options.get("device", "cpu")).startswith("cuda")


def _check_room(ray: Any, n: int, needs: Mapping[str, float]) -> None:
    """Actors that find no room would be waited for without end.

    Raises:
        ExperimentError: If all workers together need more than there is.
    """
    for name, each in needs.items():
        there = ray.cluster_resources().get(name, 0.0)
        if each < 0 or n * each > there:
            raise ExperimentError(
                f"{n} workers with {each:g} {name}s each need {n * each:g}, and Ray has {there:g}. Start fewer workers, or give "
                f"each less{', such as gpus=0.5' if name == 'GPU' else ''}."
            )


def _last_line(text: str) -> str:
    return text.strip().rpartition("\n")[2]
