"""Fork-merge decoding (FMD), an approximation: read sound and pictures apart first, then together.

The prompt forks: in one branch the video tokens are zeroed at the input, in the other the audio tokens, and blocks 0 to
fork - 1 run on both. Before block `fork` they merge into

    h = h of the branch that kept them          at video, and at audio tokens
    h = w h^{no video} + (1 - w) h^{no audio}   at every other position,  w = A / (A + V)

with A what the row that predicts the next token attends to audio in block fork - 1 of the branch without video, V what it
attends to video in the other branch (means over heads, sums over tokens). The rest of the blocks run on the merged state. At
fork = 0 nothing forks.

Source: Jung et al. 2025, "Fork-Merge Decoding: Enhancing Multimodal Understanding in Audio-Visual Large Language Models",
arXiv:2505.20873.

Differs from the source: APPROXIMATION. The authors' code, the depth of their fork and the formula of their weight are not
public; what is written above is our reading of the paper's description, with the fork at a fifth of the depth. Results
should not be reported as FMD's without saying so. Both rows of the batch run to the last block, the second one for
nothing, so a step costs two rows, not the 1.26 of the paper.

There is no stream that is the original: a user's hooks act on both branches, and what is recorded is the one without video
below the fork and the merged one from there on.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from avlens import names
from avlens.decoding.last_row import LastRow
from avlens.errors import DecodingError
from avlens.hooks import Again, FwdHook, HookPoint, on_rows, query_positions, stream_rows
from avlens.inputs import AVInputs
from avlens.interventions import ablate
from avlens.tokens import TokenSet


@dataclass(frozen=True)
class FMD:
    """The method's settings.

    Attributes:
        fork: How many blocks the branches run apart; by default a fifth of the depth. 0: vanilla decoding.
        weight: The share of the branch without video at text, in [0, 1]; by default from attention, as above.
    """

    fork: int | None = None
    weight: float | None = None

    def start(self, model: Any, inputs: AVInputs) -> "FMDRun":
        """Say where the branches merge.

        Raises:
            DecodingError: If a setting is out of range.
        """
        depth = model.cfg.n_layers
        fork = round(0.2 * depth) if self.fork is None else self.fork
        if not 0 <= fork < depth:
            raise DecodingError(f"fork is {fork}, but the model has {depth} blocks. Pass one from 0 to {depth - 1}.")
        if self.weight is not None and not 0 <= self.weight <= 1:
            raise DecodingError(f"weight is {self.weight}. Pass a share between 0 and 1, or None for attention's.")
        n_streams = 2 if fork else 1
        return FMDRun(self, inputs, fork, LastRow([fork - 1] if fork else []), n_streams, n_hooked=n_streams)


@dataclass(eq=False)
class FMDRun:
    """FMD at work on some prompts: row by row without video, then without audio."""

    method: FMD
    inputs: AVInputs
    fork: int
    last_row: LastRow
    n_streams: int
    n_hooked: int
    weights: list[Tensor] = field(default_factory=list)

    def prompts(self, stream: int) -> AVInputs:  # noqa: ARG002
        """Both branches begin as the same prompts."""
        return self.inputs

    def hooks(self) -> list[FwdHook]:
        """What each branch does not see, the attention at the end of the fork, and the merge."""
        if not self.fork:
            return []
        n, edits = len(self.inputs), self.last_row.hooks()
        for row, prompt in enumerate(self.inputs.prompts):
            for stream, unseen in enumerate((prompt.tokens.video | prompt.tokens.image, prompt.tokens.audio)):
                if unseen:
                    edits += on_rows(ablate(unseen, by="zero", layers=[0]), [stream_rows(stream, n)[row]])
        return [*edits, (names.at("resid_pre", self.fork), self._merge)]

    def mix(self, logits: Float[Tensor, "stream batch d_vocab"], again: Again) -> Float[Tensor, "batch d_vocab"]:  # noqa: ARG002
        """The merged stream's."""
        return logits[0].float()

    def records(self) -> dict[str, Any]:
        """The branch without video's share at each step, and the fork."""
        weights = torch.stack(self.weights, 1) if self.weights else torch.empty(len(self.inputs), 0)
        names = ("without video", "without audio") if self.fork else ("original",)
        return {"weight": weights, "fork": self.fork, "streams": names}

    def _merge(
        self, x: Float[Tensor, "row pos d_model"], hook: HookPoint
    ) -> Float[Tensor, "row pos d_model"]:  # fmt: skip
        """Both branches become the merged one."""
        weights = torch.tensor([self._weight(row) for row in range(len(self.inputs))])
        self.weights.append(weights)
        no_video, no_audio = x.unflatten(0, (2, -1))
        own = query_positions(hook, x)[: len(self.inputs)]
        w = weights.to(x.device, x.dtype)[:, None, None]
        merged = w * no_video + (1 - w) * no_audio
        audio = self._holds([prompt.tokens.audio for prompt in self.inputs.prompts], own)
        video = self._holds([prompt.tokens.video | prompt.tokens.image for prompt in self.inputs.prompts], own)
        merged = torch.where(audio, no_video, torch.where(video, no_audio, merged))
        return torch.cat([merged, merged])

    def _holds(self, sets: list[TokenSet], own: Tensor) -> Bool[Tensor, "batch pos 1"]:
        return torch.stack([tokens.holds(positions) for tokens, positions in zip(sets, own, strict=True)])[..., None]

    def _weight(self, row: int) -> float:
        if self.method.weight is not None:
            return self.method.weight
        tokens, pads = self.inputs.prompts[row].tokens, self.inputs.padding.repeat(2)
        no_video, no_audio = (self.last_row.of(stream_rows(s, len(self.inputs))[row], pads)[0] for s in (0, 1))
        audio = float(no_video[tokens.audio.positions].sum())
        video = float(no_audio[(tokens.video | tokens.image).positions].sum())
        return merge_weight(audio, video)


def merge_weight(audio: float, video: float) -> float:
    """Audio's share of the attention that media get; a half where they get none."""
    return audio / (audio + video) if audio + video > 0 else 0.5
