"""Discarding: let tokens leave the sequence at a layer.

From that layer on the tokens are gone: their hidden states, keys and values are not computed and not kept, the others
keep their position ids. For the tokens that remain this equals knocking the discarded ones out of every query from
that layer on, at less cost. What comes back has logits for the remaining positions only.

It changes the length of the sequence, so it runs on HookedAVModel alone, in the prompt, for prompts of one layout.

Which tokens leave is said beforehand (`discard`), or decided while running (`fastv`): those that the last position reads least,
by its attention in the layer before, averaged over heads.

Source: token discarding of "From Senses to Decisions", arXiv:2606.10147, table 4; Chen et al. 2024, "An Image is Worth
1/2 Tokens After Layer 2" (FastV), arXiv:2403.06764.
"""

from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from avlens import names
from avlens.errors import BatchError, HookError, LayerError, PositionError
from avlens.hooks import FwdHook, HookPoint, current_run, key_positions, query_positions
from avlens.tokens import TokenSet


@dataclass(frozen=True)
class Discard:
    """Drops `tokens` from the residual stream."""

    tokens: TokenSet

    def __call__(
        self, x: Float[Tensor, "batch pos d_model"], hook: HookPoint
    ) -> Float[Tensor, "batch kept d_model"] | None:
        """The remaining rows; None in decoding, where the discarded tokens are long gone."""
        run = current_run(hook)
        if run is None:
            raise HookError(
                f"discard changes the length of the sequence at {hook.name}, so it runs on a HookedAVModel only."
            )
        if any(layout != self.tokens.layout for layout in run.layouts):
            raise BatchError(
                f"{self.tokens!r} must fit every prompt that runs. Discard from prompts of one layout at a time."
            )
        own = run.query_index - int(run.padding[0])
        keep = (~self.tokens.holds(own)).nonzero()[:, 0]
        if len(keep) == len(own):
            return None
        # What listens here after this edit sees the remaining rows, and must be told where they stand.
        run.discarded, run.keep = True, keep if run.keep is None else run.keep[keep]
        run.query_index = run.query_index[keep]
        return x[:, keep.to(x.device)]


@dataclass(eq=False)
class Ranking:
    """How much the last position reads each position of the prompt; NaN where it reads none that is left. Written in each run."""

    read: Float[Tensor, " pos"] = field(default_factory=lambda: torch.empty(0))


@dataclass(frozen=True, eq=False)
class Rank:
    """Notes what the last position of the prompt reads, averaged over heads. Works row by row."""

    tokens: TokenSet
    ranking: Ranking
    row_wise: bool = True
    reads_only: bool = True

    def __call__(self, pattern: Float[Tensor, "batch head query_pos key_pos"], hook: HookPoint) -> None:
        """Nothing changes.

        Raises:
            BatchError: If several prompts run: each would keep tokens of its own.
        """
        if len(pattern) > 1:
            raise BatchError(
                f"FastV ranks the tokens of one prompt, but {len(pattern)} rows run. Run one prompt at a time, without a "
                "decoding method that has streams."
            )
        length = len(self.tokens.tokens)
        row = (query_positions(hook, pattern, dim=2)[0] == length - 1).nonzero()[:, 0]
        if len(row):
            self.ranking.read = pattern.new_full((length,), torch.nan, dtype=torch.float32)
            self.ranking.read[key_positions(hook, pattern)[0]] = pattern[0, :, int(row[0])].float().mean(0)


@dataclass(frozen=True, eq=False)
class DiscardLeastRead:
    """Drops those of `tokens` that the ranking has last, all but `keep` of them."""

    tokens: TokenSet
    keep: int
    ranking: Ranking

    def __call__(
        self, x: Float[Tensor, "batch pos d_model"], hook: HookPoint
    ) -> Float[Tensor, "batch kept d_model"] | None:
        """The remaining rows; None in decoding, where the discarded tokens are long gone."""
        if x.shape[1] > 1:
            return Discard(self.least_read())(x, hook)
        return None

    def least_read(self) -> TokenSet:
        """The tokens that leave; of equals the later ones."""
        left = self.tokens.sorted().positions
        read = self.ranking.read.cpu()[left]
        order = read.nan_to_num(-1).argsort(descending=True, stable=True)
        return self.tokens.tokens.at(left[order[self.keep :]].tolist())


def discard(tokens: TokenSet, *, layer: int) -> list[FwdHook]:
    """Hooks that drop `tokens` before block `layer`.

    Args:
        tokens: Positions to drop, in the prompt.
        layer: First block that runs without them, 0-based.

    Raises:
        PositionError: If the last position is among them: it predicts the answer. Or if `tokens` goes beyond the prompt.
    """
    if len(tokens.tokens) - 1 in tokens:
        raise PositionError(
            f"{tokens!r} holds the prompt's last position {len(tokens.tokens) - 1}, which predicts the answer. "
            "Subtract it: tokens - inputs.tokens.last."
        )
    if tokens.open_ended:
        raise PositionError(
            "a set with positions that are not yet generated cannot be discarded: only the prompt's are. Subtract them: "
            "tokens - inputs.tokens.generated."
        )
    names.checked_layers([layer])
    return [(names.at("resid_pre", layer), Discard(tokens))]


def fastv(tokens: TokenSet, *, layer: int = 2, ratio: float = 0.5) -> list[FwdHook]:
    """Hooks of FastV: before block `layer`, the share `ratio` of `tokens` that the last position reads least leaves.

    Attention is computed explicitly in the block before, whose pattern ranks them; nothing else is slower.

    Args:
        tokens: What may leave: `inputs.tokens.video`, `inputs.tokens.media`, ...
        layer: First block that runs without them, 0-based, not the first of all. The paper's K.
        ratio: Share that leaves, in [0, 1]. The paper's R.

    Raises:
        LayerError: If no block comes before.
        HookError: If the ratio is none.
        PositionError: If the last position is among the tokens.
    """
    if not 0 <= ratio <= 1:
        raise HookError(f"ratio is {ratio}. Pass the share of tokens that leaves, from 0 to 1.")
    if layer == 0:
        raise LayerError("layer is 0, but the tokens are ranked by the attention of the block before. Pass 1 or more.")
    (name, _), *_ = discard(tokens, layer=layer)
    ranking = Ranking()
    keep = round(len(tokens) * (1 - ratio))
    return [
        (names.at("pattern", layer - 1), Rank(tokens, ranking)),
        (name, DiscardLeastRead(tokens, keep, ranking)),
    ]
