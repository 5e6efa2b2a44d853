"""What does a run cost, in operations and bytes?

Operations are those of matrix products, a multiplication and an addition each counting one. Of one row of one block:

    keys and values   2 d_model * 2 n_key_value_heads d_head
    attention         2 d_model * 2 n_heads d_head, and 4 n_heads d_head for each key it reads
    MLP               6 d_model d_mlp, times the experts that a row is sent to
"""

from jaxtyping import Int
from torch import Tensor

from avlens.decoder import DecoderConfig


def block_operations(cfg: DecoderConfig, enter: Int[Tensor, " enter"], leave: Int[Tensor, " leave"]) -> float:
    """Of one block, where the rows at positions `enter` get keys and values and those at `leave` go on."""
    keys_and_values = 4 * cfg.d_model * cfg.n_key_value_heads * cfg.d_head
    projections = 4 * cfg.d_model * cfg.n_heads * cfg.d_head
    mlp = 6 * cfg.d_model * cfg.d_mlp * (cfg.experts_per_token or 1) + 2 * cfg.d_model * (cfg.num_experts or 0)
    attention = 4 * cfg.n_heads * cfg.d_head * float(leave.sum() + len(leave))
    return len(enter) * keys_and_values + len(leave) * (projections + mlp) + attention
