"""Audio-visual contrastive decoding (AVCD): contrast with runs that cannot read the less dominant modalities.

At each step, from the row that predicts the next token, averaged over heads and over all blocks but the last, a:

1. Dominance of video, audio and language: the mean of a over the modality's tokens. The dominant one stays; m and n are the
   other two.
2. A token of m or n is masked if its a is above the `share` quantile of a over all positions.
3. A second pass over the whole text so far, with l_m, l_n, l_mn the logits when the masked tokens of m, of n, of both
   cannot be read in any block but the last (after the softmax; the row is renormalised):
       out = (2 + 2 alpha) l + l_m + l_n - 2 alpha l_mn,   -inf where l < max(l) + log(beta).
   It is skipped where the entropy of softmax(l) is below `entropy` nats: l itself decides.

Source: Jung et al. 2025, "AVCD: Mitigating Hallucinations in Audio-Visual Large Language Models through Contrastive
Decoding", arXiv:2505.20862; kaistmm/AVCD, qwen.py:1187-1226 (dominance), :732-779 (masks), videollama2/__init__.py:177-231.

Differs from the released code: masked tokens are removed as keys. There the mask is put on the query axis, so that those tokens
read nothing and can still be read (`axis="query"`). Implausible tokens get -inf, there -1e-4, which leaves them in the race
(`fill=-1e-4`). Language is every position that is not audio, video or image, templates and written tokens included; images
count as video. A query with nothing left to read reads nothing, as there.

The second pass reads the text from the start, three times over, as the released code does: expect four times the cost of a
prompt at each step that is not skipped. The weights of `out` sum to 4, so a sampling temperature of 4 is what 1 is otherwise.
"""

import math
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from avlens import names
from avlens.decoding.last_row import LastRow
from avlens.decoding.plausible import keep_plausible
from avlens.errors import DecodingError
from avlens.hooks import Again, FwdHook, HookPoint, key_positions, on_rows, query_positions
from avlens.inputs import AVInputs
from avlens.tokens import TokenMap

MODALITIES = ("video", "audio", "language")
Axis = Literal["key", "query"]


@dataclass(frozen=True)
class AVCD:
    """The method's settings.

    Attributes:
        alpha: How much the run without both modalities is subtracted. The code uses 0.5, and 2.5 for AVHBench.
        beta: How likely, relative to the likeliest token, a token must be to be written.
        entropy: Below it, in nats, nothing is contrasted; infinite: never.
        share: The quantile of attention above which a token is masked, in [0, 1].
        axis: Whether masked tokens cannot be read (`key`) or, as in the released code, cannot read (`query`).
        fill: What implausible tokens get; the released code has -1e-4.
    """

    alpha: float = 0.5
    beta: float = 0.2
    entropy: float = 0.6
    share: float = 0.5
    axis: Axis = "key"
    fill: float = -math.inf

    def start(self, model: Any, inputs: AVInputs) -> "AVCDRun":
        """Look at the prompts.

        Raises:
            DecodingError: If a setting is out of range, or a prompt lacks audio or video.
        """
        if self.alpha < 0 or not 0 <= self.beta <= 1 or not 0 <= self.share <= 1:
            raise DecodingError(
                f"alpha is {self.alpha}, beta {self.beta} and share {self.share}. Pass alpha >= 0, and beta and share in [0, 1]."
            )
        if self.axis not in ("key", "query"):
            raise DecodingError(f"axis is {self.axis!r}. Pass 'key' or 'query'.")
        for prompt in inputs.prompts:
            if not prompt.tokens.audio or not (prompt.tokens.video | prompt.tokens.image):
                raise DecodingError(
                    f"AVCD weighs audio against video, but a prompt is {prompt.tokens!r}. Pass clips with both, or use VCD."
                )
        layers = list(range(max(1, model.cfg.n_layers - 1)))
        return AVCDRun(self, inputs, layers, LastRow(layers))


@dataclass(eq=False)
class AVCDRun:
    """AVCD at work on some prompts."""

    method: AVCD
    inputs: AVInputs
    layers: list[int]
    last_row: LastRow
    n_streams: int = 1
    n_hooked: int = 1
    entropies: list[Tensor] = field(default_factory=list)
    dominant: list[Tensor] = field(default_factory=list)

    def prompts(self, stream: int) -> AVInputs:  # noqa: ARG002
        """Masked runs come in a second pass; there is one stream."""
        return self.inputs

    def hooks(self) -> list[FwdHook]:
        """What dominance and masks are computed from."""
        return on_rows(self.last_row.hooks(), range(len(self.inputs))) if self._contrasts else []

    def mix(self, logits: Float[Tensor, "stream batch d_vocab"], again: Again) -> Float[Tensor, "batch d_vocab"]:
        """Contrast the rows that are undecided."""
        mixed = logits[0].float()
        uncertain = entropy(mixed)
        undecided = (uncertain >= self.method.entropy).nonzero()[:, 0].tolist()
        self.entropies.append(uncertain.cpu())
        self.dominant.append(torch.full((len(mixed),), -1))
        if not undecided:
            return mixed
        masks = [mask for row in undecided for mask in self._masks(row)]
        longest = max(len(mask) for mask in masks)
        padded = torch.stack([F.pad(mask, (0, longest - len(mask))) for mask in masks])
        edit = Masked(padded, self.method.axis)
        rows = [row for row in undecided for _ in range(3)]
        masked = again(rows, [(names.at("pattern", layer), edit) for layer in self.layers])
        without_m, without_n, without_both = masked.float().unflatten(0, (-1, 3)).unbind(1)
        original = mixed[undecided]
        out = combine(original, without_m, without_n, without_both, self.method.alpha)
        kept = keep_plausible(out, original, self.method.beta, fill=self.method.fill)
        return mixed.index_put((torch.tensor(undecided, device=mixed.device),), kept)

    def records(self) -> dict[str, Any]:
        """Entropy in nats, and the dominant modality at each step (an index into `modalities`; -1 where it was skipped)."""
        return {
            "entropy": torch.stack(self.entropies, 1) if self.entropies else torch.empty(len(self.inputs), 0),
            "dominant": torch.stack(self.dominant, 1) if self.dominant else torch.empty(len(self.inputs), 0),
            "modalities": MODALITIES,
            "streams": ("original",),
        }

    @property
    def _contrasts(self) -> bool:
        return not math.isinf(self.method.entropy)

    def _masks(self, row: int) -> list[Bool[Tensor, " pos"]]:
        """What the three masked runs of a row cannot read: of one modality, of the other, of both."""
        attention = self.last_row.of(row, self.inputs.padding).mean(0).cpu()
        groups = members(self.inputs.prompts[row].tokens, len(attention))
        stays = int(dominance(attention, groups).argmax())
        self.dominant[-1][row] = stays
        high = attention > attention.quantile(self.method.share)
        m, n = (groups[i] & high for i in range(3) if i != stays)
        return [m, n, m | n]


def entropy(logits: Float[Tensor, "*batch d_vocab"]) -> Float[Tensor, "*batch"]:
    """Of softmax(logits), in nats."""
    log_p = logits.log_softmax(-1)
    return -(log_p.exp() * log_p).nan_to_num().sum(-1)


def members(tokens: TokenMap, length: int) -> Bool[Tensor, "3 pos"]:
    """Which positions are video (images included), audio and language; those after the prompt are language."""
    video, audio = torch.zeros(2, length, dtype=torch.bool)
    video[(tokens.video | tokens.image).positions] = True
    audio[tokens.audio.positions] = True
    return torch.stack([video, audio, ~(video | audio)])


def dominance(attention: Float[Tensor, " pos"], groups: Bool[Tensor, "group pos"]) -> Float[Tensor, " group"]:
    """Mean attention that a position of each group receives."""
    return (attention * groups).sum(1) / groups.sum(1)


def combine(
    original: Float[Tensor, "*batch d_vocab"],
    without_m: Float[Tensor, "*batch d_vocab"],
    without_n: Float[Tensor, "*batch d_vocab"],
    without_both: Float[Tensor, "*batch d_vocab"],
    alpha: float,
) -> Float[Tensor, "*batch d_vocab"]:
    """(2 + 2 alpha) l + l_m + l_n - 2 alpha l_mn."""
    return (2 + 2 * alpha) * original + without_m + without_n - 2 * alpha * without_both


@dataclass(frozen=True, eq=False)
class Masked:
    """Keys that cannot be read, or queries that cannot read, in each row of the batch. Works row by row.

    Attributes:
        masked: By position in the row's own prompt and what was written after it.
        axis: Which of the two.
    """

    masked: Bool[Tensor, "batch pos"]
    axis: Axis
    row_wise: bool = True

    def __call__(
        self, pattern: Float[Tensor, "batch head query_pos key_pos"], hook: HookPoint
    ) -> Float[Tensor, "batch head query_pos key_pos"]:
        """A copy of the pattern without them."""
        if self.axis == "query":
            silent = self._at(query_positions(hook, pattern, dim=2))
            return pattern.masked_fill(silent[:, None, :, None], 0)
        edited = pattern.masked_fill(self._at(key_positions(hook, pattern))[:, None, None], 0)
        left = edited.sum(-1, keepdim=True, dtype=torch.float32)
        return (edited / torch.where(left > 0, left, 1)).to(pattern.dtype)

    def _at(self, positions: Int[Tensor, "batch pos"]) -> Bool[Tensor, "batch pos"]:
        masked = self.masked.to(positions.device)
        return masked.gather(1, positions.clamp(0, masked.shape[1] - 1)) & (positions >= 0)
