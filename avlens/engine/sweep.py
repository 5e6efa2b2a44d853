"""What do many edits of one prompt, each by itself, do to its logits?

    logits = sweep(model, inputs, {"audio": knockout(last, audio), "video": knockout(last, video)}, logits_at=last)

The unedited run is shared: of each edit only the rows are computed that it can change and that the asked positions can
notice (`changes`), edits that need the same rows together (`plan`). The result is that of running each edit in full, which is
what happens to an edit that does not say what it touches. `plan_sweep` tells beforehand; `print` it.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from avlens.decoder import AttentionMode
from avlens.engine.brought import bring
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
        progress: What a progress bar says; none by default.

    Raises:
        BatchError: If the inputs hold several prompts.
        HookError: If an edit names a hook point that the model does not have.
        PositionError: If a position that is asked for is discarded by an edit.
    """
    with model.alone():
        plan = plan_sweep(model, inputs, edits, logits_at=logits_at)
        found: dict[int, Tensor] = {}
        with tqdm(total=len(edits), desc=progress, unit="edit", disable=progress is None) as bar:
            for edit, logits in _each(model, inputs, plan, logits_at, attn or model.attn):
                found[edit] = logits if measure is None else measure(logits)
                bar.update()
        if not found:
            return torch.empty(0, len(plan.asked), model.cfg.d_vocab)
        return torch.stack([found[edit] for edit in range(len(found))])


def _each(
    model: HookedAVModel, inputs: AVInputs, plan: Plan, logits_at: TokenSet | None, attn: AttentionMode
) -> Iterator[tuple[int, Float[Tensor, "pos d_vocab"]]]:
    """The number of each edit and its logits, in the order in which they are computed."""
    for edit in plan.in_full:
        yield edit, model.run_with_hooks(inputs, plan.hooks[edit], logits_at=logits_at, attn=attn)[0]
    if not plan.builds_on_unedited:
        return
    unedited = run_unedited(model, inputs, plan.streams, plan.first, plan.reach, logits_at=logits_at, attn=attn)
    for edit in plan.unchanged:
        yield edit, unedited.logits[0]
    brought = bring(model, inputs, plan.brought)
    for batch in plan.batches:
        rows = run_batch(model, inputs, unedited, brought, batch, [plan.hooks[edit] for edit in batch.edits], attn)
        changed = torch.isin(plan.asked, batch.last)
        which = torch.searchsorted(batch.last, plan.asked[changed])
        for edit, own in zip(batch.edits, rows, strict=True):
            if len(which) == len(plan.asked):
                yield edit, own[which]
                continue
            logits = unedited.logits[0].clone()
            logits[changed] = own[which]
            yield edit, logits
