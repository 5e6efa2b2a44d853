"""How do several edits run together, with only the rows that they need?

Edits that need the same rows from some layer on are rows of one batch from there on: each joins at the first layer that it
changes. Every block runs as it always does, with the edits' own hooks at its hook points; only its rows are fewer, and the
keys and values between them are the unedited run's.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from avlens import names
from avlens.decoder import AttentionMode, KeyValues, Pass, rotary
from avlens.engine.brought import Brought
from avlens.engine.changes import Step
from avlens.engine.unedited import Splice, Unedited
from avlens.hooks import Declared, FwdHook, HookFn, Run, on_rows, running
from avlens.inputs import AVInputs
from avlens.model import HookedAVModel


@dataclass(frozen=True, eq=False)
class Batch:
    """Edits that run together.

    Attributes:
        edits: Their numbers in the sweep, in the order in which they join.
        starts: The layer at which each joins, ascending.
        steps: What is computed of each layer from the first of them on.
    """

    edits: tuple[int, ...]
    starts: tuple[int, ...]
    steps: Mapping[int, Step]

    @property
    def last(self) -> Int[Tensor, " pos"]:
        """The positions whose stream leaves the last block."""
        return self.steps[max(self.steps)].leave


def run_batch(
    model: HookedAVModel,
    inputs: AVInputs,
    unedited: Unedited,
    brought: Brought,
    batch: Batch,
    hooks: Sequence[Sequence[tuple[str, HookFn]]],
    attn: AttentionMode,
    tick: Callable[[int], None],
    pasts: Sequence[KeyValues] = (),
) -> Float[Tensor, "edit pos d_vocab"]:
    """Logits of the changed rows among those asked for, `batch.last`, under each edit.

    `hooks` has full names only; `tick` is told each layer; `pasts` take over keys and values of each edit, from the
    layer on at which it joins.
    """
    bound: list[FwdHook] = []
    for row, (own, start) in enumerate(zip(hooks, batch.starts, strict=True)):
        acting = [(name, fn) for name, fn in own if acts(name, fn, batch.steps, start)]
        bound += acting if len(hooks) == 1 else on_rows(acting, [row])
    cos, sin = rotary(inputs.positions.to(model.device), model.cfg, model.dtype)
    nothing = torch.empty(0, dtype=torch.long)
    run = Run(inputs.padding, inputs.layouts, nothing, nothing)
    at = Pass(run, cos, sin, None, attn)
    x = torch.empty(0, 0, model.cfg.d_model, dtype=model.dtype, device=model.device)
    below, made, turned = nothing, None, (cos, sin)
    with model.hooks(bound), running(model.watched_points(), run):
        for layer, step in batch.steps.items():
            n = sum(start <= layer for start in batch.starts)
            x = _entering(unedited, layer, step, x, below, n)
            run.padding, run.layouts, run.query_index = inputs.padding.expand(n), inputs.layouts * n, step.enter
            run.discarded = len(step.gone) > 0
            at.past, at.asked = Splice(unedited, brought, batch.edits[:n], step, pasts[:n]), step.leave
            at.additions = unedited.added(layer, step.enter, n)
            if made is None or not torch.equal(made, step.enter):
                made, turned = step.enter, (cos[:, step.enter], sin[:, step.enter])
            at.cos, at.sin = turned
            x, below = _through(model.blocks[layer], layer, x, at), step.leave
            tick(layer)
        return model.read_out(x)


def _through(block: Any, layer: int, x: Float[Tensor, "edit enter d_model"], at: Pass) -> Tensor:
    """The stream of the rows that leave a block; where none does, their keys and values are all that is made."""
    assert at.asked is not None
    if len(at.asked):
        out: Tensor = block(x, at)
        return out
    k, v = block.keys_and_values(x, at)
    at.read(layer, k.transpose(1, 2), v.transpose(1, 2))
    return x[:, :0]


def acts(name: str, fn: Any, steps: Mapping[int, Step], start: int) -> bool:
    """Whether a hook touches anything that is computed of an edit that joins at `start`."""
    layer = names.layer_of(name)
    if layer is None or layer < start or layer not in steps:
        return False
    touched = fn.touches if isinstance(fn, Declared) else None
    return touched is None or bool(touched.mask[steps[layer].enter].any())


def _entering(
    unedited: Unedited,
    layer: int,
    step: Step,
    x: Float[Tensor, "before below d_model"],
    below: Int[Tensor, " below"],
    n: int,
) -> Float[Tensor, "edit enter d_model"]:
    """The stream of the rows that enter a layer, of `n` edits: from below, else the unedited run's; 0 if it is written over."""
    if n == len(x) and torch.equal(below, step.enter):
        return x
    out = x.new_zeros(n, len(step.enter), x.shape[-1])
    unedited.put_stream(layer, step.enter, out)
    out[: len(x), torch.isin(step.enter, below)] = x
    return out
