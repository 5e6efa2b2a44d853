"""What does a run cost, in operations, seconds and bytes?

Operations are those of matrix products, a multiplication and an addition each counting one. Of one row of one block:

    keys and values   2 d_model * 2 n_key_value_heads d_head
    attention         2 d_model * 2 n_heads d_head, and 4 n_heads d_head for each key it reads
    MLP               6 d_model d_mlp, times the experts that a row is sent to

Seconds are operations by the rates at which a model does them here, which are measured on one of its blocks (`engine/estimate`).
Bytes are those of the tensors that a block holds at once, beside weights and encoders.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Int
from torch import Tensor

from avlens import names
from avlens.attention import chunk_rows
from avlens.decoder import KEPT_MASKS, DecoderConfig, mlp_bytes
from avlens.errors import TooLargeError


@dataclass(frozen=True)
class Work:
    """Operations, by what does them.

    Attributes:
        products: Of rows with weights.
        fused: Of attention, in the fused kernel.
        explicit: Of attention that makes its pattern.
        passes: How often a block runs, whatever its rows: its weights are read each time.
    """

    products: float = 0.0
    fused: float = 0.0
    explicit: float = 0.0
    passes: float = 0.0

    @property
    def total(self) -> float:
        """All operations."""
        return self.products + self.fused + self.explicit

    def __add__(self, other: "Work") -> "Work":
        return Work(
            self.products + other.products,
            self.fused + other.fused,
            self.explicit + other.explicit,
            self.passes + other.passes,
        )

    def __mul__(self, times: float) -> "Work":
        return Work(self.products * times, self.fused * times, self.explicit * times, self.passes * times)


@dataclass(frozen=True)
class Rates:
    """Operations a second of each kind, and seconds of a block's pass beside them; NaN where they are not known."""

    products: float = math.nan
    fused: float = math.nan
    explicit: float = math.nan
    start: float = 0.0

    def seconds(self, work: Work) -> float:
        """How long work takes."""
        kinds = ((work.products, self.products), (work.fused, self.fused), (work.explicit, self.explicit))
        return work.passes * self.start + sum(amount / rate for amount, rate in kinds if amount)


@dataclass(frozen=True)
class Estimate:
    """What a piece of work is going to take, without encoders.

    Attributes:
        seconds: How long; NaN if that is not known.
        nbytes: The most memory at once, beside weights.
        free: What is free; None if that is not known.
    """

    seconds: float
    nbytes: int
    free: int | None

    def __str__(self) -> str:
        free = "" if self.free is None else f" of {size(self.free)} free"
        return f"about {duration(self.seconds)}, {size(self.nbytes)}{free}"


def size(n: int) -> str:
    """Bytes as people say them: 12 KiB, 3.5 GiB."""
    for unit, length in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if n >= 0.95 * length:
            return f"{n / length:.{1 if n < 10 * length else 0}f} {unit}"
    return f"{n} bytes"


def duration(seconds: float) -> str:
    """Seconds as people say them: 40 s, 12 min, 3.5 h, 2.1 days."""
    if seconds != seconds:
        return "unknown"
    for unit, length in (("days", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * length:
            return f"{seconds / length:.3g} {unit}"
    return f"{seconds:.{1 if seconds < 1 else 3}g} s"


def block_work(
    cfg: DecoderConfig, enter: Int[Tensor, " enter"], leave: Int[Tensor, " leave"], *, explicit: bool = False
) -> Work:
    """Of one block, where the rows at positions `enter` get keys and values and those at `leave` go on."""
    keys_and_values = 4 * cfg.d_model * cfg.n_key_value_heads * cfg.d_head
    projections = 4 * cfg.d_model * cfg.n_heads * cfg.d_head
    mlp = 6 * cfg.d_model * cfg.d_mlp * (cfg.experts_per_token or 1) + 2 * cfg.d_model * (cfg.num_experts or 0)
    attention = 4 * cfg.n_heads * cfg.d_head * float(leave.sum() + len(leave))
    products = len(enter) * keys_and_values + len(leave) * (projections + mlp)
    return Work(products, 0.0 if explicit else attention, attention if explicit else 0.0, 1.0)


def block_operations(cfg: DecoderConfig, enter: Int[Tensor, " enter"], leave: Int[Tensor, " leave"]) -> float:
    """The same, added up."""
    return block_work(cfg, enter, leave).total


def run_work(cfg: DecoderConfig, length: int, asked: Int[Tensor, " asked"], *, explicit: int = 0) -> Work:
    """Of a run over one prompt that unembeds the rows at `asked`; `explicit` of its layers make their pattern."""
    rows = torch.arange(length)
    fused, made = (block_work(cfg, rows, rows, explicit=how) for how in (False, True))
    last = block_work(cfg, rows, rows if explicit else asked, explicit=bool(explicit))
    others = cfg.n_layers - 1
    made_others = max(0, explicit - 1)
    return (
        fused * (others - made_others) + made * made_others + last + Work(2.0 * cfg.d_model * cfg.d_vocab * len(asked))
    )


def block_bytes(
    cfg: DecoderConfig, enter: int, leave: int, keys: int, *, edits: int = 1, explicit: bool = False
) -> int:
    """The most that a block holds at once, of `edits` rows of a batch: activations, masks, and spliced keys and values.

    Args:
        cfg: The decoder.
        enter: How many rows of each get keys and values.
        leave: How many of them go on.
        keys: How many keys they may read; more than `enter` where the others are spliced in.
        edits: How many rows the batch has.
        explicit: Whether patterns are made, some rows at a time.
    """
    size, d, heads, device = cfg.dtype.itemsize, cfg.d_model, edits * cfg.n_heads, torch.device(cfg.device).type
    d_head = max(cfg.d_head, cfg.d_head_global or 0)
    q, kv = cfg.n_heads * d_head, cfg.n_key_value_heads * d_head
    # What was embedded, the stream that enters, and rotary angles are there all the time.
    always = enter * (2 * d + 2 * d_head)
    normed = enter * d * (2 if size == 4 else 3 * 4 // size)  # norms are taken in fp32
    attention = enter * (d + 2 * kv) + (2 * keys * kv if keys > enter else 0) + leave * 3 * q
    masks = min(leave * keys * size, KEPT_MASKS) if leave > 1 and keys > enter else 0
    pattern = 12 * heads * keys * chunk_rows(heads, keys, leave, device) if explicit else 0
    return edits * size * always + max(
        edits * size * normed,
        edits * size * attention + masks + pattern,
        _mlp_bytes(cfg, leave * edits, mlp_bytes(device)) + 3 * leave * edits * d * size,
    )


def _mlp_bytes(cfg: DecoderConfig, rows: int, most: int) -> int:
    """Inside an MLP of which one activation may have `most` bytes; inside experts, which get a copy of each row they are sent."""
    size, d = cfg.dtype.itemsize, cfg.d_model
    if cfg.experts_per_token is not None:
        return rows * cfg.experts_per_token * size * max(4 * d, 2 * d + 3 * cfg.d_mlp)
    d_mlp = cfg.d_mlp * (2 if cfg.n_shared else 1)  # blocks that share keys are wider
    inside = rows * d_mlp * size
    parts = max(0, rows - 2 * max(1, most // (size * d_mlp)))  # are joined
    return 2 * min(inside, most) + parts * d * size


def added_bytes(cfg: DecoderConfig, length: int) -> int:
    """Of what is there throughout a run: what encoders add, inputs of each block, keys that blocks share, masks of windows."""
    size, d_head = cfg.dtype.itemsize, cfg.d_head + (cfg.d_head_global or cfg.d_head)
    row = cfg.n_deepstack * cfg.d_model + cfg.n_layers * (cfg.d_layer_input or 0)
    row += 2 * cfg.n_key_value_heads * d_head if cfg.n_shared else 0
    windows = cfg.attn_types is not None and cfg.window_size is not None and length > cfg.window_size
    masks = length * length * size if windows else 0
    return length * row * size + (masks // 2 if masks <= KEPT_MASKS else 0)


def pattern_bytes(cfg: DecoderConfig, rows: int, keys: int) -> int:
    """Of whole scores and patterns on their way through hooks, one of them in fp32."""
    return cfg.n_heads * rows * keys * (2 * cfg.dtype.itemsize + 4)


def logits_bytes(cfg: DecoderConfig, n: int) -> int:
    """Of `n` rows of logits."""
    return n * cfg.d_vocab * cfg.dtype.itemsize


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
