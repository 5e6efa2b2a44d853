"""An experiment over a data set: data plus a function, and engines that run it.

from avlens.data import read_data
from avlens.experiments import EXPERIMENTS, asked_as, run

data = read_data("synthetic:200")
records = run(asked_as(EXPERIMENTS["tracing"], data.ask), "avlens-tiny", data.samples, "out", read=data.read)
"""

from avlens.experiments.engine import InProcess
from avlens.experiments.estimate import Estimate
from avlens.experiments.experiment import Condition, Experiment
from avlens.experiments.papers import EXPERIMENTS, asked_as
from avlens.experiments.processes import Processes
from avlens.experiments.run import run
from avlens.experiments.work import ModelSource

__all__ = [
    "EXPERIMENTS", "Condition", "Estimate", "Experiment", "InProcess", "ModelSource", "Processes", "asked_as", "run",
]  # fmt: skip
