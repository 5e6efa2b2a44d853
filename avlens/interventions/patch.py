"""Activation patching: put activations of one run into another.

Writes the activations that a cache holds at chosen positions over those of the run that the hooks are given to, in
the prompt only: tokens generated later read the patched keys and values. Patching `resid_pre` of a set at all layers
is, for every position outside the set, the same as patching `ln1.normalized` or `k` and `v` there.

Source: Meng et al. 2022, "Locating and Editing Factual Associations in GPT", arXiv:2202.05262 (causal tracing);
Jung et al. 2026, arXiv:2605.10815, released code logic/causal_trace.py:162-223 (site `before_attn`, here
`ln1.normalized`).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from avlens import names
from avlens.cache import AVCache
from avlens.errors import HookError, LayerError, PositionError
from avlens.hooks import FwdHook, HookPoint, query_positions, rows_of
from avlens.tokens import TokenSet

WITH_HEADS = ("z", "q", "k", "v", "rot_q", "rot_k", "result")
"""Activations that have heads; `k`, `v` and `rot_k` have key-value heads."""


@dataclass(frozen=True, eq=False)
class Patch:
    """Writes `values` over the activation at `tokens`.

    Attributes:
        tokens: Where; positions that the run does not compute now are left out.
        values: One row per token, in the set's order; or one per position of the prompt they come from, which many patches share.
        name: The activation they come from.
        heads: Heads to write, of an activation that has them; all if None.
        whole: Whether `values` are the whole prompt's.
    """

    tokens: TokenSet
    values: Float[Tensor, "row *rest"]
    name: str
    heads: tuple[int, ...] | None = None
    whole: bool = False

    @property
    def touches(self) -> TokenSet:
        """Where."""
        return self.tokens

    @property
    def overwrites(self) -> bool:
        """Whether nothing is left of what was there: not where other heads keep theirs."""
        return self.heads is None

    @property
    def table(self) -> Float[Tensor, "pos *rest"] | None:
        """What it would write at each position of the prompt, where that is known."""
        return self.values if self.whole and self.overwrites else None

    def at(self, tokens: TokenSet) -> "Patch":
        """The same at other positions; only of a whole prompt's values."""
        return replace(self, tokens=tokens)

    def __call__(self, x: Float[Tensor, "batch pos *rest"], hook: HookPoint) -> Float[Tensor, "batch pos *rest"]:
        """A copy of `x` with the values in place."""
        if x.shape[2:] != self.values.shape[1:]:
            raise HookError(
                f"values of {self.name} have shape {list(self.values.shape[1:])} per position, but {hook.name} has "
                f"{list(x.shape[2:])}. Patch an activation into itself."
            )
        positions, rows = query_positions(hook, x), rows_of(hook, self.tokens).to(x.device)
        hits = (self.tokens.holds(positions) & rows[:, None]).expand(x.shape[:2])
        row = self._row_of(positions.expand(x.shape[:2])[hits])
        edited = x.clone()
        values = self.values[row.to(self.values.device)].to(x.device, x.dtype)
        edited[hits] = values if self.heads is None else self._in_heads(x[hits], values)
        return edited

    def _in_heads(self, x: Float[Tensor, "hit head d_head"], values: Float[Tensor, "hit head d_head"]) -> Tensor:
        if wrong := [head for head in self.heads or () if not 0 <= head < x.shape[1]]:
            raise PositionError(f"there is no head {wrong[0]}: {self.name} has {x.shape[1]} (0 to {x.shape[1] - 1}).")
        chosen = list(self.heads or ())
        x[:, chosen] = values[:, chosen]
        return x

    def _row_of(self, positions: Int[Tensor, " hit"]) -> Int[Tensor, " hit"]:
        """Which of the values belongs to each of these positions, all of which are in the set."""
        if self.whole:
            return positions
        row = torch.empty(len(self.tokens.tokens), dtype=torch.long)
        row[self.tokens.positions] = torch.arange(len(self.tokens))
        return row.to(positions.device)[positions]

    def __repr__(self) -> str:
        return f"Patch({self.name} at {self.tokens!r})"


def patch(
    cache: AVCache,
    tokens: TokenSet,
    *,
    layers: names.Layers = "all",
    site: str = "resid_pre",
    heads: Sequence[int] | None = None,
) -> list[FwdHook]:
    """Hooks that write the activations of `cache` at `tokens` into a run on a prompt of the same layout.

    Args:
        cache: A run on one prompt that holds `site`.
        tokens: Positions to patch, in the prompt.
        layers: Blocks to patch, 0-based; `"all"` means those that the cache holds.
        site: Short name of an activation with positions second: `resid_pre`, `ln1.normalized`, `k`, `attn_out`, ...
        heads: Heads to patch, 0-based, of an activation that has them (`z`, `q`, `k`, `v`, ...); all by default.

    Raises:
        BatchError: If the cache holds several prompts, or none with a batch axis.
        HookError: If `site` has no position axis to patch, or no heads.
        LayerError: If the cache does not hold `site` in one of `layers`.
        PositionError: If `tokens` belongs to a prompt of another layout than the cache.
    """
    if site in ("attn_scores", "pattern"):
        raise HookError(
            f"{site} has no axis of positions that could be patched. Use knockout or reweight for attention."
        )
    if heads is not None and site not in WITH_HEADS:
        raise HookError(f"{site} has no heads. Patch one of {', '.join(WITH_HEADS)}, or leave heads away.")
    cache.require_batch_axis()
    held = cache.layers(site)
    chosen = _chosen(site, layers, held, cache)
    cache.require_positions(names.at(site, layer) for layer in chosen)
    if tokens.layout != cache.tokens.layout:
        raise PositionError(f"{tokens!r} belongs to a prompt of another layout than the cache's {cache.tokens!r}.")
    if tokens.open_ended:
        raise PositionError(
            "a set with positions that are not yet generated cannot be patched: only the prompt is. Subtract them: "
            "tokens - inputs.tokens.generated."
        )
    full_names, chosen_heads = [names.at(site, layer) for layer in chosen], None if heads is None else tuple(heads)
    return [(name, Patch(tokens, cache[name][0], name, heads=chosen_heads, whole=True)) for name in full_names]


def _chosen(site: str, layers: names.Layers, held: Sequence[int], cache: AVCache) -> Sequence[int]:
    names.at(site, 0)
    if layers == "all":
        if not held:
            cache[site, 0]  # says what is missing
        return held
    for layer in (wanted := names.checked_layers(layers)):
        if layer not in held:
            raise LayerError(
                f"the cache holds {site} of layers {list(held)}, not of layer {layer}. Patch a layer it holds, or run "
                f"again with names_filter=[{site!r}]."
            )
    return wanted
