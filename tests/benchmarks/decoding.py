"""Seconds per token of Adaptive Sink-guided Decoding beside vanilla decoding and the three streams of a naive form.

    python tests/benchmarks/decoding.py [S [tokens [rounds]]]

12 layers, d_model 512, a prompt of S = 1024, 64 tokens, one thread, CPU seconds of interleaved rounds. A token's time leaves
out the first one, which pays for the prompt; the prompt's own time is given beside it, for ASD with the pass that finds sinks.
"""

import sys
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).parents[2]))

import torch

from avlens.analyses.dominance import Hubs
from avlens.decoding import ASD
from avlens.decoding.asd import ASDRun
from avlens.decoding.last_row import LastRow
from avlens.hooks import FwdHook, on_rows, stream_rows
from avlens.interventions import reweight
from tests.benchmarks import workload

ROUNDS = 5


@dataclass(frozen=True)
class Known:
    """ASD with sinks that are given, since the random model has none: every tenth media token, in turn uni and cross."""

    naive: bool = False

    def start(self, model, inputs):
        find = ASD(sink_dims=workload.DIMS).start(model, inputs)  # its cost belongs to the prompt's
        media = inputs.tokens.media.positions.tolist()[::10]
        hubs = Hubs(inputs.tokens.at(media[::2]), inputs.tokens.at(media[1::2]), inputs.tokens.at([]), "given")
        run = NaiveRun if self.naive else ASDRun
        return run(
            ASD(), inputs, [hubs], find.edit_layers, LastRow(find.last_row.layers), n_streams=3 if self.naive else 2
        )


class NaiveRun(ASDRun):
    """Three streams: the loop's own, a copy of it whose whole attention is asked for, and one of chained reweightings."""

    def hooks(self) -> list[FwdHook]:
        hubs, tokens = self.hubs[0], self.inputs.tokens
        readers = tokens.at(range(int(tokens.media.positions.max()) + 1, len(tokens))) | tokens.generated
        edits = reweight(readers, hubs.cross, 0.2, layers=self.edit_layers)
        edits += reweight(readers, hubs.uni, -0.2, layers=self.edit_layers)
        whole = [(f"blocks.{i}.attn.hook_pattern", lambda x, hook: None) for i in range(12)]
        watched = on_rows(self.last_row.hooks(), stream_rows(2, 1))
        return on_rows(edits, stream_rows(2, 1)) + on_rows(whole, stream_rows(1, 1)) + watched

    def mix(self, logits, again):
        return super().mix(logits[[0, 2]], again)


METHODS = {"vanilla": None, "ASD": Known(), "naive, 3 streams": Known(naive=True)}


def seconds_per_token(
    length: int = 1024, tokens: int = 64, rounds: int = ROUNDS
) -> dict[str, list[tuple[float, float]]]:
    """Of each method and round: CPU seconds of the first token, and of each later one."""
    model = workload.model()
    inputs = workload.prompt(length, model)
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in METHODS}
    for _ in range(rounds):
        for name, method in METHODS.items():
            first = _timed(model, inputs, 1, method)
            found[name].append((first, (_timed(model, inputs, tokens, method) - first) / (tokens - 1)))
    return found


def _timed(model, inputs, tokens: int, method) -> float:
    start = time.process_time()
    model.generate(inputs, tokens, decoding=method, eos_token_id=None)
    return time.process_time() - start


def main(length: int = 1024, tokens: int = 64, rounds: int = ROUNDS) -> None:
    """Print one table row per method."""
    found = seconds_per_token(length, tokens, rounds)
    print(
        f"S = {length}, {tokens} tokens, 12 layers, d_model 512; median of {rounds} rounds, ratios to vanilla of the same round"
    )
    print("| method | prompt and first token, s | ratio | later token, ms | ratio (min to max) |")
    print("|---|---|---|---|---|")
    for name, seconds in found.items():
        firsts, laters = ([a[i] / b[i] for a, b in zip(seconds, found["vanilla"], strict=True)] for i in (0, 1))
        print(
            f"| {name} | {median(r[0] for r in seconds):.2f} | {median(firsts):.2f} | {1000 * median(r[1] for r in seconds):.1f} | "
            f"{median(laters):.2f} ({min(laters):.2f} to {max(laters):.2f}) |"
        )


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(*map(int, sys.argv[1:]))
