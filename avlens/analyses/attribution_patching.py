"""Attribution patching: which activations would carry the answer if they were patched, all of them estimated by one gradient?

What a patch of activation a at the positions of a group does to the contrast m = logit[clean answer] - logit[corrupted answer]
is, to first order,

    effect(layer, group) ~ sum over the group of (a_clean - a_corrupt) . dm/da      in the run that is patched into

and for activations that have heads (`z`, `q`, `k`, `v`) the same of each head. That costs two forward passes and one backward
for all layers, groups and heads; `exact_patching` runs each patch instead, and `agrees_with` tells how far the order holds.
Where the model saturates between the runs one gradient misleads: `steps` averages gradients along the way from the
embeddings of one run to those of the other.

Source: Nanda 2023, "Attribution Patching: Activation Patching At Industrial Scale"; Syed et al. 2023, arXiv:2310.10348; Kramar
et al. 2024, "AtP*", arXiv:2403.00745; Hanna et al. 2024, "Have Faith in Faithfulness", arXiv:2403.17806 (gradients on the way).

Differs from the sources: positions count by group of tokens. Neither of the corrections of AtP* (queries and keys through the
softmax, dropped gradients) is made: `transport` computes attention anew instead.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from avlens import display, names
from avlens.cache import AVCache
from avlens.contrast import Contrast, Direction, check_pair, contrast_of
from avlens.engine import sweep
from avlens.errors import HookError, PromptError
from avlens.hooks import FwdHook, HookPoint
from avlens.inputs import AVInputs
from avlens.interventions import patch
from avlens.metrics.agreement import Agreement, agreement
from avlens.tokens import TokenSet

SITES = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out", "z", "q", "k", "v")
WITH_HEADS = ("z", "q", "k", "v")


@dataclass(frozen=True, eq=False)
class PatchingEffects:
    """What patching each group in each layer by itself does to the contrast, estimated or run.

    Attributes:
        effects: How far the patch moves the contrast from one run to the other, in logits.
        heads: The same of each head by itself, where the activation has heads and they were asked for.
        groups: The last axis, by name.
        layers: The first axis, 0-based.
        site: What is patched; `k` and `v` have key-value heads.
        direction: Which run is patched into which.
        method: `attribution` or `exact`.
        steps: How many gradients were averaged; 0 if none was taken.
        contrast: The answers, and the contrast of both runs.
        made_by: What made it.
    """

    effects: Float[Tensor, "layer group"]
    heads: Float[Tensor, "layer head group"] | None
    groups: Mapping[str, TokenSet]
    layers: tuple[int, ...]
    site: str
    direction: Direction
    method: Literal["attribution", "exact"]
    steps: int
    contrast: Contrast
    made_by: Mapping[str, Any]

    @property
    def shares(self) -> Float[Tensor, "layer group"]:
        """The effects as shares of the total effect."""
        return self.effects / self.contrast.total

    def agrees_with(self, other: "PatchingEffects", *, k: int = 10) -> Agreement:
        """How far two grids agree, by head where both have heads.

        Raises:
            PromptError: If they patch different things.
        """
        if (self.site, self.layers, list(self.groups), self.direction) != (
            other.site,
            other.layers,
            list(other.groups),
            other.direction,
        ):
            raise PromptError(
                f"{self!r} and {other!r} patch different things. Compare grids of one site, layers and groups."
            )
        if self.heads is not None and other.heads is not None:
            return agreement(self.heads, other.heads, k=k)
        return agreement(self.effects, other.effects, k=k)

    def to_frame(self) -> pd.DataFrame:
        """One row per layer and group, and per head where there are heads."""
        heads = [None] if self.heads is None else range(self.heads.shape[1])
        rows = []
        for i, layer in enumerate(self.layers):
            for head in heads:
                for j, (name, tokens) in enumerate(self.groups.items()):
                    effect = float(self.effects[i, j] if self.heads is None else self.heads[i, head, j])
                    row = (
                        {"layer": layer}
                        | ({} if head is None else {"head": head})
                        | {"group": name, "tokens": len(tokens)}
                    )
                    rows.append(row | {"effect": effect, "share": effect / self.contrast.total})
        return pd.DataFrame(rows)

    def __repr__(self) -> str:
        arrow = f"{self.contrast.answers[1]!r} -> {self.contrast.answers[0]!r}"
        grid = f"{self.site} of {len(self.layers)} layers x {len(self.groups)} groups"
        return f"PatchingEffects({self.method}, {grid}, {self.direction} {arrow})"

    def _repr_html_(self) -> str:
        return display.table(repr(self), self.to_frame(), self.made_by)


def attribution_patching(
    model: Any,
    clean: AVInputs,
    corrupt: AVInputs,
    groups: Mapping[str, TokenSet],
    *,
    site: str = "resid_pre",
    layers: names.Layers = "all",
    direction: Direction = "denoise",
    answers: tuple[str, str] | None = None,
    steps: int = 1,
) -> PatchingEffects:
    """Estimate what patching each group in each layer, and each head, would do.

    Args:
        model: A HookedAVModel.
        clean: The clean prompt.
        corrupt: The same prompt with another clip of the same layout.
        groups: What is patched, by name, such as `avlens.groups.token_groups` gives.
        site: Short name of an activation, one of `SITES`.
        layers: Blocks to patch, 0-based.
        direction: `denoise` patches clean activations into the corrupted run, `noise` the other way round.
        answers: The clean and the corrupted answer; by default the token that each run holds likeliest.
        steps: How many gradients to average, at points evenly spaced between both runs' embeddings; with 1 it is the
            gradient of the run that is patched into.

    Raises:
        HookError: If `site` is none of `SITES`, or there is no step.
        PromptError: If the prompts differ in more than their media, or both runs answer the same.
        PositionError: If a group belongs to another prompt.
        LayerError: If there is no such layer.
    """
    setting = _Setting.of(model, clean, corrupt, groups, site, layers, direction)
    if steps < 1:
        raise HookError(f"steps is {steps}. Average at least one gradient.")
    said, source = setting.run(setting.source)
    own, target = setting.run(setting.target, grad=True)
    contrast = setting.contrast(said, own, answers)
    slopes = setting.slopes(contrast, own, target) if steps == 1 else setting.mean_slopes(contrast, steps)
    sign = 1.0 if direction == "denoise" else -1.0
    by_layer = []
    for slope, name in zip(slopes, setting.full_names, strict=True):
        product = sign * slope * (source[name] - target[name].detach())[0].float()
        sums = [product[tokens.positions.to(product.device)].sum(0).sum(-1) for tokens in groups.values()]
        by_layer.append(torch.stack(sums, dim=-1))
    found = torch.stack(by_layer).cpu()
    if site in WITH_HEADS:
        return setting.result(contrast, found.sum(1), found, "attribution", steps)
    return setting.result(contrast, found, None, "attribution", steps)


def exact_patching(
    model: Any,
    clean: AVInputs,
    corrupt: AVInputs,
    groups: Mapping[str, TokenSet],
    *,
    site: str = "resid_pre",
    layers: names.Layers = "all",
    direction: Direction = "denoise",
    answers: tuple[str, str] | None = None,
    by_head: bool = False,
    progress: bool = False,
) -> PatchingEffects:
    """Run each patch that `attribution_patching` estimates.

    Args:
        model: A HookedAVModel.
        clean: The clean prompt.
        corrupt: The same prompt with another clip of the same layout.
        groups: What is patched, by name.
        site: Short name of an activation, one of `SITES`.
        layers: Blocks to patch, 0-based.
        direction: As in `attribution_patching`.
        answers: As in `attribution_patching`.
        by_head: Whether to patch each head by itself too, which takes as many runs more.
        progress: Whether to show a bar.

    Raises:
        HookError: If `site` is none of `SITES`, or has no heads where they are asked for.
        PromptError: As `attribution_patching`.
        PositionError: The same.
        LayerError: The same.
    """
    setting = _Setting.of(model, clean, corrupt, groups, site, layers, direction)
    if by_head and site not in WITH_HEADS:
        raise HookError(f"{site} has no heads. Patch one of {', '.join(WITH_HEADS)} by head.")
    said, source = setting.run(setting.source)
    target = setting.target
    contrast = setting.contrast(said, model(target, logits_at=target.tokens.last), answers)
    units = [None, *(range(source[setting.full_names[0]].shape[2]) if by_head else [])]
    edits = {
        f"{layer} {head} {name}": patch(
            source, tokens, layers=[layer], site=site, heads=None if head is None else [head]
        )
        for layer in setting.layers
        for head in units
        for name, tokens in groups.items()
    }
    logits = sweep(model, target, edits, logits_at=target.tokens.last, progress="patching" if progress else None)
    effects = contrast.effect(contrast(logits[:, 0]).cpu(), direction)
    grid = effects.view(len(setting.layers), len(units), len(groups))
    return setting.result(contrast, grid[:, 0], grid[:, 1:] if by_head else None, "exact", 0)


@dataclass(frozen=True, eq=False)
class _Setting:
    """What is patched into what."""

    model: Any
    clean: AVInputs
    corrupt: AVInputs
    groups: Mapping[str, TokenSet]
    site: str
    layers: list[int]
    direction: Direction

    @classmethod
    def of(
        cls, model: Any, clean: AVInputs, corrupt: AVInputs, groups: Mapping[str, TokenSet], site: str, layers: names.Layers,
        direction: Direction,
    ) -> "_Setting":  # fmt: skip
        check_pair(clean, corrupt)
        if site not in SITES or direction not in ("denoise", "noise"):
            raise HookError(
                f"site is {site!r} and direction {direction!r}. Patch one of {', '.join(SITES)}, to 'denoise' or to 'noise'."
            )
        if not groups:
            raise PromptError("there is no group to patch. Pass some, such as {'audio': inputs.tokens.audio}.")
        for tokens in groups.values():
            clean.tokens.check_own(tokens)
        chosen = list(range(model.cfg.n_layers)) if layers == "all" else names.checked_layers(layers)
        return cls(model, clean, corrupt, groups, site, chosen, direction)

    @property
    def source(self) -> AVInputs:
        return self.clean if self.direction == "denoise" else self.corrupt

    @property
    def target(self) -> AVInputs:
        return self.corrupt if self.direction == "denoise" else self.clean

    @property
    def full_names(self) -> list[str]:
        return [names.at(self.site, layer) for layer in self.layers]

    def run(self, inputs: AVInputs, **options: Any) -> tuple[Float[Tensor, "1 1 d_vocab"], AVCache]:
        """The logits of the answer, and what is patched."""
        result: tuple[Tensor, AVCache] = self.model.run_with_cache(
            inputs, names_filter=self.full_names, logits_at=inputs.tokens.last, **options
        )
        return result

    def contrast(
        self,
        source: Float[Tensor, "1 1 d_vocab"],
        target: Float[Tensor, "1 1 d_vocab"],
        answers: tuple[str, str] | None,
    ) -> Contrast:
        said = (source, target) if self.direction == "denoise" else (target, source)
        return contrast_of(self.model, said[0][0, 0], said[1][0, 0], answers)

    def slopes(
        self, contrast: Contrast, logits: Float[Tensor, "1 1 d_vocab"], graph: AVCache
    ) -> list[Float[Tensor, "pos *rest"]]:
        """dm/da of each layer, from a run that built a graph."""
        with torch.enable_grad():
            value = contrast(logits[0, 0])
        found = torch.autograd.grad(value, [graph[name] for name in self.full_names], materialize_grads=True)
        return [slope[0].float() for slope in found]

    def mean_slopes(self, contrast: Contrast, steps: int) -> list[Float[Tensor, "pos *rest"]]:
        """dm/da averaged over points between the embeddings of both runs."""
        entering = [name for name in self.model.hook_dict if name == "hook_embed" or name.endswith("hook_deepstack")]
        _, embeds = self.model.run_with_cache(self.source, names_filter=entering, logits_at=self.source.tokens.last)
        total: list[Tensor] = []
        for i in range(steps):
            hooks: list[FwdHook] = [(name, _Towards(embeds[name], (i + 0.5) / steps)) for name in entering]
            found = self.slopes(contrast, *self.run(self.target, grad=True, fwd_hooks=hooks))
            total = [a + b / steps for a, b in zip(total or [torch.zeros_like(f) for f in found], found, strict=True)]
        return total

    def result(
        self, contrast: Contrast, effects: Float[Tensor, "layer group"], heads: Float[Tensor, "layer head group"] | None,
        method: Literal["attribution", "exact"], steps: int,
    ) -> PatchingEffects:  # fmt: skip
        made_by = self.model.made_by(
            self.clean, corrupt=dict(self.corrupt.record), site=self.site, method=method, steps=steps
        )
        return PatchingEffects(
            effects,
            heads,
            dict(self.groups),
            tuple(self.layers),
            self.site,
            self.direction,
            method,
            steps,
            contrast,
            made_by,
        )


@dataclass(frozen=True, eq=False)
class _Towards:
    """Moves an activation part of the way to another run's; gradients pass as if it had not."""

    other: Tensor
    share: float

    def __call__(self, x: Tensor, hook: HookPoint) -> Tensor:  # noqa: ARG002
        return x + self.share * (self.other.to(x.device) - x).detach()
