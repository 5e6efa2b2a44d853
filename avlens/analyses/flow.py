"""Information flow: through which layers does what a group of tokens holds reach another group?

An edge source -> target is cut in some layers: the target's queries may not read the source's keys there (attention knockout).
With p the probability of the first token that the plain run answers, after the prompt's last position,

    change = 100 (p_cut - p) / p     percent; -100: all of the answer came this way; above 0: what came this way spoke against it
    logit difference = logit(answer) - logit(other),  other = the plain run's runner-up, or one that is given
    flipped = whether another token is answered

by layer l: k layers centred at l are cut, or all others, or l to the last, or the first to l (`avlens.edges.layer_spans`). Over
several prompts, changes are averaged (not their probabilities), with bootstrap intervals. Controls cut as many random pairs.

A cut says what the answer needs of an edge while all others remain. Where information takes several routes, cutting one of them
changes nothing: cut them together (`audio -> text`), or leave one alone (`inverse`).

Source: "From Senses to Decisions", arXiv:2606.10147 (groups, k = 7), whose code is not public; Geva et al. 2023,
arXiv:2304.14767; the relative change per sample as in analysis/information_flow_analysis.py of the released code of Kim et al.
2025, "Map the Flow".

Differs from the sources: an edge within a group leaves each token itself to read. An edge that causality forbids (the target
comes first) is not run: its change is exactly 0 and it has 0 pairs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from avlens import display
from avlens.edges import Cut, Edge, Groups, Match, Sweep, groups_of, layer_spans, refuse_unknown
from avlens.engine import sweep as run_edits
from avlens.errors import PromptError
from avlens.hooks import FwdHook
from avlens.inputs import AVInputs
from avlens.metrics.effects import Interval, bootstrap_mean
from avlens.names import Layers

Measure = Literal["change", "logit_diff", "flipped"]


@dataclass(frozen=True)
class Controls:
    """Random edges that are cut instead, as many as each edge has.

    Attributes:
        n: How many draws.
        match: `anywhere`: among all pairs of a query and an earlier key; `same_queries`: as many random keys for each query.
        seed: Of the draws.
    """

    n: int = 10
    match: Match = "anywhere"
    seed: int = 0


@dataclass(frozen=True, eq=False)
class InformationFlow:
    """What cutting each edge in each span of layers does to the answers of some prompts.

    NaN stands where a prompt lacks one of an edge's groups.

    Attributes:
        p: Probability of each prompt's answer with the cut.
        logit_diff: The answer's logit above the other's, with the cut.
        flipped: 1 where the cut run answers another token, else 0.
        p_base: The probability without a cut.
        logit_diff_base: The difference without a cut.
        p_control: The probability with as many random edges cut instead.
        pairs: How many pairs of a query and a key each edge cuts in a layer.
        edges: The first axis.
        layers: The second axis: the layer l of each span.
        spans: Which layers are cut at each l.
        answers: What each prompt's plain run answers, as text.
        others: What it is told from.
        kept: Which of the prompts given these are.
        sweep: How spans depend on l.
        window: How many layers a window has.
        made_by: What made it.
    """

    p: Float[Tensor, "edge layer sample"]
    logit_diff: Float[Tensor, "edge layer sample"]
    flipped: Float[Tensor, "edge layer sample"]
    p_base: Float[Tensor, " sample"]
    logit_diff_base: Float[Tensor, " sample"]
    p_control: Float[Tensor, "edge draw layer sample"]
    pairs: Int[Tensor, "edge sample"]
    edges: tuple[Edge, ...]
    layers: tuple[int, ...]
    spans: tuple[tuple[int, ...], ...]
    answers: tuple[str, ...]
    others: tuple[str, ...]
    kept: tuple[int, ...]
    sweep: Sweep
    window: int
    made_by: Mapping[str, Any]

    @property
    def change(self) -> Float[Tensor, "edge layer sample"]:
        """Change of the answer's probability, in percent of it."""
        return 100 * (self.p - self.p_base) / self.p_base

    @property
    def control_change(self) -> Float[Tensor, "edge layer sample"]:
        """The same with as many random edges cut instead, averaged over draws; NaN without controls."""
        return 100 * (self.p_control.mean(1) - self.p_base) / self.p_base

    def index(self, edge: str | Edge) -> int:
        """Where an edge stands on the first axis.

        Raises:
            PromptError: If it was not cut.
        """
        wanted = Edge.parse(edge)
        if wanted not in self.edges:
            known = ", ".join(repr(str(one)) for one in self.edges)
            raise PromptError(f"the edge {str(wanted)!r} was not cut. Edges are {known}.")
        return self.edges.index(wanted)

    def values(self, measure: Measure = "change") -> Float[Tensor, "edge layer sample"]:
        """A measure of every cut; of the logit difference, its change.

        Raises:
            PromptError: If there is no such measure.
        """
        if measure not in get_args(Measure):
            raise PromptError(f"measure is {measure!r}. Pass one of {', '.join(get_args(Measure))}.")
        if measure == "logit_diff":
            return self.logit_diff - self.logit_diff_base
        return self.change if measure == "change" else self.flipped

    def curve(
        self, edge: str | Edge, measure: Measure = "change", *, n_draws: int = 2000, level: float = 0.95, seed: int = 0
    ) -> list[Interval]:
        """The mean over prompts at each layer, with its bootstrap interval."""
        of_edge = self.values(measure)[self.index(edge)]
        return [bootstrap_mean(row, n_draws=n_draws, level=level, seed=seed) for row in of_edge]

    def peak(self, edge: str | Edge) -> tuple[int, float]:
        """The layer at which a cut changes the answer most, and the mean change there; -1 and NaN if nothing is known."""
        means = self.change[self.index(edge)].nanmean(-1)
        if bool(means.isnan().all()):
            return -1, float("nan")
        at = int(means.abs().nan_to_num(-1).argmax())
        return self.layers[at], float(means[at])

    def to_frame(self, *, n_draws: int = 2000, level: float = 0.95, seed: int = 0) -> pd.DataFrame:
        """One row per edge and layer."""
        return pd.DataFrame(
            [
                self._row(edge, j, mean)
                for edge in self.edges
                for j, mean in enumerate(self.curve(edge, n_draws=n_draws, level=level, seed=seed))
            ]
        )

    def _row(self, edge: Edge, layer: int, mean: Interval) -> dict[str, Any]:
        at = self.index(edge), layer
        return {
            "edge": str(edge), "layer": self.layers[layer], "change": mean.estimate, "low": mean.low, "high": mean.high,
            "control": float(self.control_change[at].nanmean()), "logit_diff": float(self.values("logit_diff")[at].nanmean()),
            "flipped": float(self.flipped[at].nanmean()), "n": mean.n, "pairs": float(self.pairs[at[0]].float().mean()),
        }  # fmt: skip

    def __repr__(self) -> str:
        peaks = {edge: self.peak(edge) for edge in self.edges[:6]}
        said = "; ".join(f"{edge} {change:+.0f}% at {layer}" for edge, (layer, change) in peaks.items())
        return (
            f"InformationFlow({len(self.edges)} edges, {len(self.layers)} layers, {len(self.p_base)} prompts: {said})"
        )

    def _repr_html_(self) -> str:
        return display.table(repr(self), self.to_frame(), self.made_by)


@dataclass(frozen=True, eq=False)
class HeadFlow:
    """What cutting an edge in one head of some layers does.

    Attributes:
        change: Change of the answer's probability, in percent of it.
        edge: What is cut.
        layers: The first axis.
        window: How many layers around each are cut.
        answers: What each prompt's plain run answers, as text.
        made_by: What made it.
    """

    change: Float[Tensor, "layer head sample"]
    edge: Edge
    layers: tuple[int, ...]
    window: int
    answers: tuple[str, ...]
    made_by: Mapping[str, Any]

    def to_frame(self) -> pd.DataFrame:
        """Mean change by layer and head."""
        means = self.change.nanmean(-1)
        return pd.DataFrame(means.numpy(), index=pd.Index(self.layers, name="layer"), columns=range(means.shape[1]))

    def __repr__(self) -> str:
        return f"HeadFlow({self.edge}, {len(self.layers)} layers, {self.change.shape[1]} heads, {len(self.answers)} prompts)"

    def _repr_html_(self) -> str:
        return display.table(repr(self), self.to_frame(), self.made_by)


def information_flow(
    model: Any,
    prompts: AVInputs | Sequence[AVInputs],
    edges: Sequence[str | Edge],
    *,
    groups: Groups | None = None,
    window: int = 7,
    sweep: Sweep = "window",
    layers: Layers = "all",
    heads: Sequence[int] | None = None,
    labels: Sequence[str] | None = None,
    others: Sequence[str] | None = None,
    controls: Controls | None = None,
    progress: bool = False,
) -> InformationFlow:
    """Cut each edge in each span of layers, and watch the answer.

    In 16-bit floats the kernels of attention differ by some 0.004 of probability, and layers with a cut do not run the fused
    one: load the model with `attn="eager"` to compare like with like.

    Args:
        model: A HookedAVModel.
        prompts: One prompt, or several, of any layouts.
        edges: Such as `"video -> question"`, `"question -> last"`, `"video <-> audio"`, `"video -> video across frames"`,
            `"video + audio -> text"`. Names are those of the groups, and `media`, `text` and `all`.
        groups: The token groups by name, or a function from a prompt to them; by default `avlens.groups.token_groups`.
        window: How many layers a window has.
        sweep: Which layers are cut at each layer l: `window`, `inverse`, `top_down` or `bottom_up`.
        layers: The layers l to visit, 0-based.
        heads: Heads to cut in, 0-based; all by default.
        labels: The right answer of each prompt; then only prompts that are answered right count. By default all do.
        others: For each prompt the answer that the logit difference tells its answer from; by default the runner-up.
        controls: Random edges to cut instead; none by default.
        progress: Whether to show a bar.

    Raises:
        PositionError: If no prompt has both groups of an edge.
        PromptError: If there is nothing to measure: no edges, no prompts, or none answered right.
        LayerError: If there is no such layer or window.
    """
    chosen = None if heads is None else tuple(heads)
    wanted = [(Edge.parse(edge), chosen) for edge in edges]
    if len(set(wanted)) < len(wanted):
        raise PromptError(f"edges are {list(edges)}. Pass each edge once.")
    return _flow(
        model, prompts, wanted, groups=groups, window=window, sweep=sweep, layers=layers, labels=labels, others=others,
        controls=controls, progress=progress,
    )  # fmt: skip


def flow_by_head(
    model: Any,
    prompts: AVInputs | Sequence[AVInputs],
    edge: str | Edge,
    *,
    window: int = 1,
    heads: Sequence[int] | None = None,
    progress: bool = False,
    **options: Any,
) -> HeadFlow:
    """Cut one edge in each head by itself (or in each of `heads`); other arguments as in `information_flow`."""
    one_by_one = range(model.cfg.n_heads) if heads is None else heads
    wanted = [(Edge.parse(edge), (head,)) for head in one_by_one]
    found = _flow(model, prompts, wanted, window=window, progress=progress, **options)
    made_by = {**found.made_by, "flow": {**found.made_by["flow"], "heads": tuple(one_by_one)}}
    return HeadFlow(found.change.transpose(0, 1), wanted[0][0], found.layers, window, found.answers, made_by)


def _flow(
    model: Any,
    prompts: AVInputs | Sequence[AVInputs],
    wanted: Sequence[tuple[Edge, tuple[int, ...] | None]],
    *,
    window: int,
    groups: Groups | None = None,
    sweep: Sweep = "window",
    layers: Layers = "all",
    labels: Sequence[str] | None = None,
    others: Sequence[str] | None = None,
    controls: Controls | None = None,
    progress: bool = False,
) -> InformationFlow:
    """Each edge cut in some heads: all that are cut in a prompt in one sweep."""
    rows = [prompts] if isinstance(prompts, AVInputs) else list(prompts)
    _check(rows, wanted, labels=labels, others=others)
    visited, spans = layer_spans(model.cfg.n_layers, window=window, sweep=sweep, layers=layers)
    kept = _answered(model, rows, labels, others)
    measured = []
    for i in tqdm(kept, desc="flow", unit="prompt", disable=not progress or len(kept) == 1):
        found = groups_of(groups, rows[i])
        cuts = [(edge.cut(rows[i].tokens, found), heads) for edge, heads in wanted]
        bar = "cut" if progress and len(kept) == 1 else None
        measured.append(kept[i].measure(cuts, spans, controls or Controls(0), bar))
    for (edge, _), present in zip(wanted, zip(*(one.present for one in measured), strict=True), strict=True):
        if not any(present):
            refuse_unknown(edge, groups_of(groups, rows[next(iter(kept))]))
    options = {"window": window, "sweep": sweep, "heads": wanted[0][1], "controls": controls}
    return InformationFlow(
        p=_stacked(one.p[:, 0] for one in measured), logit_diff=_stacked(one.logit_diff[:, 0] for one in measured),
        flipped=_stacked(one.flipped[:, 0] for one in measured), p_control=_stacked(one.p[:, 1:] for one in measured),
        pairs=_stacked(one.pairs for one in measured), edges=tuple(edge for edge, _ in wanted), layers=visited, spans=spans,
        sweep=sweep, window=window,
        p_base=torch.tensor([one.p for one in kept.values()]), logit_diff_base=torch.tensor([one.diff for one in kept.values()]),
        answers=tuple(one.word(one.answer) for one in kept.values()), others=tuple(one.word(one.other) for one in kept.values()),
        kept=tuple(kept), made_by=model.made_by(AVInputs.batch([rows[i] for i in kept]), flow=options),
    )  # fmt: skip


@dataclass(frozen=True, eq=False)
class _Measured:
    """One prompt's cuts; entry 0 of the second axis is the edge, the others its controls."""

    p: Float[Tensor, "edge draw layer"]
    logit_diff: Float[Tensor, "edge draw layer"]
    flipped: Float[Tensor, "edge draw layer"]
    pairs: Int[Tensor, " edge"]
    present: tuple[bool, ...]


@dataclass(frozen=True, eq=False)
class _Asked:
    """A prompt, and what the plain run answers."""

    model: Any
    inputs: AVInputs
    answer: int
    other: int
    p: float
    diff: float

    @classmethod
    def of(cls, model: Any, inputs: AVInputs, other: str | None) -> "_Asked":
        plain = run_edits(model, inputs, {"plain": []}, logits_at=inputs.tokens.last)[0, 0].float()
        answer, told = plain.topk(2).indices.tolist()
        if other is not None:
            forms = [token for token in model.to_first_tokens(other) if token != answer]
            told = max(forms, key=lambda token: float(plain[token]), default=told)
        return cls(model, inputs, answer, told, float(plain.softmax(-1)[answer]), float(plain[answer] - plain[told]))

    def word(self, token: int) -> str:
        text: str = self.model.to_string(torch.tensor(token))
        return text

    def measure(
        self,
        cuts: Sequence[tuple[Cut | None, tuple[int, ...] | None]],
        spans: Sequence[Sequence[int]],
        controls: Controls,
        progress: str | None,
    ) -> _Measured:
        pairs = torch.tensor([0 if cut is None else int(cut.pairs().sum()) for cut, _ in cuts])
        edits: dict[tuple[int, int, int], list[FwdHook]] = {}
        for i, (cut, heads) in enumerate(cuts):
            for j, span in enumerate(spans):
                # An edge that causality forbids, or one cut nowhere, leaves the run as it is.
                if cut is not None and int(pairs[i]) and span:
                    edits[i, 0, j] = cut.hooks(span, heads)
                    for draw in range(controls.n):
                        edits[i, 1 + draw, j] = cut.random(controls.match, span, heads, controls.seed + draw)
        shape = len(cuts), 1 + controls.n, len(spans)
        p, diff, flipped = torch.full(shape, self.p), torch.full(shape, self.diff), torch.zeros(shape)
        if edits:
            named = {" ".join(map(str, key)): hooks for key, hooks in edits.items()}
            last = self.inputs.tokens.last
            logits = run_edits(self.model, self.inputs, named, logits_at=last, progress=progress)[:, 0].float().cpu()
            where = tuple(torch.tensor(axis) for axis in zip(*edits, strict=True))
            p[where] = logits.softmax(-1)[:, self.answer]
            diff[where] = logits[:, self.answer] - logits[:, self.other]
            flipped[where] = (logits.argmax(-1) != self.answer).float()
        present = tuple(cut is not None for cut, _ in cuts)
        for values in (p, diff, flipped):
            values[~torch.tensor(present)] = torch.nan
        return _Measured(p, diff, flipped, pairs, present)


def _answered(
    model: Any, rows: Sequence[AVInputs], labels: Sequence[str] | None, others: Sequence[str] | None
) -> dict[int, _Asked]:
    """The prompts that count, by their place among those given."""
    asked = {i: _Asked.of(model, inputs, None if others is None else others[i]) for i, inputs in enumerate(rows)}
    if labels is None:
        return asked
    right = {i: one for i, one in asked.items() if one.answer in model.to_first_tokens(labels[i])}
    if not right:
        said = ", ".join(repr(one.word(one.answer)) for one in list(asked.values())[:3])
        raise PromptError(
            f"none of {len(rows)} prompts is answered right: they are answered {said} where {labels[0]!r} and so on are right. "
            "Check the labels, or pass none, so that every prompt counts."
        )
    return right


def _stacked(parts: Any) -> Tensor:
    return torch.stack(list(parts), dim=-1)


def _check(rows: Sequence[AVInputs], wanted: Sequence[Any], **words: Sequence[str] | None) -> None:
    if not rows or not wanted:
        raise PromptError(f"{len(rows)} prompts and {len(wanted)} cuts were given. Pass one or more of each.")
    for name, given in words.items():
        if given is not None and (isinstance(given, str) or len(given) != len(rows)):
            raise PromptError(f"{name} is {given!r} for {len(rows)} prompts. Pass a list with one word for each.")
