"""How much more does a run say the clean answer than the corrupted one?

    contrast = logit[clean answer] - logit[corrupted answer]     at the position that predicts it

of the first token of each answer. It is linear in the logits, so that gradients of it mean the same wherever probabilities
saturate, and patches of all that differs move it from the corrupted run's value to the clean one's.

Source: Wang et al. 2022, "Interpretability in the Wild", arXiv:2211.00593; Zhang and Nanda 2023, "Towards Best Practices of
Activation Patching", arXiv:2309.16042.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from avlens.errors import PromptError
from avlens.inputs import AVInputs

Direction = Literal["denoise", "noise"]
"""Patches from the clean run into the corrupted one, or the other way round."""


@dataclass(frozen=True)
class Contrast:
    """The first tokens of two answers, and what both runs make of them.

    Attributes:
        o_clean: Token id of the clean run's answer.
        o_corrupt: That of the corrupted run's.
        answers: Both as text.
        clean: The contrast in the clean run, a difference of logits.
        corrupt: The contrast in the corrupted run.
    """

    o_clean: int
    o_corrupt: int
    answers: tuple[str, str]
    clean: float
    corrupt: float

    @property
    def total(self) -> float:
        """The total effect: what patching all that differs moves the contrast by."""
        return self.clean - self.corrupt

    def __call__(self, logits: Float[Tensor, "*batch d_vocab"]) -> Float[Tensor, "*batch"]:
        """The contrast of some logits."""
        return (logits[..., self.o_clean] - logits[..., self.o_corrupt]).float()

    def effect(self, patched: Float[Tensor, "*edit"], direction: Direction) -> Float[Tensor, "*edit"]:
        """How far patches move the contrast from the run they edit towards the other, positive where they carry what differs."""
        return patched - self.corrupt if direction == "denoise" else self.clean - patched


def contrast_of(
    model: Any,
    clean: Float[Tensor, " d_vocab"],
    corrupt: Float[Tensor, " d_vocab"],
    answers: tuple[str, str] | None = None,
) -> Contrast:
    """The contrast between the answers of two runs.

    Args:
        model: A HookedAVModel.
        clean: The logits that the clean run answers with.
        corrupt: Those of the corrupted run.
        answers: The clean and the corrupted answer; by default the token that each run holds likeliest. Of a word's forms,
            without and with a space in front, the one counts that its own run holds likelier.

    Raises:
        PromptError: If both answers begin with the same token.
    """
    runs = [logits.detach().float().cpu() for logits in (clean, corrupt)]
    if answers is None:
        first, second = (int(logits.argmax()) for logits in runs)
    else:
        first, second = (_likelier(model, word, logits) for word, logits in zip(answers, runs, strict=True))
    said = answers or (model.to_string(torch.tensor(first)), model.to_string(torch.tensor(second)))
    if first == second:
        raise PromptError(
            f"the clean and the corrupted answer both begin with the token {said[0]!r}, so that there is nothing to tell "
            "apart. Corrupt what the answer needs, or pass answers=(clean, corrupted) that begin differently."
        )
    return Contrast(first, second, said, *(float(logits[first] - logits[second]) for logits in runs))


def check_pair(clean: AVInputs, corrupt: AVInputs) -> None:
    """Refuse two prompts that cannot be patched into each other.

    Raises:
        PromptError: If they differ in more than their media.
    """
    if clean.prompt.tokens.layout != corrupt.prompt.tokens.layout or not torch.equal(clean.ids, corrupt.ids):
        raise PromptError(
            f"the clean prompt ({clean.tokens!r}) and the corrupted one ({corrupt.tokens!r}) must have the same layout and "
            "text. Corrupt the clip with silenced(), blanked(), noised() or with_audio_of(), and ask the same question."
        )


def _likelier(model: Any, word: str, logits: Float[Tensor, " d_vocab"]) -> int:
    forms = list(model.to_first_tokens(word))
    return forms[int(logits[forms].argmax())]
