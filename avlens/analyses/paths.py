"""Path patching between groups of tokens: along which edges does what differs between two runs reach the answer?

In the corrupted run, the target of an edge reads its source as the clean run had it, in a span of layers (`path_patch`); all else
is as it comes. With m = logit[clean answer] - logit[corrupted answer],

    effect(edge) = m_patched - m_corrupt     (of m_clean - m_corrupt, all that could be restored)

so an edge's effect is what goes along it, while a knockout tells what does not come without it. `open_paths` opens chains such as
audio -> sinks -> question -> last, and shuts every other way out of the groups between: is the chain alone enough?

Source: Wang et al. 2022, "Interpretability in the Wild", arXiv:2211.00593; Goldowsky-Dill et al. 2023, arXiv:2304.05969;
sufficiency of a path against random edges, as in Kim et al. 2025, "Map the Flow".
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from avlens import display
from avlens.cache import AVCache
from avlens.contrast import Contrast, Direction, check_pair, contrast_of
from avlens.edges import Edge, Groups, groups_of, layer_spans, named, refuse_unknown
from avlens.edges import Sweep as Spans
from avlens.engine import sweep
from avlens.errors import PositionError, PromptError
from avlens.hooks import FwdHook
from avlens.inputs import AVInputs
from avlens.interventions import open_path, path_patch

SITES = ("rot_k", "v")


@dataclass(frozen=True, eq=False)
class PathEffects:
    """What patching each path does to the contrast.

    Attributes:
        effects: How far it moves the contrast from one run to the other, in logits.
        paths: The first axis: edges, or chains of groups.
        layers: The second axis: the layer l of each span; () where all layers are patched at once.
        spans: Which layers are patched at each.
        direction: Which run is patched into which.
        contrast: The answers, and the contrast of both runs.
        made_by: What made it.
    """

    effects: Float[Tensor, "path span"]
    paths: tuple[str, ...]
    layers: tuple[int, ...]
    spans: tuple[tuple[int, ...], ...]
    direction: Direction
    contrast: Contrast
    made_by: Mapping[str, Any]

    @property
    def shares(self) -> Float[Tensor, "path span"]:
        """The effects as shares of the total effect."""
        return self.effects / self.contrast.total

    def to_frame(self) -> pd.DataFrame:
        """One row per path and span."""
        layers: Sequence[int | str] = self.layers or ["all"]
        rows = [
            {"path": path, "layer": layer, "effect": float(self.effects[i, j]), "share": float(self.shares[i, j])}
            for i, path in enumerate(self.paths)
            for j, layer in enumerate(layers)
        ]
        return pd.DataFrame(rows)

    def __repr__(self) -> str:
        arrow = f"{self.contrast.answers[1]!r} -> {self.contrast.answers[0]!r}"
        best = self.shares.amax(1) if self.effects.numel() else torch.zeros(len(self.paths))
        said = "; ".join(f"{path} {share:.0%}" for path, share in zip(self.paths[:6], best.tolist(), strict=False))
        return f"PathEffects({self.direction} {arrow}, {len(self.paths)} paths: {said})"

    def _repr_html_(self) -> str:
        return display.table(repr(self), self.to_frame(), self.made_by)


def path_patching(
    model: Any,
    clean: AVInputs,
    corrupt: AVInputs,
    edges: Sequence[str | Edge],
    *,
    groups: Groups | None = None,
    window: int | None = None,
    spans: Spans = "window",
    heads: Sequence[int] | None = None,
    direction: Direction = "denoise",
    answers: tuple[str, str] | None = None,
    progress: bool = False,
) -> PathEffects:
    """Patch each edge by itself, in all layers or in each span of them.

    Args:
        model: A HookedAVModel.
        clean: The clean prompt.
        corrupt: The same prompt with another clip of the same layout.
        edges: Such as `"audio -> question"`, `"question -> last"`, `"audio <-> video"`; see `avlens.edges`.
        groups: The token groups by name, or a function from a prompt to them; by default `avlens.groups.token_groups`.
        window: How many layers a window has; by default all layers are patched at once.
        spans: With a window, which layers are patched at each layer: `window`, `inverse`, `top_down` or `bottom_up`.
        heads: Heads to patch, 0-based; all by default.
        direction: `denoise` patches the clean run into the corrupted one, `noise` the other way round.
        answers: The clean and the corrupted answer; by default the token that each run holds likeliest.
        progress: Whether to show a bar.

    Raises:
        PositionError: If the prompt lacks a group of an edge.
        PromptError: If the prompts differ in more than their media, both answer the same, or there is no edge.
        LayerError: If there is no such window.
    """
    model.require_plain_blocks("path patching")
    runs = _Runs.of(model, clean, corrupt, direction, answers)
    layers, swept = ((), (tuple(range(model.cfg.n_layers)),)) if window is None else layer_spans(
        model.cfg.n_layers, window=window, sweep=spans
    )  # fmt: skip
    wanted, found = tuple(Edge.parse(edge) for edge in edges), groups_of(groups, clean)
    edits = {f"{edge} in {span}": runs.edge(edge, found, span, heads) for edge in wanted for span in swept}
    return runs.measure(edits, tuple(map(str, wanted)), layers, swept, progress=progress)


def open_paths(
    model: Any,
    clean: AVInputs,
    corrupt: AVInputs,
    chains: Mapping[str, Sequence[str]] | Sequence[Sequence[str]],
    *,
    groups: Groups | None = None,
    direction: Direction = "denoise",
    answers: tuple[str, str] | None = None,
    progress: bool = False,
) -> PathEffects:
    """Open each chain of groups by itself, in all layers: nothing else passes on what comes along it.

    Args:
        model: A HookedAVModel.
        clean: The clean prompt.
        corrupt: The same prompt with another clip of the same layout.
        chains: The names of the groups of each chain in order, the last of which holds the position that answers; with names for
            the chains, or without. Random groups of the same size in a group's place are the control.
        groups: As in `path_patching`.
        direction: As in `path_patching`.
        answers: As in `path_patching`.
        progress: Whether to show a bar.

    Raises:
        PositionError: If the prompt lacks a group, or two of a chain share a position.
        PromptError: As in `path_patching`.
    """
    model.require_plain_blocks("path patching")
    runs = _Runs.of(model, clean, corrupt, direction, answers)
    found = groups_of(groups, clean)
    listed = chains if isinstance(chains, Mapping) else {" -> ".join(chain): chain for chain in chains}
    edits = {name: runs.chain(chain, found) for name, chain in listed.items()}
    every = tuple(range(model.cfg.n_layers))
    return runs.measure(edits, tuple(listed), (), (every,), progress=progress)


@dataclass(frozen=True, eq=False)
class _Runs:
    """Both runs, and how patched ones are measured."""

    model: Any
    clean: AVInputs
    target: AVInputs
    source_cache: AVCache
    own_cache: AVCache
    direction: Direction
    contrast: Contrast
    made_by: Mapping[str, Any]

    @classmethod
    def of(
        cls, model: Any, clean: AVInputs, corrupt: AVInputs, direction: Direction, answers: tuple[str, str] | None
    ) -> "_Runs":
        check_pair(clean, corrupt)
        if direction not in ("denoise", "noise"):
            raise PromptError(f"direction is {direction!r}. Pass 'denoise' or 'noise'.")
        last = clean.tokens.last
        # Layers with a patched edge do not run the fused kernel, so what they are compared with does not either.
        runs = [
            model.run_with_cache(one, names_filter=list(SITES), logits_at=last, attn="eager")
            for one in (clean, corrupt)
        ]
        contrast = contrast_of(model, runs[0][0][0, 0], runs[1][0][0, 0], answers)
        (_, source), (_, own) = runs if direction == "denoise" else runs[::-1]
        made_by = model.made_by(clean, corrupt=dict(corrupt.record))
        return cls(
            model, clean, corrupt if direction == "denoise" else clean, source, own, direction, contrast, made_by
        )

    def edge(
        self, edge: Edge, groups: Mapping[str, Any], span: Sequence[int], heads: Sequence[int] | None
    ) -> list[FwdHook]:
        cut = edge.cut(self.clean.tokens, groups)
        if cut is None:
            refuse_unknown(edge, groups)
        assert cut is not None
        prompt = self.clean.tokens.all
        read, reading = cut.keys & prompt, cut.queries & prompt
        if not read or not reading:
            raise PositionError(
                f"the edge {str(edge)!r} begins or ends after the prompt, and only the prompt is patched. Use 'last'."
            )
        ways = [(reading, read), *([(read, reading)] if cut.both else [])]
        return [
            hook
            for queries, keys in ways
            for hook in path_patch(self.source_cache, queries, keys, layers=span, heads=heads, unit=cut.unit)
        ]

    def chain(self, chain: Sequence[str], groups: Mapping[str, Any]) -> list[FwdHook]:
        sets = [named(name, groups, self.clean.tokens) for name in chain]
        for name, tokens in zip(chain, sets, strict=True):
            if tokens is None:
                refuse_unknown(Edge(name, chain[-1]), groups)
        return open_path(self.source_cache, self.own_cache, [tokens for tokens in sets if tokens is not None])

    def measure(
        self, edits: Mapping[str, list[FwdHook]], paths: tuple[str, ...], layers: tuple[int, ...],
        spans: tuple[tuple[int, ...], ...], *, progress: bool,
    ) -> PathEffects:  # fmt: skip
        if not edits:
            raise PromptError(
                "there is no path to patch. Pass some, such as ['audio -> question', 'question -> last']."
            )
        last, bar = self.target.tokens.last, "patching" if progress else None
        logits = sweep(self.model, self.target, edits, logits_at=last, attn="eager", progress=bar)
        effects = self.contrast.effect(self.contrast(logits[:, 0]).cpu(), self.direction)
        grid = effects.view(len(paths), len(spans))
        return PathEffects(grid, paths, layers, spans, self.direction, self.contrast, self.made_by)
