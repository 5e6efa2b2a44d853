"""Which edges between groups of tokens are there, how are they written, and which hooks cut them?

    video -> question        the question may not read the video
    video <-> audio          nor either the other
    video -> video across frames
    video + audio -> text    groups joined; `text` is what is no medium, `all` every position that is not in the source

An edge within one group leaves each token itself to read. What is cut is counted in pairs of a query and a key, so that controls
can cut as many at random.

Source: windows and sweeps as in analysis/information_flow_analysis.py:350-361, random edges as in
analysis/effective_pathway_analysis.py, of the released code of Kim et al. 2025, "Map the Flow".
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from jaxtyping import Int
from torch import Tensor

from avlens.errors import LayerError, PositionError, PromptError
from avlens.groups import Across, token_groups, units
from avlens.hooks import FwdHook
from avlens.inputs import AVInputs
from avlens.interventions import knockout, knockout_across, knockout_pairs, random_keys, random_pairs
from avlens.names import Layers, checked_layers
from avlens.tokens import TokenMap, TokenSet

Groups = Mapping[str, TokenSet] | Callable[[AVInputs], Mapping[str, TokenSet]]
"""Token groups by name, or a function from a prompt to them."""

Sweep = Literal["window", "inverse", "top_down", "bottom_up"]
Match = Literal["anywhere", "same_queries"]


@dataclass(frozen=True)
class Edge:
    """What may be cut: `target` reads `source`.

    Attributes:
        source: Groups that are read, joined by ` + `.
        target: Groups that read.
        across: Only between different units of this kind, such as frames.
        both: Whether the source reads the target too.
    """

    source: str
    target: str
    across: Across | None = None
    both: bool = False

    @classmethod
    def parse(cls, text: "str | Edge") -> "Edge":
        """An edge as it prints.

        Raises:
            PromptError: If the text is none.
        """
        if isinstance(text, Edge):
            return text
        found = re.fullmatch(r"\s*(.+?)\s*(<?->)\s*(.+?)(?:\s+across\s+(\w+))?\s*", text)
        if found is None or (found[4] and found[4] not in get_args(Across)):
            raise PromptError(
                f"{text!r} is no edge. Write 'source -> target', 'one <-> other', or 'video -> video across frames' "
                f"(across {', '.join(get_args(Across))})."
            )
        across: Any = found[4]
        return cls(found[1], found[3], across, found[2] == "<->")

    def __str__(self) -> str:
        arrow = "<->" if self.both else "->"
        return f"{self.source} {arrow} {self.target}{f' across {self.across}' if self.across else ''}"

    def cut(self, tokens: TokenMap, groups: Mapping[str, TokenSet]) -> "Cut | None":
        """The edge in a prompt; None where the prompt lacks one of its groups."""
        keys = named(self.source, groups, tokens)
        queries = tokens.all - keys if self.target == "all" and keys else named(self.target, groups, tokens)
        if not keys or not queries:
            return None
        across = self.across or ("tokens" if queries & keys else None)
        return Cut(queries, keys, units(tokens, across) if across else None, self.both)


@dataclass(frozen=True, eq=False)
class Cut:
    """An edge in a prompt.

    Attributes:
        queries: Positions that read.
        keys: Positions that are read.
        unit: Which unit each position belongs to; within one, queries go on reading. None: they do nowhere.
        both: Whether the keys' positions may not read the queries' either.
    """

    queries: TokenSet
    keys: TokenSet
    unit: Int[Tensor, " pos"] | None
    both: bool

    def hooks(self, layers: Sequence[int], heads: Sequence[int] | None = None) -> list[FwdHook]:
        """Hooks that cut the edge in some layers."""
        where: dict[str, Any] = {"layers": layers, "heads": heads}
        if self.unit is None:
            return [hook for queries, keys in self._ways() for hook in knockout(queries, keys, **where)]
        return [hook for queries, keys in self._ways() for hook in knockout_across(queries, keys, self.unit, **where)]

    def pairs(self) -> Int[Tensor, " pos"]:
        """How many keys, none after itself, each position may not read."""
        return torch.stack([_counted(queries, keys, self.unit) for queries, keys in self._ways()]).sum(0)

    def random(self, match: Match, layers: Sequence[int], heads: Sequence[int] | None, seed: int) -> list[FwdHook]:
        """Hooks that cut as many random pairs instead.

        Args:
            match: `anywhere`: among all pairs of a query and an earlier key; `same_queries`: as many random keys for each query.
            layers: Blocks to edit, 0-based.
            heads: Heads to edit, 0-based.
            seed: Of the draw.

        Raises:
            PromptError: If there is no such way to match.
        """
        if match not in get_args(Match):
            raise PromptError(f"match is {match!r}. Pass one of {', '.join(get_args(Match))}.")
        tokens, counts = self.queries.tokens, self.pairs()
        if match == "anywhere":
            drawn = random_pairs(tokens, int(counts.sum()), seed=seed)
        else:
            drawn = random_keys(tokens, counts, seed=seed)
        return knockout_pairs(drawn, tokens, layers=layers, heads=heads)

    def _ways(self) -> list[tuple[TokenSet, TokenSet]]:
        there = (self.queries, self.keys)
        return [there, there[::-1]] if self.both else [there]


USUAL = (
    "video -> question", "audio -> question", "video -> options", "audio -> options", "question -> options", "video -> tail",
    "audio -> tail", "video -> last", "audio -> last", "question -> last", "options -> last", "correct option -> last",
    "incorrect options -> last", "tail -> last", "video <-> audio", "video -> video across frames",
    "audio -> audio across chunks", "candidates -> reference", "candidates -> options", "candidates -> last",
    "question -> reference", "reference -> last", "candidates -> candidates across clips", "media -> text",
)  # fmt: skip
"""The edges of "From Senses to Decisions", those to and from the template's tail, and all from media to what is none."""


def usual_edges(tokens: TokenMap, groups: Mapping[str, TokenSet]) -> list[Edge]:
    """Those of `USUAL` that a prompt has; where the right option is known, not those from all options."""
    edges = [Edge.parse(text) for text in USUAL]
    return [
        edge
        for edge in edges
        if edge.cut(tokens, groups) and not (edge.source == "options" and "correct option" in groups)
    ]


def groups_of(groups: Groups | None, inputs: AVInputs) -> Mapping[str, TokenSet]:
    """The groups of a prompt; by default `avlens.groups.token_groups`.

    Raises:
        PositionError: If they belong to a prompt of another layout.
    """
    if groups is None:
        return token_groups(inputs.tokens)
    found = groups(inputs) if callable(groups) else groups
    for chosen in found.values():
        inputs.tokens.check_own(chosen)
    return found


def named(name: str, groups: Mapping[str, TokenSet], tokens: TokenMap) -> TokenSet | None:
    """The union of the groups that a name joins by `+`; None where one is missing or empty."""
    known = {"all": tokens.all, "media": tokens.media, "text": tokens.all - tokens.media - tokens.separator, **groups}
    whole = tokens.at([])
    for piece in name.split("+"):
        chosen = known.get(piece.strip())
        if not chosen:
            return None
        whole = whole | chosen
    return whole


def refuse_unknown(edge: Edge, groups: Mapping[str, TokenSet]) -> None:
    """Say which groups there are.

    Raises:
        PositionError: Always.
    """
    raise PositionError(
        f"no prompt has both ends of the edge {str(edge)!r}. Groups are {', '.join(groups)}; media, text and all are known too. "
        "More come with groups=lambda inputs: token_groups(inputs.tokens, correct=..., reference=...)."
    )


def layer_spans(
    n_layers: int, *, window: int = 7, sweep: Sweep = "window", layers: Layers = "all"
) -> tuple[tuple[int, ...], tuple[tuple[int, ...], ...]]:
    """The layers l of a sweep, and which layers are cut at each.

    With `window` these are k layers centred at l, max(0, l - k//2) to min(L, l + ceil(k/2)) - 1; with `inverse` all others; with
    `top_down` l to the last; with `bottom_up` the first to l.

    Raises:
        LayerError: If there is no such layer, window or sweep.
    """
    if sweep not in get_args(Sweep) or window < 1:
        raise LayerError(
            f"sweep is {sweep!r} and window {window}. Pass one of {', '.join(get_args(Sweep))}, and 1 or more."
        )
    chosen = list(range(n_layers)) if layers == "all" else checked_layers(layers)
    if max(chosen) >= n_layers:
        raise LayerError(f"there is no layer {max(chosen)}: the model has {n_layers} (0 to {n_layers - 1}).")
    return tuple(chosen), tuple(tuple(_span(layer, n_layers, window, sweep)) for layer in chosen)


def _span(layer: int, n_layers: int, window: int, sweep: Sweep) -> Sequence[int]:
    if sweep == "top_down":
        return range(layer, n_layers)
    if sweep == "bottom_up":
        return range(layer + 1)
    around = range(max(0, layer - window // 2), min(n_layers, layer - (-window // 2)))
    return around if sweep == "window" else [one for one in range(n_layers) if one not in around]


def _counted(queries: TokenSet, keys: TokenSet, unit: Int[Tensor, " pos"] | None) -> Int[Tensor, " pos"]:
    """How many of the keys up to itself, and of another unit, each query may not read."""
    counts = keys.mask.long().cumsum(0)
    if unit is not None:
        # Sorted by unit, the keys of a position's own unit up to itself are a difference of running sums.
        order = unit.argsort(stable=True)
        seen = torch.cat([torch.zeros(1, dtype=torch.long), keys.mask.long()[order].cumsum(0)])
        first = torch.searchsorted(unit[order], unit[order])
        counts[order] -= seen[1:] - seen[first]
    return torch.where(queries.mask, counts, 0)
