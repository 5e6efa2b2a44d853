"""An experiment over a data set: data plus a function, and engines that run it.

from avlens.data import read_data
from avlens.experiments import EXPERIMENTS, for_data, run

data = read_data("synthetic:200")
records = run(for_data(EXPERIMENTS["tracing"], data), "avlens-tiny", data.samples, "out", read=data.read)
"""

from avlens.experiments.engine import InProcess
from avlens.experiments.estimate import Estimate
from avlens.experiments.experiment import Condition, Experiment
from avlens.experiments.papers import EXPERIMENTS, for_data
from avlens.experiments.processes import Processes
from avlens.experiments.ray import Ray
from avlens.experiments.run import run
from avlens.experiments.work import ModelSource

__all__ = [
    "EXPERIMENTS", "Condition", "Estimate", "Experiment", "InProcess", "ModelSource", "Processes", "Ray", "for_data",
    "run",
]  # fmt: skip
