"""Measure the goals of speed: what sweeps, caches and sums cost beside plain hooks, the stock model and TransformerLens's bridge.

    python tests/benchmarks/goals.py [S [rounds]]          prints the table and writes goals.json

Each peer runs in a process of its own, one thread, CPU seconds, the peers in turn within a round; the ratio to the stock model's
forward pass of the same process and round is what is compared, and its median over rounds is given. Of a peer's sweep, whose
cost is that of its runs added up, one to `SAMPLE` runs are timed and scaled.
"""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).parents[2]))

import torch

from avlens.engine import sweep
from avlens.inputs import AVInputs
from avlens.interventions import discard, knockout, patch
from tests.benchmarks import workload

SAMPLE = 3
PEERS = ("avlens", "plain hooks", "TransformerLens")


class Work:
    """One prompt, a corrupted one, and what is asked of them."""

    def __init__(self, length: int) -> None:
        self.model = workload.model()
        self.inputs = workload.prompt(length, self.model)
        self.tokens, self.length, self.n_layers = self.inputs.tokens, length, self.model.cfg.n_layers
        generator = torch.Generator().manual_seed(1)
        self.ids = self.inputs.ids.clone()
        self.ids[0, 32 : length - 32] = torch.randint(0, 300, (length - 64,), generator=generator)
        self.clean = AVInputs((replace(self.inputs.prompt, ids=self.ids[0]),), self.inputs.stock_kwargs)
        groups = [self.tokens.audio, self.tokens.video, self.tokens.at(range(32, 64))]
        self.sets = {
            "16 sets of 20 %": self._sets(length // 5, generator),
            "16 sets of 80 %": self._sets(length * 4 // 5, generator),
            "all audio and video": [self.tokens.media.positions],
        }
        self.keys = [group.positions for group in groups]
        self.grid = [(layer, (position * length) // 8) for layer in range(self.n_layers) for position in range(1, 8, 2)]

    def _sets(self, size: int, generator: torch.Generator) -> list[torch.Tensor]:
        """Eight windows and eight scattered sets among what differs between the prompts."""
        spread, sets = self.length - 64, []
        for i in range(16):
            start = 32 + int(torch.randint(0, spread - size, (1,), generator=generator))
            scattered = (torch.randperm(spread, generator=generator)[:size] + 32).sort().values
            sets.append(scattered if i % 2 else torch.arange(start, start + size))
        return sets


def avlens_tasks(work: Work) -> dict[str, Callable[[], object]]:
    """Each goal's work, as avlens does it."""
    model, inputs, last = work.model, work.inputs, work.tokens.last

    def trace(sets):
        _, cache = model.run_with_cache(work.clean, names_filter=["resid_pre"], logits_at=last)
        return sweep(
            model,
            inputs,
            {str(i): patch(cache, work.tokens.at(s.tolist())) for i, s in enumerate(sets)},
            logits_at=last,
        )

    def knock(keys):
        edits = {f"{layer} {i}": knockout(last, work.tokens.at(k.tolist()), layers=range(layer, min(layer + 3, work.n_layers)))
                 for layer in range(work.n_layers) for i, k in enumerate(keys)}  # fmt: skip
        return sweep(model, inputs, edits, logits_at=last)

    def grid():
        _, cache = model.run_with_cache(work.clean, names_filter=["resid_pre"], logits_at=last)
        edits = {f"{i} {at}": patch(cache, work.tokens.at([at]), layers=[i]) for i, at in work.grid}
        return sweep(model, inputs, edits, logits_at=last)

    def discards():
        edits = {str(layer): discard(work.tokens.media, layer=layer) for layer in range(1, work.n_layers)}
        return sweep(model, inputs, edits, logits_at=last)

    tasks: dict[str, Callable[[], object]] = {
        "idle forward": lambda: workload.idle(model, inputs),
        "every resid_pre kept": lambda: workload.cached(model, inputs),
        "sinks and dominance": lambda: workload.sinks_and_dominance(model, inputs),
        "knockouts, 1 group": lambda: knock(work.keys[:1]),
        "knockouts, 3 groups": lambda: knock(work.keys),
        "patch grid": grid,
        "sweep of discards": discards,
    }
    return tasks | {f"trace, {name}": lambda sets=sets: trace(sets) for name, sets in work.sets.items()}


class PlainHooks:
    """Forward hooks on the stock decoder, fused attention."""

    def __init__(self, work: Work) -> None:
        self.work, self.decoder = work, work.model.stock.whole.model.language_model

    def run(self, ids, edits=()):
        """One run with hooks (layer, edit of what enters it)."""
        handles = [self.decoder.layers[i].register_forward_pre_hook(fn) for i, fn in edits]
        with torch.no_grad():
            self.work.model.unembed(self.decoder(input_ids=ids, use_cache=False).last_hidden_state[:, -1:])
        for handle in handles:
            handle.remove()

    def cached(self, ids):
        kept = {}
        self.run(ids, [(i, lambda m, args, i=i: kept.__setitem__(i, args[0])) for i in range(self.work.n_layers)])
        return kept

    def patched(self, kept, at, layers):
        def put(module, args, i):
            x = args[0].clone()
            x[:, at] = kept[i][:, at]
            return (x, *args[1:])

        self.run(self.work.inputs.ids, [(i, partial(put, i=i)) for i in layers])

    def knocked_out(self, keys):
        mask = torch.full((self.work.length, self.work.length), -torch.inf).triu(1)
        mask[-1, keys] = -torch.inf
        put = partial(_with_mask, mask=mask[None, None])
        attention = [layer.self_attn for layer in self.decoder.layers[:3]]
        handles = [one.register_forward_pre_hook(put, with_kwargs=True) for one in attention]
        self.run(self.work.inputs.ids)
        for handle in handles:
            handle.remove()


def _with_mask(module, args, kwargs, mask):
    return args, kwargs | {"attention_mask": mask}


class Bridge:
    """TransformerLens's bridge over a stock Qwen2 of the same size."""

    def __init__(self, work: Work) -> None:
        from transformer_lens.model_bridge import TransformerBridge
        from transformers import Qwen2Config, Qwen2ForCausalLM

        cfg, self.work = work.model.cfg, work
        config = Qwen2Config(
            vocab_size=cfg.d_vocab, hidden_size=cfg.d_model, intermediate_size=cfg.d_mlp, num_hidden_layers=cfg.n_layers,
            num_attention_heads=cfg.n_heads, num_key_value_heads=cfg.n_key_value_heads, max_position_embeddings=16384,
        )  # fmt: skip
        with tempfile.TemporaryDirectory() as folder:
            Qwen2ForCausalLM(config).save_pretrained(folder)
            work.model.tokenizer.save_pretrained(folder)
            self.bridge = TransformerBridge.boot_transformers(folder, device="cpu", dtype=torch.float32)
        self.resid = [f"blocks.{i}.hook_resid_pre" for i in range(work.n_layers)]

    def run(self, ids, hooks=()):
        with torch.no_grad():
            self.bridge.run_with_hooks(ids, fwd_hooks=list(hooks), return_type="logits")

    def cached(self, ids):
        with torch.no_grad():
            return self.bridge.run_with_cache(ids, names_filter=lambda name: name in self.resid, return_type="logits")[
                1
            ]

    def patched(self, kept, at, layers):
        def put(x, hook, name):
            x = x.clone()
            x[:, at] = kept[name][:, at]
            return x

        self.run(self.work.inputs.ids, [(self.resid[i], partial(put, name=self.resid[i])) for i in layers])

    def knocked_out(self, keys):
        def forbid(scores, hook):
            scores = scores.clone()
            scores[:, :, -1, keys] = -torch.inf
            return scores

        self.run(self.work.inputs.ids, [(f"blocks.{i}.attn.hook_attn_scores", forbid) for i in range(3)])


def peer_tasks(peer: PlainHooks | Bridge) -> dict[str, tuple[Callable[[], object], float]]:
    """The same by a peer, one run after the other: what is timed, and by how much it is scaled."""
    work, n = peer.work, peer.work.n_layers

    def trace(sets):
        kept = peer.cached(work.ids)
        for at in sets[:SAMPLE]:
            peer.patched(kept, at, range(n))

    def grid():
        kept = peer.cached(work.ids)
        for layer, position in work.grid[:SAMPLE]:
            peer.patched(kept, torch.tensor([position]), [layer])

    tasks: dict[str, tuple[Callable[[], object], float]] = {
        "idle forward": (lambda: peer.run(work.inputs.ids), 1.0),
        "every resid_pre kept": (lambda: peer.cached(work.inputs.ids), 1.0),
        "knockouts, 1 group": (lambda: peer.knocked_out(work.keys[0]), n),
        "knockouts, 3 groups": (lambda: peer.knocked_out(work.keys[0]), 3 * n),
        "patch grid": (grid, (len(work.grid) + 1) / (SAMPLE + 1)),
    }
    for name, sets in work.sets.items():
        tasks[f"trace, {name}"] = (partial(trace, sets), (len(sets) + 1) / (min(SAMPLE, len(sets)) + 1))
    return tasks


def measured(peer: str, length: int, rounds: int) -> dict[str, list[float]]:
    """Ratios of each task of a peer to the stock forward pass of the same round, in this process."""
    work = Work(length)
    if peer == "avlens":
        tasks = {name: (task, 1.0) for name, task in avlens_tasks(work).items()}
    else:
        tasks = peer_tasks({"plain hooks": PlainHooks, "TransformerLens": Bridge}[peer](work))
    workload.stock(work.model, work.inputs)
    found: dict[str, list[float]] = {name: [] for name in tasks}
    for _ in range(rounds):
        for name, (task, scale) in tasks.items():
            stock = _seconds(lambda: workload.stock(work.model, work.inputs))
            found[name].append(_seconds(task) * scale / stock)
    return found


def _seconds(task: Callable[[], object]) -> float:
    start = time.process_time()
    task()
    return time.process_time() - start


def main(length: int = 1024, rounds: int = 3) -> None:
    """Measure every peer in turn, round by round, and print a table."""
    found: dict[str, dict[str, list[float]]] = {peer: {} for peer in PEERS}
    for _ in range(rounds):
        for peer in PEERS:
            command = [sys.executable, __file__, "--peer", peer, str(length)]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            for name, ratios in json.loads(done.stdout.splitlines()[-1]).items():
                found[peer].setdefault(name, []).extend(ratios)
    print(f"S = {length}; times of a stock forward pass, median of {rounds} rounds (least to most)")
    print("| work | " + " | ".join(PEERS) + " | avlens / plain hooks | avlens / TransformerLens |")
    print("|---|---|---|---|---|---|")
    for name in found["avlens"]:
        ours = median(found["avlens"][name])
        cells = [_cell(found[peer].get(name)) for peer in PEERS]
        cells += [f"{ours / median(found[peer][name]):.3f}" if name in found[peer] else "" for peer in PEERS[1:]]
        print(f"| {name} | " + " | ".join(cells) + " |")
    Path(f"goals_{length}.json").write_text(json.dumps(found, indent=1))


def _cell(ratios: list[float] | None) -> str:
    return "" if not ratios else f"{median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


if __name__ == "__main__":
    torch.set_num_threads(1)
    if sys.argv[1:2] == ["--peer"]:
        print(json.dumps(measured(sys.argv[2], int(sys.argv[3]), rounds=1)))
    else:
        main(*map(int, sys.argv[1:]))
