"""What does a sweep need: which operations are shared, which does each batch add, and how many bytes are held at once?"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

from avlens import cost, names
from avlens.cost import Estimate, Rates, Work
from avlens.decoder import DecoderConfig
from avlens.engine.brought import Bringing
from avlens.engine.changes import Step
from avlens.engine.passes import Batch, acts
from avlens.hooks import FwdHook, HookFn, is_row_wise

_ATTENTION = ("attn_scores", "pattern")

Hooks = Sequence[tuple[str, HookFn]]


@dataclass(frozen=True, eq=False)
class Held:
    """What is held while a sweep runs.

    Attributes:
        cfg: The decoder.
        length: How many positions the prompt has.
        asked: How many of them are unembedded.
        reach: How many the unedited run goes through; 0 if there is none.
        layers: Of how many layers it leaves keys and values.
        streamed: How many rows of streams it leaves, in all layers together.
        carried: Of how many rows edits bring keys and values, in all layers together.
        results: How often logits of the asked positions are there.
        in_full: Hooks of each edit that is run in full.
        batches: Steps of each batch, and its edits' hooks.
        reading: Whether keys and values of each edit are kept.
    """

    cfg: DecoderConfig
    length: int
    asked: int
    reach: int
    layers: int
    streamed: int
    carried: int
    results: int
    in_full: Sequence[Hooks] = ()
    batches: Sequence[tuple[Mapping[int, Step], Sequence[Hooks]]] = ()
    reading: bool = False

    @cached_property
    def kept(self) -> int:
        """Bytes of what the unedited run leaves, of what is there throughout runs, and of the results."""
        streams = self.cfg.dtype.itemsize * self.cfg.d_model * self.streamed
        results = cost.logits_bytes(self.cfg, self.asked) * self.results
        added = cost.added_bytes(self.cfg, self.length)
        return streams + self.layers * self.reach * _keys_and_values(self.cfg) + results + added

    @cached_property
    def brought(self) -> int:
        """Bytes of what edits bring."""
        return self.carried * _keys_and_values(self.cfg)

    @cached_property
    def at_once(self) -> int:
        """The most bytes that a run holds beside what is kept, or a batch with what is brought."""
        past = past_bytes(self.cfg, self.length) if self.reading else 0
        runs = [past + run_bytes(self.cfg, self.length, self.asked, hooks) for hooks in self.in_full]
        if self.reach:
            runs += [past, run_bytes(self.cfg, self.reach, self.asked, ())]
        return max([*runs, *(self.brought + self._batch(one) for one in self.batches)], default=0)

    @property
    def nbytes(self) -> int:
        """The most at once."""
        return self.kept + self.at_once

    def shorter(self, n: int) -> "Held":
        """Of a prompt of `n` positions that is edited alike."""
        share, largest = n / self.length, max(self.batches, key=self._batch, default=None)
        batches = [] if largest is None else [(_shorter(largest[0], share), largest[1])]
        reach, streamed, carried = (math.ceil(rows * share) for rows in (self.reach, self.streamed, self.carried))
        asked = n if self.asked == self.length else min(n, self.asked)
        return replace(self, length=n, asked=asked, reach=reach, streamed=streamed, carried=carried, batches=batches)

    def _batch(self, one: tuple[Mapping[int, Step], Sequence[Hooks]]) -> int:
        return batch_bytes(self.cfg, one[0], one[1], len(one[1]), reading=self.reading)


def _shorter(steps: Mapping[int, Step], share: float) -> dict[int, Step]:
    """The same steps of a prompt that is shorter by this share."""
    fields = ("enter", "leave", "fresh", "gone", "brought")
    return {
        layer: Step(*((getattr(step, name) * share).long().unique() for name in fields))
        for layer, step in steps.items()
    }


@dataclass(frozen=True)
class Needs:
    """What a sweep takes.

    Attributes:
        shared: Work of the unedited run and of what edits bring; none where nothing builds on it.
        batches: Of each batch.
        full: Of one run in full.
        in_full: How many edits are run in full.
        held: What is held meanwhile.
        memory: How many bytes a batch may take.
        free: How many are free; None if that is not known.
        rates: At which the model works here.
    """

    shared: Work
    batches: tuple[Work, ...]
    full: Work
    in_full: int
    held: Held
    memory: int
    free: int | None
    rates: Rates = field(default_factory=Rates)

    @property
    def kept(self) -> int:
        """Bytes of what the unedited run leaves, and of the results."""
        return self.held.kept

    @property
    def brought(self) -> int:
        """Bytes of what edits bring."""
        return self.held.brought

    @property
    def at_once(self) -> int:
        """The most bytes that a run holds beside what is kept, or a batch with what is brought."""
        return self.held.at_once

    @property
    def total(self) -> Work:
        """All work."""
        return sum(self.batches, self.shared) + self.full * self.in_full

    @property
    def estimate(self) -> Estimate:
        """Time and memory."""
        return Estimate(self.rates.seconds(self.total), self.held.nbytes, self.free)

    @property
    def shares(self) -> tuple[float, ...]:
        """In seconds, or operations where those are not known: what is shared, all runs in full, and each batch."""
        parts = (self.shared, self.full * self.in_full, *self.batches)
        known = self.rates.seconds(self.total) == self.rates.seconds(self.total)
        return tuple(self.rates.seconds(part) if known else part.total for part in parts)


def batch_work(cfg: DecoderConfig, batch: Batch, hooks: Sequence[Hooks]) -> Work:
    """Of a batch, whose edits have these hooks."""
    work = Work()
    for layer, step in batch.steps.items():
        here = sum(start <= layer for start in batch.starts)
        made = any(_watches(own, layer, batch.steps, start) for own, start in zip(hooks, batch.starts, strict=True))
        work += replace(cost.block_work(cfg, step.enter, step.leave, explicit=made) * here, passes=1.0)
    return work + Work(2.0 * cfg.d_model * cfg.d_vocab * len(batch.last) * len(batch.edits))


def batch_bytes(
    cfg: DecoderConfig, steps: Mapping[int, Step], hooks: Sequence[Hooks], edits: int, *, reading: bool = False
) -> int:
    """The most that so many edits hold together that need these steps; `reading` if each keeps its keys and values."""
    most, length = 0, int(steps[max(steps)].enter[-1]) + 1
    for layer, step in steps.items():
        keys = length if reading else int(step.enter[-1]) + 1
        points = [(name, fn) for own in hooks for name, fn in own if _is_attention(name, layer)]
        nbytes = cost.block_bytes(cfg, len(step.enter), len(step.leave), keys, edits=edits, explicit=bool(points))
        if not all(is_row_wise(fn) for _, fn in points):
            nbytes += cost.pattern_bytes(cfg, len(step.leave), keys) * edits
        most = max(most, nbytes)
    last = steps[max(steps)]
    past = past_bytes(cfg, length) if reading else 0
    return most + (cost.logits_bytes(cfg, len(last.leave)) + past) * edits


def run_bytes(cfg: DecoderConfig, length: int, asked: int, hooks: Iterable[FwdHook]) -> int:
    """The most that a whole run with these hooks holds."""
    points = [fn for name, fn in hooks if isinstance(name, str) and names.short_name(name) in _ATTENTION]
    nbytes = cost.block_bytes(cfg, length, length, length, explicit=bool(points)) + cost.logits_bytes(cfg, asked)
    return nbytes if all(is_row_wise(fn) for fn in points) else nbytes + cost.pattern_bytes(cfg, length, length)


def past_bytes(cfg: DecoderConfig, length: int) -> int:
    """Of the keys and values of a whole prompt."""
    return cfg.n_layers * length * _keys_and_values(cfg)


def _keys_and_values(cfg: DecoderConfig) -> int:
    """Bytes of a position's, in one layer."""
    return cfg.dtype.itemsize * 2 * cfg.n_key_value_heads * cfg.d_head


def shared_work(cfg: DecoderConfig, length: int, reach: int, asked: Tensor, brought: Iterable[Bringing]) -> Work:
    """Of the unedited run as far as it goes, and of what edits bring."""
    nothing = torch.empty(0, dtype=torch.long)
    work = cost.run_work(cfg, reach, asked if reach == length else torch.tensor([reach - 1]))
    return sum((cost.block_work(cfg, one.positions, nothing) for one in brought), work)


def _watches(hooks: Hooks, layer: int, steps: Mapping[int, Step], start: int) -> bool:
    return any(_is_attention(name, layer) and acts(name, fn, steps, start) for name, fn in hooks)


def _is_attention(name: str, layer: int) -> bool:
    return any(name == names.at(site, layer) for site in _ATTENTION)
