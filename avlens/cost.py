"""What does a run cost, in operations and bytes?

Operations are those of matrix products, a multiplication and an addition each counting one. Of one row of one block:

    keys and values   2 d_model * 2 n_key_value_heads d_head
    attention         2 d_model * 2 n_heads d_head, and 4 n_heads d_head for each key it reads
    MLP               6 d_model d_mlp, times the experts that a row is sent to
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from jaxtyping import Int
from torch import Tensor

from avlens import names
from avlens.decoder import DecoderConfig
from avlens.errors import TooLargeError


def block_operations(cfg: DecoderConfig, enter: Int[Tensor, " enter"], leave: Int[Tensor, " leave"]) -> float:
    """Of one block, where the rows at positions `enter` get keys and values and those at `leave` go on."""
    keys_and_values = 4 * cfg.d_model * cfg.n_key_value_heads * cfg.d_head
    projections = 4 * cfg.d_model * cfg.n_heads * cfg.d_head
    mlp = 6 * cfg.d_model * cfg.d_mlp * (cfg.experts_per_token or 1) + 2 * cfg.d_model * (cfg.num_experts or 0)
    attention = 4 * cfg.n_heads * cfg.d_head * float(leave.sum() + len(leave))
    return len(enter) * keys_and_values + len(leave) * (projections + mlp) + attention


def kept_bytes(cfg: DecoderConfig, names_: Iterable[str], batch: int, length: int) -> int:
    """How much memory the activations of `batch` prompts of `length` positions take, by full name; encoders' are not counted."""
    rows = sum(_width(cfg, names.short_name(name), length) for name in names_ if name.split(".")[0] in _DECODER)
    return rows * batch * length * cfg.dtype.itemsize


def refuse_what_cannot_fit(
    cfg: DecoderConfig, full_names: Sequence[str], batch: int, length: int, device: torch.device
) -> None:
    """Refuse to keep activations that the free memory cannot hold.

    Raises:
        TooLargeError: If it cannot. Says what would fit.
    """
    needed, free = kept_bytes(cfg, full_names, batch, length), free_bytes(device)
    if free is None or needed <= free:
        return
    shorts = dict.fromkeys(names.short_name(name) for name in full_names)
    largest = max(shorts, key=lambda short: _width(cfg, short, length))
    layers = [name for name in full_names if names.short_name(name) == largest]
    each = kept_bytes(cfg, layers[:1], batch, length)
    raise TooLargeError(
        f"{len(full_names)} activations of {length:,} positions take {needed / 2**30:.1f} GiB, but {free / 2**30:.1f} GiB "
        f"are free on {device}. The largest is {largest}, {each / 2**30:.2f} GiB a layer: {free // each} of its {len(layers)} "
        "layers would fit. Name fewer, or keep what you need of them with reductions=..., which are computed inside the run."
    )


def free_bytes(device: torch.device) -> int | None:
    """How much memory is free on a device; None where that is not known."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    known = Path("/proc/meminfo")
    if device.type != "cpu" or not known.exists():
        return None
    (line,) = (line for line in known.read_text(encoding="ascii").splitlines() if line.startswith("MemAvailable"))
    return int(line.split()[1]) * 1024


_DECODER = ("blocks", "ln_final", "hook_embed", "hook_token_embed")


def _width(cfg: DecoderConfig, short: str, length: int) -> int:
    """How many numbers an activation of the decoder has per position."""
    heads = {"q": cfg.n_heads, "rot_q": cfg.n_heads, "z": cfg.n_heads}
    heads |= dict.fromkeys(("k", "rot_k", "v"), cfg.n_key_value_heads)
    widths = {short: n * cfg.d_head for short, n in heads.items()}
    widths |= dict.fromkeys(("attn_scores", "pattern"), cfg.n_heads * length) | {"result": cfg.n_heads * cfg.d_model}
    widths |= dict.fromkeys(("pre", "pre_linear", "post"), cfg.d_mlp)
    widths |= dict.fromkeys(("router_logits", "expert_weights"), cfg.num_experts or 0)
    slots = cfg.experts_per_token or 0
    widths |= {"expert_indices": slots, "expert_out": slots * cfg.d_model}
    for norm, n in (("q_norm", cfg.n_heads), ("k_norm", cfg.n_key_value_heads)):
        widths |= {f"{norm}.scale": n, f"{norm}.normalized": n * cfg.d_head}
    return widths.get(short, 1 if short.endswith("scale") else cfg.d_model)
