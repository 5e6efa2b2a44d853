"""Do estimates hold, and what do long prompts take? Prints the tables of docs/benchmarks.md, section "Long prompts".

    python tests/benchmarks/long_prompts.py                                all of them
    python tests/benchmarks/long_prompts.py --one wide sinks 4096          one piece of work in this process

Each piece of work runs in a process of its own: what was estimated before it started, then what it took, in seconds of one
processor and in peak memory above that before it. Models have random weights; `wide` has the widths of a 7B thinker and two
layers, `long` those of a small one and eight.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import torch

from avlens.engine import estimate_run, plan_sweep, sweep
from avlens.hubs import find_hubs, hub_reductions
from avlens.inputs import AVInputs, Prompt
from avlens.interventions import knockout, patch
from avlens.model import HookedAVModel
from avlens.testing import tiny_model
from avlens.tokens import Modality, Segment, TokenMap

MODELS = {
    "wide": {
        "n_layers": 2,
        "d_model": 3584,
        "n_heads": 28,
        "n_key_value_heads": 4,
        "d_head": 128,
        "d_mlp": 18944,
        "d_vocab": 1000,
    },
    "long": {"n_layers": 8, "d_model": 512, "n_heads": 8, "n_key_value_heads": 2, "d_mlp": 1408, "d_vocab": 1000},
}
WORK = [
    *[("wide", work, length) for work in ("sinks", "trace", "knockouts") for length in (1024, 2048)],
    *[("long", work, 10_000) for work in ("sinks", "trace", "knockouts")],
]
DIMS = (3, 7)


def prompt(length: int, of: HookedAVModel) -> AVInputs:
    """Two seconds of video and of audio in turn, and a question of 32 tokens; their embeddings are those of their ids."""
    ids = torch.randint(0, 300, (length,), generator=torch.Generator().manual_seed(0))
    kinds = [Modality.VIDEO, Modality.AUDIO]
    runs = [
        TokenMap.of(part, ["?"] * len(part), kinds[i % 2], Segment.MEDIA, clip=torch.zeros(len(part), dtype=torch.long))
        for i, part in enumerate(ids[: length - 32].split(50))
    ]
    runs.append(TokenMap.of(ids[length - 32 :], ["?"] * 32, Modality.TEXT, Segment.QUESTION))
    row = Prompt(ids, TokenMap.join(runs), (), torch.arange(length).expand(3, -1), length)
    return AVInputs((row,), of.family.text_inputs(ids[None]).stock_kwargs)


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1]) * 1024


def edits_of(model: HookedAVModel, work: str, inputs, clean) -> dict[str, list]:
    """Of a trace, four sets; of knockouts, audio and video at each layer."""
    tokens = inputs.tokens
    if work == "knockouts":
        kinds = {"audio": tokens.audio, "video": tokens.video}
        return {
            f"{name} {i}": knockout(tokens.last, kind, layers=[i])
            for name, kind in kinds.items()
            for i in range(model.cfg.n_layers)
        }
    _, cache = model.run_with_cache(clean, names_filter=["resid_pre"], logits_at=tokens.last)
    later = tokens.media & tokens.at(range(len(tokens) // 2, len(tokens)))
    sets = {"audio": tokens.audio, "video": tokens.video, "media": tokens.media, "second half": later}
    return {"unedited": [], **{name: patch(cache, one) for name, one in sets.items()}}


def one(name: str, work: str, length: int) -> dict[str, float]:
    """What was estimated and what it took."""
    model = tiny_model(seed=0, **MODELS[name]).to(torch.float32)
    inputs, small = prompt(length, model), prompt(128, model)
    last = inputs.tokens.last
    if work == "sinks":
        find_hubs(model, small, DIMS)
        estimate = estimate_run(model, inputs, reductions=hub_reductions(inputs, DIMS), logits_at=last)
        task = lambda: find_hubs(model, inputs, DIMS, progress=True)  # noqa: E731
    else:
        edits = edits_of(model, work, inputs, inputs)
        plan = plan_sweep(model, inputs, edits, logits_at=last)
        print(plan, file=sys.stderr)
        estimate = plan.estimate
        task = lambda: sweep(model, inputs, edits, logits_at=last, progress=work)  # noqa: E731
    Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
    before, start = _status("VmRSS"), time.thread_time()
    task()
    seconds = time.thread_time() - start
    peak = _status("VmHWM") - before
    return {
        "estimated s": estimate.seconds,
        "s": seconds,
        "estimated MiB": estimate.nbytes / 2**20,
        "MiB": peak / 2**20,
    }


def main() -> None:
    """Print one row per piece of work."""
    print("| model | work | positions | estimated s | took s | ratio | estimated MiB | held MiB | ratio |")
    print("|---|---|---|---|---|---|---|---|---|")
    for name, work, length in WORK:
        command = [sys.executable, __file__, "--one", name, work, str(length)]
        # Freed blocks go back at once: the peak of what is held, not of what the allocator keeps for later.
        env = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=env)
        it = json.loads(done.stdout.splitlines()[-1])
        print(
            f"| {name} | {work} | {length:,} | {it['estimated s']:.1f} | {it['s']:.1f} | {it['estimated s'] / it['s']:.2f} | "
            f"{it['estimated MiB']:.0f} | {it['MiB']:.0f} | {it['estimated MiB'] / it['MiB']:.2f} |",
            flush=True,
        )


if __name__ == "__main__":
    torch.set_num_threads(1)
    if sys.argv[1:2] == ["--one"]:
        print(json.dumps(one(sys.argv[2], sys.argv[3], int(sys.argv[4]))))
    else:
        main()
