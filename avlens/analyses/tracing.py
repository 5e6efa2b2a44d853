"""Causal tracing: which tokens carry what the answer needs?

A clean run answers o_clean; a run whose audio or video is corrupted answers o_corrupt. Activations of a set S of tokens are
patched from the clean run into the corrupted one (denoising, "denoise"), or from the corrupted into the clean one ("noise"):

    denoise   IE_clean(S)   = P_patched(S)[o_clean]  - P_corrupt[o_clean]       what S restores, in [-1, 1]
              IE_corrupt(S) = P_corrupt[o_corrupt]   - P_patched(S)[o_corrupt]
    noise     IE_clean(S)   = P_clean[o_clean]       - P_patched(S)[o_clean]    what S destroys
              IE_corrupt(S) = P_patched(S)[o_corrupt] - P_clean[o_corrupt]
    TE_clean = P_clean[o_clean] - P_corrupt[o_clean],   TE_corrupt = P_corrupt[o_corrupt] - P_clean[o_corrupt]

P[o] is the probability of the answer's first token right after the prompt (`step="first"`), or its maximum over all
generated steps (`step="max"`).

Source: Jung et al. 2026, arXiv:2605.10815; its released code, logic/causal_trace.py:162-223 (patching),
preprocess/step2/causal_effect.py:34-93 (effects), utils/logit.py:3-20 (P). Meng et al. 2022, arXiv:2202.05262.

Differs from the released code, which denoises only and takes P at its maximum over steps: that inflates it for answers longer
than a letter. Its site `before_attn` is `ln1.normalized` here; at all layers that equals `resid_pre`, the default.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from avlens import display, names
from avlens.cache import AVCache
from avlens.contrast import Direction, check_pair
from avlens.engine import read_edited, sweep
from avlens.engine.estimate import watched_run
from avlens.errors import LayerError, PromptError
from avlens.generation import Reading
from avlens.hooks import FwdHook
from avlens.inputs import AVInputs
from avlens.interventions import patch
from avlens.tokens import TokenSet

Step = Literal["first", "max"]

_Words = tuple[tuple[int, ...], tuple[int, ...]]
"""First tokens that count as the clean answer, and as the corrupted one."""

_NO_EFFECT = 1e-6
"""A total effect below this is rounding: shares of it are NaN."""


@dataclass(frozen=True, eq=False)
class CausalTrace:
    """Effects of patching each set.

    Attributes:
        sets: What was patched, by name.
        o_clean: First token ids that count as the clean run's answer.
        o_corrupt: Those of the corrupted run's.
        p_clean: Probability of (o_clean, o_corrupt) in the clean run.
        p_corrupt: The same in the corrupted run.
        p_patched: The same with each set patched.
        flipped: Whether the patched run answers as the run it was patched from; never where both answer the same.
        answers: Both answers as text.
        direction: Which run was patched into which.
        layers: Which blocks were patched.
        sites: Which activations.
        step: Where P was taken.
        made_by: What made it.
    """

    sets: Mapping[str, TokenSet]
    o_clean: tuple[int, ...]
    o_corrupt: tuple[int, ...]
    p_clean: Float[Tensor, "2"]
    p_corrupt: Float[Tensor, "2"]
    p_patched: Float[Tensor, "set 2"]
    flipped: tuple[bool, ...]
    answers: tuple[str, str]
    direction: Direction
    layers: tuple[int, ...]
    sites: tuple[str, ...]
    step: Step
    made_by: Mapping[str, Any]

    @property
    def same_answer(self) -> bool:
        """Whether both runs answer the same, so that there is no corrupted answer to tell from the clean one."""
        return bool(set(self.o_clean) & set(self.o_corrupt))

    @property
    def ie_clean(self) -> Float[Tensor, " set"]:
        """Indirect effect on the clean answer: how much of it each set restores, or destroys."""
        return _effects(self.p_patched, self.p_clean, self.p_corrupt, self.direction)[0]

    @property
    def ie_corrupt(self) -> Float[Tensor, " set"]:
        """Indirect effect on the corrupted answer: how much of it each set removes, or brings; NaN if both answers are one."""
        if self.same_answer:
            return torch.full((len(self.sets),), torch.nan)
        return _effects(self.p_patched, self.p_clean, self.p_corrupt, self.direction)[1]

    @property
    def te_clean(self) -> float:
        """Total effect on the clean answer."""
        return float(self.p_clean[0] - self.p_corrupt[0])

    @property
    def te_corrupt(self) -> float:
        """Total effect on the corrupted answer; NaN if both answers are one."""
        if self.same_answer:
            return float("nan")
        return float(self.p_corrupt[1] - self.p_clean[1])

    def to_frame(self) -> pd.DataFrame:
        """One row per set; shares of the total effect are NaN where the corruption changed next to nothing."""
        counts = [len(tokens) for tokens in self.sets.values()]
        te = self.te_clean if abs(self.te_clean) > _NO_EFFECT else float("nan")
        return pd.DataFrame(
            {
                "tokens": counts,
                "IE_clean": self.ie_clean.numpy(),
                "IE_corrupt": self.ie_corrupt.numpy(),
                "IE/TE": self.ie_clean.numpy() / te,
                "IE per token": (self.ie_clean / torch.tensor(counts)).numpy(),
                "flipped": self.flipped,
            },
            index=pd.Index(self.sets, name="set"),
        )

    def __repr__(self) -> str:
        arrow = f"{self.answers[1]!r} -> {self.answers[0]!r}"
        return f"CausalTrace({self.direction} {arrow}, {len(self.sets)} sets, TE {self.te_clean:.3f})"

    def _repr_html_(self) -> str:
        return display.table(repr(self), self.to_frame(), self.made_by)


@dataclass(frozen=True, eq=False)
class LayerTrace:
    """Effects of patching one set in windows of layers.

    Attributes:
        ie_clean: Indirect effect on the clean answer of each window.
        ie_corrupt: That on the corrupted answer.
        first_layers: The first block of each window.
        window: How many blocks a window has; fewer at the end.
        trace: The windows as sets of their own, with all that belongs to them.
    """

    ie_clean: Float[Tensor, " window"]
    ie_corrupt: Float[Tensor, " window"]
    first_layers: tuple[int, ...]
    window: int
    trace: CausalTrace

    def to_frame(self) -> pd.DataFrame:
        """One row per window."""
        columns = {"IE_clean": self.ie_clean.numpy(), "IE_corrupt": self.ie_corrupt.numpy()}
        return pd.DataFrame(columns, index=pd.Index(self.first_layers, name="first layer"))

    def _repr_html_(self) -> str:
        return display.table(
            f"LayerTrace({self.trace!r}, {self.window} layers at a time)", self.to_frame(), self.trace.made_by
        )


def causal_trace(
    model: Any,
    clean: AVInputs,
    corrupt: AVInputs,
    sets: Mapping[str, TokenSet],
    *,
    direction: Direction = "denoise",
    layers: names.Layers = "all",
    site: str | Sequence[str] = "resid_pre",
    step: Step = "first",
    answers: tuple[str, str] | None = None,
    max_new_tokens: int = 8,
    progress: bool = False,
) -> CausalTrace:
    """Patch each set of tokens from one run into the other.

    Args:
        model: A HookedAVModel.
        clean: One prompt.
        corrupt: The same prompt on a corrupted clip, such as `clip.silenced()`: same layout, same question.
        sets: What to patch, by name.
        direction: `denoise` patches clean into corrupted, `noise` corrupted into clean.
        layers: Blocks to patch, 0-based.
        site: Short name of the activation to patch, or several (`("k", "v")`).
        step: Where P is taken: the `first` generated step, or the `max` over `max_new_tokens` steps.
        answers: The clean and the corrupted answer as words; P is then the larger of the word with and without a
            space in front, by its first token. By default the first tokens that the two runs answer.
        max_new_tokens: How many steps `max` looks at.
        progress: Whether to show a bar, and what it is going to take.

    Raises:
        PromptError: If the two prompts differ in more than their media.
        TooLargeError: If the free memory cannot hold a run or the sweep; before it starts.
    """
    tracer = _Tracer.start(model, clean, corrupt, direction, layers, site, step, answers, max_new_tokens, progress)
    hooks = {name: tracer.hooks(tokens, tracer.layers) for name, tokens in sets.items()}
    return tracer.trace(sets, hooks, progress=progress)


def trace_layers(
    model: Any,
    clean: AVInputs,
    corrupt: AVInputs,
    tokens: TokenSet,
    *,
    window: int = 1,
    direction: Direction = "denoise",
    site: str | Sequence[str] = "resid_pre",
    step: Step = "first",
    answers: tuple[str, str] | None = None,
    max_new_tokens: int = 8,
    progress: bool = False,
) -> LayerTrace:
    """Patch one set in each window of layers by itself; arguments as in `causal_trace`.

    A window of `resid_pre` persists in the residual stream after it; one of `ln1.normalized`, or of `k` and `v`, acts in the
    window alone.

    Raises:
        LayerError: If the window has no layer.
        PromptError: If the two prompts differ in more than their media.
    """
    if window < 1:
        raise LayerError(f"window is {window}. Patch at least one layer at a time.")
    tracer = _Tracer.start(model, clean, corrupt, direction, "all", site, step, answers, max_new_tokens, progress)
    n_layers = model.cfg.n_layers
    spans = {f"{first}": range(first, min(first + window, n_layers)) for first in range(n_layers)}
    hooks = {name: tracer.hooks(tokens, list(span)) for name, span in spans.items()}
    trace = tracer.trace(dict.fromkeys(spans, tokens), hooks, progress=progress)
    return LayerTrace(trace.ie_clean, trace.ie_corrupt, tuple(range(n_layers)), window, trace)


@dataclass(frozen=True, eq=False)
class _Tracer:
    """Both runs, and how patched ones are measured."""

    model: Any
    clean: AVInputs
    corrupt: AVInputs
    direction: Direction
    sites: tuple[str, ...]
    layers: list[int]
    step: Step
    max_new_tokens: int
    source: AVCache
    source_logits: Float[Tensor, "1 d_vocab"]
    answers: tuple[str, str] | None

    @classmethod
    def start(
        cls, model: Any, clean: AVInputs, corrupt: AVInputs, direction: Direction, layers: names.Layers,
        site: str | Sequence[str], step: Step, answers: tuple[str, str] | None, max_new_tokens: int, progress: bool,
    ) -> "_Tracer":  # fmt: skip
        _check(clean, corrupt, direction, step)
        if answers is not None and set(model.to_first_tokens(answers[0])) & set(model.to_first_tokens(answers[1])):
            raise PromptError(
                f"the answers {answers[0]!r} and {answers[1]!r} begin with the same token. Pass two that differ."
            )
        sites = (site,) if isinstance(site, str) else tuple(site)
        chosen = list(range(model.cfg.n_layers)) if layers == "all" else names.checked_layers(layers)
        wanted = [names.at(one, layer) for one in sites for layer in chosen]
        source = clean if direction == "denoise" else corrupt
        says = ("clean run" if direction == "denoise" else "corrupted run") if progress else None
        last = clean.tokens.last
        with watched_run(model, source, says, names_filter=wanted, logits_at=last) as ticks:
            logits, cache = model.run_with_cache(source, names_filter=wanted, fwd_hooks=ticks, logits_at=last)
        return cls(model, clean, corrupt, direction, sites, chosen, step, max_new_tokens, cache, logits[0], answers)

    def hooks(self, tokens: TokenSet, layers: Sequence[int]) -> list[FwdHook]:
        # Before the first position that differs both runs are one, and patching does nothing.
        tokens = tokens - tokens.tokens.at(range(_first_difference(self.clean, self.corrupt)))
        return [hook for site in self.sites for hook in patch(self.source, tokens, layers=layers, site=site)]

    def trace(self, sets: Mapping[str, TokenSet], hooks: Mapping[str, list[FwdHook]], *, progress: bool) -> CausalTrace:
        own, patched = self._target_runs(hooks, "patching" if progress else None)
        clean, corrupt = (self._source_run(), own) if self.direction == "denoise" else (own, self._source_run())
        answers, words = self._answers(clean, corrupt)
        wanted = words[0] if self.direction == "denoise" else words[1]
        told_apart = not set(words[0]) & set(words[1])
        return CausalTrace(
            sets=dict(sets), o_clean=words[0], o_corrupt=words[1], p_clean=_p(clean, words), p_corrupt=_p(corrupt, words),
            p_patched=torch.stack([_p(run, words) for run in patched]) if patched else torch.empty(0, 2),
            flipped=tuple(told_apart and int(run[0].argmax()) in wanted for run in patched),
            answers=answers, direction=self.direction, layers=tuple(self.layers), sites=self.sites, step=self.step,
            made_by=self.model.made_by(self.clean, corrupt=dict(self.corrupt.record), sites=self.sites, step=self.step),
        )  # fmt: skip

    def _target_runs(
        self, hooks: Mapping[str, list[FwdHook]], progress: str | None
    ) -> tuple[Float[Tensor, "step d_vocab"], list[Float[Tensor, "step d_vocab"]]]:
        """Logits of each step of the run that is patched: by itself, and with each set."""
        target = self.corrupt if self.direction == "denoise" else self.clean
        edits: dict[str, list[FwdHook]] = {"unedited": []} | {f"patched {name}": own for name, own in hooks.items()}
        if self.step == "first":
            own, *patched = sweep(self.model, target, edits, logits_at=target.tokens.last, progress=progress)
        else:
            says = progress and f"{progress}, answers on top"
            written = read_edited(
                self.model, target, edits, lambda name, one: self._written(target, edits[name], one), progress=says
            )
            own, *patched = written.values()
        return own, patched

    def _source_run(self) -> Float[Tensor, "step d_vocab"]:
        source = self.clean if self.direction == "denoise" else self.corrupt
        return self.source_logits if self.step == "first" else self._written(source, [], None)

    def _written(
        self, inputs: AVInputs, hooks: list[FwdHook], reading: Reading | None
    ) -> Float[Tensor, "step d_vocab"]:
        found = self.model.generate(inputs, self.max_new_tokens, fwd_hooks=hooks, reading=reading, keep_logits=True)
        logits: Tensor = found.logits[0]
        return logits

    def _answers(self, clean: Tensor, corrupt: Tensor) -> tuple[tuple[str, str], _Words]:
        """What the clean and the corrupted run answer, and by which first tokens."""
        if self.answers is not None:
            return self.answers, (
                self.model.to_first_tokens(self.answers[0]),
                self.model.to_first_tokens(self.answers[1]),
            )
        firsts = int(clean[0].argmax()), int(corrupt[0].argmax())
        said = self.model.to_string(torch.tensor(firsts[0])), self.model.to_string(torch.tensor(firsts[1]))
        return said, ((firsts[0],), (firsts[1],))


def _first_difference(clean: AVInputs, corrupt: AVInputs) -> int:
    """The first position at which the two prompts are not the same."""
    differ = (clean.positions != corrupt.positions).any(0)[0]
    for one, other in zip(clean.prompt.media, corrupt.prompt.media, strict=True):
        if one.key != other.key:
            differ[one.positions] = True
    return int(differ.nonzero()[0]) if bool(differ.any()) else len(differ)


def _p(logits: Float[Tensor, "step d_vocab"], words: _Words) -> Float[Tensor, "2"]:
    """P of both answers."""
    p = logits.float().softmax(-1)
    return torch.stack([p[:, list(word)].max() for word in words]).cpu()


def _check(clean: AVInputs, corrupt: AVInputs, direction: str, step: str) -> None:
    check_pair(clean, corrupt)
    if direction not in ("denoise", "noise") or step not in ("first", "max"):
        raise PromptError(
            f"direction is {direction!r} and step {step!r}. Pass 'denoise' or 'noise', and 'first' or 'max'."
        )


def _effects(patched: Tensor, clean: Tensor, corrupt: Tensor, direction: Direction) -> tuple[Tensor, Tensor]:
    if direction == "denoise":
        return patched[:, 0] - corrupt[0], corrupt[1] - patched[:, 1]
    return clean[0] - patched[:, 0], patched[:, 1] - clean[1]
