"""Token discarding: when may groups of tokens leave, what does it cost in answers, and what does it save?

From the curves of an information-flow sweep, a group may leave at the first layer after which cutting it changes nothing more:

    leaves at = 1 + the last layer l at which |mean change| > tolerance,   over every edge out of the group

Of a `top_down` sweep of `group -> all` this is exact: discarding a group at layer l is cutting it from everything else from l on.
Of windows it is the papers' rule of thumb, by the windows' centres.

Ways to discard are then compared on the same prompts, each with the plain run: how often the answer stays, and is right; how
probable the plain answer is; what the prompt's pass costs in time, in rows of the residual stream, in keys and values.

Source: table 4 of "From Senses to Decisions", arXiv:2606.10147 (groups by layer, accuracy, prefill time); Chen et al. 2024
(FastV), arXiv:2403.06764.

Differs from the source: as many random tokens are discarded as a control, and accuracy has an interval. A few hundred prompts
tell differences of some points only.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from avlens import display
from avlens.decoder import KeyValues
from avlens.edges import Edge, named
from avlens.engine import sweep
from avlens.errors import LayerError, PromptError
from avlens.groups import token_groups
from avlens.hooks import FwdHook
from avlens.inputs import AVInputs
from avlens.interventions import discard, fastv
from avlens.metrics.effects import Interval, bootstrap_mean, paired_difference
from avlens.tokens import TokenSet

Plan = Callable[[AVInputs], list[FwdHook]]
"""A way to discard: from a prompt to hooks. An empty list is the plain run."""

PLAIN = "plain"


@dataclass(frozen=True, eq=False)
class Discarding:
    """What each way to discard does to the answers of some prompts, and what it saves.

    Attributes:
        p: Probability of the answer that the plain run gives.
        right: 1 where the first token answered is right, else 0; NaN without labels.
        same: 1 where it is the plain run's.
        seconds: How long the prompt's pass through the decoder takes, encoders left out: the shortest of the repeats.
        rows: How many rows of the residual stream the blocks compute, all blocks together.
        cache_bytes: What the keys and values of the prompt take.
        plans: The first axis; the first is the plain run.
        made_by: What made it.
    """

    p: Float[Tensor, "plan sample"]
    right: Float[Tensor, "plan sample"]
    same: Float[Tensor, "plan sample"]
    seconds: Float[Tensor, "plan sample"]
    rows: Int[Tensor, "plan sample"]
    cache_bytes: Int[Tensor, "plan sample"]
    plans: tuple[str, ...]
    made_by: Mapping[str, Any]

    def accuracy(self, plan: str, *, seed: int = 0) -> Interval:
        """Share of prompts answered right, with its interval."""
        return bootstrap_mean(self.right[self._index(plan)], seed=seed)

    def lost(self, plan: str, *, seed: int = 0) -> Interval:
        """Accuracy of the plain run less that of a plan, prompt by prompt, with its interval."""
        return paired_difference(self.right[0], self.right[self._index(plan)], seed=seed)

    def to_frame(self, *, seed: int = 0) -> pd.DataFrame:
        """One row per plan: means over prompts; time and memory as shares of the plain run's."""
        return pd.DataFrame([self._row(plan, seed) for plan in self.plans]).set_index("plan")

    def _row(self, plan: str, seed: int) -> dict[str, Any]:
        i, right = self._index(plan), self.accuracy(plan, seed=seed)
        shares = {"seconds": self.seconds, "rows": self.rows, "cache": self.cache_bytes}
        return {
            "plan": plan, "right": right.estimate, "low": right.low, "high": right.high,
            "same answer": float(self.same[i].mean()), "p": float(self.p[i].mean()),
        } | {name: float(cost[i].sum() / cost[0].sum()) for name, cost in shares.items()}  # fmt: skip

    def _index(self, plan: str) -> int:
        if plan not in self.plans:
            raise PromptError(f"there is no plan {plan!r}. Plans are {', '.join(self.plans)}.")
        return self.plans.index(plan)

    def __repr__(self) -> str:
        return f"Discarding({', '.join(self.plans)}; {self.p.shape[1]} prompts)"

    def _repr_html_(self) -> str:
        return display.table(repr(self), self.to_frame(), self.made_by)


def leaves_at(flow: Any, group: str, *, tolerance: float | int = 1.0) -> int | None:
    """The first layer at which a group may leave; None if it is needed in the last one visited.

    Args:
        flow: An InformationFlow that cut edges out of the group, over all layers.
        group: The edges' source.
        tolerance: How large a change still counts as none, in percent of the answer's probability.

    Raises:
        PromptError: If it cut no edge out of the group.
        LayerError: If it left out layers.
    """
    edges = [i for i, edge in enumerate(flow.edges) if _leaves(edge, group)]
    if not edges:
        raise PromptError(
            f"the flow cut no edge out of {group!r}. Edges are {', '.join(map(str, flow.edges))}; cut '{group} -> all'."
        )
    if list(flow.layers) != list(range(len(flow.layers))):
        raise LayerError(f"the flow visits layers {list(flow.layers)} only. Run it with layers='all'.")
    means = flow.change[edges].nanmean(-1).abs()
    needed = (~(means <= tolerance)).any(0).nonzero()[:, 0]
    first = int(needed.max()) + 1 if len(needed) else 0
    return first if first < len(flow.layers) else None


def leaving(layers: Mapping[str, int], groups: Callable[[AVInputs], Mapping[str, TokenSet]] | None = None) -> Plan:
    """The plan in which groups leave, each before its layer; groups that a prompt lacks are passed over."""

    def plan(inputs: AVInputs) -> list[FwdHook]:
        found = _sets(inputs, layers, groups)
        return [hook for name, chosen in found.items() for hook in discard(chosen, layer=layers[name])]

    return plan


def leaving_at_random(
    layers: Mapping[str, int], groups: Callable[[AVInputs], Mapping[str, TokenSet]] | None = None, *, seed: int = 0
) -> Plan:
    """The control: before each layer as many random tokens leave as `leaving` lets leave there, each once."""

    def plan(inputs: AVInputs) -> list[FwdHook]:
        leave = _sets(inputs, layers, groups)
        # The first token, which many models lean on, and the last, which answers, stay.
        order = 1 + torch.randperm(len(inputs.tokens) - 2, generator=torch.Generator().manual_seed(seed))
        parts = order.split([*map(len, leave.values()), len(order) - sum(map(len, leave.values()))])
        drawn = [inputs.tokens.at(part.sort().values.tolist()) for part in parts]
        return [hook for name, part in zip(leave, drawn, strict=False) for hook in discard(part, layer=layers[name])]

    return plan


def leaving_by_fastv(group: str = "media", *, layer: int = 2, ratio: float = 0.5) -> Plan:
    """The plan of FastV: the share `ratio` of a group that the last position reads least leaves before `layer`."""

    def plan(inputs: AVInputs) -> list[FwdHook]:
        chosen = named(group, token_groups(inputs.tokens), inputs.tokens)
        return fastv(chosen, layer=layer, ratio=ratio) if chosen else []

    return plan


def compare_discarding(
    model: Any,
    prompts: Sequence[AVInputs],
    plans: Mapping[str, Plan],
    *,
    labels: Sequence[str] | None = None,
    repeats: int = 3,
    progress: bool = False,
) -> Discarding:
    """Run prompts plainly and by each plan.

    Args:
        model: A HookedAVModel.
        prompts: The prompts, one by one.
        plans: Ways to discard, by name.
        labels: The right answer of each prompt.
        repeats: How often each pass is timed, plans taking turns.
        progress: Whether to show a bar.

    Raises:
        PromptError: If there are no prompts, a plan is called `plain`, or labels do not fit.
    """
    if not prompts or PLAIN in plans or (labels is not None and len(labels) != len(prompts)) or repeats < 1:
        raise PromptError(
            f"{len(prompts)} prompts, plans {list(plans)}, labels {labels!r}, {repeats} repeats. Pass prompts, a label for each "
            f"or none, one repeat or more, and no plan called {PLAIN!r}, which is run anyway."
        )
    every: dict[str, Plan] = {PLAIN: _nothing, **plans}
    found = [
        _measured(model, inputs, every, None if labels is None else model.to_first_tokens(labels[i]), repeats)
        for i, inputs in enumerate(tqdm(prompts, desc="discarding", unit="prompt", disable=not progress))
    ]
    p, right, same, seconds, rows, cache = (torch.stack(parts, dim=-1) for parts in zip(*found, strict=True))
    made_by = model.made_by(AVInputs.batch(list(prompts)), plans=list(plans), repeats=repeats)
    return Discarding(p, right, same, seconds, rows.long(), cache.long(), tuple(every), made_by)


def _nothing(inputs: AVInputs) -> list[FwdHook]:  # noqa: ARG001
    return []


def _leaves(edge: Edge, group: str) -> bool:
    ends = [edge.source, edge.target] if edge.both else [edge.source]
    return any(group in [piece.strip() for piece in end.split("+")] for end in ends)


def _sets(
    inputs: AVInputs, layers: Mapping[str, int], groups: Callable[[AVInputs], Mapping[str, TokenSet]] | None
) -> dict[str, TokenSet]:
    known = token_groups(inputs.tokens) if groups is None else groups(inputs)
    found = {name: named(name, known, inputs.tokens) for name in layers}
    return {name: chosen for name, chosen in found.items() if chosen}


def _measured(
    model: Any, inputs: AVInputs, plans: Mapping[str, Plan], right: tuple[int, ...] | None, repeats: int
) -> tuple[Tensor, ...]:
    edits = {name: plan(inputs) for name, plan in plans.items()}
    logits = sweep(model, inputs, edits, logits_at=inputs.tokens.last)[:, 0].float().cpu()
    first = logits.argmax(-1)
    answered = torch.full((len(edits),), torch.nan)
    if right is not None:
        answered = torch.isin(first, torch.tensor(right)).float()
    p = logits.softmax(-1)[:, first[0]]
    costs = [[_cost(model, inputs, hooks) for hooks in edits.values()] for _ in range(repeats)]
    seconds = torch.tensor([[cost[0] for cost in turn] for turn in costs]).min(0).values
    rows, cache = (torch.tensor([cost[i] for cost in costs[0]]) for i in (1, 2))
    return p, answered, (first == first[0]).float(), seconds, rows, cache


def _cost(model: Any, inputs: AVInputs, hooks: list[FwdHook]) -> tuple[float, int, int]:
    """Seconds of the prompt's pass, rows that its blocks compute, and bytes of the keys and values it leaves."""
    past = KeyValues()
    with torch.no_grad(), model.hooks(hooks):
        _wait(model)
        start = time.perf_counter()
        model.advance(inputs, None, past)
        _wait(model)
        seconds = time.perf_counter() - start
    rows = sum(len(index) for index in past.key_index.values())
    return seconds, rows, sum(layer.keys.nbytes + layer.values.nbytes for layer in past.layers)


def _wait(model: Any) -> None:
    """A GPU works on its own: wait until it is done."""
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)
