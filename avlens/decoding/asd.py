"""Adaptive Sink-guided Decoding (ASD): listen more to cross-modal sinks, to hallucinate less.

ASD = sinks + modality dominance + reweighting, in two streams of one prompt:

1. Prefill; find sinks, sink(N); score their modality dominance; split them by median into uni and cross.
2. Calibrated stream: from block `first_layer` on, rows after the media read (before the softmax)
   s <- s + alpha |s| at cross sinks, s <- s - alpha |s| at uni sinks.
3. At each step t, over the target layers and heads, with A the calibrated stream's attention of the row that predicts t,
   gamma_t = strength * uni / (uni + cross), where uni and cross are mean A per sink:
   the more attention drifts to unimodal sinks, the more the calibrated stream guides.
4. log P = gamma_t log P_calibrated + (1 - gamma_t) log P_original.

Source: Jung et al. 2026, "Probing Cross-modal Information Hubs in Audio-Visual LLMs", arXiv:2605.10815. Released code:
model/modeling_qwen2_5_omni_low.py:1505, 1553-1570 (the edit, commented out: alpha 0.2, blocks 6 of 28 on, rows after the
media), logic/adaptive_guidance_complex.py (target layers 18 to 25 of 28, N = 3).

Differs from the released code: that code cannot run as published, and its weight is inverted, cross / (uni + cross); here the
paper's. Its gates and momentum, which the paper does not define, are left out. Layers scale with the model's depth.
Where a prompt has no uni or no cross sinks, gamma is 0: its logits are the original stream's, untouched.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from avlens import names
from avlens.analyses.dominance import Hubs
from avlens.analyses.sinks import find_sink_dims
from avlens.errors import DecodingError
from avlens.hooks import FwdHook, HookPoint, on_rows
from avlens.hubs import find_hubs
from avlens.inputs import AVInputs
from avlens.interventions import reweight
from avlens.tokens import TokenMap, TokenSet


@dataclass(frozen=True)
class ASD:
    """The method's settings.

    Attributes:
        alpha: How much the calibrated stream's scores change.
        strength: What gamma is multiplied by; at 0 nothing is mixed.
        n: The N of sink(N).
        edit_layers: Blocks whose scores are edited; by default those from 6/28 of the depth on.
        target_layers: Blocks whose attention gamma is computed from; by default 18/28 to 26/28 of the depth.
        sink_dims: Sink dimensions; by default found in the model's text-only pass.
    """

    alpha: float = 0.2
    strength: float = 1.0
    n: float = 3
    edit_layers: tuple[int, ...] | None = None
    target_layers: tuple[int, ...] | None = None
    sink_dims: tuple[int, ...] | None = None

    def start(self, model: Any, inputs: AVInputs) -> "ASDRun":
        """Find each prompt's sinks and split them.

        Raises:
            DecodingError: If alpha or strength is negative, or strength above 1.
        """
        if self.alpha < 0 or not 0 <= self.strength <= 1:
            raise DecodingError(
                f"alpha is {self.alpha} and strength {self.strength}. Pass alpha >= 0 and a strength in [0, 1]."
            )
        depth = model.cfg.n_layers
        first, target = depth * 6 // 28, range(depth * 18 // 28, max(depth * 18 // 28 + 1, depth * 26 // 28))
        dims = find_sink_dims(model).dims.tolist() if self.sink_dims is None else self.sink_dims
        return ASDRun(
            method=self,
            inputs=inputs,
            hubs=[find_hubs(model, row, dims, n=self.n).hubs for row in inputs],
            edit_layers=list(range(first, depth) if self.edit_layers is None else self.edit_layers),
            target_layers=list(target if self.target_layers is None else self.target_layers),
        )


@dataclass(eq=False)
class ASDRun:
    """ASD at work on some prompts: what it found, and what it decides at each step."""

    method: ASD
    inputs: AVInputs
    hubs: list[Hubs]
    edit_layers: list[int]
    target_layers: list[int]
    n_streams: int = 2
    gammas: list[Tensor] = field(default_factory=list)
    _seen: dict[str, Tensor] = field(default_factory=dict)

    def prompts(self, stream: int) -> AVInputs:  # noqa: ARG002
        """Both streams read the same prompts."""
        return self.inputs

    def hooks(self, stream: int) -> list[FwdHook]:
        """The calibrated stream's edits, and what gamma is computed from; the original is left alone."""
        if stream == 0:
            return []
        edits: list[FwdHook] = []
        for row, hubs in enumerate(self.hubs):
            readers = _after_media(self.inputs[row].tokens)
            for sinks, change in ((hubs.cross, self.method.alpha), (hubs.uni, -self.method.alpha)):
                if sinks and change and self._guides(hubs):
                    edits += on_rows(reweight(readers, sinks, change, layers=self.edit_layers), [row])
        return edits + [(names.at("pattern", layer), _LastRow(self._seen)) for layer in self.target_layers]

    def mix(self, logits: Float[Tensor, "stream batch d_vocab"]) -> Float[Tensor, "batch d_vocab"]:
        """Mix: gamma log P_calibrated + (1 - gamma) log P_original; the original's own logits where gamma is 0."""
        gamma = torch.tensor([self._gamma(row, hubs) for row, hubs in enumerate(self.hubs)], device=logits.device)
        self.gammas.append(gamma.cpu())
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
            "target_layers": self.target_layers,
        }

    def _guides(self, hubs: Hubs) -> bool:
        return bool(hubs.uni) and bool(hubs.cross) and self.method.strength > 0 and self.method.alpha > 0

    def _gamma(self, row: int, hubs: Hubs) -> float:
        if not self._guides(hubs):
            return 0.0
        pad = int(self.inputs.padding[row])
        rows = torch.stack([pattern[row].float().mean(0) for pattern in self._seen.values()])  # layer key_pos
        uni, cross = (
            float(rows[:, (sinks.positions + pad).to(rows.device)].mean()) for sinks in (hubs.uni, hubs.cross)
        )
        return self.method.strength * uni / (uni + cross) if uni + cross > 0 else 0.0


@dataclass(frozen=True, eq=False)
class _LastRow:
    """Keeps the last query's attention. Works row by row: of several chunks the last one is kept."""

    seen: dict[str, Tensor]
    row_wise: bool = True

    def __call__(self, pattern: Float[Tensor, "batch head query_pos key_pos"], hook: HookPoint) -> None:
        self.seen[str(hook.name)] = pattern[:, :, -1]


def _after_media(tokens: TokenMap) -> TokenSet:
    """Every position after the last audio or video token, and all that are generated."""
    media = tokens.media
    first = int(media.positions.max()) + 1 if media else 0
    return tokens.at(range(first, len(tokens))) | tokens.generated
