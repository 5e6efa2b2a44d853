"""Transport: which heads carry the answer from one group of tokens to another, above all from one modality to another?

A head's transport along an edge is what the contrast m would gain if this head alone, in its layer, let the target read the
source as the clean run had it: its z is computed anew with those keys and values, and what follows is taken to be linear,

    transport[edge, layer, head] = sum over the target's rows of (z_patched - z) . dm/dz      in the corrupted run, in logits

so one gradient serves all layers, heads and edges. `exact_transport` runs path patches of chosen heads instead. Attention alone
is no evidence of transport, since a head may read a sink that says nothing; the mean attention along the edge is beside it.

Source: attribution patching (Nanda 2023) of path patching (Goldowsky-Dill et al. 2023, arXiv:2304.05969); attention computed anew
instead of linearised, as the correction of queries and keys of Kramar et al. 2024, "AtP*", arXiv:2403.00745.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from avlens import attention, display
from avlens.cache import AVCache
from avlens.contrast import Contrast, Direction, check_pair, contrast_of
from avlens.edges import Cut, Edge, Groups, groups_of, refuse_unknown
from avlens.engine import sweep
from avlens.errors import PromptError
from avlens.inputs import AVInputs
from avlens.interventions import path_patch
from avlens.metrics.agreement import Agreement, agreement
from avlens.tokens import TokenSet

CROSSING = ("video -> audio", "audio -> video", "video -> text", "audio -> text")
"""Edges that cross from one modality to another; `text` is all that is no medium."""


@dataclass(frozen=True, eq=False)
class Transport:
    """What each head carries along each edge.

    Attributes:
        scores: What the contrast gains, in logits.
        attention: The mean attention that the target's rows pay to the source, in [0, 1], in the run that is patched.
        edges: The first axis.
        direction: Which run is patched into which.
        contrast: The answers, and the contrast of both runs.
        made_by: What made it.
    """

    scores: Float[Tensor, "edge layer head"]
    attention: Float[Tensor, "edge layer head"]
    edges: tuple[str, ...]
    direction: Direction
    contrast: Contrast
    made_by: Mapping[str, Any]

    def agrees_with(self, other: "Transport", *, k: int = 10) -> Agreement:
        """How far two results agree, over the heads that both have.

        Raises:
            PromptError: If they are of different edges or directions.
        """
        if (self.edges, self.direction) != (other.edges, other.direction):
            raise PromptError(
                f"{self!r} and {other!r} are of different edges or directions. Compare results of one kind."
            )
        return agreement(self.scores, other.scores, k=k)

    def top(self, n: int = 10) -> pd.DataFrame:
        """The heads that carry most, in size, along any edge."""
        rows = self.to_frame()
        return rows.reindex(rows["transport"].abs().sort_values(ascending=False, kind="stable").index).head(n)

    def to_frame(self) -> pd.DataFrame:
        """One row per edge, layer and head."""
        axes = [self.edges, range(self.scores.shape[1]), range(self.scores.shape[2])]
        frame = pd.MultiIndex.from_product(axes, names=["edge", "layer", "head"]).to_frame(index=False)
        frame["transport"] = self.scores.flatten().numpy()
        frame["share"] = frame["transport"] / self.contrast.total
        frame["attention"] = self.attention.flatten().numpy()
        return frame

    def __repr__(self) -> str:
        best = self.top(3)
        said = ", ".join(f"L{r.layer}H{r.head} {r.edge} {r.share:+.0%}" for r in best.itertuples())
        return (
            f"Transport({len(self.edges)} edges, {self.scores.shape[1]} layers x {self.scores.shape[2]} heads: {said})"
        )

    def _repr_html_(self) -> str:
        return display.table(repr(self), self.top(10), self.made_by)


def transport(
    model: Any,
    clean: AVInputs,
    corrupt: AVInputs,
    edges: Sequence[str | Edge] = CROSSING,
    *,
    groups: Groups | None = None,
    direction: Direction = "denoise",
    answers: tuple[str, str] | None = None,
) -> Transport:
    """Estimate what each head of each layer carries along each edge, in two forward passes and one backward.

    Args:
        model: A HookedAVModel.
        clean: The clean prompt.
        corrupt: The same prompt with another clip of the same layout.
        edges: See `avlens.edges`; by default those of `CROSSING` that the prompt has.
        groups: The token groups by name, or a function from a prompt to them; by default `avlens.groups.token_groups`.
        direction: `denoise` lets the clean run into the corrupted one, `noise` the other way round.
        answers: The clean and the corrupted answer; by default the token that each run holds likeliest.

    Raises:
        PositionError: If the prompt lacks a group of an edge.
        PromptError: If the prompts differ in more than their media, both answer the same, or there is no edge.
    """
    model.require_plain_blocks("transport")
    cuts = _cuts(clean, corrupt, edges, groups)
    source, target = (clean, corrupt) if direction == "denoise" else (corrupt, clean)
    said, read = _run(model, source, ["rot_k", "v"])
    own, graph = _run(model, target, ["rot_q", "rot_k", "v", "z"], grad=True)
    contrast = _contrast(model, said, own, direction, answers)
    with torch.enable_grad():
        value = contrast(own[0, 0])
    layers = range(model.cfg.n_layers)
    slopes = torch.autograd.grad(value, [graph["z", layer] for layer in layers], materialize_grads=True)
    sign = 1.0 if direction == "denoise" else -1.0
    found = [[_carried(cut, graph, read, slopes[layer][0], layer) for layer in layers] for cut in cuts.values()]
    return Transport(
        scores=sign * torch.stack([torch.stack([score for score, _ in row]) for row in found]).cpu(),
        attention=torch.stack([torch.stack([paid for _, paid in row]) for row in found]).cpu(), edges=tuple(cuts),
        direction=direction, contrast=contrast, made_by=model.made_by(clean, corrupt=dict(corrupt.record), method="estimated"),
    )  # fmt: skip


def exact_transport(
    model: Any,
    clean: AVInputs,
    corrupt: AVInputs,
    edges: Sequence[str | Edge] = CROSSING,
    *,
    heads: Sequence[tuple[int, int]] | None = None,
    groups: Groups | None = None,
    direction: Direction = "denoise",
    answers: tuple[str, str] | None = None,
    progress: bool = False,
) -> Transport:
    """Run the path patch of each head that `transport` estimates.

    Args:
        model: A HookedAVModel.
        clean: The clean prompt.
        corrupt: The same prompt with another clip of the same layout.
        edges: As in `transport`.
        heads: Layer and head of those to run; by default all. The scores of the others are NaN, as are all attentions.
        groups: As in `transport`.
        direction: As in `transport`.
        answers: As in `transport`.
        progress: Whether to show a bar.

    Raises:
        PositionError: As `transport`.
        PromptError: As `transport`.
    """
    model.require_plain_blocks("transport")
    cuts = _cuts(clean, corrupt, edges, groups)
    source, target = (clean, corrupt) if direction == "denoise" else (corrupt, clean)
    said, read = _run(model, source, ["rot_k", "v"])
    contrast = _contrast(model, said, _run(model, target, ["v"])[0], direction, answers)
    shape = (len(cuts), model.cfg.n_layers, model.cfg.n_heads)
    chosen = [(layer, head) for layer in range(shape[1]) for head in range(shape[2])] if heads is None else list(heads)
    edits = {
        f"{name} L{layer}H{head}": [
            hook
            for queries, keys in _ways(cut)
            for hook in path_patch(read, queries, keys, layers=[layer], heads=[head], unit=cut.unit)
        ]
        for name, cut in cuts.items()
        for layer, head in chosen
    }
    bar = "patching" if progress else None
    logits = sweep(model, target, edits, logits_at=target.tokens.last, attn="eager", progress=bar)
    scores, effects = torch.full(shape, torch.nan), contrast.effect(contrast(logits[:, 0]).cpu(), direction)
    for i, row in enumerate(effects.view(len(cuts), len(chosen))):
        for (layer, head), effect in zip(chosen, row, strict=True):
            scores[i, layer, head] = effect
    made_by = model.made_by(clean, corrupt=dict(corrupt.record), method="exact")
    return Transport(scores, torch.full(shape, torch.nan), tuple(cuts), direction, contrast, made_by)


def _cuts(clean: AVInputs, corrupt: AVInputs, edges: Sequence[str | Edge], groups: Groups | None) -> dict[str, Cut]:
    check_pair(clean, corrupt)
    found, cuts = groups_of(groups, clean), {}
    for edge in map(Edge.parse, edges):
        cut = edge.cut(clean.tokens, found)
        if cut is not None:
            cuts[str(edge)] = cut
        elif edges is not CROSSING:
            refuse_unknown(edge, found)
    if not cuts:
        raise PromptError(
            f"the prompt {clean.tokens!r} has none of the edges {list(map(str, edges))}. Pass some that it has."
        )
    return cuts


def _run(
    model: Any, inputs: AVInputs, sites: list[str], *, grad: bool = False
) -> tuple[Float[Tensor, "1 1 d_vocab"], AVCache]:
    # Patched edges are not run by the fused kernel, so nothing that they are compared with is.
    result: tuple[Tensor, AVCache] = model.run_with_cache(
        inputs, names_filter=sites, logits_at=inputs.tokens.last, attn="eager", grad=grad
    )
    return result


def _contrast(
    model: Any, source: Tensor, target: Tensor, direction: Direction, answers: tuple[str, str] | None
) -> Contrast:
    if direction not in ("denoise", "noise"):
        raise PromptError(f"direction is {direction!r}. Pass 'denoise' or 'noise'.")
    said = (source, target) if direction == "denoise" else (target, source)
    return contrast_of(model, said[0][0, 0], said[1][0, 0], answers)


def _ways(cut: Cut) -> list[tuple[TokenSet, TokenSet]]:
    """Who reads whom, in the prompt."""
    prompt = cut.queries.tokens.all
    there = (cut.queries & prompt, cut.keys & prompt)
    return [there, there[::-1]] if cut.both else [there]


def _carried(
    cut: Cut, own: AVCache, other: AVCache, slope: Float[Tensor, "pos head d_head"], layer: int
) -> tuple[Float[Tensor, " head"], Float[Tensor, " head"]]:
    """What each head of a layer carries along an edge, and the mean attention it pays."""
    q, k, v = (own[site, layer][0].detach().float() for site in ("rot_q", "rot_k", "v"))
    score, paid, n_rows = q.new_zeros(q.shape[1]), q.new_zeros(q.shape[1]), 0
    for queries, keys in _ways(cut):
        index = keys.positions.to(q.device)
        new_k, new_v = (other[site, layer][0, index.to(other[site, layer].device)].to(q) for site in ("rot_k", "v"))
        rows = queries.positions.to(q.device)
        n_rows += len(rows)
        for part in rows.split(attention.chunk_rows(q.shape[1], len(q), max(1, len(rows)))):
            allowed = index <= part[:, None]
            if cut.unit is not None:
                unit = cut.unit.to(q.device)
                allowed = allowed & (unit[part][:, None] != unit[index])
            change, attended = _reread(q[part], part, k, v, index, new_k, new_v, allowed)
            score = score + (change * slope[part].to(q)).sum((0, 2))
            paid = paid + attended.sum(0)
    return score, paid / max(1, n_rows)


def _reread(
    q: Float[Tensor, "query head d_head"], rows: Int[Tensor, " query"], k: Float[Tensor, "pos group d_head"],
    v: Float[Tensor, "pos group d_head"], index: Int[Tensor, " key"], new_k: Float[Tensor, "key group d_head"],
    new_v: Float[Tensor, "key group d_head"], allowed: Bool[Tensor, "query key"],
) -> tuple[Float[Tensor, "query head d_head"], Float[Tensor, "query head"]]:  # fmt: skip
    """How z changes where some keys and values are read as another run had them, and what those keys are paid before."""
    n = q.shape[1] // k.shape[1]
    k, v, new_k, new_v = (x.repeat_interleave(n, dim=1) for x in (k, v, new_k, new_v))
    scale = q.shape[-1] ** -0.5
    hidden = torch.arange(len(k), device=q.device) > rows[:, None]
    scores = (torch.einsum("qhd,khd->hqk", q, k) * scale).masked_fill(hidden, -torch.inf)
    mixed = scores.clone()
    mixed[:, :, index] = torch.where(allowed, torch.einsum("qhd,khd->hqk", q, new_k) * scale, scores[:, :, index])
    before, after = scores.softmax(-1), mixed.softmax(-1)
    change = torch.einsum("hqk,khd->qhd", after - before, v)
    change = change + torch.einsum("hqk,khd->qhd", after[:, :, index] * allowed, new_v - v[index])
    return change, (before[:, :, index] * allowed).sum(-1).T
