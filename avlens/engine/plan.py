"""How will a sweep be run: what is shared, what is computed for each edit, and what must be run in full, and why?

A plan says it before anything runs:

    print(plan_sweep(model, inputs, edits, logits_at=inputs.tokens.last))
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

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
from avlens.engine.needs import Held, Needs
from avlens.engine.passes import Batch
from avlens.errors import HookError, PositionError
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
        return _first([batch.steps for batch in self.batches], self.reading)

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
        lines = [f"{_counted(len(self.names))}, the work of {self.runs:.2f} full runs: {self.estimate}"]
        if self.builds_on_unedited:
            lines.append(
                f"1 unedited run{' and what edits bring with them' if self.brought else ''}, shared: "
                f"{needs.shared.total / full:.2f}, {cost.size(needs.kept + needs.brought)} kept"
            )
        if self.batches:
            lines.append(_said(self.batches, [one.total / full for one in needs.batches]))
            lines.append(
                f"batches within {cost.size(needs.memory)}: at most {_counted(max(len(b.edits) for b in self.batches))}"
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
    inputs: AVInputs | Int[Tensor, "batch pos"],
    edits: Mapping[str, Sequence[FwdHook]],
    *,
    logits_at: TokenSet | None = None,
    memory: int | None = None,
    reading: bool = False,
    measured: bool = False,
    timed: bool = True,
) -> Plan:
    """How `sweep`, or `read_edited`, will run these edits; arguments as there.

    Args:
        model: A HookedAVModel.
        inputs: One prompt, or the ids of one text.
        edits: Lists of hooks, by name.
        logits_at: Positions to unembed.
        memory: How many bytes a batch may take; by default half of what is free.
        reading: Whether keys and values of each edit are kept, as `read_edited` keeps them.
        measured: Whether less is kept of an edit than its logits, as `measure=` keeps.
        timed: Whether to measure how fast the model works here, which takes a moment the first time.

    Raises:
        BatchError: If the inputs hold several prompts.
        HookError: If an edit is no list of hooks, or names a hook point that the model does not have.
        PositionError: If a position that is asked for is discarded by an edit.
    """
    inputs = model.as_inputs(inputs)
    tokens, n_layers = inputs.prompt.tokens, model.cfg.n_layers
    chosen = tokens.all if logits_at is None else logits_at
    tokens.check_own(chosen)
    _check_edits(edits)
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
    together = _together({edit: steps for edit, steps in schedules.items() if steps})
    brought, streams = bringings(tokens, schedules, touches), _streams(schedules.values(), len(tokens))
    read = [schedules[group[0]] for group in together]
    reach = len(tokens) if unchanged or reading else _reach(model, read, streams, chosen)
    cfg, free = model.cfg, cost.free_bytes(model.device)
    held = Held(
        cfg,
        len(tokens),
        asked=len(chosen),
        reach=reach if schedules else 0,
        layers=n_layers - _first(read, reading),
        streamed=sum(len(rows) for rows in streams.values()),
        carried=sum(len(one.positions) for one in brought),
        results=2 if measured else 2 * len(hooks),  # the unedited run's and an edit's; or all, and all of them stacked
        reading=reading,
    )
    limit = _limit(memory, free)
    room = limit if free is None else min(limit, free - held.kept - held.brought)
    batches = tuple(batch for group in together for batch in _cut(cfg, group, schedules, hooks, room, reading=reading))
    shared = needs.shared_work(cfg, len(tokens), reach, chosen.positions, brought) if schedules else Work()
    each = tuple(needs.batch_work(cfg, batch, [hooks[edit] for edit in batch.edits]) for batch in batches)
    full = cost.run_work(cfg, len(tokens), chosen.positions)
    if batches and sum(each, shared).total >= full.total * len(schedules):
        in_full |= {edit: "that is less work" for edit, steps in schedules.items() if steps}
        shared, reach = (full, len(tokens)) if unchanged else (Work(), 0)
        batches, brought, streams, each = (), (), {}, ()
        held = replace(held, reach=reach, layers=n_layers, streamed=0, carried=0)
    taken = replace(
        held,
        in_full=[hooks[edit] for edit in in_full],
        batches=[(batch.steps, [hooks[edit] for edit in batch.edits]) for batch in batches],
    )
    rates = rates_of(model) if timed else Rates()
    total = Needs(shared, each, full, len(in_full), taken, max(0, room), free, rates)
    return Plan(
        tuple(edits), hooks, batches, unchanged, in_full, brought, streams, reach, chosen.positions, reading, total
    )


def _limit(memory: int | None, free: int | None) -> int:
    """How many bytes a batch may take."""
    if memory is not None:
        return memory
    return UNKNOWN_MEMORY if free is None else free // 2


def _first(schedules: Iterable[Mapping[int, Step]], reading: bool) -> int:
    """The first layer of which the unedited run's keys and values are needed."""
    return 0 if reading else min((min(steps) for steps in schedules), default=0)


def _check_edits(edits: object) -> None:
    """Refuse what is no mapping from names to lists of hooks.

    Raises:
        HookError: With what is wrong.
    """
    if not isinstance(edits, Mapping):
        raise HookError(f'edits are a {type(edits).__name__}. Give lists of hooks by name: {{"audio": knockout(...)}}.')
    for name, own in edits.items():
        if not isinstance(own, Sequence) or not all(isinstance(one, tuple) and len(one) == 2 for one in own):
            raise HookError(
                f"the edit {name!r} is {own!r:.80}. Give a list of hooks, (name, function), as patch, knockout, ... return."
            )


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


def _together(schedules: Mapping[int, Mapping[int, Step]]) -> list[list[int]]:
    """Edits that need the same rows from the start of the later one on; those that begin first come first."""
    groups: list[list[int]] = []
    known: dict[bytes, list[int]] = {}
    for edit in sorted(schedules, key=lambda edit: min(schedules[edit])):
        from_layer = _digests(schedules[edit])
        group = known.get(from_layer[min(schedules[edit])])
        if group is None:
            groups.append(group := [])
            known |= dict.fromkeys(from_layer.values(), group)
        group.append(edit)
    return groups


def _cut(
    cfg: DecoderConfig,
    group: Sequence[int],
    schedules: Mapping[int, Mapping[int, Step]],
    hooks: Sequence[needs.Hooks],
    room: int,
    *,
    reading: bool,
) -> Iterator[Batch]:
    """Batches of so many of these edits as there is room for, or of one."""
    mine: list[int] = []
    most = 0
    for edit in group:
        most = max(most, needs.batch_bytes(cfg, schedules[edit], [hooks[edit]], 1, reading=reading))
        if mine and len(mine) >= min(ROWS // _most_rows(schedules[mine[0]]), room // most):
            yield _batch(mine, schedules)
            mine, most = [], needs.batch_bytes(cfg, schedules[edit], [hooks[edit]], 1, reading=reading)
        mine.append(edit)
    yield _batch(mine, schedules)


def _batch(edits: Sequence[int], schedules: Mapping[int, Mapping[int, Step]]) -> Batch:
    return Batch(tuple(edits), tuple(min(schedules[edit]) for edit in edits), schedules[edits[0]])


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


def _reach(
    model: HookedAVModel, schedules: Iterable[Mapping[int, Step]], streams: Mapping[int, Tensor], asked: TokenSet
) -> int:
    """How many positions of the unedited run these read, from the first on."""
    n = len(asked.tokens)
    if any(name.endswith("hook_deepstack") for name in model.hook_dict):
        return n
    # Where what enters the first block is kept, the whole prompt was embedded.
    reach = max((int(rows[-1]) + 1 for layer, rows in streams.items() if layer), default=1)
    for steps in schedules:
        if not bool(torch.isin(asked.positions, steps[max(steps)].leave).all()):
            return n
        for step in steps.values():
            read = torch.ones(int(step.enter[-1]) + 1, dtype=torch.bool)
            for made in (step.enter, step.brought, step.gone):
                read[made[made < len(read)]] = False
            reach = max(reach, int(read.nonzero().max()) + 1 if bool(read.any()) else 1)
    return reach


def _counted(edits: int) -> str:
    return f"{edits} edit{'s' * (edits != 1)}"


def _said(batches: Sequence[Batch], runs: Sequence[float]) -> str:
    """What the batches compute, in a line."""
    n = sum(len(batch.edits) for batch in batches)
    rows = sorted(max(len(step.leave) for step in batch.steps.values()) for batch in batches)
    of = f"{rows[0]} to {rows[-1]}" if rows[0] != rows[-1] else f"{rows[0]}"
    work = f"{sum(runs) / n:.3f} each, {sum(runs):.2f} together"
    return f"{n} in {len(batches)} batch{'es' * (len(batches) != 1)}, at most {of} rows of a layer for each: {work}"
