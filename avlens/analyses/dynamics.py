"""Attention dynamics: at the step that writes a word, how much does the model read which tokens?

At step t of an answer, for a set S of the prompt's tokens and a layer,

    A(S, t) = mean over heads and over s in S of the attention that the row which predicts token t pays to s,   in [0, 1]

per token, so that sets of different sizes can be compared. A word is written at the steps of the tokens that its characters
belong to; with words sorted into kinds (such as genuine and hallucinated objects) the kinds are compared.

Source: Jung et al. 2026, "Probing Cross-modal Information Hubs in Audio-Visual LLMs", arXiv:2605.10815: attention to cross-modal
and unimodal sinks while object words are written.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from avlens import display
from avlens.cache import Reduction
from avlens.errors import PositionError
from avlens.hooks import FwdHook, HookPoint, query_positions
from avlens.inputs import AVInputs
from avlens.tokens import TokenSet, word_spans


@dataclass(frozen=True, eq=False)
class AttentionDynamics:
    """Attention to sets of tokens while an answer was written.

    Attributes:
        attention: Mean attention per token of each set.
        sets: What was read, by name, in the order of the first axis.
        layers: The block of each row of the second axis, 0-based.
        tokens: What was written, one id per step.
        strings: The same as text.
        words: For each word that was looked for and found, the steps that wrote it, one tuple per occurrence.
        made_by: What made it.
    """

    attention: Float[Tensor, "set layer step"]
    sets: Mapping[str, TokenSet]
    layers: tuple[int, ...]
    tokens: Int[Tensor, " step"]
    strings: tuple[str, ...]
    words: Mapping[str, tuple[tuple[int, ...], ...]]
    made_by: Mapping[str, Any]

    def at_words(self, kinds: Mapping[str, str]) -> pd.DataFrame:
        """Mean attention per set and layer at the first step of each occurrence of the words of each kind.

        Args:
            kinds: For each word its kind, such as `{"dog": "genuine", "guitar": "hallucinated"}`.
        """
        rows = []
        for kind in dict.fromkeys(kinds.values()):
            steps = [span[0] for word, its in kinds.items() if its == kind for span in self.words.get(word, ())]
            means = self.attention[:, :, steps].mean(-1) if steps else torch.full(self.attention.shape[:2], torch.nan)
            for i, name in enumerate(self.sets):
                for j, layer in enumerate(self.layers):
                    rows.append((kind, name, layer, float(means[i, j]), len(steps)))
        return pd.DataFrame(rows, columns=["kind", "set", "layer", "attention", "words"])

    def to_frame(self) -> pd.DataFrame:
        """One row per step and set: attention averaged over layers."""
        means = self.attention.mean(1).T
        return pd.DataFrame(means.numpy(), columns=list(self.sets), index=pd.Index(self.strings, name="token"))

    def _repr_html_(self) -> str:
        return display.table(f"AttentionDynamics({len(self.strings)} tokens written)", self.to_frame(), self.made_by)


def attention_dynamics(
    model: Any,
    inputs: AVInputs,
    sets: Mapping[str, TokenSet],
    *,
    words: Sequence[str] = (),
    max_new_tokens: int = 64,
    fwd_hooks: Sequence[FwdHook] = (),
    **generate_options: Any,
) -> AttentionDynamics:
    """Let the model answer one prompt, and watch what each step reads.

    Args:
        model: A HookedAVModel.
        inputs: One prompt.
        sets: What may be read, by name; positions of the prompt.
        words: Words to look for in the answer, whole words, whatever their case.
        max_new_tokens: How long the answer may be.
        fwd_hooks: Edits to run with.
        generate_options: Those of `model.generate`, such as `do_sample` and `seed`.

    Raises:
        PositionError: If a set is empty or belongs to a prompt of another layout.
    """
    if not sets:
        raise PositionError("there is no set to watch. Pass some, such as {'audio': inputs.tokens.audio}.")
    for name, chosen in sets.items():
        inputs.tokens.check_own(chosen)
        if not len(chosen):
            raise PositionError(f"the set {name!r} is empty, so that there is no attention to it. Leave it out.")
    reductions = [_read(chosen, len(inputs.tokens), f"to_{i}") for i, chosen in enumerate(sets.values())]
    out = model.generate(inputs, max_new_tokens, fwd_hooks=fwd_hooks, reductions=reductions, **generate_options)
    layers = out.cache.layers("pattern.to_0")
    seen = [
        torch.stack([out.cache[f"pattern.to_{i}", layer][0].float().mean(0).cpu() for layer in layers])
        for i in range(len(sets))
    ]
    tokens = out.tokens[0].cpu()
    strings = tuple(model.tokenizer.decode([token]) for token in tokens.tolist())
    found = {word: word_spans(word, strings) for word in words}
    return AttentionDynamics(
        torch.stack(seen)[:, :, : len(tokens)], dict(sets), tuple(layers), tokens, strings, found, out.made_by
    )


def _read(keys: TokenSet, length: int, label: str) -> Reduction:
    """Mean attention per token of `keys` by each row that predicts a token of the answer: [batch, head, step]."""

    def read(
        pattern: Float[Tensor, "batch head query_pos key_pos"], hook: HookPoint
    ) -> Float[Tensor, "batch head step"]:
        writing = query_positions(hook, pattern, dim=2)[0] >= length - 1
        rows = pattern[:, :, writing]
        if not bool(writing.any()):
            return rows.new_zeros(*rows.shape[:2], 0)
        return rows[..., keys.positions.to(pattern.device)].float().mean(-1)

    return Reduction("pattern", label, read)
