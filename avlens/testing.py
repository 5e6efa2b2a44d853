"""A model to test with: any family, random weights, on the CPU, in a second."""

import math
from typing import Any

import torch

from avlens.errors import CheckpointError
from avlens.families import FAMILIES
from avlens.media import Clip
from avlens.model import HookedAVModel


def tiny_model(family: str = "qwen2_5_omni", *, seed: int = 0, attn: Any = "auto", **sizes: Any) -> HookedAVModel:
    """A small model of a family with random weights, biases and norms; its answers mean nothing.

    Args:
        family: The family's name.
        seed: Of the weights.
        attn: Which attention runs by default.
        sizes: `n_layers`, `d_model`, `n_heads`, `n_key_value_heads`, `d_head`, `d_mlp`, ... as the family takes them.

    Raises:
        CheckpointError: If there is no such family or size.
    """
    known = {one.name: one for one in FAMILIES}
    if family not in known:
        raise CheckpointError(f"there is no family {family!r}. Families are {', '.join(known)}.")
    return HookedAVModel(*known[family].tiny(seed, sizes), attn=attn, name=f"tiny-{family}-{seed}")


def tiny_clip(
    seconds: float = 3.0,
    *,
    fps: float = 2.0,
    size: tuple[int, int] = (84, 84),
    seed: int = 0,
    video: bool = True,
    audio: bool = True,
) -> Clip:
    """A clip of moving colours and a rising tone, seeded."""
    generator = torch.Generator().manual_seed(seed)
    n_frames, n_samples = max(1, round(seconds * fps)), round(seconds * 16000)
    start = torch.randint(0, 256, (1, 3, *size), generator=generator)
    drift = torch.arange(n_frames)[:, None, None, None] * torch.randint(5, 60, (1, 3, 1, 1), generator=generator)
    time = torch.arange(n_samples) / 16000
    pitch = 200 + 600 * torch.rand(1, generator=generator)
    noise = 0.05 * torch.randn(n_samples, generator=generator)
    waveform = (0.4 * torch.sin(2 * math.pi * pitch * (1 + time / 4) * time) + noise).clamp(-1, 1)
    return Clip(
        frames=((start + drift) % 256).to(torch.uint8) if video else None,
        fps=fps if video else None,
        waveform=waveform.float() if audio else None,
        sample_rate=16000 if audio else None,
    )
