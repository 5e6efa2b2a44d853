"""What do many edits of one prompt, each by itself, do to its logits?

    logits = sweep(model, inputs, {"audio": knockout(last, audio), "video": knockout(last, video)}, logits_at=last)

The unedited run is shared: of each edit only the rows are computed that it can change and that the asked positions can
notice (`changes`), edits that need the same rows together (`plan`). The result is that of running each edit in full, which is
what happens to an edit that does not say what it touches. `plan_sweep` tells beforehand; `print` it. `read_edited` keeps the keys
and values of each edit as well, from which its answer is written.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from avlens.decoder import AttentionMode, KeyValues
from avlens.engine.brought import bring
from avlens.engine.estimate import Bar, bar_of, encode_first, refuse
from avlens.engine.passes import run_batch
from avlens.engine.plan import Plan, plan_sweep
from avlens.engine.unedited import Unedited, run_unedited
from avlens.generation import Reading
from avlens.hooks import FwdHook
from avlens.inputs import AVInputs
from avlens.model import HookedAVModel
from avlens.tokens import TokenSet

T = TypeVar("T")

Measure = Callable[[Float[Tensor, "pos d_vocab"]], Tensor]


def sweep(
    model: HookedAVModel,
    inputs: AVInputs | Int[Tensor, "batch pos"],
    edits: Mapping[str, Sequence[FwdHook]],
    *,
    logits_at: TokenSet | None = None,
    measure: Measure | None = None,
    attn: AttentionMode | None = None,
    memory: int | None = None,
    progress: str | None = None,
) -> Float[Tensor, "edit *measured"]:
    """Logits of one prompt under each edit by itself, in the order of `edits`: [edit, pos, d_vocab].

    Args:
        model: A HookedAVModel.
        inputs: One prompt, or the ids of one text.
        edits: Lists of hooks, by name, as `patch`, `knockout`, ... return them, or your own. An empty list is the
            unedited run.
        logits_at: Positions to unembed; by default all. The fewer, the less is computed.
        measure: What to keep of an edit's logits, [pos, d_vocab]; by default all of them.
        attn: Which attention runs; by default the model's.
        memory: How many bytes a batch of edits may take; by default half of what is free. The unedited run's come on top.
        progress: What a progress bar says, beside what is going to be taken; none by default.

    Raises:
        BatchError: If the inputs hold several prompts.
        HookError: If an edit is no list of hooks, or names a hook point that the model does not have.
        PositionError: If a position that is asked for is discarded by an edit.
        TooLargeError: If the free memory cannot hold what the edits build on and one of them, before anything runs.
    """
    inputs = model.as_inputs(inputs)
    asked = inputs.prompt.tokens.all if logits_at is None else logits_at
    with model.alone():
        kept, timed = measure is not None, progress is not None
        plan = plan_sweep(model, inputs, edits, logits_at=asked, memory=memory, measured=kept, timed=timed)
        estimate = plan.estimate
        _refuse("sweep", plan, "Ask for fewer logits (logits_at=), sweep fewer edits, or shorten the clip.")
        found: dict[int, Tensor] = {}
        encode_first(model, inputs, progress, estimate)
        with bar_of(model.cfg, sum(plan.needs.shares), progress, estimate) as bar:
            for edit, logits, _ in _each(model, inputs, plan, asked, attn or model.attn, bar):
                found[edit] = logits if measure is None else measure(logits)
                bar.say(f"{len(found)} of {len(edits)} edits")
        if not found:
            return torch.empty(0, len(plan.asked), model.cfg.d_vocab)
        return torch.stack([found[edit] for edit in range(len(found))])


def read_edited(
    model: HookedAVModel,
    inputs: AVInputs | Int[Tensor, "batch pos"],
    edits: Mapping[str, Sequence[FwdHook]],
    use: Callable[[str, Reading], T],
    *,
    memory: int | None = None,
    progress: str | None = None,
) -> dict[str, T]:
    """What `use` makes of one prompt as `model.read` reads it under each edit by itself, by the edit's name.

        def answer(name: str, reading: Reading) -> str:
            return model.generate(inputs, reading=reading, fwd_hooks=edits[name]).text

        read_edited(model, inputs, edits, answer)

    Args:
        model: A HookedAVModel.
        inputs: One prompt, or the ids of one text.
        edits: Lists of hooks, by name. An empty list is the unedited reading.
        use: Is given an edit's name and its reading, which is let go of afterwards.
        memory: How many bytes a batch of edits may take; by default half of what is free.
        progress: What a progress bar says, beside what the readings are going to take; none by default.

    Raises:
        BatchError: If the inputs hold several prompts.
        HookError: If an edit is no list of hooks, or names a hook point that the model does not have.
        PositionError: If an edit discards the prompt's last position.
        TooLargeError: If the free memory cannot hold what the edits build on and one of them, before anything runs.
    """
    inputs = model.as_inputs(inputs)
    last, of = inputs.prompt.tokens.last, model.identity(inputs)
    found: dict[str, T] = {}
    with model.alone():
        plan = plan_sweep(model, inputs, edits, logits_at=last, memory=memory, reading=True, timed=progress is not None)
        _refuse("reading", plan, "Shorten the clip.")
        encode_first(model, inputs, progress, plan.estimate)
        with bar_of(model.cfg, sum(plan.needs.shares), progress, plan.estimate) as bar:
            for edit, logits, past in _each(model, inputs, plan, last, model.attn, bar):
                assert past is not None
                found[plan.names[edit]] = use(plan.names[edit], Reading(past, logits, None, of))
                bar.say(f"{len(found)} of {len(edits)} edits")
                del past, logits  # before the next one is read
    return {name: found[name] for name in edits}


def _moved(bar: Bar, amount: float, layer: int) -> None:  # noqa: ARG001
    bar.add(amount)


def _refuse(what: str, plan: Plan, remedy: str) -> None:
    held, n = plan.needs.held, len(plan.names)
    refuse(
        f"a {what} of {n} edit{'s' * (n != 1)}", plan.estimate, lambda n: held.shorter(n).nbytes, held.length, remedy
    )


def _each(
    model: HookedAVModel, inputs: AVInputs, plan: Plan, asked: TokenSet, attn: AttentionMode, bar: Bar
) -> Iterator[tuple[int, Float[Tensor, "pos d_vocab"], KeyValues | None]]:
    """The number of each edit, its logits, and keys and values if they are kept, in the order in which they are computed."""
    shared, full, *each = plan.needs.shares
    for edit in plan.in_full:
        ticks = bar.of_run(full / len(plan.in_full)) if not model.watched_points() else []
        hooks: list[FwdHook] = [*plan.hooks[edit], *ticks]
        if plan.reading:
            yield edit, *_read_in_full(model, inputs, hooks)
        else:
            yield edit, model.run_with_hooks(inputs, hooks, logits_at=asked, attn=attn)[0], None
    if not plan.builds_on_unedited:
        return
    ticks = bar.of_run(shared)
    unedited = run_unedited(model, inputs, plan.streams, plan.first, plan.reach, logits_at=asked, attn=attn, also=ticks)
    for edit in plan.unchanged:
        yield edit, unedited.logits[0], _past(inputs, unedited, range(model.cfg.n_layers)) if plan.reading else None
    brought = bring(model, inputs, plan.brought)
    for batch, share in zip(plan.batches, each, strict=True):
        own_hooks = [plan.hooks[edit] for edit in batch.edits]
        by_layer = share / len(batch.steps)
        pasts = [_past(inputs, unedited, range(start)) for start in batch.starts] if plan.reading else []
        rows = run_batch(
            model, inputs, unedited, brought, batch, own_hooks, attn, partial(_moved, bar, by_layer), pasts
        )
        changed = torch.isin(plan.asked, batch.last)
        which = torch.searchsorted(batch.last, plan.asked[changed])
        for row, (edit, own) in enumerate(zip(batch.edits, rows, strict=True)):
            logits = own[which]
            if len(which) < len(plan.asked):
                logits = unedited.logits[0].clone()
                logits[changed] = own[which]
            yield edit, logits, pasts[row] if pasts else None
        del pasts, rows


def _read_in_full(model: HookedAVModel, inputs: AVInputs, hooks: Sequence[FwdHook]) -> tuple[Tensor, KeyValues]:
    reading = model.read(inputs, fwd_hooks=hooks)
    return reading.logits, reading.past


def _past(inputs: AVInputs, unedited: Unedited, layers: range) -> KeyValues:
    """Of the whole prompt, the unedited run's keys and values in the first layers."""
    past = KeyValues()
    unedited.read(layers, past)
    past.seen = inputs.shape[1]
    return past
