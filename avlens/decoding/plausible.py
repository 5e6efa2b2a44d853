"""Which next tokens does the original stream hold plausible?

Those whose probability is at least beta times that of the likeliest, beta in [0, 1]: 0 keeps all, 1 the likeliest only.

Source: Li et al. 2023, "Contrastive Decoding", arXiv:2210.15097; taken over by VCD, PAI and AVCD.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor


def keep_plausible(
    mixed: Float[Tensor, "*batch d_vocab"],
    original: Float[Tensor, "*batch d_vocab"],
    beta: float,
    *,
    fill: float = -math.inf,
) -> Float[Tensor, "*batch d_vocab"]:
    """`mixed`, with `fill` where the original's logit is below its maximum + log(beta)."""
    if beta == 0:
        return mixed
    cutoff = original.amax(-1, keepdim=True) + math.log(beta)
    return torch.where(original < cutoff, fill, mixed)
