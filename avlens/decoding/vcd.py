"""Visual contrastive decoding (VCD), for sound and pictures: what would be said of noise is said less.

    out = (1 + alpha) l - alpha l',   where l is plausible, else -inf

l are the logits of the prompt, l' those of the same prompt with noise on what its encoders read. A token is plausible if
its logit is at least max(l) + log(beta). With x_0 an encoder's tensor and eps normal,

    x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps,   beta_t = sigmoid(linspace(-6, 6, 1000)) (0.5e-2 - 1e-5) + 1e-5.

Source: Leng et al. 2024, "Mitigating Object Hallucinations in Large Vision-Language Models through Visual Contrastive
Decoding", CVPR, arXiv:2311.16922; its released code, vcd_utils/vcd_add_noise.py and vcd_sample.py. Noise on both sound and
pictures, in one distorted stream: Jung et al. 2026, arXiv:2605.10815, appendix A.

Differs from the source: decoding is greedy unless sampling is asked for (there: sampling); at alpha = 0 nothing is mixed, and
no token is cut off. Noise goes on the tensors after the model's own normalisation, as there; `Clip.noised` puts it on bytes
and samples before it. The released scripts set beta to 0.1 or 0.2.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from avlens.decoding.plausible import keep_plausible
from avlens.errors import DecodingError
from avlens.hooks import Again, FwdHook
from avlens.inputs import AVInputs, Media
from avlens.media.clip import signal_kept
from avlens.tokens import Modality


@dataclass(frozen=True)
class VCD:
    """The method's settings.

    Attributes:
        alpha: How much the distorted stream is subtracted; at 0 nothing is.
        beta: How likely, relative to the likeliest token, a token must be to be written.
        step: Which of the 1000 steps of diffusion, 0-based.
        audio: Whether sound is distorted.
        video: Whether video and images are.
        seed: Of the noise, which is the same for equal prompts.
        distorted: The distorted prompts, one for each, of the same layouts; by default made by `noised`.
    """

    alpha: float = 1.0
    beta: float = 0.1
    step: int = 500
    audio: bool = True
    video: bool = True
    seed: int = 0
    distorted: AVInputs | None = None

    def start(self, model: Any, inputs: AVInputs) -> "VCDRun":  # noqa: ARG002
        """Distort the prompts.

        Raises:
            DecodingError: If a setting is out of range, or the distorted prompts do not fit.
        """
        if self.alpha < 0 or not 0 <= self.beta <= 1:
            raise DecodingError(f"alpha is {self.alpha} and beta {self.beta}. Pass alpha >= 0 and a beta in [0, 1].")
        if self.distorted is None:
            other = noised(inputs, self.step, seed=self.seed, audio=self.audio, video=self.video)
        elif self.distorted.layouts != inputs.layouts:
            raise DecodingError(
                f"the distorted prompts {self.distorted!r} are not laid out as {inputs!r}. Prepare them from clips of the same "
                "size and length, such as clip.noised(500), with the same question."
            )
        else:
            other = self.distorted
        return VCDRun(self, inputs, other, n_streams=2 if self.alpha > 0 else 1)


@dataclass(eq=False)
class VCDRun:
    """VCD at work on some prompts."""

    method: VCD
    inputs: AVInputs
    distorted: AVInputs
    n_streams: int
    n_hooked: int = 1

    def prompts(self, stream: int) -> AVInputs:
        """The second stream reads the distorted prompts."""
        return self.distorted if stream else self.inputs

    def hooks(self) -> list[FwdHook]:
        """None: the streams differ in what they read."""
        return []

    def mix(self, logits: Float[Tensor, "stream batch d_vocab"], again: Again) -> Float[Tensor, "batch d_vocab"]:  # noqa: ARG002
        """Contrast, among plausible tokens."""
        if self.n_streams == 1:
            return logits[0].float()
        original, distorted = logits.float()
        return keep_plausible(contrast(original, distorted, self.method.alpha), original, self.method.beta)

    def records(self) -> dict[str, Any]:
        """The distorted prompts."""
        return {"distorted": self.distorted, "streams": ("original", "with noise")}


def contrast(
    original: Float[Tensor, "*batch d_vocab"], distorted: Float[Tensor, "*batch d_vocab"], alpha: float
) -> Float[Tensor, "*batch d_vocab"]:
    """(1 + alpha) l - alpha l'."""
    return (1 + alpha) * original - alpha * distorted


def noised(inputs: AVInputs, step: int, *, seed: int = 0, audio: bool = True, video: bool = True) -> AVInputs:
    """The prompts with what their encoders read after `step` + 1 of VCD's 1000 steps of diffusion; same layouts.

    Noise has unit variance: encoders read normalised pixels and mel spectrograms. A prompt's noise does not depend on
    its place in a batch.

    Raises:
        DecodingError: If there is no such step, or a prompt has nothing that could be distorted.
    """
    if not 0 <= step <= 999:
        raise DecodingError(f"step {step} is not a step of the diffusion. Pass one from 0 to 999.")
    kinds = {Modality.AUDIO} if audio else set()
    kinds |= {Modality.VIDEO, Modality.IMAGE} if video else set()
    prompts = []
    for prompt in inputs.prompts:
        if not any(media.modality in kinds for media in prompt.media):
            raise DecodingError(
                f"{prompt.tokens!r} has nothing to distort with audio={audio}, video={video}. Pass a prompt with a clip, or "
                "VCD(distorted=...)."
            )
        media = [
            replace(one, tensors=_noised(one, step, 1000 * seed + i)) if one.modality in kinds else one
            for i, one in enumerate(prompt.media)
        ]
        prompts.append(replace(prompt, media=tuple(media)))
    return AVInputs(tuple(prompts), inputs.stock_kwargs)


def _noised(media: Media, step: int, seed: int) -> Mapping[str, Tensor]:
    """An encoder's tensors with noise on the signal: of floating point, with more than one axis (others are sizes and rates)."""
    generator, kept = torch.Generator().manual_seed(seed), signal_kept(step)
    tensors = dict(media.tensors)
    for name, x in media.tensors.items():
        if x.is_floating_point() and x.ndim > 1:
            noise = torch.randn(x.shape, generator=generator).to(x.dtype)
            tensors[name] = kept**0.5 * x + (1 - kept) ** 0.5 * noise
    return tensors
