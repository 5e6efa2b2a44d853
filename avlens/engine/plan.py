"""How will a sweep be run: what is shared, what is computed for each edit, and what must be run in full, and why?

A plan says it before anything runs:

    print(plan_sweep(model, inputs, edits, logits_at=inputs.tokens.last))
    16 edits of 1024 positions and 12 layers, at 6.2 of the 17.0 runs they would take in full
      ...
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from avlens import cost
from avlens.engine.changes import Step, Touch, steps_of, touch_of
from avlens.engine.passes import Batch
from avlens.errors import PositionError
from avlens.hooks import FwdHook, HookFn
from avlens.inputs import AVInputs
from avlens.model import HookedAVModel
from avlens.tokens import TokenSet

ROWS = 4096
"""How many rows a batch of edits has at most: more of them make matrix products no faster."""


@dataclass(frozen=True, eq=False)
class Plan:
    """How a sweep will be run.

    Attributes:
        names: The edits.
        hooks: Their hooks, under full names.
        batches: Edits that run together, with only the rows they need.
        unchanged: Numbers of the edits that change nothing at the asked positions.
        in_full: Numbers of the edits that are run in full, and why.
        streams: Of which layers' streams the unedited run keeps which positions.
        asked: Positions that are asked for, in their order.
        operations: Of the unedited run, of each batch, and of one full run.
    """

    names: tuple[str, ...]
    hooks: tuple[tuple[tuple[str, HookFn], ...], ...]
    batches: tuple[Batch, ...]
    unchanged: tuple[int, ...]
    in_full: Mapping[int, str]
    streams: Mapping[int, Int[Tensor, " row"]]
    asked: Int[Tensor, " asked"]
    operations: tuple[float, tuple[float, ...], float]

    @property
    def builds_on_unedited(self) -> bool:
        """Whether the unedited run is needed."""
        return bool(self.batches or self.unchanged)

    @property
    def first(self) -> int:
        """The first layer that an edit changes."""
        return min((batch.starts[0] for batch in self.batches), default=0)

    @property
    def runs(self) -> float:
        """How many full runs' work it takes."""
        shared, batches, full = self.operations
        return (shared * self.builds_on_unedited + sum(batches)) / full + len(self.in_full)

    def __str__(self) -> str:
        shared, batches, full = self.operations
        lines = [f"{len(self.names)} edits, the work of {self.runs:.2f} full runs"]
        if self.builds_on_unedited:
            lines.append(f"1 unedited run, shared: {shared / full:.2f}")
        if self.batches:
            lines.append(_said(self.batches, [one / full for one in batches]))
        if self.unchanged:
            lines.append(f"{len(self.unchanged)} change nothing that is asked for: {self._named(self.unchanged)}")
        for reason in dict.fromkeys(self.in_full.values()):
            mine = [edit for edit, why in self.in_full.items() if why == reason]
            lines.append(f"{len(mine)} in full, since {reason}: {self._named(mine)}")
        return "\n  ".join(lines)

    def _named(self, edits: Sequence[int]) -> str:
        return ", ".join([self.names[edit] for edit in edits[:4]] + ["..."] * (len(edits) > 4))


def plan_sweep(
    model: HookedAVModel,
    inputs: AVInputs,
    edits: Mapping[str, Sequence[FwdHook]],
    *,
    logits_at: TokenSet | None = None,
) -> Plan:
    """How `sweep` will run these edits; arguments as there.

    Raises:
        BatchError: If the inputs hold several prompts.
        HookError: If an edit names a hook point that the model does not have.
        PositionError: If a position that is asked for is discarded by an edit.
    """
    tokens, n_layers = inputs.prompt.tokens, model.cfg.n_layers
    chosen = tokens.all if logits_at is None else logits_at
    tokens.check_own(chosen)
    hooks = tuple(_with_full_names(model, own) for own in edits.values())
    touches = [[(name, touch_of(name, fn, tokens.layout)) for name, fn in own] for own in hooks]
    in_full = {edit: why for edit, own in enumerate(touches) if (why := _why_in_full(model, own))}
    schedules: dict[int, dict[int, Step]] = {}
    for edit in range(len(hooks)):
        if edit not in in_full:
            own = [touch for _, touch in touches[edit] if touch is not None]
            _refuse_discarded(own, chosen)
            steps = steps_of(own, n_layers, chosen.mask)
            schedules[edit] = {layer: step for layer, step in enumerate(steps) if step is not None}
    batches = _batched({edit: steps for edit, steps in schedules.items() if steps})
    operations = _operations(model, chosen, batches)
    shared, each, full = operations
    unchanged = [edit for edit, steps in schedules.items() if not steps]
    if batches and shared + sum(each) >= full * len(schedules):
        in_full |= {edit: "that is less work" for edit, steps in schedules.items() if steps}
        batches, operations = (), (shared, (), full)
    streams = _streams([schedules[edit] for batch in batches for edit in batch.edits], len(tokens))
    return Plan(tuple(edits), hooks, batches, tuple(unchanged), in_full, streams, chosen.positions, operations)


def _with_full_names(model: HookedAVModel, hooks: Iterable[FwdHook]) -> tuple[tuple[str, HookFn], ...]:
    """Each hook under each full name that its own name stands for."""
    found: list[tuple[str, HookFn]] = []
    for name, fn in hooks:
        model.check_hook_name(name)
        matched = [full for full in model.hook_dict if name(full)] if callable(name) else [name]
        found += [(full, fn) for full in matched]
    return tuple(found)


def _why_in_full(model: HookedAVModel, touches: Sequence[tuple[str, Touch | None]]) -> str | None:
    """Why an edit must be run in full, if it must."""
    if attached := model.watched_points():
        return f"a hook is attached to {attached[0].name}"
    if not model.family.block.plain:
        return "blocks of this model read keys that others made"
    silent = [name for name, touch in touches if touch is None]
    return f"what they touch at {silent[0]} is not known" if silent else None


def _refuse_discarded(touches: Iterable[Touch], asked: TokenSet) -> None:
    for touch in touches:
        if touch.drops and bool(touch.where[asked.positions].any()):
            raise PositionError(
                f"{asked!r} holds positions that were discarded on the way, so they have no logits. Ask for others, such "
                "as logits_at=inputs.tokens.last."
            )


def _batched(schedules: Mapping[int, Mapping[int, Step]]) -> tuple[Batch, ...]:
    """Edits that need the same rows from the start of the later one on, together; those that begin first come first."""
    members: list[list[int]] = []
    open_at: dict[bytes, int] = {}
    for edit in sorted(schedules, key=lambda edit: min(schedules[edit])):
        from_layer = _digests(schedules[edit])
        start = min(schedules[edit])
        batch = open_at.get(from_layer[start])
        if batch is None or (len(members[batch]) + 1) * _most_rows(schedules[edit]) > ROWS:
            batch = len(members)
            members.append([])
            open_at |= dict.fromkeys(from_layer.values(), batch)
        members[batch].append(edit)
    return tuple(
        Batch(tuple(mine), tuple(min(schedules[edit]) for edit in mine), schedules[mine[0]]) for mine in members
    )


def _digests(steps: Mapping[int, Step]) -> dict[int, bytes]:
    """Of each layer, a fingerprint of what is computed from there on."""
    found, above = {}, b""
    for layer in sorted(steps, reverse=True):
        above = found[layer] = hashlib.sha256(b"%d|" % layer + steps[layer].key + above).digest()
    return found


def _most_rows(steps: Mapping[int, Step]) -> int:
    return max(len(step.enter) for step in steps.values())


def _streams(schedules: Iterable[Mapping[int, Step]], n: int) -> dict[int, Int[Tensor, " row"]]:
    """Of each layer, where the stream that enters it is the unedited run's for some edit."""
    fresh: dict[int, Tensor] = {}
    for steps in schedules:
        for layer, step in steps.items():
            fresh.setdefault(layer, torch.zeros(n, dtype=torch.bool))[step.fresh] = True
    return {layer: mask.nonzero()[:, 0] for layer, mask in fresh.items() if bool(mask.any())}


def _operations(
    model: HookedAVModel, asked: TokenSet, batches: Iterable[Batch]
) -> tuple[float, tuple[float, ...], float]:
    """Of the unedited run, of each batch, and of one full run."""
    cfg, everything = model.cfg, torch.arange(len(asked.tokens))
    full = (cfg.n_layers - 1) * cost.block_operations(cfg, everything, everything)
    full += cost.block_operations(cfg, everything, asked.positions)
    each = []
    for batch in batches:
        of_layer = {layer: cost.block_operations(cfg, step.enter, step.leave) for layer, step in batch.steps.items()}
        each.append(sum(of_layer[layer] for start in batch.starts for layer in of_layer if layer >= start))
    return full, tuple(each), full


def _said(batches: Sequence[Batch], runs: Sequence[float]) -> str:
    """What the batches compute, in a line."""
    n = sum(len(batch.edits) for batch in batches)
    rows = sorted(max(len(step.leave) for step in batch.steps.values()) for batch in batches)
    of = f"{rows[0]} to {rows[-1]}" if rows[0] != rows[-1] else f"{rows[0]}"
    work = f"{sum(runs) / n:.3f} each, {sum(runs):.2f} together"
    return f"{n} in {len(batches)} batches, at most {of} rows of a layer for each: {work}"
