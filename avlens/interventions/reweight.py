"""Reweighting: let some queries read some keys more, or less.

    attn_scores:  s <- s + strength * |s|     before the softmax, which renormalises the row
    pattern:      p <- p + strength * p       after it; renormalised so that the row sums to 1, or not

`attn_scores` is the default: there PAI and Adaptive Sink-guided Decoding edit.

Source: Liu et al. 2024, "Paying More Attention to Image" (PAI), arXiv:2407.21771; Jung et al. 2026, arXiv:2605.10815.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from avlens import names
from avlens.errors import HookError
from avlens.hooks import FwdHook, HookPoint, head_mask, key_positions, query_positions, rows_of
from avlens.tokens import TokenSet

Site = Literal["attn_scores", "pattern"]


@dataclass(frozen=True)
class Reweight:
    """Scales what `queries` pay to `keys` by 1 + strength, or its score's size by it. Works row by row."""

    queries: TokenSet
    keys: TokenSet
    strength: float
    site: Site
    renormalise: bool = True
    heads: tuple[int, ...] | None = None
    row_wise: bool = True
    overwrites: bool = False

    @property
    def touches(self) -> TokenSet:
        """The queries."""
        return self.queries

    def __call__(
        self, x: Float[Tensor, "batch head query_pos key_pos"], hook: HookPoint
    ) -> Float[Tensor, "batch head query_pos key_pos"]:
        """A copy of the scores or the pattern, reweighted."""
        query, key = query_positions(hook, x, dim=2), key_positions(hook, x)
        rows = (rows_of(hook, self.queries) & rows_of(hook, self.keys)).to(x.device)
        chosen = (self.queries.holds(query) & rows[:, None])[:, None, :, None] & self.keys.holds(key)[:, None, None]
        chosen = chosen & head_mask(self.heads, x)
        if self.site == "attn_scores":
            # A key that may not be read has -inf, which must stay so.
            return torch.where(chosen & x.isfinite(), x + self.strength * x.abs(), x)
        edited = torch.where(chosen, x * (1 + self.strength), x)
        if not self.renormalise:
            return edited
        touched = chosen.any(-1, keepdim=True)
        return torch.where(touched, edited / edited.sum(-1, keepdim=True), edited)


def reweight(
    queries: TokenSet,
    keys: TokenSet,
    strength: float,
    *,
    layers: names.Layers = "all",
    heads: Sequence[int] | None = None,
    site: Site = "attn_scores",
    renormalise: bool = True,
) -> list[FwdHook]:
    """Hooks that make `queries` read `keys` more (positive strength) or less (negative) in `layers`.

    Args:
        queries: Positions that read; positions not yet generated may be in it.
        keys: Positions that are read.
        strength: Relative change; at `pattern` not below -1.
        layers: Blocks to edit, 0-based.
        heads: Heads to edit, 0-based; all by default.
        site: Before (`attn_scores`) or after the softmax (`pattern`).
        renormalise: At `pattern`, whether the edited rows still sum to 1. At strength -1 a row that paid everything
            to `keys` has nothing left and becomes NaN.

    Raises:
        HookError: If the site is neither, or the strength would make attention negative.
    """
    if site not in ("attn_scores", "pattern"):
        raise HookError(f"site is {site!r}. Reweight 'attn_scores' or 'pattern'.")
    if site == "pattern" and strength < -1:
        raise HookError(f"strength {strength} would make the attention negative. Pass -1 or more at 'pattern'.")
    chosen = None if heads is None else tuple(heads)
    edit = Reweight(queries, keys, strength, site, renormalise, chosen)
    return [(name, edit) for name in names.hook_names(site, layers)]
