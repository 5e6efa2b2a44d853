"""Seconds per token of Adaptive Sink-guided Decoding beside vanilla decoding and the three streams of a naive form.

    python -m tests.benchmarks.decoding WIDTH DTYPE [--length 1024] [--tokens 32] [--rounds 3]

12 layers, one thread, CPU seconds of interleaved rounds. A token's time leaves out the first one, which pays for the prompt; the
prompt's own time is given beside it, for ASD with all that it needs to find sinks. Prints one line of JSON.
"""

import argparse
import json
import time
from dataclasses import dataclass, replace
from typing import Any

import torch

from avlens.analyses.dominance import Hubs
from avlens.decoding import ASD
from avlens.decoding.asd import ASDRun
from avlens.decoding.last_row import LastRow
from avlens.hooks import FwdHook, on_rows, stream_rows
from avlens.hubs import find_hubs, hub_reductions, hubs_of
from avlens.interventions import reweight
from tests.benchmarks.workload import DIMS, Shape, Workload, hooked_model


@dataclass(frozen=True)
class Known:
    """ASD with sinks that are given, since the random model has none: every tenth media token, in turn uni and cross."""

    def start(self, model, inputs):
        original = [model.read(inputs, reductions=hub_reductions(inputs, DIMS))]
        hubs_of(original[0].cache, DIMS)  # its cost belongs to the prompt's
        return ASD().start_from(model, inputs, original, [given(inputs)])


@dataclass(frozen=True)
class Naive:
    """The same in three streams that all read the prompt, after a run that finds sinks."""

    def start(self, model, inputs):
        find_hubs(model, inputs, DIMS)
        run = ASDRun(ASD(), inputs, [given(inputs)], list(range(2, 12)), LastRow(range(7, 11)), [])
        return NaiveRun(run)


@dataclass
class NaiveRun:
    """The loop's own stream, a copy of it whose whole attention is asked for, and one of chained reweightings."""

    run: ASDRun
    n_streams: int = 3
    n_hooked: int = 1

    def prompts(self, stream):
        return self.run.inputs

    def hooks(self) -> list[FwdHook]:
        hubs, tokens = self.run.hubs[0], self.run.inputs.tokens
        readers = tokens.at(range(int(tokens.media.positions.max()) + 1, len(tokens))) | tokens.generated
        edits = reweight(readers, hubs.cross, 0.2, layers=self.run.edit_layers)
        edits += reweight(readers, hubs.uni, -0.2, layers=self.run.edit_layers)
        whole = [(f"blocks.{i}.attn.hook_pattern", lambda x, hook: None) for i in range(12)]
        watched = on_rows(self.run.last_row.hooks(), stream_rows(2, 1))
        return on_rows(edits, stream_rows(2, 1)) + on_rows(whole, stream_rows(1, 1)) + watched

    def mix(self, logits, again):
        if not self.run.gammas:
            self.run.first_rows.append(self.run.last_row.of(0, self.run.inputs.padding))
        return replace(self.run, n_streams=2).mix(logits[[0, 2]], again)

    def records(self):
        return self.run.records()


METHODS = {"vanilla": None, "ASD": Known(), "naive, 3 streams": Naive()}


def given(inputs) -> Hubs:
    """Every tenth media token, in turn uni and cross."""
    media = inputs.tokens.media.positions.tolist()[::10]
    return Hubs(inputs.tokens.at(media[::2]), inputs.tokens.at(media[1::2]), inputs.tokens.at([]), "given")


def measured(shape: Shape, dtype: torch.dtype, length: int, tokens: int, rounds: int) -> dict[str, Any]:
    """Weights of the blocks in MiB, and of each method and round CPU seconds of the first token, and of each later one."""
    model = hooked_model(shape).to(dtype)
    inputs = Workload(shape, length).inputs(model)
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in METHODS}
    for round_ in range(rounds + 1):  # the first warms up
        for name, method in METHODS.items():
            first = _timed(model, inputs, 1, method)
            later = (_timed(model, inputs, tokens, method) - first) / (tokens - 1)
            if round_:
                found[name].append((first, later))
    weights = sum(p.numel() * p.element_size() for p in model.blocks.parameters()) / 2**20
    return {"d_model": shape.d_model, "dtype": str(dtype).removeprefix("torch."), "weights": weights, "methods": found}


def _timed(model, inputs, tokens: int, method) -> float:
    start = time.process_time()
    model.generate(inputs, tokens, decoding=method, eos_token_id=None)
    return time.process_time() - start


def shape_of(width: int) -> Shape:
    """Twelve layers, d_head 64, a quarter as many key-value heads as heads."""
    heads = width // 64
    return Shape(d_model=width, n_heads=heads, n_key_value_heads=heads // 4, d_mlp=width * 11 // 4)


if __name__ == "__main__":
    torch.set_num_threads(1)
    asked = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    asked.add_argument("width", type=int)
    asked.add_argument("dtype")
    for name, default in (("length", 1024), ("tokens", 32), ("rounds", 3)):
        asked.add_argument(f"--{name}", type=int, default=default)
    told = asked.parse_args()
    print(json.dumps(measured(shape_of(told.width), getattr(torch, told.dtype), told.length, told.tokens, told.rounds)))
