"""Paying attention to image (PAI), for sound and pictures: read media more, and contrast with never having seen them.

1. The row that predicts the next token reads media more, in the layers from `first` on, before the softmax:
   s <- s + alpha |s| at audio, video and image tokens.
2. With c the log-probabilities of that stream and u those of the prompt without media,
   out = gamma (c - u) + u,   -inf where c < max(c) + log(beta).

Source: Liu et al. 2024, "Paying More Attention to Image", ECCV, arXiv:2407.21771; LALBJ/PAI, attention.py:77-95 (the boost, of
image columns, in blocks 2 to 32 of 32) and CFG.py:30-58 (the contrast).

Differs from the source: columns are all media, not one image. Layers scale with the model's depth. The stream without media
reads the same chat with the media's tokens left out and positions counted anew, in rows of its own; their begin and end
markers stay, with nothing between them (pass `without` for another prompt). At gamma = 1 it is not run, and c is returned
without the cutoff, as there.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from avlens.decoding.plausible import keep_plausible
from avlens.errors import DecodingError
from avlens.hooks import Again, FwdHook, on_rows
from avlens.inputs import AVInputs, Prompt
from avlens.interventions import reweight
from avlens.tokens import TokenMap


@dataclass(frozen=True)
class PAI:
    """The method's settings.

    Attributes:
        alpha: How much the scores of media change.
        gamma: How much the stream without media is contrasted; at 1 not at all. The released commands use 1.1, its CHAIR
            script 2.
        beta: How likely, relative to the likeliest token, a token must be to be written.
        layers: Blocks whose scores are edited; by default those from 2/32 of the depth on.
        without: The prompts without media, one for each; by default made by `without_media`.
    """

    alpha: float = 0.2
    gamma: float = 1.1
    beta: float = 0.1
    layers: tuple[int, ...] | None = None
    without: AVInputs | None = None

    def start(self, model: Any, inputs: AVInputs) -> "PAIRun":
        """Leave the media out of the prompts.

        Raises:
            DecodingError: If a setting is out of range.
        """
        if self.alpha < 0 or self.gamma < 1 or not 0 <= self.beta <= 1:
            raise DecodingError(
                f"alpha is {self.alpha}, gamma {self.gamma} and beta {self.beta}. Pass alpha >= 0, gamma >= 1 and a beta in "
                "[0, 1]."
            )
        depth = model.cfg.n_layers
        layers = range(depth * 2 // 32, depth) if self.layers is None else self.layers
        without = without_media(inputs) if self.without is None else self.without
        return PAIRun(self, inputs, without, list(layers), n_streams=1 if self.gamma == 1 else 2)


@dataclass(eq=False)
class PAIRun:
    """PAI at work on some prompts."""

    method: PAI
    inputs: AVInputs
    without: AVInputs
    layers: list[int]
    n_streams: int
    n_hooked: int = 1

    def prompts(self, stream: int) -> AVInputs:
        """The second stream reads the prompts without media."""
        return self.without if stream else self.inputs

    def hooks(self) -> list[FwdHook]:
        """The boost, in the original stream."""
        edits: list[FwdHook] = []
        for row, prompt in enumerate(self.inputs.prompts):
            tokens = prompt.tokens
            if tokens.media and self.method.alpha > 0:
                readers = tokens.last | tokens.generated
                edits += on_rows(reweight(readers, tokens.media, self.method.alpha, layers=self.layers), [row])
        return edits

    def mix(self, logits: Float[Tensor, "stream batch d_vocab"], again: Again) -> Float[Tensor, "batch d_vocab"]:  # noqa: ARG002
        """Guide away from the stream without media, among plausible tokens."""
        if self.n_streams == 1:
            return logits[0].float()
        seen, unseen = logits.float().log_softmax(-1)
        return keep_plausible(guide(seen, unseen, self.method.gamma), seen, self.method.beta)

    def records(self) -> dict[str, Any]:
        """The prompts without media, and where scores are edited."""
        return {"without": self.without, "layers": self.layers, "streams": ("media read more", "without media")}


def guide(
    seen: Float[Tensor, "*batch d_vocab"], unseen: Float[Tensor, "*batch d_vocab"], gamma: float
) -> Float[Tensor, "*batch d_vocab"]:
    """Classifier-free guidance of log-probabilities: gamma (c - u) + u."""
    return gamma * (seen - unseen) + unseen


def without_media(inputs: AVInputs) -> AVInputs:
    """The same chats with audio, video, image and separator tokens left out; positions are those of plain text."""
    return AVInputs(tuple(_without_media(prompt) for prompt in inputs.prompts), inputs.stock_kwargs)


def _without_media(prompt: Prompt) -> Prompt:
    tokens = prompt.tokens
    keep = (~(tokens.media | tokens.separator).mask).nonzero()[:, 0]
    positions = torch.arange(len(keep)).expand(len(prompt.positions), -1)
    left = TokenMap.join([tokens[first:end] for first, end in _runs(keep)], tokens.prompt)
    return replace(
        prompt, ids=prompt.ids[keep], tokens=left, media=(), positions=positions, next_position=len(keep)
    )  # fmt: skip


def _runs(positions: Int[Tensor, " pos"]) -> list[tuple[int, int]]:
    """First and last-plus-one of each run of neighbours."""
    breaks = (positions.diff() > 1).nonzero()[:, 0] + 1
    return [(int(run[0]), int(run[-1]) + 1) for run in torch.tensor_split(positions, breaks)]
