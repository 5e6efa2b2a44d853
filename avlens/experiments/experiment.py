"""What is an experiment: conditions, seeds, and a function that measures one sample under one condition."""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from avlens.errors import ExperimentError
from avlens.samples import Opened, Sample

Condition = Mapping[str, Any]
"""A condition's settings, with its `seed`."""

Measure = Callable[[Any, Opened, Condition], Iterable[Mapping[str, Any]]]
"""`measure(model, opened, condition)` returns rows: what was measured, by name. `opened` has the sample and its clip."""


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
        summary: What to sum up: the value's column, and the columns to group by.
        asks_choices: Whether samples need options to choose from.
    """

    name: str
    measure: Measure
    conditions: Mapping[str, Mapping[str, Any]] = field(default_factory=lambda: {"": {}})
    seeds: tuple[int, ...] = (0,)
    when_memory_is_short: Sequence[Mapping[str, Any]] = ()
    summary: Sequence[tuple[str, tuple[str, ...]]] = ()
    asks_choices: bool = False

    def __post_init__(self) -> None:
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
        return [Item(sample, name, seed) for sample in listed for name in self.conditions for seed in self.seeds]


@dataclass(frozen=True)
class Item:
    """One sample under one condition with one seed."""

    sample: Sample
    condition: str
    seed: int

    @property
    def key(self) -> tuple[str, str, int]:
        """What its record is known by."""
        return (self.sample.id, self.condition, self.seed)

    @property
    def torch_seed(self) -> int:
        """What torch is seeded with before it is measured, so that the order of the work does not matter."""
        return int.from_bytes(hashlib.sha256(json.dumps(self.key).encode()).digest()[:7], "big")
