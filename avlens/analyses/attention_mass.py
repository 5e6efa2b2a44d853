"""Attention by modality: how much of their attention do the question, the last and the generated tokens pay to which tokens?

For queries Q, keys K, a layer and a head, with the pattern's rows summing to 1,

    mass(Q, K) = mean over q in Q of the sum over k in K of pattern[q, k],   in [0, 1]

and over all groups of keys together 1. Attention to sinks is not reading: what sinks get can be told apart (`to_sinks`), and the
rest be shared out anew, `without_sinks = (mass - to_sinks) / (1 - sum over keys of to_sinks)`.

The row of a query writes the token after it, so the first new token is written by `last` and the others by `generated`.

Source: attention to modalities by layer in "Do Audio-Visual Large Language Models Really See and Hear?" (generated queries) and
in "From Senses to Decisions", arXiv:2606.10147 (the last query, and late attention that turns out to be sinks').
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from avlens import display
from avlens.cache import AVCache, Reduction
from avlens.errors import PositionError
from avlens.groups import token_groups
from avlens.hooks import FwdHook, HookPoint, key_positions, query_positions, rows_of
from avlens.inputs import AVInputs
from avlens.tokens import TokenSet

REST = "rest"
"""What no group of keys holds."""


@dataclass(frozen=True, eq=False)
class AttentionMass:
    """How much of their attention groups of queries pay to groups of keys.

    NaN stands where no query of a group was run, as for generated tokens when none was written.

    Attributes:
        mass: Mean over a group's queries of the sum over a group's keys.
        to_sinks: The part of it that goes to sinks; 0 where none are named.
        queries: The first axis.
        keys: The second axis; `rest` is what no group holds.
        layers: The third axis.
        n_queries: How many queries of each group there were.
        made_by: What made it.
    """

    mass: Float[Tensor, "query_group key_group layer head"]
    to_sinks: Float[Tensor, "query_group key_group layer head"]
    queries: tuple[str, ...]
    keys: tuple[str, ...]
    layers: tuple[int, ...]
    n_queries: tuple[int, ...]
    made_by: Mapping[str, Any]

    @property
    def without_sinks(self) -> Float[Tensor, "query_group key_group layer head"]:
        """The attention that does not go to sinks, shared out so that it sums to 1 again; NaN where all of it does."""
        rest = 1 - self.to_sinks.sum(1, keepdim=True)
        return torch.where(rest > 0, (self.mass - self.to_sinks) / rest, torch.nan)

    def of(self, query: str, key: str, *, sinks: bool = True) -> Float[Tensor, "layer head"]:
        """One group's attention to another, with or without sinks.

        Raises:
            PositionError: If there is no such group.
        """
        if query not in self.queries or key not in self.keys:
            raise PositionError(
                f"there is no attention of {query!r} to {key!r}. Queries are {', '.join(self.queries)}; keys are "
                f"{', '.join(self.keys)}."
            )
        return (self.mass if sinks else self.without_sinks)[self.queries.index(query), self.keys.index(key)]

    def to_frame(self) -> pd.DataFrame:
        """One row per group of queries, group of keys and layer: means over heads."""
        means = {"mass": self.mass, "to_sinks": self.to_sinks, "without_sinks": self.without_sinks}
        rows = [
            {"query": query, "key": key, "layer": layer}
            | {name: float(values[i, j, k].mean()) for name, values in means.items()}
            for i, query in enumerate(self.queries)
            for j, key in enumerate(self.keys)
            for k, layer in enumerate(self.layers)
        ]
        return pd.DataFrame(rows)

    def __repr__(self) -> str:
        shown = f"{', '.join(self.queries)} -> {', '.join(self.keys)}"
        return f"AttentionMass({shown}; {len(self.layers)} layers, {self.mass.shape[-1]} heads)"

    def _repr_html_(self) -> str:
        return display.table(repr(self), self.to_frame(), self.made_by)


def attention_by_group(
    model: Any,
    inputs: AVInputs,
    *,
    queries: Mapping[str, TokenSet] | None = None,
    keys: Mapping[str, TokenSet] | None = None,
    sinks: TokenSet | None = None,
    max_new_tokens: int = 0,
    fwd_hooks: list[FwdHook] | None = None,
) -> AttentionMass:
    """Run one prompt, and sum its attention by groups while it runs; no pattern is kept.

    Args:
        model: A HookedAVModel.
        inputs: One prompt.
        queries: Groups that read; by default `question`, `tail`, `last` and `generated`, as far as there are any.
        keys: Groups that are read, no two with a token in common; by default `avlens.groups.token_groups`.
        sinks: Positions whose attention is told apart, such as `find_sinks(...).tokens`.
        max_new_tokens: How many tokens to let the model write; 0 for none.
        fwd_hooks: Edits to run with.

    Raises:
        PositionError: If a group belongs to a prompt of another layout, is empty, or shares a token with another.
    """
    found = token_groups(inputs.tokens)
    usual = {name: chosen for name, chosen in found.items() if name in ("question", "tail", "last", "generated")}
    reading, read = dict(usual if queries is None else queries), dict(found if keys is None else keys)
    sinks = inputs.tokens.at([]) if sinks is None else sinks
    _check(inputs, reading, read, sinks)
    whole = TokenSet(inputs.tokens.all.positions, inputs.tokens, open_ended=True)
    read[REST] = whole - _together(read, inputs)
    keep = [_mass(chosen, tuple(read.values()), sinks, f"by_{i}") for i, chosen in enumerate(reading.values())]
    if max_new_tokens:
        out = model.generate(inputs, max_new_tokens, fwd_hooks=fwd_hooks or [], reductions=keep)
        cache, made_by = out.cache, out.made_by
    else:
        _, cache = model.run_with_cache(
            inputs, [], reductions=keep, fwd_hooks=fwd_hooks or [], logits_at=inputs.tokens.last
        )
        made_by = cache.made_by
    return _summed(cache, tuple(reading), tuple(read), made_by)


def _summed(
    cache: AVCache, queries: tuple[str, ...], keys: tuple[str, ...], made_by: Mapping[str, Any]
) -> AttentionMass:
    layers = cache.layers("pattern.by_0")
    sums = torch.stack(
        [torch.stack([cache[f"pattern.by_{i}", layer][0].cpu() for layer in layers]) for i in range(len(queries))]
    )  # query_group layer head (mass of each key group, its sinks' part of each, how many queries)
    counts, n = sums[..., -1:], len(keys)
    means = (sums[..., :-1] / counts).permute(0, 3, 1, 2)
    n_queries = tuple(int(count) for count in counts[:, 0, 0, 0])
    return AttentionMass(means[:, :n], means[:, n:], queries, keys, tuple(layers), n_queries, made_by)


def _mass(queries: TokenSet, keys: tuple[TokenSet, ...], sinks: TokenSet, label: str) -> Reduction:
    """Sums over `queries` of what they pay to each group, then to its sinks, then how many they are: [batch, head, sum]."""

    def mass(
        pattern: Float[Tensor, "batch head query_pos key_pos"], hook: HookPoint
    ) -> Float[Tensor, "batch head sum"]:
        query, key = query_positions(hook, pattern, dim=2), key_positions(hook, pattern)
        asked = (queries.holds(query) & rows_of(hook, queries).to(query.device)[:, None]).to(pattern.dtype)
        paid = torch.einsum("bq,bhqk->bhk", asked, pattern).float()
        member = torch.stack([group.holds(key) for group in keys], dim=-1)
        of_sinks = member & sinks.holds(key)[..., None]
        groups = torch.cat([member, of_sinks], dim=-1).float().expand(len(paid), -1, -1)
        count = asked.float().sum(1)[:, None, None].expand(-1, paid.shape[1], 1)
        return torch.cat([paid @ groups, count], dim=-1)

    return Reduction("pattern", label, mass, "sum")


def _together(groups: Mapping[str, TokenSet], inputs: AVInputs) -> TokenSet:
    whole = inputs.tokens.at([])
    for chosen in groups.values():
        whole = whole | chosen
    return whole


def _check(inputs: AVInputs, queries: Mapping[str, TokenSet], keys: Mapping[str, TokenSet], sinks: TokenSet) -> None:
    for name, chosen in [*queries.items(), *keys.items(), ("sinks", sinks)]:
        inputs.tokens.check_own(chosen)
        if not chosen and name != "sinks":
            raise PositionError(
                f"the group {name!r} is empty, so that there is no attention of it or to it. Leave it out."
            )
    if not queries or not keys or REST in keys:
        raise PositionError(
            f"queries are {list(queries)} and keys {list(keys)}. Name one or more of each; {REST!r} is what is left of the keys."
        )
    seen = inputs.tokens.at([])
    for name, chosen in keys.items():
        if seen & chosen:
            raise PositionError(
                f"the group of keys {name!r} shares {seen & chosen!r} with one before it. Subtract one from the other."
            )
        seen = seen | chosen
