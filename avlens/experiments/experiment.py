"""What is an experiment: conditions, seeds, and a function that measures one sample under one condition."""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from operator import index
from typing import Any

from avlens.analyses.selection import first_whole, others_of
from avlens.data import Task
from avlens.errors import ExperimentError
from avlens.media import Clip
from avlens.records import RecordTable
from avlens.samples import Opened, Sample
from avlens.summaries import Summary, summarise

Condition = Mapping[str, Any]
"""A condition's settings, with its `seed`."""

Measure = Callable[[Any, Opened, Condition], Iterable[Mapping[str, Any]]]
"""`measure(model, opened, condition)` returns rows: what was measured, by name. `opened` has the sample and its clip."""

SWAP = "swap"
"""The corruption that takes another sample's sound or frames: a condition with `"corrupt": SWAP` gets `opened.other`."""

OTHERS = 5
"""So many other samples are tried, until one can be read and has both modalities."""


@dataclass(frozen=True)
class Experiment:
    """What is measured, under which conditions.

    Attributes:
        name: Of the experiment.
        measure: The function that measures. Workers import it: define it in a module, not in a notebook's cell, for engines
            that run other processes.
        conditions: Settings by the condition's name.
        seeds: Each condition is run with each; torch is seeded with one made of it, the sample and the condition.
        when_memory_is_short: Settings to try, one after the other, where the last ones ran out of memory. They must
            not change what is measured, only how: fewer edits at once, fewer rows at a time.
        summary: What to sum up: a column, or `one / another` for a ratio of sums, and the columns to group by.
        task: What a data set is asked for (`avlens.data.read_data`): its own questions, or to describe the clip.
        asks_choices: Whether samples need options to choose from.
    """

    name: str
    measure: Measure
    conditions: Mapping[str, Mapping[str, Any]] = field(default_factory=lambda: {"": {}})
    seeds: tuple[int, ...] = (0,)
    when_memory_is_short: Sequence[Mapping[str, Any]] = ()
    summary: Sequence[tuple[str, tuple[str, ...]]] = ()
    task: Task = "choice"
    asks_choices: bool = False

    def __post_init__(self) -> None:
        if not isinstance(getattr(self.measure, "__qualname__", None), str):
            raise ExperimentError(
                f"the experiment {self.name!r} measures with {self.measure!r:.80}, which has no name that a run is known by. "
                "Give a function, and what it is to be told in the conditions."
            )
        _check_conditions(self.name, self.conditions)
        try:
            object.__setattr__(self, "seeds", tuple(map(index, self.seeds)))
        except TypeError as error:
            raise ExperimentError(
                f"the experiment {self.name!r} has the seeds {self.seeds!r}. Give whole numbers."
            ) from error
        if not self.name or not self.conditions or not self.seeds:
            raise ExperimentError(
                f"the experiment {self.name!r} has {len(self.conditions)} conditions and {len(self.seeds)} seeds. Give it a "
                "name, and at least one of each."
            )
        if len(set(self.seeds)) < len(self.seeds):
            raise ExperimentError(f"the experiment {self.name!r} has the seeds {list(self.seeds)}. Give each once.")

    @property
    def identity(self) -> dict[str, Any]:
        """What the manifest of a run says of it."""
        function = f"{self.measure.__module__}.{self.measure.__qualname__}"
        return {
            "experiment": self.name,
            "measure": function,
            "conditions": {k: dict(v) for k, v in self.conditions.items()},
        }

    def items(self, samples: Iterable[Sample]) -> "list[Item]":
        """What there is to do, in order: each sample under each condition with each seed.

        Raises:
            ExperimentError: If two samples have one id, or a sample lacks options that are needed.
        """
        listed, seen = list(samples), set()
        for sample in listed:
            if sample.id in seen:
                raise ExperimentError(f"two samples have the id {sample.id!r}. Give each its own, or results mix.")
            if self.asks_choices and len(sample.options) < 2:
                raise ExperimentError(
                    f"{self.name} needs questions with options to choose from, and {sample.id!r} has {len(sample.options)}."
                    " Give samples with two or more."
                )
            seen.add(sample.id)
        swaps = {name for name, settings in self.conditions.items() if settings.get("corrupt") == SWAP}
        others = {i: tuple(islice(others_of(listed, i), OTHERS)) for i in range(len(listed) if swaps else 0)}
        return [
            Item(sample, name, seed, others[i] if name in swaps else ())
            for i, sample in enumerate(listed)
            for name in self.conditions
            for seed in self.seeds
        ]

    def only(self, conditions: Iterable[str]) -> "Experiment":
        """The same under some of its conditions.

        Raises:
            ExperimentError: If there is no such condition.
        """
        wanted = list(conditions)
        if unknown := [name for name in wanted if name not in self.conditions]:
            raise ExperimentError(
                f"{self.name} has no condition {unknown[0]!r}. It has {', '.join(map(repr, self.conditions))}."
            )
        return replace(self, conditions={name: self.conditions[name] for name in wanted})

    def summarise(self, records: RecordTable) -> dict[str, Summary]:
        """The tables of `summary`, by value; those whose columns no record has are left out."""
        columns, tables = set(records.to_frame().columns), {}
        for value, by in self.summary:
            above, _, below = value.partition(" / ")
            if {above, *([below] if below else []), *by} <= columns:
                tables[value] = summarise(records, above, over=below or None, by=by)
        return tables


def _check_conditions(name: str, conditions: Any) -> None:
    """Refuse conditions that a manifest cannot hold.

    Raises:
        ExperimentError: With the first.
    """
    if not isinstance(conditions, Mapping):
        raise ExperimentError(
            f'the experiment {name!r} has the conditions {conditions!r:.80}. Give settings by name: {{"a": {{}}}}.'
        )
    for condition, settings in conditions.items():
        if not isinstance(condition, str) or not isinstance(settings, Mapping) or "seed" in settings:
            raise ExperimentError(
                f"the experiment {name!r} has the condition {condition!r} with {settings!r:.80}. Give a text with settings by "
                "name; seeds are those of the experiment."
            )
        try:
            json.dumps(dict(settings))
        except (TypeError, ValueError, RecursionError) as error:
            raise ExperimentError(
                f"the condition {condition!r} of {name!r} has a setting that JSON cannot hold ({error}), as the manifest of a "
                "run does. Give numbers, texts, lists and mappings of them."
            ) from error


@dataclass(frozen=True)
class Item:
    """One sample under one condition with one seed.

    Attributes:
        sample: What is measured.
        condition: The condition's name.
        seed: One of the experiment's.
        others: Samples whose sound or frames it may take, the first that can be read.
    """

    sample: Sample
    condition: str
    seed: int
    others: tuple[Sample, ...] = ()

    @property
    def key(self) -> tuple[str, str, int]:
        """What its record is known by."""
        return (self.sample.id, self.condition, self.seed)

    @property
    def torch_seed(self) -> int:
        """What torch is seeded with before it is measured, so that the order of the work does not matter."""
        return int.from_bytes(hashlib.sha256(json.dumps(self.key).encode()).digest()[:7], "big")

    def opened(self, read: Callable[[Sample], Clip]) -> Opened:
        """The sample with its clip, and with another sample's where its condition needs one."""
        return Opened(self.sample, read(self.sample), "", first_whole(self.others, read))
