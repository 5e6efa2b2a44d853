"""The three papers' experiments, by name, and how they ask a data set.

One file has those of each paper: `avlens.experiments.cross_modal_hubs`, `see_and_hear` and `senses_to_decisions`.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from avlens.data import Data
from avlens.experiments import cross_modal_hubs, see_and_hear, senses_to_decisions
from avlens.experiments.experiment import Experiment
from avlens.metrics.vocabulary import Vocabulary

EXPERIMENTS: Mapping[str, Experiment] = {
    one.name: one
    for paper in (cross_modal_hubs, see_and_hear, senses_to_decisions)
    for one in paper.EXPERIMENTS
}  # fmt: skip
"""By name, as `avlens run` takes them. `only` chooses conditions; `dataclasses.replace` makes one with others, or other seeds."""


def for_data(experiment: Experiment, data: Data) -> Experiment:
    """The experiment with its questions asked, and objects looked for, as a data set wants it."""
    own = (
        None
        if data.vocabulary.names == Vocabulary.sounding().names
        else {k: list(v) for k, v in data.vocabulary.names.items()}
    )
    fitting: dict[str, Any] = {"ask": data.ask, "objects": own}
    conditions = {
        name: {key: fitting.get(key, value) for key, value in settings.items()}
        for name, settings in experiment.conditions.items()
    }
    return replace(experiment, conditions=conditions)
