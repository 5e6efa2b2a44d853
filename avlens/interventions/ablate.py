"""Ablation: replace activations at some positions by ones that say nothing about them.

    zero      0
    mean      the mean over the positions of a reference run
    resample  the activations of positions drawn from a reference run, the same draw in every layer

The reference is a cache of another prompt or, by default, the run itself; mean and resample use its positions of the
same modality as each ablated one. Only the prompt is ablated.

Source: Wang et al. 2022, "Interpretability in the Wild", arXiv:2211.00593 (mean); Chan et al. 2022, "Causal
Scrubbing" (resample).
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from avlens import names
from avlens.cache import AVCache
from avlens.errors import HookError, PositionError
from avlens.hooks import FwdHook, HookPoint, query_positions, rows_of
from avlens.tokens import Modality, TokenMap, TokenSet

Method = Literal["zero", "mean", "resample"]


@dataclass(frozen=True, eq=False)
class Ablate:
    """Replaces the activation at `tokens`.

    Attributes:
        tokens: Where.
        method: By what.
        sources: Positions that are replaced alike, and the reference positions they take from: all of them (mean), one
            each (resample) or none (zero).
        reference: The reference run, or None for the run itself.
        name: Short name of the activation.
    """

    tokens: TokenSet
    method: Method
    sources: tuple[tuple[Int[Tensor, " _replaced"], Int[Tensor, " _source"]], ...]
    reference: AVCache | None
    name: str
    overwrites: bool = True

    @property
    def touches(self) -> TokenSet | None:
        """Where; None if the values come from other positions of the run itself, which must then be computed too."""
        return None if self.reference is None and self.method != "zero" else self.tokens

    def __call__(self, x: Float[Tensor, "batch pos *rest"], hook: HookPoint) -> Float[Tensor, "batch pos *rest"] | None:
        """A copy of `x` with the positions replaced; None where the run computes none of them.

        Of a run from which tokens were discarded, the mean is over those that are left, NaN where none is; a resampled
        position whose source was discarded is NaN.
        """
        positions, of_layout = query_positions(hook, x), rows_of(hook, self.tokens).tolist()
        edited = None
        for row in range(x.shape[0]):
            where = self._where(positions[min(row, len(positions) - 1)])
            if of_layout[min(row, len(of_layout) - 1)] and bool((where[self.tokens.positions.to(x.device)] >= 0).any()):
                edited = x.clone() if edited is None else edited
                self._edit(edited[row], x[row], where, hook)
        return edited

    def _where(self, own: Int[Tensor, " pos"]) -> Int[Tensor, " prompt_pos"]:
        """The row of the tensor at which each position of the prompt is computed; -1 where it is not."""
        where = own.new_full((len(self.tokens.tokens),), -1)
        rows = ((own >= 0) & (own < len(where))).nonzero()[:, 0]
        where[own[rows]] = rows
        return where

    def _edit(self, out: Tensor, x: Tensor, where: Int[Tensor, " prompt_pos"], hook: HookPoint) -> None:
        for replaced, source in self.sources:
            into = where[replaced.to(x.device)]
            out[into[into >= 0]] = self._values(x, where, source, hook, into >= 0)

    def _values(
        self, x: Tensor, where: Int[Tensor, " prompt_pos"], source: Int[Tensor, " _source"], hook: HookPoint,
        computed: Bool[Tensor, " _replaced"],
    ) -> Tensor:  # fmt: skip
        if self.method == "zero":
            return x.new_zeros(())
        source = source.to(x.device) if self.method == "mean" else source.to(x.device)[computed]
        if self.reference is None:
            held, index = x, where[source]
        else:
            self.reference.require_positions([str(hook.name)])
            held, index = self.reference[str(hook.name)][0].to(x.device, x.dtype), source
        if self.method == "mean":
            return held[index[index >= 0]].mean(0)
        gone = (index < 0).view(-1, *[1] * (held.ndim - 1))
        return held[index.clamp(min=0)].masked_fill(gone, torch.nan)

    def __repr__(self) -> str:
        return f"Ablate({self.name} at {self.tokens!r} by {self.method})"


def ablate(
    tokens: TokenSet,
    *,
    by: Method = "zero",
    layers: names.Layers = "all",
    site: str = "resid_pre",
    reference: AVCache | None = None,
    seed: int = 0,
) -> list[FwdHook]:
    """Hooks that replace the activation at `tokens` in `layers`.

    Args:
        tokens: Positions to ablate, in the prompt.
        by: `zero`, `mean` or `resample`.
        layers: Blocks to edit, 0-based.
        site: Short name of an activation with positions second.
        reference: Another run to take means or samples from, which holds `site` in those layers.
        seed: For `resample`.

    Raises:
        HookError: If `site` has no position axis, or `by` is none of the three.
        PositionError: If the reference has no position of a modality that is ablated, or `tokens` goes beyond the prompt.
            While running, if tokens had been discarded from the reference.
    """
    if site in ("attn_scores", "pattern"):
        raise HookError(f"{site} has no axis of positions. Use knockout or reweight for attention.")
    if by not in ("zero", "mean", "resample"):
        raise HookError(f"by is {by!r}. Ablate by 'zero', 'mean' or 'resample'.")
    if tokens.open_ended:
        raise PositionError(
            "a set with positions that are not yet generated cannot be ablated: only the prompt is. Subtract them: "
            "tokens - inputs.tokens.generated."
        )
    pool = tokens.tokens if reference is None else reference.tokens
    edit = Ablate(tokens, by, _sources(tokens, pool, by, seed), reference, site)
    return [(name, edit) for name in names.hook_names(site, layers)]


def _sources(
    tokens: TokenSet, pool: TokenMap, by: Method, seed: int
) -> tuple[tuple[Int[Tensor, " _replaced"], Int[Tensor, " _source"]], ...]:
    if by == "zero":
        return ((tokens.positions, torch.empty(0, dtype=torch.long)),)
    kinds = tokens.tokens.modality[tokens.positions]
    alike = {code: (pool.modality == code).nonzero()[:, 0] for code in kinds.unique().tolist()}
    for code, source in alike.items():
        if len(source) == 0:
            raise PositionError(
                f"the reference has no {Modality(code).name.lower()} position to take from, but position "
                f"{int(tokens.positions[kinds == code][0])} is one."
            )
    if by == "mean":
        return tuple((tokens.positions[kinds == code], source) for code, source in alike.items())
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.empty_like(tokens.positions)
    for code, source in alike.items():
        here = kinds == code
        drawn[here] = source[torch.randint(len(source), (int(here.sum()),), generator=generator)]
    return ((tokens.positions, drawn),)
