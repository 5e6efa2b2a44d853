"""Half an hour of mixed analyses in one process: memory stays flat, hooks are gone, files are closed.

python -m tests.soak --minutes 30
"""

import argparse
import gc
import itertools
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from avlens import Clip, HookedAVModel, knockout, patch, views
from avlens.analyses.flow import information_flow
from avlens.analyses.logit_lens import logit_lens
from avlens.analyses.shift import token_distribution_shift
from avlens.analyses.tracing import causal_trace
from avlens.data import read_data
from avlens.datasets.synthetic import synthetic_clips
from avlens.decoding import ASD, VCD
from avlens.experiments import EXPERIMENTS, run
from avlens.hubs import find_hubs

MOST = 5.0
"""MiB per hundred rounds that a line through memory may rise by."""


def resident():
    """Bytes of memory that this process holds."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def open_files():
    """How many files this process has open."""
    return len(list(Path("/proc/self/fd").iterdir()))


def hooks(model):
    """How many hooks a model carries."""
    return sum(
        len(part._forward_hooks) + len(part._forward_pre_hooks) + len(part._backward_hooks) for part in model.modules()
    )


def once(model, number, folder):
    """One round of everything, on a clip of its own."""
    path = synthetic_clips(1, seed=number, seconds=2.0)[0].clip.to_file(folder / "clip.mp4")
    clip = Clip.from_file(path)
    inputs = model.prepare(clip, "what do you hear ?")
    silent = model.prepare(clip.silenced(), "what do you hear ?")
    tokens = inputs.tokens
    _, cache = model.run_with_cache(inputs)
    model.run_with_hooks(silent, fwd_hooks=patch(cache, tokens.video) + knockout(tokens.last, tokens.audio))
    find_hubs(model, inputs)
    views.plot(causal_trace(model, inputs, silent, {"video": tokens.video, "audio": tokens.audio}))
    information_flow(model, inputs, ["audio -> last"], window=2)
    logit_lens(model, inputs)
    token_distribution_shift(model, inputs, silent, max_new_tokens=8)
    for decoding in (None, ASD(), VCD()):
        model.generate(inputs, max_new_tokens=8, decoding=decoding)
    data = read_data("synthetic:2", seed=number)
    run(EXPERIMENTS["lens"], model, data.samples, folder / "records" / str(number), read=data.read)
    broken = folder / "broken.mp4"
    broken.write_bytes(path.read_bytes()[:2000])
    try:
        Clip.from_file(broken)
    except ValueError:
        pass
    else:
        raise AssertionError("a cut file was read")


def soak(model, seconds, folder, *, rounds=None):
    """Rounds for so long; (seconds, bytes, open files, hooks) after each."""
    start, seen = time.monotonic(), []
    for number in itertools.count() if rounds is None else range(rounds):
        once(model, number, folder)
        gc.collect()
        seen.append((time.monotonic() - start, resident(), open_files(), hooks(model)))
        if time.monotonic() - start > seconds:
            break
    return seen


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=30)
    given = parser.parse_args()
    torch.set_num_threads(1)
    model = HookedAVModel.from_pretrained("avlens-tiny")
    before = hooks(model)
    with tempfile.TemporaryDirectory() as folder:
        seen = soak(model, 60 * given.minutes, Path(folder))
    warm = seen[len(seen) // 5 :]
    for at, memory, files, n_hooks in seen[:: max(1, len(seen) // 12)]:
        sys.stdout.write(
            f"{at / 60:6.1f} min  {memory / 2**20:8.1f} MiB  {files:3d} files  {n_hooks - before:+d} hooks\n"
        )
    slope, spread = trend(warm)
    sys.stdout.write(
        f"{len(seen)} rounds; from a fifth of the time on, a line through memory rises by {slope:+.2f} MiB per hundred rounds, "
        f"with {spread:.1f} MiB around it\n"
    )
    ends = {one[2:] for one in warm}
    raise SystemExit(0 if slope < MOST and len(ends) == 1 and warm[-1][3] == before else 1)


def trend(seen):
    """The slope of memory in MiB per hundred rounds, by least squares, and the standard deviation around the line."""
    memory = np.array([one[1] for one in seen]) / 2**20
    line = np.polyfit(rounds := np.arange(len(memory)), memory, 1) if len(memory) > 1 else np.array([0.0, memory[0]])
    return 100 * line[0], float(np.std(memory - np.polyval(line, rounds)))


if __name__ == "__main__":
    main()
