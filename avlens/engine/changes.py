"""Which rows of which layers must be computed to know what an edit does at the positions that are asked for?

A position is *changed* where its stream may differ from that of the unedited run. Going up the layers, what an edit touches is
changed, and so is every row that reads a changed key: every later one. Going down again, a changed row matters only if it
is asked for or if a row that matters reads it, and what is written over does not matter below. So, of each layer,

    brought rows whose keys and values an edit brings with it, whatever was there: those of the run it patches from
    enter   rows whose keys and values are made anew; those of all other positions are the unedited run's
    leave   rows among them that go on through attention and the MLP

which gives the known shortcuts as cases of one rule:

    splice   residuals patched at all layers: the set brings its keys and values to every layer, but never leaves one
    resume   one layer or a window edited: nothing enters below it
    rows     a knockout of few queries: they and the rows after them
    discard  tokens dropped: they neither enter nor are read, the rows after them leave

Nothing here depends on what an edit writes, only on where.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from avlens import names
from avlens.hooks import Declared, FromTable
from avlens.interventions.discard import Discard
from avlens.tokens import TokenSet


@dataclass(frozen=True, eq=False)
class Touch:
    """Where one hook acts.

    Attributes:
        layer: The block, 0-based.
        site: Short name of the activation.
        where: Positions it may change, or drop.
        overwrites: Whether what it leaves there does not depend on what was there.
        drops: Whether it lets them leave the sequence.
        fn: The hook, where it writes rows of a table.
    """

    layer: int
    site: str
    where: Bool[Tensor, " pos"]
    overwrites: bool = False
    drops: bool = False
    fn: FromTable | None = None


@dataclass(frozen=True, eq=False)
class Step:
    """What is computed of one layer.

    Attributes:
        enter: Positions whose keys and values are made anew, ascending.
        leave: Those of them that go on.
        fresh: Those of them whose stream is the unedited run's.
        gone: Positions that were discarded here or below.
        brought: Positions whose keys and values are made of the tables that the edits here write from.
    """

    enter: Int[Tensor, " enter"]
    leave: Int[Tensor, " leave"]
    fresh: Int[Tensor, " fresh"]
    gone: Int[Tensor, " gone"]
    brought: Int[Tensor, " brought"]

    @property
    def key(self) -> bytes:
        """Equal where the same rows are computed, whatever they begin from."""
        return b"|".join(positions.numpy().tobytes() for positions in (self.enter, self.leave, self.gone, self.brought))


def touch_of(full_name: str, fn: Any, layout: str) -> Touch | None:
    """Where a hook acts; None if it does not say, or says it of something else than a block of this prompt."""
    layer, site = names.layer_of(full_name), names.short_name(full_name)
    if layer is None or site not in names.SITES or full_name != names.at(site, layer):
        return None
    if isinstance(fn, Discard):
        fits = site == "resid_pre" and fn.tokens.layout == layout
        return Touch(layer, site, fn.tokens.mask, drops=True) if fits else None
    if not isinstance(fn, Declared) or not isinstance(fn.touches, TokenSet) or fn.touches.layout != layout:
        return None
    table = fn if isinstance(fn, FromTable) and fn.table is not None else None
    return Touch(layer, site, fn.touches.mask, fn.overwrites, fn=table)


def steps_of(
    touches: Sequence[Touch], n_layers: int, asked: Bool[Tensor, " pos"], *, reading: bool = False
) -> list[Step | None]:
    """What is computed of each layer; None where nothing is. `reading`: all keys and values are asked for as well."""
    n, by_layer = len(asked), [[touch for touch in touches if touch.layer == layer] for layer in range(n_layers)]
    changed, gone = _upwards(by_layer, n)
    steps: list[Step | None] = [None] * n_layers
    leave = asked & changed[n_layers]
    for layer in reversed(range(n_layers)):
        keys = (changed[layer] | _where(before_keys(by_layer[layer]), n)) & ~gone[layer]
        reach = leave | (keys if reading else keys & _up_to_last(leave))
        if reading and gone[layer].any():
            reach = reach | asked  # the keys that are left make the step, even where no other changes
        if not reach.any():
            break
        over = _written_over(by_layer[layer], leave)
        brought = reach & ~leave & over & _from_tables(by_layer[layer], n)
        enter = reach & ~brought
        masks = enter, leave, enter & ~changed[layer] & ~over, gone[layer], brought
        steps[layer] = Step(*(mask.nonzero()[:, 0] for mask in masks))
        leave = enter & changed[layer] & ~over
    return steps


def _upwards(by_layer: list[list[Touch]], n: int) -> tuple[list[Tensor], list[Tensor]]:
    """Which positions are changed as they enter each layer, and as they leave the last; which are gone in each layer."""
    changed, gone = [torch.zeros(n, dtype=torch.bool)], [torch.zeros(n, dtype=torch.bool)]
    for here in by_layer:
        gone.append(gone[-1] | _where([touch for touch in here if touch.drops], n))
        read = changed[-1] | gone[-1] | _where(before_keys(here), n)
        changed.append((_from_first(read) | _where(here, n)) & ~gone[-1])
    return changed, gone[1:]


def _written_over(here: list[Touch], leave: Bool[Tensor, " pos"]) -> Bool[Tensor, " pos"]:
    """Where it does not matter what enters: the stream is written over, or keys and values are and nothing else is read."""
    over = {site: _where([t for t in here if t.overwrites and t.site == site], len(leave)) for site in _OVERWRITTEN}
    keys = over["ln1.normalized"] | ((over["k"] | over["rot_k"]) & over["v"])
    return over["resid_pre"] | (keys & ~leave)


_OVERWRITTEN = ("resid_pre", "ln1.normalized", "k", "rot_k", "v")


def before_keys(here: Iterable[Touch]) -> list[Touch]:
    """What acts on what keys and values are made of."""
    return [touch for touch in here if touch.site in names.BEFORE_KEYS and bool(touch.where.any())]


def _from_tables(here: Iterable[Touch], n: int) -> Bool[Tensor, " pos"]:
    """Where keys and values are made of tables alone: all that acts on them acts at the same positions, at a site of its own."""
    acting = before_keys(here)
    sites = {touch.site for touch in acting}
    alike = all(touch.fn is not None and torch.equal(touch.where, acting[0].where) for touch in acting)
    return _where(acting if alike and len(sites) == len(acting) else (), n)


def _where(touches: Iterable[Touch], n: int) -> Bool[Tensor, " pos"]:
    """Where any of them acts."""
    found = torch.zeros(n, dtype=torch.bool)
    for touch in touches:
        found |= touch.where
    return found


def _from_first(mask: Bool[Tensor, " pos"]) -> Bool[Tensor, " pos"]:
    return mask.cummax(0).values


def _up_to_last(mask: Bool[Tensor, " pos"]) -> Bool[Tensor, " pos"]:
    return mask.flip(0).cummax(0).values.flip(0)
