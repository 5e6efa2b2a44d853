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
from avlens.cost import Estimate, Rates, Work
from avlens.decoder import DecoderConfig
from avlens.engine import needs
from avlens.engine.brought import Bringing, bringings
from avlens.engine.changes import Step, Touch, steps_of, touch_of
from avlens.engine.estimate import rates_of
from avlens.engine.needs import Needs
from avlens.engine.passes import Batch
from avlens.errors import PositionError
from avlens.hooks import FwdHook, HookFn
from avlens.inputs import AVInputs
from avlens.model import HookedAVModel
from avlens.tokens import TokenSet

ROWS = 4096
"""How many rows a batch of edits has at most: more of them make matrix products no faster."""

UNKNOWN_MEMORY = 2 * 2**30
"""How many bytes a batch may take where nobody can tell what is free."""


@dataclass(frozen=True, eq=False)
class Plan:
    """How a sweep will be run.

    Attributes:
        names: The edits.
        hooks: Their hooks, under full names.
        batches: Edits that run together, with only the rows they need.
        unchanged: Numbers of the edits that change nothing at the asked positions.
        in_full: Numbers of the edits that are run in full, and why.
        brought: Keys and values that edits bring with them, each made once.
        streams: Of which layers' streams the unedited run keeps which positions.
        reach: How many positions of the unedited run are read, from the first on; it goes no further.
        asked: Positions that are asked for, in their order.
        reading: Whether keys and values of each edit are kept.
        needs: What it takes.
    """

    names: tuple[str, ...]
    hooks: tuple[tuple[tuple[str, HookFn], ...], ...]
    batches: tuple[Batch, ...]
    unchanged: tuple[int, ...]
    in_full: Mapping[int, str]
    brought: tuple[Bringing, ...]
    streams: Mapping[int, Int[Tensor, " row"]]
    reach: int
    asked: Int[Tensor, " asked"]
    reading: bool
    needs: Needs

    @property
    def builds_on_unedited(self) -> bool:
        """Whether the unedited run is needed."""
        return bool(self.batches or self.unchanged)

    @property
    def first(self) -> int:
        """The first layer of which the unedited run's keys and values are needed: that which an edit changes, or all."""
        return _first(self.batches, self.reading)

    @property
    def runs(self) -> float:
        """How many full runs' work it takes."""
        return self.needs.total.total / self.needs.full.total

    @property
    def estimate(self) -> Estimate:
        """How long it takes, and how much memory, encoders left out."""
        return self.needs.estimate

    def __str__(self) -> str:
        needs, full = self.needs, self.needs.full.total
        lines = [f"{len(self.names)} edits, the work of {self.runs:.2f} full runs: {self.estimate}"]
        if self.builds_on_unedited:
            lines.append(
                f"1 unedited run{' and what edits bring with them' if self.brought else ''}, shared: "
                f"{needs.shared.total / full:.2f}, {cost.size(needs.kept + needs.brought)} kept"
            )
        if self.batches:
            lines.append(_said(self.batches, [one.total / full for one in needs.batches]))
            lines.append(
                f"batches within {cost.size(needs.memory)}: at most {max(len(b.edits) for b in self.batches)} edits"
            )
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
    memory: int | None = None,
    reading: bool = False,
    timed: bool = True,
) -> Plan:
    """How `sweep`, or `read_edited`, will run these edits; arguments as there.

    Args:
        model: A HookedAVModel.
        inputs: One prompt.
        edits: Lists of hooks, by name.
        logits_at: Positions to unembed.
        memory: How many bytes a batch may take; by default half of what is free.
        reading: Whether keys and values of each edit are kept, as `read_edited` keeps them.
        timed: Whether to measure how fast the model works here, which takes a moment the first time.

    Raises:
        BatchError: If the inputs hold several prompts.
        HookError: If an edit names a hook point that the model does not have.
        PositionError: If a position that is asked for is discarded by an edit.
    """
    tokens, n_layers = inputs.prompt.tokens, model.cfg.n_layers
    chosen = tokens.all if logits_at is None else logits_at
    tokens.check_own(chosen)
    hooks = tuple(_with_full_names(model, own) for own in edits.values())
    found = [[(name, touch_of(name, fn, tokens.layout)) for name, fn in own] for own in hooks]
    in_full = {edit: why for edit, own in enumerate(found) if (why := _why_in_full(model, own))}
    touches = {
        edit: [touch for _, touch in own if touch is not None] for edit, own in enumerate(found) if edit not in in_full
    }
    schedules: dict[int, dict[int, Step]] = {}
    for edit, own in touches.items():
        _refuse_discarded(own, chosen)
        steps = steps_of(own, n_layers, chosen.mask, reading=reading)
        schedules[edit] = {layer: step for layer, step in enumerate(steps) if step is not None}
    unchanged = tuple(edit for edit, steps in schedules.items() if not steps)
    cfg, free = model.cfg, cost.free_bytes(model.device)
    memory = memory or (free // 2 if free is not None else UNKNOWN_MEMORY)
    batches = _batched(cfg, {edit: steps for edit, steps in schedules.items() if steps}, hooks, memory, reading)
    brought, streams = bringings(tokens, schedules, touches), _streams(schedules.values(), len(tokens))
    reach = len(tokens) if unchanged or reading else _reach(model, batches, streams, chosen)
    shared = needs.shared_work(cfg, len(tokens), reach, chosen.positions, brought)
    each = tuple(needs.batch_work(cfg, batch, [hooks[edit] for edit in batch.edits]) for batch in batches)
    full = cost.run_work(cfg, len(tokens), chosen.positions)
    if batches and sum(each, shared).total >= full.total * len(schedules):
        in_full |= {edit: "that is less work" for edit, steps in schedules.items() if steps}
        batches, brought, streams, shared, each = (), (), {}, full, ()
    first = _first(batches, reading)
    builds = bool(batches or unchanged)
    kept = needs.kept_bytes(cfg, first, reach, streams) if builds else 0
    carried = needs.brought_bytes(cfg, brought)
    kept += 2 * cost.logits_bytes(cfg, len(chosen)) * len(hooks)
    past = needs.past_bytes(cfg, len(tokens)) if reading else 0
    at_once = [needs.run_bytes(cfg, reach, len(chosen), ())] * builds + [past] * bool(unchanged)
    at_once += [past + needs.run_bytes(cfg, len(tokens), len(chosen), hooks[edit]) for edit in in_full]
    at_once += [
        carried
        + needs.batch_bytes(cfg, batch.steps, [hooks[edit] for edit in batch.edits], len(batch.edits), reading=reading)
        for batch in batches
    ]
    rates = rates_of(model) if timed else Rates()
    taken = Needs(
        shared if builds else Work(),
        each,
        full,
        len(in_full),
        kept,
        carried,
        max(at_once, default=0),
        memory,
        free,
        rates,
    )
    return Plan(
        tuple(edits), hooks, batches, unchanged, in_full, brought, streams, reach, chosen.positions, reading, taken
    )


def _first(batches: Iterable[Batch], reading: bool) -> int:
    return 0 if reading else min((batch.starts[0] for batch in batches), default=0)


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


def _batched(
    cfg: DecoderConfig,
    schedules: Mapping[int, Mapping[int, Step]],
    hooks: Sequence[needs.Hooks],
    memory: int,
    reading: bool,
) -> tuple[Batch, ...]:
    """Edits that need the same rows from the start of the later one on, together; those that begin first come first."""
    members: list[list[int]] = []
    room: list[int] = []
    open_at: dict[bytes, int] = {}
    for edit in sorted(schedules, key=lambda edit: min(schedules[edit])):
        from_layer = _digests(schedules[edit])
        start = min(schedules[edit])
        batch = open_at.get(from_layer[start])
        if batch is None or len(members[batch]) >= room[batch]:
            batch = len(members)
            members.append([])
            alone = needs.batch_bytes(cfg, schedules[edit], [hooks[edit]], 1, reading=reading)
            room.append(max(1, min(ROWS // _most_rows(schedules[edit]), memory // alone)))
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


def _reach(model: HookedAVModel, batches: Iterable[Batch], streams: Mapping[int, Tensor], asked: TokenSet) -> int:
    """How many positions of the unedited run these read, from the first on."""
    n = len(asked.tokens)
    if any(name.endswith("hook_deepstack") for name in model.hook_dict):
        return n
    # Where what enters the first block is kept, the whole prompt was embedded.
    reach = max((int(rows[-1]) + 1 for layer, rows in streams.items() if layer), default=1)
    for batch in batches:
        if not bool(torch.isin(asked.positions, batch.last).all()):
            return n
        for step in batch.steps.values():
            read = torch.ones(int(step.enter[-1]) + 1, dtype=torch.bool)
            for made in (step.enter, step.brought, step.gone):
                read[made[made < len(read)]] = False
            reach = max(reach, int(read.nonzero().max()) + 1 if bool(read.any()) else 1)
    return reach


def _said(batches: Sequence[Batch], runs: Sequence[float]) -> str:
    """What the batches compute, in a line."""
    n = sum(len(batch.edits) for batch in batches)
    rows = sorted(max(len(step.leave) for step in batch.steps.values()) for batch in batches)
    of = f"{rows[0]} to {rows[-1]}" if rows[0] != rows[-1] else f"{rows[0]}"
    work = f"{sum(runs) / n:.3f} each, {sum(runs):.2f} together"
    return f"{n} in {len(batches)} batches, at most {of} rows of a layer for each: {work}"
