"""Attention knockout: forbid some queries to read some keys.

Sets the scores of the chosen (query, key) pairs to -inf before the softmax, so that the remaining keys share the
row's whole mass.

Source: Geva et al. 2023, "Dissecting Recall of Factual Associations in Auto-Regressive Language Models",
arXiv:2304.14767.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from avlens import names
from avlens.errors import PositionError
from avlens.hooks import FwdHook, HookPoint, head_mask, key_positions, query_positions, rows_of
from avlens.tokens import TokenSet


@dataclass(frozen=True)
class Knockout:
    """Stops `queries` from attending to `keys`, in some heads or in every one. Works row by row."""

    queries: TokenSet
    keys: TokenSet
    heads: tuple[int, ...] | None = None
    row_wise: bool = True

    def __call__(
        self, scores: Float[Tensor, "batch head query_pos key_pos"], hook: HookPoint
    ) -> Float[Tensor, "batch head query_pos key_pos"]:
        """A copy of the scores with -inf at the forbidden pairs."""
        query, key = query_positions(hook, scores, dim=2), key_positions(hook, scores)
        rows = (rows_of(hook, self.queries) & rows_of(hook, self.keys)).to(scores.device)
        forbidden = (self.queries.holds(query) & rows[:, None])[:, None, :, None] & self.keys.holds(key)[:, None, None]
        forbidden = forbidden & head_mask(self.heads, scores)
        edited = scores.masked_fill(forbidden, -torch.inf)
        _refuse_starved(edited, query, hook)
        return edited


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
    chosen = None if heads is None else tuple(heads)
    return [(name, Knockout(queries, keys, chosen)) for name in names.hook_names("attn_scores", layers)]


def _refuse_starved(scores: Tensor, query: Int[Tensor, "batch query_pos"], hook: HookPoint) -> None:
    """A query that may read nothing has no attention; padding rows read only themselves and are exempt."""
    starved = torch.isneginf(scores).all(-1).any(1) & (query >= 0)
    if bool(starved.any()):
        row, position = starved.nonzero()[0].tolist()
        raise PositionError(
            f"the knockout leaves position {int(query.expand(starved.shape)[row, position])} with nothing to read at "
            f"{hook.name}. Leave it at least one key, such as itself or the first token."
        )
