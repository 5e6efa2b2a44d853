"""Which keys and values do edits bring with them, so that they are made once for all edits that write the same?

A set that is patched at all layers never leaves one: all that others see of it is its keys and values, and these are made of
what is written there. So they are made once of each table that edits write from, at all positions of theirs together.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from jaxtyping import Int
from torch import Tensor

from avlens import names
from avlens.decoder import Pass, rotary
from avlens.engine.changes import Step, Touch, before_keys
from avlens.hooks import HookFn, Run, running
from avlens.inputs import AVInputs
from avlens.model import HookedAVModel
from avlens.tokens import TokenMap


@dataclass(frozen=True, eq=False)
class Bringing:
    """What some edits write before the keys and values of one block.

    Attributes:
        layer: The block.
        edits: Their numbers in the sweep.
        hooks: What they write, at all positions that any of them brings.
        positions: These, ascending.
    """

    layer: int
    edits: tuple[int, ...]
    hooks: tuple[tuple[str, HookFn], ...]
    positions: Int[Tensor, " row"]


@dataclass(frozen=True, eq=False)
class Brought:
    """Keys and values that edits bring.

    Attributes:
        kept: Positions, rotated keys and values, by layer and edit.
    """

    kept: dict[tuple[int, int], tuple[Tensor, Tensor, Tensor]] = field(default_factory=dict)

    def put(self, layer: int, edit: int, at: Int[Tensor, " row"], k: Tensor, v: Tensor) -> None:
        """Write those of an edit at `at` into keys and values of a whole prompt, [key_value_head, pos, d_head]."""
        positions, keys, values = self.kept[layer, edit]
        rows, into = torch.searchsorted(positions, at).to(keys.device), at.to(k.device)
        k.index_copy_(1, into, keys.index_select(1, rows).to(k))
        v.index_copy_(1, into, values.index_select(1, rows).to(v))

    @property
    def nbytes(self) -> int:
        """How much memory it takes."""
        tensors = {id(tensor): tensor.nbytes for kept in self.kept.values() for tensor in kept}
        return sum(tensors.values())


def bringings(
    tokens: TokenMap, schedules: Mapping[int, Mapping[int, Step]], touches: Mapping[int, Sequence[Touch]]
) -> tuple[Bringing, ...]:
    """What is to be made for edits: of each layer, those together that write from the same tables."""
    together: dict[tuple[int, tuple[object, ...]], list[int]] = {}
    for edit, steps in schedules.items():
        for layer, step in steps.items():
            if len(step.brought):
                written = tuple((touch.site, _address(touch)) for touch in _writing(touches[edit], layer))
                together.setdefault((layer, written), []).append(edit)
    found = []
    for (layer, _), edits in together.items():
        where = torch.zeros(len(tokens), dtype=torch.bool)
        for edit in edits:
            where[schedules[edit][layer].brought] = True
        union = tokens.at(where.nonzero()[:, 0].tolist())
        acting = _writing(touches[edits[0]], layer)
        hooks = tuple((names.at(one.site, layer), one.fn.at(union)) for one in acting if one.fn is not None)
        found.append(Bringing(layer, tuple(edits), hooks, union.positions))
    return tuple(found)


def _writing(touches: Iterable[Touch], layer: int) -> list[Touch]:
    return before_keys(touch for touch in touches if touch.layer == layer)


def _address(touch: Touch) -> tuple[object, ...]:
    """Equal where the same rows of the same memory are written."""
    table = None if touch.fn is None else touch.fn.table
    assert table is not None
    return table.device, table.dtype, table.data_ptr(), tuple(table.shape), table.stride()


def bring(model: HookedAVModel, inputs: AVInputs, wanted: Iterable[Bringing]) -> Brought:
    """Make them."""
    brought, blocks = Brought(), cast(Any, model.blocks)
    cos, sin = rotary(inputs.positions.to(model.device), model.cfg, model.dtype)
    for one in wanted:
        at = one.positions
        run = Run(inputs.padding, inputs.layouts, at, at)
        nothing = torch.zeros(1, len(at), model.cfg.d_model, dtype=model.dtype, device=model.device)
        with model.hooks(one.hooks), running(model.watched_points(), run):
            k, v = blocks[one.layer].keys_and_values(nothing, Pass(run, cos[:, at], sin[:, at], None, "auto"))
        brought.kept.update({(one.layer, edit): (at, k[0].transpose(0, 1), v[0].transpose(0, 1)) for edit in one.edits})
    return brought
