"""Causal tracing: which tokens carry what the answer needs?

A clean run answers o_clean; a run whose audio or video is corrupted answers o_corrupt. Activations of a set S of
tokens are patched from the clean run into the corrupted one:

    IE_clean(S)   = P_patched(S)[o_clean]  - P_corrupt[o_clean]       indirect effect, in [-1, 1]
    IE_corrupt(S) = P_corrupt[o_corrupt]   - P_patched(S)[o_corrupt]
    TE_clean      = P_clean[o_clean]       - P_corrupt[o_clean]       total effect, what a perfect patch reaches
    TE_corrupt    = P_corrupt[o_corrupt]   - P_clean[o_corrupt]

P is the probability of an answer's first token right after the prompt.

Source: Jung et al. 2026, arXiv:2605.10815; its released code, logic/causal_trace.py:162-223 (patching),
preprocess/step2/causal_effect.py:34-93 (effects), utils/logit.py:3-20 (P). Meng et al. 2022, arXiv:2202.05262.

Differs from the released code: P is taken at the first step, there at its maximum over all generated steps, which inflates it
for answers longer than a letter.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from avlens import names
from avlens.errors import PromptError
from avlens.inputs import AVInputs
from avlens.interventions import patch
from avlens.tokens import TokenSet


@dataclass(frozen=True, eq=False)
class CausalTrace:
    """Effects of patching each set.

    Attributes:
        sets: What was patched, by name.
        o_clean: Token id of the clean run's answer.
        o_corrupt: Token id of the corrupted run's.
        p_clean: Probability of (o_clean, o_corrupt) in the clean run.
        p_corrupt: The same in the corrupted run.
        p_patched: The same with each set patched.
        flipped: Whether the patched run answers o_clean.
        answers: Both answers as text.
        layers: Which blocks were patched.
        site: Which activation.
        made_by: What made it.
    """

    sets: Mapping[str, TokenSet]
    o_clean: int
    o_corrupt: int
    p_clean: Float[Tensor, "2"]
    p_corrupt: Float[Tensor, "2"]
    p_patched: Float[Tensor, "set 2"]
    flipped: tuple[bool, ...]
    answers: tuple[str, str]
    layers: tuple[int, ...]
    site: str
    made_by: Mapping[str, Any]

    @property
    def ie_clean(self) -> Float[Tensor, " set"]:
        """Indirect effect on the clean answer: how much of it each set restores."""
        return self.p_patched[:, 0] - self.p_corrupt[0]

    @property
    def ie_corrupt(self) -> Float[Tensor, " set"]:
        """Indirect effect on the corrupted answer: how much of it each set removes."""
        return self.p_corrupt[1] - self.p_patched[:, 1]

    @property
    def te_clean(self) -> float:
        """Total effect on the clean answer."""
        return float(self.p_clean[0] - self.p_corrupt[0])

    @property
    def te_corrupt(self) -> float:
        """Total effect on the corrupted answer."""
        return float(self.p_corrupt[1] - self.p_clean[1])

    def to_frame(self) -> pd.DataFrame:
        """One row per set; shares of the total effect are NaN where the corruption changed nothing."""
        counts = [len(tokens) for tokens in self.sets.values()]
        te = self.te_clean if abs(self.te_clean) > 0 else float("nan")
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
        return f"CausalTrace({self.answers[1]!r} -> {self.answers[0]!r}, {len(self.sets)} sets, TE {self.te_clean:.3f})"


def causal_trace(
    model: Any,
    clean: AVInputs,
    corrupt: AVInputs,
    sets: Mapping[str, TokenSet],
    *,
    layers: names.Layers = "all",
    site: str = "resid_pre",
    progress: bool = False,
) -> CausalTrace:
    """Patch each set of tokens from the clean run into the corrupted one.

    Args:
        model: A HookedAVModel.
        clean: One prompt.
        corrupt: The same prompt on a corrupted clip, such as `clip.silenced()`: same layout, same question.
        sets: What to patch, by name.
        layers: Blocks to patch, 0-based.
        site: Short name of the activation to patch; the paper's `before_attn` is `ln1.normalized`.
        progress: Whether to show a bar.

    Raises:
        PromptError: If the two prompts differ in more than their media.
    """
    if clean.prompt.tokens.layout != corrupt.prompt.tokens.layout or not torch.equal(clean.ids, corrupt.ids):
        raise PromptError(
            f"the clean prompt ({clean.tokens!r}) and the corrupted one ({corrupt.tokens!r}) must have the same layout and "
            "text. Corrupt the clip with silenced(), blanked(), noised() or with_audio_of(), and ask the same question."
        )
    wanted = site if layers == "all" else [names.at(site, layer) for layer in names.checked_layers(layers)]
    last = clean.tokens.last
    clean_logits, cache = model.run_with_cache(clean, names_filter=wanted, logits_at=last)
    corrupt_logits = model(corrupt, logits_at=last)
    o_clean, o_corrupt = int(clean_logits[0, 0].argmax()), int(corrupt_logits[0, 0].argmax())
    patched, flipped = [], []
    for tokens in tqdm(sets.values(), desc="patching", unit="set", disable=not progress):
        hooks = patch(cache, tokens, layers=layers, site=site)
        logits = model.run_with_hooks(corrupt, fwd_hooks=hooks, logits_at=last)
        patched.append(_probabilities(logits, o_clean, o_corrupt))
        flipped.append(int(logits[0, 0].argmax()) == o_clean)
    return CausalTrace(
        sets=dict(sets), o_clean=o_clean, o_corrupt=o_corrupt, flipped=tuple(flipped),
        p_clean=_probabilities(clean_logits, o_clean, o_corrupt), p_corrupt=_probabilities(corrupt_logits, o_clean, o_corrupt),
        p_patched=torch.stack(patched) if patched else torch.empty(0, 2), site=site, layers=tuple(cache.layers(site)),
        answers=(model.to_string(torch.tensor(o_clean)), model.to_string(torch.tensor(o_corrupt))),
        made_by=model.made_by(clean, corrupt=dict(corrupt.record), site=site),
    )  # fmt: skip


def _probabilities(logits: Float[Tensor, "batch pos d_vocab"], *answers: int) -> Float[Tensor, " answer"]:
    return logits[0, -1].float().softmax(-1)[list(answers)].cpu()
