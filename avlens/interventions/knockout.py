"""Attention knockout: forbid some queries to read some keys.

Sets the scores of the chosen (query, key) pairs to -inf before the softmax, so that the remaining keys share the
row's whole mass. What is forbidden may be all pairs of two sets, those of them that join different frames or chunks, single
pairs, or, as "Do Audio-Visual Large Language Models Really See and Hear?" writes it, types of tokens in ranges of layers.

Source: Geva et al. 2023, "Dissecting Recall of Factual Associations in Auto-Regressive Language Models",
arXiv:2304.14767. Rules by type: src/attention_knockout_experiment.py of github.com/ramaneswaran/avllm_interpretability; pairs
across frames and at random: Kim et al. 2025, "Map the Flow", analysis/ of its released code.

Differs from the sources: the rules by type let the first generated token escape, which the prompt's last position writes; here
that position counts as generated when it reads, unless `strict_p2`. A query left with nothing to read is an error (there:
uniform attention).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from avlens import names
from avlens.errors import HookError, LayerError, PositionError
from avlens.hooks import FwdHook, HookPoint, head_mask, key_positions, query_positions, rows_of
from avlens.tokens import TokenMap, TokenSet

Pairs = Int[Tensor, "pair 2"]
"""Positions of a query and of a key, one pair per row."""


@dataclass(frozen=True)
class Knockout:
    """Stops `queries` from attending to `keys`, in some heads or in every one. Works row by row."""

    queries: TokenSet
    keys: TokenSet
    heads: tuple[int, ...] | None = None
    row_wise: bool = True
    overwrites: bool = False

    @property
    def touches(self) -> TokenSet:
        """The queries."""
        return self.queries

    def __call__(
        self, scores: Float[Tensor, "batch head query_pos key_pos"], hook: HookPoint
    ) -> Float[Tensor, "batch head query_pos key_pos"]:
        """A copy of the scores with -inf at the forbidden pairs."""
        query, key = query_positions(hook, scores, dim=2), key_positions(hook, scores)
        rows = rows_of(hook, self.queries) & rows_of(hook, self.keys)
        return _forbid(
            scores, self.queries.holds(query)[..., None] & self.keys.holds(key)[:, None], rows, self.heads, hook
        )


@dataclass(frozen=True, eq=False)
class KnockoutAcross:
    """Stops `queries` from attending to those `keys` that are of another unit, such as another frame. Works row by row.

    Attributes:
        queries: Positions that read.
        keys: Positions that are read.
        unit: Which unit each position of the prompt belongs to.
        heads: Heads to edit; all if None.
        row_wise: That it works row by row.
        overwrites: That it does not.
    """

    queries: TokenSet
    keys: TokenSet
    unit: Int[Tensor, " pos"]
    heads: tuple[int, ...] | None = None
    row_wise: bool = True
    overwrites: bool = False

    @property
    def touches(self) -> TokenSet:
        """The queries."""
        return self.queries

    def __call__(
        self, scores: Float[Tensor, "batch head query_pos key_pos"], hook: HookPoint
    ) -> Float[Tensor, "batch head query_pos key_pos"]:
        """A copy of the scores with -inf at the forbidden pairs."""
        query, key = query_positions(hook, scores, dim=2), key_positions(hook, scores)
        rows = rows_of(hook, self.queries) & rows_of(hook, self.keys)
        apart = self._unit_at(query)[..., None] != self._unit_at(key)[:, None]
        forbidden = self.queries.holds(query)[..., None] & self.keys.holds(key)[:, None] & apart
        return _forbid(scores, forbidden, rows, self.heads, hook)

    def _unit_at(self, positions: Int[Tensor, "batch pos"]) -> Int[Tensor, "batch pos"]:
        """The unit of each position; one that is not yet generated is a unit of its own."""
        own = self.unit.to(positions.device)
        after = int(own.max()) + 1 + positions
        return torch.where(positions < len(own), own[positions.clamp(0, len(own) - 1)], after)


@dataclass(frozen=True, eq=False)
class KnockoutPairs:
    """Stops single queries from attending to single keys, all positions of the prompt. Works row by row.

    Attributes:
        pairs: The forbidden pairs.
        tokens: The prompt they belong to.
        heads: Heads to edit; all if None.
        row_wise: That it works row by row.
        overwrites: That it does not.
    """

    pairs: Pairs
    tokens: TokenMap
    heads: tuple[int, ...] | None = None
    row_wise: bool = True
    overwrites: bool = False

    @property
    def touches(self) -> TokenSet:
        """The queries."""
        return self.tokens.at(self.pairs[:, 0].unique().tolist())

    def __call__(
        self, scores: Float[Tensor, "batch head query_pos key_pos"], hook: HookPoint
    ) -> Float[Tensor, "batch head query_pos key_pos"]:
        """A copy of the scores with -inf at the forbidden pairs."""
        query, key = query_positions(hook, scores, dim=2), key_positions(hook, scores)
        forbidden = torch.stack([self._at(q, k) for q, k in zip(query, key, strict=True)])
        return _forbid(scores, forbidden, rows_of(hook, self.tokens.all), self.heads, hook)

    def _at(self, query: Int[Tensor, " query_pos"], key: Int[Tensor, " key_pos"]) -> Bool[Tensor, "query_pos key_pos"]:
        """Which pairs of these rows and columns are forbidden."""
        row, column = (
            self._where(positions)[of.to(query.device)]
            for positions, of in ((query, self.pairs[:, 0]), (key, self.pairs[:, 1]))
        )
        here = (row >= 0) & (column >= 0)
        forbidden = torch.zeros(len(query), len(key), dtype=torch.bool, device=query.device)
        forbidden[row[here], column[here]] = True
        return forbidden

    def _where(self, positions: Int[Tensor, " pos"]) -> Int[Tensor, " prompt_pos"]:
        """The row or column at which each position of the prompt stands; -1 where it does not."""
        where = positions.new_full((len(self.tokens),), -1)
        inside = ((positions >= 0) & (positions < len(where))).nonzero()[:, 0]
        where[positions[inside]] = inside
        return where

    def __repr__(self) -> str:
        return f"KnockoutPairs({len(self.pairs)} pairs)"


def knockout(
    queries: TokenSet, keys: TokenSet, *, layers: names.Layers = "all", heads: Sequence[int] | None = None
) -> list[FwdHook]:
    """Hooks that stop `queries` from attending to `keys` in `layers`.

    Args:
        queries: Positions that read; positions not yet generated may be in it (`tokens.last | tokens.generated`).
        keys: Positions that are read.
        layers: Blocks to edit, 0-based.
        heads: Heads to edit, 0-based; all by default.

    Raises:
        PositionError: While running, if a query would be left with no key at all.
    """
    edit = Knockout(queries, keys, _chosen(heads))
    return [(name, edit) for name in names.hook_names("attn_scores", layers)]


def knockout_across(
    queries: TokenSet,
    keys: TokenSet,
    unit: Int[Tensor, " pos"],
    *,
    layers: names.Layers = "all",
    heads: Sequence[int] | None = None,
) -> list[FwdHook]:
    """Hooks that stop `queries` from attending to the `keys` of another unit; what is of one unit is read as before.

    Args:
        queries: Positions that read.
        keys: Positions that are read.
        unit: Which unit each position of the prompt belongs to, such as `avlens.groups.units(tokens, "frames")`.
        layers: Blocks to edit, 0-based.
        heads: Heads to edit, 0-based; all by default.

    Raises:
        PositionError: If there is not one unit for each position.
    """
    queries.tokens.check_own(keys)
    if len(unit) != len(queries.tokens):
        raise PositionError(
            f"{len(unit)} units were given for {len(queries.tokens)} positions. Give each position one."
        )
    edit = KnockoutAcross(queries, keys, unit, _chosen(heads))
    return [(name, edit) for name in names.hook_names("attn_scores", layers)]


def knockout_pairs(
    pairs: Pairs, tokens: TokenMap, *, layers: names.Layers = "all", heads: Sequence[int] | None = None
) -> list[FwdHook]:
    """Hooks that forbid single pairs of a query and a key of a prompt.

    Args:
        pairs: Positions of query and key, such as `random_pairs(tokens, 100, seed=0)`.
        tokens: The prompt they belong to.
        layers: Blocks to edit, 0-based.
        heads: Heads to edit, 0-based; all by default.

    Raises:
        PositionError: If a position is outside the prompt.
    """
    if len(pairs) and not 0 <= int(pairs.min()) <= int(pairs.max()) < len(tokens):
        raise PositionError(
            f"pairs hold positions from {int(pairs.min())} to {int(pairs.max())}, but the prompt has {len(tokens)} "
            f"(0 to {len(tokens) - 1})."
        )
    edit = KnockoutPairs(pairs, tokens, _chosen(heads))
    return [(name, edit) for name in names.hook_names("attn_scores", layers)]


def random_pairs(tokens: TokenMap, count: int, *, seed: int) -> Pairs:
    """`count` random pairs of a query and an earlier key of a prompt, each once: the control for as many chosen pairs.

    Raises:
        PositionError: If the prompt has fewer.
    """
    total = len(tokens) * (len(tokens) - 1) // 2
    if count > total:
        raise PositionError(f"{count} pairs were asked of a prompt that has {total} of a query and an earlier key.")
    drawn = np.random.default_rng(seed).choice(total, count, replace=False, shuffle=False)
    # Pair number n of the triangle below the diagonal is in row q, where q (q - 1) / 2 <= n < q (q + 1) / 2.
    query = ((1 + np.sqrt(1 + 8 * drawn.astype(np.float64))) / 2).astype(np.int64)
    query -= query * (query - 1) // 2 > drawn
    query += (query + 1) * query // 2 <= drawn
    return torch.from_numpy(np.stack([query, drawn - query * (query - 1) // 2], axis=1))


def random_keys(tokens: TokenMap, counts: Int[Tensor, " pos"], *, seed: int) -> Pairs:
    """For each query as many random earlier keys as `counts` says: the control that keeps who reads, and how much.

    Raises:
        PositionError: If a query has fewer earlier keys, or there is not one count for each position.
    """
    if len(counts) != len(tokens) or bool((counts > torch.arange(len(tokens))).any()):
        raise PositionError(
            "counts asks more keys of a query than there are before it, or is not one per position. Count keys that a query can "
            "read, itself left out."
        )
    generator = np.random.default_rng(seed)
    rows = [
        np.stack([np.full(n, query), generator.choice(query, n, replace=False, shuffle=False)], axis=1)
        for query, n in enumerate(counts.tolist())
        if n
    ]
    return torch.from_numpy(np.concatenate(rows)) if rows else torch.empty(0, 2, dtype=torch.long)


def knockout_types(
    tokens: TokenMap, rules: Sequence[str], *, n_layers: int | None = None, strict_p2: bool = False
) -> list[FwdHook]:
    """Hooks for rules such as `"generated,video,0,35"`: tokens of the first type do not read those of the second.

    A rule blocks layers from its first number up to, not including, its second. Types are `query_text` (every position of the
    prompt that is no medium), `audio`, `video`, `image` and `generated`. As a reader, the prompt's last position counts as
    generated, since it writes the first new token.

    Args:
        tokens: The prompt's.
        rules: One or more.
        n_layers: The model's; with it a rule that goes further is refused here, else while running.
        strict_p2: As the released code has it: the last position is `query_text`, so that the first new token is not blocked.

    Raises:
        HookError: If a rule cannot be read.
        LayerError: If a rule has no layer, or goes beyond the model.
    """
    if isinstance(rules, str):
        raise HookError(f"rules is {rules!r}. Pass a list of rules, such as [{rules!r}].")
    hooks: list[FwdHook] = []
    for rule in rules:
        reads, is_read, first, end = _parsed(rule)
        if first >= end or (n_layers is not None and end > n_layers):
            raise LayerError(
                f"the rule {rule!r} blocks layers {first} to {end - 1}"
                f"{'' if n_layers is None else f' of a model with {n_layers}'}. The second number is the first layer left alone."
            )
        queries = _of_type(tokens, reads)
        if not strict_p2:
            queries = queries | tokens.last if reads == "generated" else queries - tokens.last
        hooks += knockout(queries, _of_type(tokens, is_read), layers=range(first, end))
    return hooks


def _of_type(tokens: TokenMap, kind: str) -> TokenSet:
    if kind == "query_text":
        return tokens.all - tokens.media
    found: TokenSet = getattr(tokens, kind)
    return found


def _parsed(rule: str) -> tuple[str, str, int, int]:
    pieces = [piece.strip() for piece in rule.split(",")]
    if len(pieces) != 4 or not set(pieces[:2]) <= set(_TYPES) or not all(piece.isdecimal() for piece in pieces[2:]):
        raise HookError(
            f"the rule {rule!r} cannot be read. Write 'reader,read,first,end', such as 'generated,video,15,30', with types "
            f"{', '.join(_TYPES)}."
        )
    return pieces[0], pieces[1], int(pieces[2]), int(pieces[3])


def _chosen(heads: Sequence[int] | None) -> tuple[int, ...] | None:
    return None if heads is None else tuple(heads)


def _forbid(
    scores: Tensor, pairs: Bool[Tensor, "batch query_pos key_pos"], rows: Bool[Tensor, " batch"],
    heads: tuple[int, ...] | None, hook: HookPoint,
) -> Tensor:  # fmt: skip
    """A copy of the scores with -inf at the pairs, in these rows of the batch and these heads."""
    forbidden = (pairs & rows.to(pairs.device)[:, None, None])[:, None] & head_mask(heads, scores)
    edited = scores.masked_fill(forbidden, -torch.inf)
    _refuse_starved(edited, query_positions(hook, scores, dim=2), hook)
    return edited


def _refuse_starved(scores: Tensor, query: Int[Tensor, "batch query_pos"], hook: HookPoint) -> None:
    """A query that may read nothing has no attention; padding rows read only themselves and are exempt."""
    starved = torch.isneginf(scores).all(-1).any(1) & (query >= 0)
    if bool(starved.any()):
        row, position = starved.nonzero()[0].tolist()
        raise PositionError(
            f"the knockout leaves position {int(query.expand(starved.shape)[row, position])} with nothing to read at "
            f"{hook.name}. Leave it at least one key, such as itself or the first token."
        )


_TYPES = ("query_text", "audio", "video", "image", "generated")
