"""Seconds of each piece of avlens's work, for `pytest tests/benchmarks --benchmark-only`; ratios are in docs/benchmarks.md."""

import pytest

from tests.benchmarks.compare import SINGLE
from tests.benchmarks.peers.ours import Ours
from tests.benchmarks.workload import SHAPES, Weights, Workload


@pytest.mark.benchmark(group="S=1024, 12 layers, d_model 512")
@pytest.mark.parametrize("name", SINGLE)
def test_single_runs(benchmark, name, tmp_path):
    ours = Ours(Weights(SHAPES["narrow"], tmp_path))
    benchmark.pedantic(ours.tasks(Workload(SHAPES["narrow"], 1024))[name].run, rounds=5, warmup_rounds=1)
