"""Seconds of each piece of work, for `pytest tests/benchmarks --benchmark-only`; ratios are in docs/benchmarks.md."""

import pytest

from tests.benchmarks import workload


@pytest.mark.benchmark(group="S=1024, 12 layers, d_model 512")
@pytest.mark.parametrize("name", workload.WORK)
def test_forward(benchmark, name):
    model = workload.model()
    inputs = workload.prompt(1024, model)
    benchmark.pedantic(workload.WORK[name], (model, inputs), rounds=5, warmup_rounds=1)
