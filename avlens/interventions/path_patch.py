"""Path patching: let some queries read some keys as another run had them.

In the chosen layers the rows of `queries` attend to the keys and values that a cache holds at `keys`, while every other row
attends to the run's own:

    scores[q, k] = q . k_cache / sqrt(d_head)       z[q] = sum over k of pattern[q, k] v_k, with v_k of the cache too

So what changes is what goes along the edge keys -> queries, and no other way. With every position as `queries`, it equals
patching `k` and `v` at `keys`. Patches of several edges add up as long as no pair of a query and a key is in two of them.

`open_path` opens one path through several groups: what differs in the first reaches the second, from there only the third, and
so on; what the groups between hold reaches nobody else.

Source: Wang et al. 2022, "Interpretability in the Wild", arXiv:2211.00593; Goldowsky-Dill et al. 2023, "Localizing Model Behavior
with Path Patching", arXiv:2304.05969.

Differs from the sources: paths lead from one group of tokens to another, in some layers and heads (there: from head to head).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from avlens import names
from avlens.cache import AVCache
from avlens.errors import BatchError, HookError, LayerError, PositionError
from avlens.hooks import FwdHook, HookFn, HookPoint, current_run, head_mask, query_positions, rows_of
from avlens.tokens import TokenSet

SITES = ("rot_k", "v")
"""What a cache must hold to be read so."""


@dataclass(frozen=True, eq=False)
class Reading:
    """What `queries` read at `keys` in one layer.

    Attributes:
        queries: Positions that read.
        keys: Positions that are read, ascending.
        k: Keys of the other run, rotated, in the set's order.
        v: Its values.
        heads: Heads that read so; all if None.
        unit: Which unit each position belongs to; within one, queries read the run's own keys. None: nowhere.
    """

    queries: TokenSet
    keys: TokenSet
    k: Float[Tensor, "key key_value_head d_head"]
    v: Float[Tensor, "key key_value_head d_head"]
    heads: tuple[int, ...] | None
    unit: Int[Tensor, " pos"] | None

    def hooks(self, layer: int) -> list[FwdHook]:
        """Hooks that note the layer's queries, edit its scores, see its pattern and correct what comes of it."""
        steps = {"rot_q": self._keep, "attn_scores": self._rescore, "pattern": self._see, "z": self._correct}
        return [(names.at(site, layer), _Step(self, fn)) for site, fn in steps.items()]

    def _keep(self, q: Float[Tensor, "batch pos head d_head"], hook: HookPoint) -> None:
        run, positions = current_run(hook), query_positions(hook, q)
        if run is None:
            raise HookError(
                f"path patching at {hook.name} needs the values that are read, which a HookedAVModel tells."
            )
        if int(positions.min()) >= len(self.queries.tokens):
            return  # generated tokens: only the prompt is patched
        if not rows_of(hook, self.queries).all() or bool(run.padding.any()) or run.discarded:
            raise BatchError(
                f"path patching at {hook.name} needs whole prompts of one layout, none padded and nothing discarded."
            )
        run.notes[self, run.rows] = _Notes(q, positions[0])

    def _noted(self, hook: HookPoint) -> "_Notes | None":
        run = current_run(hook)
        return None if run is None else run.notes.get((self, run.rows))

    def _rescore(self, scores: Float[Tensor, "batch head query_pos key_pos"], hook: HookPoint) -> Tensor | None:
        """A copy of the scores with those of the edge from the other run's keys; what may not be read stays so."""
        if (noted := self._noted(hook)) is None:
            return None
        asked, row, column, chosen = self._block(scores, hook)
        q = noted.q[:, torch.searchsorted(noted.positions, asked)]
        k = _per_head(self.k.to(scores.device, scores.dtype), scores.shape[1], dim=1)
        old = scores[:, :, row[:, None], column]
        new = torch.einsum("bqhd,khd->bhqk", q, k[: len(column)]) * q.shape[-1] ** -0.5
        edited = scores.clone()
        edited[:, :, row[:, None], column] = torch.where(chosen & ~torch.isneginf(old), new, old)
        return edited

    def _see(self, pattern: Float[Tensor, "batch head query_pos key_pos"], hook: HookPoint) -> None:
        """Keep what the other run's values add to each row of the edge."""
        run, noted = current_run(hook), self._noted(hook)
        if noted is None or run is None or run.values is None:
            return
        asked, row, column, chosen = self._block(pattern, hook)
        paid = pattern[:, :, row[:, None], column] * chosen
        own = run.values[:, :, column].transpose(1, 2)
        dv = _per_head(self.v.to(own.device, own.dtype)[: len(column)] - own, pattern.shape[1], dim=2)
        noted.added.append((asked, torch.einsum("bhqk,bkhd->bqhd", paid, dv)))

    def _correct(self, z: Float[Tensor, "batch pos head d_head"], hook: HookPoint) -> Tensor | None:
        run, noted = current_run(hook), self._noted(hook)
        if noted is None or run is None:
            return None
        edited = z.clone()
        for asked, added in noted.added:
            edited[:, torch.searchsorted(noted.positions, asked)] += added
        del run.notes[self, run.rows]
        return edited

    def _block(
        self, x: Float[Tensor, "batch head query_pos key_pos"], hook: HookPoint
    ) -> tuple[Int[Tensor, " query"], Int[Tensor, " query"], Int[Tensor, " key"], Bool[Tensor, "#head query key"]]:
        """Of the edge, in the rows that x has: the queries, their rows, the keys' columns, and which pairs count.

        Nothing was discarded, so that a key stands at the column of its position; those that x does not reach are the last.
        """
        positions = query_positions(hook, x, dim=2)[0]
        row = self.queries.holds(positions).nonzero()[:, 0]
        asked = positions[row]
        column = self.keys.positions[self.keys.positions < x.shape[3]].to(x.device)
        chosen = torch.ones(len(asked), len(column), dtype=torch.bool, device=x.device)
        if self.unit is not None:
            unit = self.unit.to(x.device)
            chosen = unit[asked][:, None] != unit[column]
        return asked, row, column, chosen & head_mask(self.heads, x)

    def __repr__(self) -> str:
        return f"Reading({self.queries!r} of {self.keys!r})"


@dataclass(frozen=True, eq=False)
class _Notes:
    """What the steps of one layer tell each other: queries, where they stand, and what is to be added to which rows of z."""

    q: Float[Tensor, "batch pos head d_head"]
    positions: Int[Tensor, " pos"]
    added: list[tuple[Int[Tensor, " query"], Float[Tensor, "batch query head d_head"]]] = field(default_factory=list)


@dataclass(frozen=True, eq=False)
class _Step:
    """A step of a reading, which takes some query rows at a time."""

    reading: Reading
    fn: HookFn
    row_wise: bool = True
    overwrites: bool = False

    @property
    def touches(self) -> TokenSet:
        """The queries."""
        return self.reading.queries

    def __call__(self, x: Tensor, hook: HookPoint) -> Tensor | None:
        return self.fn(x, hook)

    def __repr__(self) -> str:
        return repr(self.reading)


def path_patch(
    cache: AVCache,
    queries: TokenSet,
    keys: TokenSet,
    *,
    layers: names.Layers = "all",
    heads: Sequence[int] | None = None,
    unit: Int[Tensor, " pos"] | None = None,
) -> list[FwdHook]:
    """Hooks that let `queries` read `keys` as the run that the cache holds had them, in prompts of its layout.

    Args:
        cache: A run on one prompt that holds `rot_k` and `v`.
        queries: Positions that read, in the prompt.
        keys: Positions that are read.
        layers: Blocks to patch, 0-based; `"all"` means those that the cache holds.
        heads: Heads to patch, 0-based; all by default.
        unit: Which unit each position belongs to, such as `avlens.groups.units` tells; within one nothing is patched.

    Raises:
        HookError: If the cache is of a model whose blocks are not plain.
        LayerError: If the cache does not hold a layer.
        PositionError: If a set belongs to a prompt of another layout than the cache, or goes beyond the prompt.
        BatchError: While running, if a prompt has another layout or is padded, or tokens were discarded.
    """
    if (refuse := getattr(cache.model, "require_plain_blocks", None)) is not None:
        refuse("path patching")
    return _readings(queries, [(cache, keys)], layers, heads, unit)


def open_path(
    source: AVCache, other: AVCache, groups: Sequence[TokenSet], *, layers: names.Layers = "all"
) -> list[FwdHook]:
    """Hooks that, in the run that `other` holds, let the second group read the first as `source` had it, and pass it on.

    What the second group then holds is read by the third alone (and by itself), and so on: every other row reads the groups
    after the first as `other` had them.

    Args:
        source: The run whose content is let in; holds `rot_k` and `v`.
        other: The run that is edited, without edits; holds the same.
        groups: Two or more groups without common positions, in the order of the path.
        layers: Blocks in which the path is open and all else shut, 0-based; `"all"` means those that the caches hold.

    Raises:
        PositionError: If there are fewer than two groups, or two share a position.
        LayerError: If a cache does not hold a layer.
    """
    if len(groups) < 2 or any(a & b for i, a in enumerate(groups) for b in groups[:i]):
        raise PositionError(
            "a path leads through two groups or more that share no position. Pass such groups, in order."
        )
    hooks, rest = [], groups[0].tokens.all
    for i, queries in enumerate(groups):
        shut = [(other, group) for j, group in enumerate(groups) if j not in (0, i - 1, i)]
        into = [(source, groups[0])] if i == 1 else []
        hooks += _readings(queries, into + shut, layers, None, None)
        rest = rest - queries
    return hooks + _readings(rest, [(other, group) for group in groups[1:]], layers, None, None)


def _readings(
    queries: TokenSet, read: Sequence[tuple[AVCache, TokenSet]], layers: names.Layers, heads: Sequence[int] | None,
    unit: Int[Tensor, " pos"] | None,
) -> list[FwdHook]:  # fmt: skip
    read = [(cache, keys) for cache, keys in read if keys]
    if not read or not queries:
        return []
    for cache, keys in read:
        _check(cache, queries, keys)
    held = read[0][0].layers("v")
    chosen = held if layers == "all" else names.checked_layers(layers)
    every = torch.cat([keys.positions for _cache, keys in read])
    order = every.argsort()
    hooks: list[FwdHook] = []
    for layer in chosen:
        k, v = (torch.cat([_held(cache, site, layer, keys) for cache, keys in read])[order] for site in SITES)
        keys = queries.tokens.at(every[order].tolist())
        hooks += Reading(queries, keys, k, v, None if heads is None else tuple(heads), unit).hooks(layer)
    return hooks


def _held(cache: AVCache, site: str, layer: int, keys: TokenSet) -> Float[Tensor, "key key_value_head d_head"]:
    if layer not in cache.layers(site):
        raise LayerError(
            f"the cache holds {site} of layers {cache.layers(site)}, not of layer {layer}. Patch a layer it holds, or run again "
            f"with names_filter={list(SITES)}."
        )
    value = cache[site, layer][0]
    return value[keys.positions.to(value.device)]


def _check(cache: AVCache, queries: TokenSet, keys: TokenSet) -> None:
    cache.require_batch_axis()
    if not cache.layers("v") or not cache.layers("rot_k"):
        raise LayerError(f"the cache holds no rot_k and v. Run again with names_filter={list(SITES)}.")
    cache.require_positions(names.at(site, layer) for site in SITES for layer in cache.layers(site))
    for chosen in (queries, keys):
        cache.tokens.check_own(chosen)
        if chosen.open_ended:
            raise PositionError(
                "only the prompt is patched, so a set with positions that are not yet generated cannot be. Subtract them: "
                "tokens - inputs.tokens.generated."
            )


def _per_head(x: Tensor, n_heads: int, *, dim: int) -> Tensor:
    """Keys or values as each head reads them."""
    return x.repeat_interleave(n_heads // x.shape[dim], dim=dim)
