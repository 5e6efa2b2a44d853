"""Adaptive Sink-guided Decoding (ASD): listen more to cross-modal sinks, to hallucinate less.

ASD = sinks + modality dominance + reweighting, in two streams of one prompt:

1. Read the prompt, without a user's hooks, and in the same pass find sinks, sink(N); score their modality dominance; split
   them by median into uni and cross.
2. Calibrated stream: from block 6/28 of the depth on, rows after the media read (before the softmax)
   s <- s + alpha |s| at cross sinks, s <- s - alpha |s| at uni sinks. Up to there it is the original, whose keys and values
   it takes: only the rows that read otherwise are read again.
3. At each step t, a strength gamma_t from the attention A of the row that predicts t, mean over target layers and heads:

   rule           A of         weight w              gamma_t
   paper          calibrated   uni / (uni + cross)   strength w
   released_new   original     uni / (uni + cross)   0 if w < 0.6 or text > 0.5, else strength w
   released       original     cross / (uni + cross) min(0.6, strength w), times (1 + cos(pi min(1, (text - 0.4) / 0.2))) / 2 if
                                                     text > 0.4, times (w / 0.6)^2 if w < 0.6

   uni and cross are A per sink, text the sum of A over the positions after the media. Under the released rules
   gamma_t <- m gamma_(t-1) + (1 - m) gamma_t with momentum m = 0.5 from gamma = 0, and the first token has gamma = 0.
4. log P = gamma_t log P_calibrated + (1 - gamma_t) log P_original.

The more attention drifts to unimodal sinks, the more the calibrated stream guides (`released` has it the other way round).

Source: Jung et al. 2026, "Probing Cross-modal Information Hubs in Audio-Visual LLMs", arXiv:2605.10815. Released code,
kaistmm/crossmodal-hub: model/modeling_qwen2_5_omni_low.py:1505, 1553-1570 (the edit, commented out: alpha 0.2, blocks 6 of 28
on, rows after the media, cross sinks only: `alpha_uni=0`); logic/adaptive_guidance_complex.py (`released`: target layers 18
to 25 of 28, strength 0.5, N = 3); logic/adaptive_guidance_new.py, deleted, in commit cd51080 (`released_new`).

Differs from the released code: that code cannot run as published, and runs a third stream, a second copy of the original;
here there are two, rows of one batch. The paper's own gates are not public: its rule has none by default. Layers scale
with the model's depth. Under the released rules a modality without such sinks adds 0. Where a prompt has no uni or no
cross sinks, gamma is 0: its logits are the original stream's, untouched.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from avlens import names
from avlens.analyses.dominance import Hubs
from avlens.analyses.sinks import find_sink_dims
from avlens.decoding.last_row import LastRow
from avlens.errors import DecodingError
from avlens.generation import Reading
from avlens.hooks import Again, FwdHook, HookPoint, current_run, on_rows, stream_rows
from avlens.hubs import hub_reductions, hubs_of
from avlens.inputs import AVInputs
from avlens.tokens import TokenMap, TokenSet

Rule = Literal["paper", "released_new", "released"]
Readers = Literal["after_media", "last"]


@dataclass(frozen=True)
class ASD:
    """The method's settings.

    Attributes:
        alpha: How much the calibrated stream's scores rise at cross sinks.
        strength: What the weight is multiplied by, in [0, 1]; at 0 nothing is mixed. By default 1 under the paper's rule and
            0.5 under the released ones.
        rule: How gamma follows from attention, as in the table above.
        alpha_uni: How much scores fall at uni sinks; by default alpha.
        n: The N of sink(N).
        readers: Which rows are edited: those after the media and all that are written, or, of the prompt, its last only.
        edit_layers: Blocks whose scores are edited; by default those from 6/28 of the depth on.
        target_layers: Blocks whose attention gamma is computed from; by default 18/28 to 26/28 of the depth.
        sink_dims: Sink dimensions; by default found in the model's text-only pass, once.
        momentum: How much of gamma is the last step's, in [0, 1); by default 0, and 0.5 under the released rules.
        least_weight: The released rules' threshold on w.
        most_text: Their threshold on text; by default 0.5 for `released_new` and 0.4 for `released`.
    """

    alpha: float = 0.2
    strength: float | None = None
    rule: Rule = "paper"
    alpha_uni: float | None = None
    n: float = 3
    readers: Readers = "after_media"
    edit_layers: tuple[int, ...] | None = None
    target_layers: tuple[int, ...] | None = None
    sink_dims: tuple[int, ...] | None = None
    momentum: float | None = None
    least_weight: float = 0.6
    most_text: float | None = None

    def start(self, model: Any, inputs: AVInputs) -> "ASDRun":
        """Read the prompts, find each one's sinks and split them, and read what the calibrated stream reads otherwise.

        Raises:
            DecodingError: If a setting is out of range.
        """
        self._check()
        dims = tuple(find_sink_dims(model) if self.sink_dims is None else self.sink_dims)
        original = [model.read(row, reductions=hub_reductions(row, dims)) for row in inputs]
        hubs = [hubs_of(reading.cache, dims, n=self.n).hubs for reading in original]
        return self.start_from(model, inputs, original, hubs)

    def start_from(self, model: Any, inputs: AVInputs, original: Sequence[Reading], hubs: Sequence[Hubs]) -> "ASDRun":
        """The same for prompts that were read, each by itself, and whose sinks were split."""
        depth = model.cfg.n_layers
        first, target = depth * 6 // 28, range(depth * 18 // 28, max(depth * 18 // 28 + 1, depth * 26 // 28))
        edited = list(range(first, depth) if self.edit_layers is None else self.edit_layers)
        watched = list(target if self.target_layers is None else self.target_layers)
        run = ASDRun(self, inputs, list(hubs), edited, LastRow(watched), [original])
        if any(self.guides(one) for one in hubs):
            run.n_streams = 2
            run.readings.append([run.calibrated(model, *row) for row in zip(inputs, original, hubs, strict=True)])
        return run

    def guides(self, hubs: Hubs) -> bool:
        """Whether a prompt with these sinks is guided at all."""
        edits = self.alpha > 0 or self.lowered > 0
        return bool(hubs.uni) and bool(hubs.cross) and edits and self.base > 0

    @property
    def base(self) -> float:
        """The strength, by default the rule's."""
        return self.strength if self.strength is not None else 1.0 if self.rule == "paper" else 0.5

    @property
    def lowered(self) -> float:
        """How much scores fall at uni sinks."""
        return self.alpha if self.alpha_uni is None else self.alpha_uni

    @property
    def inertia(self) -> float:
        """The momentum, by default the rule's."""
        return self.momentum if self.momentum is not None else 0.0 if self.rule == "paper" else 0.5

    def _check(self) -> None:
        if self.alpha < 0 or self.lowered < 0 or not 0 <= self.base <= 1 or not 0 <= self.inertia < 1:
            raise DecodingError(
                f"alpha is {self.alpha}, alpha_uni {self.alpha_uni}, strength {self.strength} and momentum {self.momentum}. Pass "
                "alpha >= 0, alpha_uni >= 0, a strength in [0, 1] and a momentum in [0, 1)."
            )
        if self.rule not in ("paper", "released_new", "released"):
            raise DecodingError(f"rule is {self.rule!r}. Pass 'paper', 'released_new' or 'released'.")
        if self.readers not in ("after_media", "last"):
            raise DecodingError(f"readers is {self.readers!r}. Pass 'after_media' or 'last'.")


@dataclass(eq=False)
class ASDRun:
    """ASD at work on some prompts: what it found, and what it decides at each step."""

    method: ASD
    inputs: AVInputs
    hubs: list[Hubs]
    edit_layers: list[int]
    last_row: LastRow
    readings: list[Sequence[Reading]]
    n_streams: int = 1
    n_hooked: int = 1
    gammas: list[Tensor] = field(default_factory=list)
    first_rows: list[Float[Tensor, "layer pos"]] = field(default_factory=list)

    def hand_over(self) -> list[Sequence[Reading]]:
        """The prompts as the streams read them, which are let go of here."""
        readings, self.readings = self.readings, []
        return readings

    def calibrated(self, model: Any, prompt: AVInputs, original: Reading, hubs: Hubs) -> Reading:
        """One prompt as the calibrated stream reads it: anew from the first row that is edited, the original before."""
        edit, row = self._calibrate(prompt, [hubs]), LastRow(self.last_row.layers)
        edits: list[FwdHook] = [(names.at("attn_scores", layer), edit) for layer in self.edit_layers]
        before = original.past.first(min(int(edit.first_reader), len(prompt.tokens) - 1))
        reading: Reading = model.read(prompt, before, fwd_hooks=edits + row.hooks())
        self.first_rows.append(row.of(0, prompt.padding))
        return reading

    def prompts(self, stream: int) -> AVInputs:  # noqa: ARG002
        """Both streams read the same prompts."""
        return self.inputs

    def hooks(self) -> list[FwdHook]:
        """The calibrated stream's edits, and what gamma is computed from."""
        if self.n_streams == 1:
            return []
        original, calibrated = (stream_rows(stream, len(self.inputs)) for stream in (0, 1))
        edit = self._calibrate(self.inputs, self.hubs)
        edits = on_rows([(names.at("attn_scores", layer), edit) for layer in self.edit_layers], calibrated)
        return edits + on_rows(self.last_row.hooks(), calibrated if self.method.rule == "paper" else original)

    def mix(self, logits: Float[Tensor, "stream batch d_vocab"], again: Again) -> Float[Tensor, "batch d_vocab"]:  # noqa: ARG002
        """Mix: gamma log P_calibrated + (1 - gamma) log P_original; the original's own logits where gamma is 0."""
        gamma = self._gamma()
        self.gammas.append(gamma)
        if self.n_streams == 1:
            return logits[0].float()
        gamma = gamma.to(logits.device)
        original, calibrated = logits.float().log_softmax(-1)
        mixed = original + gamma[:, None] * (calibrated - original)
        return torch.where(gamma[:, None] > 0, mixed, logits[0].float())

    def records(self) -> dict[str, Any]:
        """What was decided: gamma at each step, and each prompt's sinks."""
        gammas = torch.stack(self.gammas, dim=1) if self.gammas else torch.empty(len(self.hubs), 0)
        return {
            "gamma": gammas,
            "hubs": tuple(self.hubs),
            "edit_layers": self.edit_layers,
            "target_layers": list(self.last_row.layers),
            "streams": ("original", "calibrated"),
        }

    def _calibrate(self, inputs: AVInputs, hubs: Sequence[Hubs]) -> "Calibrate":
        n, length = inputs.shape
        change, first = torch.zeros(n, length), torch.zeros(n, dtype=torch.long)
        for row, (sinks, pad) in enumerate(zip(hubs, inputs.padding.tolist(), strict=True)):
            tokens = inputs.prompts[row].tokens
            first[row] = _after_media(tokens) if self.method.readers == "after_media" else len(tokens) - 1
            if self.method.guides(sinks):
                change[row, sinks.cross.positions + pad] = self.method.alpha
                change[row, sinks.uni.positions + pad] = -self.method.lowered
        return Calibrate(change, first)

    def _gamma(self) -> Float[Tensor, " batch"]:
        """The strength of each row at this step."""
        wanted = torch.tensor([self._wanted(row, hubs) for row, hubs in enumerate(self.hubs)])
        inertia = self.method.inertia
        return inertia * self.gammas[-1] + (1 - inertia) * wanted if self.gammas else wanted

    def _wanted(self, row: int, hubs: Hubs) -> float:
        method, first_token = self.method, not self.gammas
        if not method.guides(hubs) or (first_token and method.rule != "paper"):
            return 0.0
        tokens = self.inputs.prompts[row].tokens
        rows = self.first_rows[row] if first_token else self.last_row.of(row, self.inputs.padding)
        attention = rows.mean(0).cpu()
        if method.rule == "paper":
            uni, cross = (float(attention[sinks.positions].mean()) for sinks in (hubs.uni, hubs.cross))
            return method.base * share(uni, cross)
        uni, cross = (_per_modality(attention, sinks, tokens) for sinks in (hubs.uni, hubs.cross))
        text = float(attention[_after_media(tokens) :].sum())
        if method.rule == "released_new":
            most = 0.5 if method.most_text is None else method.most_text
            return gated(share(uni, cross), text, method.base, least_weight=method.least_weight, most_text=most)
        most = 0.4 if method.most_text is None else method.most_text
        return faded(share(cross, uni), text, method.base, least_weight=method.least_weight, most_text=most)


@dataclass(frozen=True, eq=False)
class Calibrate:
    """s <- s + change |s|, for rows from a position on. Works row by row.

    Attributes:
        change: Of each key, padding included; keys beyond it are left alone. Not 0 only before the first reader, so that
            every reader may read what changes.
        first_reader: The first row of each prompt that is edited.
    """

    change: Float[Tensor, "batch pos"]
    first_reader: Int[Tensor, " batch"]
    row_wise: bool = True

    def __call__(
        self, scores: Float[Tensor, "batch head query_pos key_pos"], hook: HookPoint
    ) -> Float[Tensor, "batch head query_pos key_pos"] | None:
        """A copy of the scores, calibrated; None where no row reads after the media."""
        run = current_run(hook)
        assert run is not None
        # On the CPU, where looking at it costs no synchronisation.
        reads = run.query_index[None] - run.padding[:, None] >= self.first_reader[:, None]
        if not bool(reads.any()):
            return None
        n = min(scores.shape[-1], self.change.shape[1])
        change = self.change[:, None, None, :n].to(scores)
        if not bool(reads.all()):
            change = change * reads[:, None, :, None].to(scores)
        edited = scores.clone()
        # A key that may not be read has -inf, which must stay so: it never changes.
        before = scores[..., :n]
        edited[..., :n] = torch.where(change == 0, before, torch.addcmul(before, change, before.abs()))
        return edited


def share(one: float, other: float) -> float:
    """`one` / (`one` + `other`); 0 where both are."""
    return one / (one + other) if one + other > 0 else 0.0


def gated(weight: float, text: float, base: float, *, least_weight: float = 0.6, most_text: float = 0.5) -> float:
    """Strength by the rule `released_new`: nothing below a weight or above a text mass."""
    return 0.0 if weight < least_weight or text > most_text else base * weight


def faded(weight: float, text: float, base: float, *, least_weight: float = 0.6, most_text: float = 0.4) -> float:
    """Strength by the rule `released`: at most 0.6, fading out as text mass rises by 0.2, and below a weight."""
    strength = min(0.6, base * weight)
    if text > most_text:
        strength *= 0.5 * (1 + math.cos(math.pi * min(1.0, (text - most_text) / 0.2)))
    if weight < least_weight:
        strength *= (weight / least_weight) ** 2
    return strength


def _per_modality(attention: Float[Tensor, " pos"], sinks: TokenSet, tokens: TokenMap) -> float:
    """Mean attention per video sink plus that per audio sink, as the released code sums them."""
    groups = [sinks & tokens.video, sinks & tokens.audio]
    return sum(float(attention[group.positions].mean()) for group in groups if group)


def _after_media(tokens: TokenMap) -> int:
    """The first position after the last audio, video or image token."""
    return int(tokens.media.positions.max()) + 1 if tokens.media else 0
