"""What do many edits of one prompt, each by itself, do to its logits?

    logits = sweep(model, inputs, {"audio": knockout(last, audio), "video": knockout(last, video)}, logits_at=last)

Encoders run once for all of them, and only the asked positions are unembedded.
"""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from avlens.decoder import AttentionMode
from avlens.hooks import FwdHook
from avlens.inputs import AVInputs
from avlens.model import HookedAVModel
from avlens.tokens import TokenSet


def sweep(
    model: HookedAVModel,
    inputs: AVInputs,
    edits: Mapping[str, Sequence[FwdHook]],
    *,
    logits_at: TokenSet | None = None,
    attn: AttentionMode | None = None,
    progress: str | None = None,
) -> Float[Tensor, "edit pos d_vocab"]:
    """Logits of one prompt under each edit by itself, in the order of `edits`.

    Args:
        model: A HookedAVModel.
        inputs: One prompt.
        edits: Lists of hooks, by name, as `patch`, `knockout`, ... return them, or your own.
        logits_at: Positions to unembed; by default all.
        attn: Which attention runs; by default the model's.
        progress: What a progress bar says; none by default.

    Raises:
        BatchError: If the inputs hold several prompts.
    """
    tokens = inputs.prompt.tokens if logits_at is None else logits_at
    found = [
        model.run_with_hooks(inputs, hooks, logits_at=logits_at, attn=attn)[0]
        for hooks in tqdm(edits.values(), desc=progress, unit="edit", disable=progress is None)
    ]
    return torch.stack(found) if found else torch.empty(0, len(tokens), model.cfg.d_vocab)
