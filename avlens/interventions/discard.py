"""Discarding: let tokens leave the sequence at a layer.

From that layer on the tokens are gone: their hidden states, keys and values are not computed and not kept, the others
keep their position ids. For the tokens that remain this equals knocking the discarded ones out of every query from
that layer on, at less cost. What comes back has logits for the remaining positions only.

It changes the length of the sequence, so it runs on HookedAVModel alone, in the prompt, for prompts of one layout.

Source: token discarding of "From Senses to Decisions", arXiv:2606.10147, table 4; Chen et al. 2024, "An Image is Worth
1/2 Tokens After Layer 2" (FastV), arXiv:2403.06764.
"""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from avlens import names
from avlens.errors import BatchError, HookError, PositionError
from avlens.hooks import FwdHook, HookPoint, current_run
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
