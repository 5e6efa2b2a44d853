"""How long will a piece of work take here, and how much memory, before it starts?

One block of the model is run over a few random rows, and attention over as many keys as a long prompt has. Their rates, and the
operations and bytes of the work (`avlens.cost`), give seconds and memory. The rates of a model are measured once.
"""

import math
import time
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from avlens import attention, cost, names
from avlens.cache import Reduction
from avlens.cost import Estimate, Rates
from avlens.decoder import DecoderConfig, Pass, rotary
from avlens.errors import TooLargeError
from avlens.hooks import FwdHook, HookPoint, Run
from avlens.inputs import AVInputs
from avlens.model import KEPT_ENCODINGS, HookedAVModel
from avlens.tokens import TokenSet

OPERATIONS = 2e10
"""How many operations a measurement has at most, unless 64 rows of a block have more; other devices than the CPU get 64 times
as many."""


def rates_of(model: HookedAVModel) -> Rates:
    """At which rates the model does its operations here; not known while hooks are attached, nor of a model without weights."""
    if model.watched_points() or model.device.type == "meta":
        return Rates()
    found: Rates = model.remember(("rates", torch.get_num_threads()), lambda: _measured(model))
    return found


def estimate_run(
    model: HookedAVModel,
    inputs: AVInputs,
    *,
    names_filter: names.NamesFilter = (),
    reductions: Sequence[Reduction] = (),
    logits_at: TokenSet | None = None,
    timed: bool = True,
) -> Estimate:
    """What `run_with_cache` with these arguments is going to take, for one prompt; seconds only if `timed`.

    Raises:
        BatchError: If the inputs hold several prompts.
        HookError: If the filter matches nothing.
    """
    estimate, _ = _of_run(model, inputs, names_filter, reductions, logits_at, timed)
    return estimate


def _of_run(
    model: HookedAVModel,
    inputs: AVInputs,
    names_filter: names.NamesFilter = (),
    reductions: Sequence[Reduction] = (),
    logits_at: TokenSet | None = None,
    timed: bool = True,
) -> tuple[Estimate, Callable[[int], int]]:
    """What it takes, and how many bytes the same would be of so many positions."""
    cfg, tokens = model.cfg, inputs.prompt.tokens
    asked = (tokens.all if logits_at is None else logits_at).positions
    nothing = not callable(names_filter) and names_filter is not None and len(names_filter) == 0
    kept = [] if nothing else names.matching(names_filter, model.hook_dict)
    watched = {names.short_name(name) for name in kept} | {one.activation for one in reductions}
    explicit = cfg.n_layers if watched & {"pattern", "attn_scores"} else 0

    def nbytes(n: int) -> int:
        block = cost.added_bytes(cfg, n) + cost.block_bytes(cfg, n, n, n, explicit=bool(explicit))
        logits = cost.logits_bytes(cfg, n if len(asked) == len(tokens) else min(n, len(asked)))
        return cost.kept_bytes(cfg, kept, 1, n) + block + logits + 4 * cfg.n_heads * n * cfg.n_layers * len(reductions)

    rates = rates_of(model) if timed else Rates()
    seconds = rates.seconds(cost.run_work(cfg, len(tokens), asked, explicit=explicit))
    return Estimate(seconds, nbytes(len(tokens)), cost.free_bytes(model.device)), nbytes


def refuse(what: str, estimate: Estimate, nbytes: Callable[[int], int], length: int, remedy: str) -> None:
    """Refuse work that the free memory cannot hold.

    Args:
        what: The work.
        estimate: What it takes.
        nbytes: How many bytes it would take of a prompt of so many positions.
        length: How many positions the prompt has.
        remedy: What to do instead.

    Raises:
        TooLargeError: Says what would fit.
    """
    if estimate.free is None or estimate.nbytes <= estimate.free:
        return
    fits = bisect_right(range(1, length), estimate.free, key=nbytes)
    would = f"A prompt of about {fits:,} positions would fit." if fits else "No shorter prompt would fit either."
    raise TooLargeError(
        f"{what} of a prompt of {length:,} positions takes {cost.size(estimate.nbytes)}, but {cost.size(estimate.free)} are "
        f"free. {would} {remedy}"
    )


SHAPE = "{desc}: {percentage:3.0f}%|{bar}| [{elapsed}<{remaining}{postfix}]"
"""Of a bar whose parts are not alike, so that they are not counted."""

SHORT = 1.0
"""Seconds of work that is not announced: its bar would be gone before it is read. If it takes longer after all, a bar comes."""


@dataclass(frozen=True, eq=False)
class Bar:
    """A progress bar in estimated seconds, or in operations where those are not known.

    Attributes:
        bar: tqdm's.
        n_layers: The model's.
    """

    bar: Any
    n_layers: int

    def add(self, amount: float) -> None:
        """Some of the work is done."""
        self.bar.update(min(amount, self.bar.total - self.bar.n))

    def say(self, text: str) -> None:
        """What is done, in the bar's words."""
        self.bar.set_postfix_str(text, refresh=False)  # a refresh would show a bar that is not due yet

    def of_run(self, amount: float) -> list[FwdHook]:
        """Hooks of a whole run that takes this much of the work."""
        if self.bar.disable:
            return []
        return [(names.EveryLayer("resid_pre"), _Tick(partial(self.add, amount / self.n_layers)))]


@dataclass(frozen=True, eq=False)
class _Tick:
    """Moves a bar by a block."""

    move: Callable[[], None]
    reads_only: bool = True

    def __call__(self, x: Tensor, hook: HookPoint) -> None:  # noqa: ARG002
        self.move()


@contextmanager
def bar_of(cfg: DecoderConfig, total: float, says: str | None, estimate: Estimate | None = None) -> Iterator[Bar]:
    """A bar that says what is done, and what it is going to take; none if it says nothing."""
    told = says if estimate is None else f"{says} ({estimate})"
    with tqdm(total=total, desc=told, disable=says is None, bar_format=SHAPE, delay=_delay(estimate)) as bar:
        yield Bar(bar, cfg.n_layers)
        bar.update(total - bar.n)


def _delay(estimate: Estimate | None) -> float:
    """After how long a bar appears: at once before long work, else if it takes longer than was thought."""
    return SHORT if estimate is not None and estimate.seconds < SHORT else 0.0


@contextmanager
def watched_run(
    model: HookedAVModel, inputs: AVInputs, says: str | None, *, reductions: Sequence[Reduction] = (), **options: Any
) -> Iterator[list[FwdHook]]:
    """Hooks that move a bar through one run of `run_with_cache`, whose cost is told before it starts, after the encoders'.

    Raises:
        TooLargeError: If the free memory cannot hold it.
    """
    estimate, nbytes = _of_run(model, inputs, reductions=reductions, timed=says is not None, **options)
    refuse("a run", estimate, nbytes, len(inputs.prompt.tokens), "Name fewer activations, or ask for fewer logits.")
    encode_first(model, inputs, says, estimate)
    with bar_of(model.cfg, 1.0, says, estimate) as bar:
        yield bar.of_run(1.0)


def encode_first(model: HookedAVModel, inputs: AVInputs, says: str | None, estimate: Estimate) -> None:
    """Where a bar is shown: run the encoders, which an estimate leaves out, under a bar of their own."""
    media = inputs.prompt.media
    if says is None or model.watched_points() or len(media) > KEPT_ENCODINGS:
        return
    for one in tqdm(media, desc=f"{says}: encoders", bar_format=SHAPE, delay=_delay(estimate)):
        model.encode(one)


def _measured(model: HookedAVModel) -> Rates:
    """A pass takes seconds that grow with its rows, and some that do not: so two passes are timed."""
    cfg = model.cfg
    few = 1 if model.device.type == "cpu" else 64
    row = cost.block_work(cfg, torch.arange(1), torch.arange(1)).products
    n = few * max(64, min(256, int(OPERATIONS / row)))
    with model.alone():
        fused, explicit = (_attention_rate(model, how, few) for how in (False, True))
        short, long = (_block_seconds(model, rows) - _attention(cfg, rows) / fused for rows in (n // 4, n))
    each = max((long - short) / (n - n // 4), 1e-12)
    return Rates(row / each, fused, explicit, max(0.0, long - each * n))


def _attention(cfg: DecoderConfig, n: int) -> float:
    return cost.block_work(cfg, torch.arange(n), torch.arange(n)).fused


def _block_seconds(model: HookedAVModel, n: int) -> float:
    x = torch.randn(1, n, model.cfg.d_model, generator=torch.Generator().manual_seed(0)).to(model.device, model.dtype)
    block: Any = model.blocks[0]  # the last may read keys that another made
    return _seconds(model, lambda: block(x, _pass(model, torch.arange(n))))


def _pass(model: HookedAVModel, rows: Tensor) -> Pass:
    run = Run(torch.zeros(1, dtype=torch.long), ("",), rows, rows)
    axes = 1 if model.cfg.mrope_section is None else len(model.cfg.mrope_section)
    additions = tuple(torch.zeros(1, len(rows), d, device=model.device, dtype=model.dtype) for d in _added(model.cfg))
    cos, sin = rotary(rows.expand(axes, 1, -1).to(model.device), model.cfg, model.dtype)
    return Pass(run, cos, sin, None, "auto", additions)


def _added(cfg: DecoderConfig) -> list[int]:
    """Widths of what blocks are given beside the stream, where each is."""
    return [] if cfg.d_layer_input is None else [cfg.d_layer_input] * cfg.n_layers


def _attention_rate(model: HookedAVModel, explicit: bool, few: int) -> float:
    """Operations a second of some queries at the end of a prompt."""
    cfg, queries, keys = model.cfg, 128 * few, 2048 * few
    draw = partial(torch.randn, generator=torch.Generator().manual_seed(0))
    q = draw(1, queries, cfg.n_heads, cfg.d_head).to(model.device, model.dtype).transpose(1, 2)
    k, v = (
        draw(1, keys, cfg.n_key_value_heads, cfg.d_head).to(model.device, model.dtype).transpose(1, 2) for _ in range(2)
    )
    if explicit:
        n = attention.chunk_rows(cfg.n_heads, keys, queries)
        q = q[:, :, :n]
        seen = torch.ones(1, 1, n, keys, dtype=torch.bool, device=q.device)
        # What sums of attention by two groups of queries add to it is counted as well.
        weights = torch.ones(1, 1, 1, n, device=q.device)
        task = partial(
            attention.explicit, q, k, v, seen, on_scores=lambda x: x, on_pattern=partial(_read, weights), clear=keys - n
        )
    else:
        chunks = list(
            attention.row_chunks(
                torch.arange(keys - queries, keys), torch.arange(keys), torch.zeros(1, dtype=torch.long), None, q
            )
        )
        task = partial(attention.fused_in_chunks, q, k, v, chunks)
    return 4.0 * cfg.n_heads * cfg.d_head * q.shape[2] * keys / _seconds(model, task)


def _read(weights: Tensor, pattern: Tensor) -> Tensor:
    for _ in range(2):
        weights @ pattern.float()
    return pattern


def _seconds(model: HookedAVModel, task: Callable[[], object]) -> float:
    """The least of three, after one that is not counted; on the CPU, of a processor that nobody else uses."""
    clock = time.thread_time if model.device.type == "cpu" else time.perf_counter
    taken = []
    for _ in range(4):
        _wait(model)
        start = clock()
        task()
        _wait(model)
        taken.append(clock() - start)
    return min(taken[1:]) or math.nan


def _wait(model: HookedAVModel) -> None:
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)
