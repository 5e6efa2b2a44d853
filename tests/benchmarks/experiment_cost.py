"""What one item of each experiment costs, in passes of the decoder and of the encoders, and how engines share them out.

python tests/benchmarks/experiment_cost.py flops 2        # passes per item, counted on the embedded model over two clips
python tests/benchmarks/experiment_cost.py engines 40     # seconds of 40 items in-process, on two processes, on Ray
python tests/benchmarks/experiment_cost.py engines 40 308 # the same where a record has 308 rows, as one of `flow` has
"""

import statistics
import sys
import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch

from avlens import HookedAVModel
from avlens.data import read_data
from avlens.experiments import EXPERIMENTS, Experiment, InProcess, Processes, Ray, for_data, run
from avlens.experiments.ledger import Ledger
from avlens.records import read_records
from avlens.testing import tiny_model


def operations(model, run):
    """Of the encoders and of the rest, from an empty store."""
    model.forget_encodings()
    with Ledger() as ledger:
        run()
    work = ledger.work()
    decoder = work.operations_in("decoder")
    return work.operations - decoder, decoder


def passes(clips):
    """Of each experiment: passes of the decoder and of the encoders per item, over all conditions."""
    model = HookedAVModel.from_pretrained("avlens-tiny")
    for name, experiment in EXPERIMENTS.items():
        data, ratios = read_data(f"synthetic:{clips}", task=experiment.task), []
        experiment = for_data(experiment, data)
        for item in experiment.items(data.samples):
            opened = item.opened(data.read)
            inputs = model.prepare(opened.clip, item.sample.question, options=item.sample.options)
            encoders, decoder = operations(model, lambda inputs=inputs: model(inputs, logits_at=inputs.tokens.last))
            condition = {**experiment.conditions[item.condition], "seed": 0}
            its = operations(model, lambda e=experiment, o=opened, c=condition: e.measure(model, o, c))
            ratios.append((its[1] / decoder, its[0] / encoders))
        for column, what in enumerate(("decoder", "encoders")):
            values = [ratio[column] for ratio in ratios]
            middle, mean, most = statistics.median(values), statistics.mean(values), max(values)
            print(f"{name:10s} {what:9s} median {middle:6.2f}  mean {mean:6.2f}  max {most:6.2f}", flush=True)


def wait(model, opened, condition):
    """Something that takes a known time and no processor, as a GPU would."""
    time.sleep(condition["seconds"])
    row = {"edge": "video -> question", "sweep": "window", "change": -12.345678901234567, "p": 0.1234567890123456}
    return [
        {**row, "layer": i, "head": -1, "pairs": 1440, "p_base": 0.9876543210987654} for i in range(condition["rows"])
    ]


def small_model():
    return tiny_model(n_layers=1, d_model=32, n_heads=2, n_key_value_heads=1, d_mlp=32)


def nothing(sample):
    return None


SETTLE = 15.0


@dataclass
class Timed:
    """An engine whose last round of measuring is timed, without starting and stopping it."""

    engine: Any
    spent: float = 0.0
    computed: float = 0.0

    @contextmanager
    def start(self, work, model):
        with self.engine.start(work, model) as workers:
            time.sleep(SETTLE if workers.n > 1 else 0)  # Until all have their models.
            timed = SimpleNamespace(n=workers.n, made_by=workers.made_by)
            timed.measure = lambda items: self.measure(workers, items)
            yield timed

    def measure(self, workers, items):
        start, computed = time.monotonic(), time.process_time()
        yield from workers.measure(items)
        self.spent, self.computed = time.monotonic() - start, time.process_time() - computed


def engines(n, rows=1):
    """Seconds that each engine adds to an item whose record has so many rows, and its efficiency with two workers."""
    torch.set_num_threads(1)
    data = read_data(f"synthetic:{n}")
    for name, engine, workers in (("in-process", InProcess(), 1), ("processes", Processes(2), 2), ("ray", Ray(2), 2)):
        for seconds in (0.0, 0.1, 1.0):
            timed = Timed(engine)
            measured, spent, whole = clock(
                Experiment("wait", wait, {"": {"seconds": seconds, "rows": rows}}), timed, data
            )
            overhead, efficiency = spent - sum(measured) / workers, sum(measured) / (workers * spent)
            print(
                f"{name:10s} items of {1000 * statistics.mean(measured):6.1f} ms: {1000 * overhead / len(measured):6.2f} ms more "
                f"an item, of which this process computes {1000 * timed.computed / len(measured):6.2f} ms; "
                f"efficiency {efficiency:.3f}; {whole - spent:.1f} s to start and stop",
                flush=True,
            )


def clock(experiment, engine, data):
    """Seconds of each item after the first few; from when they were until the last was done; and of the whole run."""
    first = set()

    def begin(cost):
        first.update(one.key for one in read_records(folder).records)

    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        records = run(experiment, small_model, data.samples, folder, read=nothing, engine=engine, on_estimate=begin)
    seconds = [one.seconds for one in records.records if one.key not in first]
    return seconds, engine.spent, time.monotonic() - start


if __name__ == "__main__":
    (passes if sys.argv[1] == "flops" else engines)(*map(int, sys.argv[2:]))
