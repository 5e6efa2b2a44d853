"""What do many edits of one prompt, each by itself, do to its logits?

    logits = sweep(model, inputs, {"audio": knockout(last, audio), "video": knockout(last, video)}, logits_at=last)

The unedited run is shared: of each edit only the rows are computed that it can change and that the asked positions can
notice (`changes`), edits that need the same rows together (`plan`). The result is that of running each edit in full, which is
what happens to an edit that does not say what it touches. `plan_sweep` tells beforehand; `print` it.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from avlens.decoder import AttentionMode
from avlens.engine.brought import bring
from avlens.engine.estimate import Bar, bar_of, refuse
from avlens.engine.passes import run_batch
from avlens.engine.plan import Plan, plan_sweep
from avlens.engine.unedited import run_unedited
from avlens.hooks import FwdHook
from avlens.inputs import AVInputs
from avlens.model import HookedAVModel
from avlens.tokens import TokenSet

Measure = Callable[[Float[Tensor, "pos d_vocab"]], Tensor]


def sweep(
    model: HookedAVModel,
    inputs: AVInputs,
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
        inputs: One prompt.
        edits: Lists of hooks, by name, as `patch`, `knockout`, ... return them, or your own. An empty list is the
            unedited run.
        logits_at: Positions to unembed; by default all. The fewer, the less is computed.
        measure: What to keep of an edit's logits, [pos, d_vocab]; by default all of them.
        attn: Which attention runs; by default the model's.
        memory: How many bytes a batch of edits may take; by default half of what is free. The unedited run's come on top.
        progress: What a progress bar says, beside what is going to be taken; none by default.

    Raises:
        BatchError: If the inputs hold several prompts.
        HookError: If an edit names a hook point that the model does not have.
        PositionError: If a position that is asked for is discarded by an edit.
        TooLargeError: If the free memory cannot hold what the edits build on and one of them, before anything runs.
    """
    with model.alone():
        plan = plan_sweep(model, inputs, edits, logits_at=logits_at, memory=memory, timed=progress is not None)
        estimate = plan.estimate
        refuse(f"a sweep of {len(edits)} edit{'s' * (len(edits) != 1)}", estimate, len(inputs.prompt.tokens), _REMEDY)
        found: dict[int, Tensor] = {}
        with bar_of(model.cfg, sum(plan.needs.shares), progress, estimate) as bar:
            for edit, logits in _each(model, inputs, plan, logits_at, attn or model.attn, bar):
                found[edit] = logits if measure is None else measure(logits)
                bar.say(f"{len(found)} of {len(edits)} edits")
        if not found:
            return torch.empty(0, len(plan.asked), model.cfg.d_vocab)
        return torch.stack([found[edit] for edit in range(len(found))])


def _moved(bar: Bar, amount: float, layer: int) -> None:  # noqa: ARG001
    bar.add(amount)


_REMEDY = "Ask for fewer logits (logits_at=), or shorten the clip."


def _each(
    model: HookedAVModel, inputs: AVInputs, plan: Plan, logits_at: TokenSet | None, attn: AttentionMode, bar: Bar
) -> Iterator[tuple[int, Float[Tensor, "pos d_vocab"]]]:
    """The number of each edit and its logits, in the order in which they are computed."""
    shared, full, *each = plan.needs.shares
    for edit in plan.in_full:
        ticks = bar.of_run(full / len(plan.in_full)) if not model.watched_points() else []
        yield edit, model.run_with_hooks(inputs, [*plan.hooks[edit], *ticks], logits_at=logits_at, attn=attn)[0]
    if not plan.builds_on_unedited:
        return
    ticks = bar.of_run(shared)
    unedited = run_unedited(
        model, inputs, plan.streams, plan.first, plan.reach, logits_at=logits_at, attn=attn, also=ticks
    )
    for edit in plan.unchanged:
        yield edit, unedited.logits[0]
    brought = bring(model, inputs, plan.brought)
    for batch, share in zip(plan.batches, each, strict=True):
        hooks = [plan.hooks[edit] for edit in batch.edits]
        by_layer = share / len(batch.steps)
        rows = run_batch(model, inputs, unedited, brought, batch, hooks, attn, partial(_moved, bar, by_layer))
        changed = torch.isin(plan.asked, batch.last)
        which = torch.searchsorted(batch.last, plan.asked[changed])
        for edit, own in zip(batch.edits, rows, strict=True):
            if len(which) == len(plan.asked):
                yield edit, own[which]
                continue
            logits = unedited.logits[0].clone()
            logits[changed] = own[which]
            yield edit, logits
