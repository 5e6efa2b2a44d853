"""Clips with known content, drawn and sounded from a seed: a ball that moves, and a bell that rings when it turns."""

import math

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from avlens.media import Clip

COLOURS = {"red": (214, 39, 40), "green": (44, 160, 44), "blue": (31, 119, 180), "orange": (255, 127, 14)}
SAMPLE_RATE = 16000


def ball_and_bell(
    seconds: float = 6.0,
    *,
    fps: float = 10.0,
    size: tuple[int, int] = (168, 224),
    colour: str = "orange",
    seed: int = 0,
) -> Clip:
    """A ball that crosses the frame, back and forth, before a coloured sky; a bell rings at each turn.

    Args:
        seconds: Length.
        fps: Frames per second.
        size: Height and width in pixels.
        colour: Of the ball, one of `COLOURS`.
        seed: Of the bell's pitch, the ball's speed and the noise.
    """
    generator = torch.Generator().manual_seed(seed)
    period = 2.0 + 1.5 * float(torch.rand(1, generator=generator))
    pitch = 500 + 500 * float(torch.rand(1, generator=generator))
    times = torch.arange(round(seconds * fps)) / fps
    turns = [k * period / 2 for k in range(1, int(2 * seconds / period) + 1)]
    return Clip(
        frames=_frames(times, period, size, COLOURS[colour]),
        fps=fps,
        waveform=_bell(seconds, turns, pitch, generator),
        sample_rate=SAMPLE_RATE,
    )


def _frames(
    times: Float[Tensor, " frame"], period: float, size: tuple[int, int], colour: tuple[int, int, int]
) -> UInt8[Tensor, "frame 3 height width"]:
    height, width = size
    rows, cols = torch.arange(height)[:, None] / height, torch.arange(width)[None] / width
    sky = torch.stack([60 + 60 * rows + 0 * cols, 150 + 30 * (1 - rows) + 0 * cols, 200 - 40 * rows + 20 * cols])
    ground = torch.tensor([70.0, 120.0, 60.0])[:, None, None].expand(-1, height, width)
    background = torch.where(rows > 0.75, ground, sky)
    phase = 2 * (times / period % 1)
    x = 0.12 + 0.76 * torch.where(phase < 1, phase, 2 - phase)
    y = 0.45 + 0.12 * torch.sin(2 * math.pi * times / period * 2)
    aspect = width / height
    inside = ((cols[None] - x[:, None, None]) * aspect) ** 2 + (rows[None] - y[:, None, None]) ** 2 < 0.13**2
    ball = torch.tensor(colour, dtype=torch.float32)[None, :, None, None]
    return torch.where(inside[:, None], ball, background[None]).to(torch.uint8)


def _bell(seconds: float, strikes: list[float], pitch: float, generator: torch.Generator) -> Float[Tensor, " sample"]:
    time = torch.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    waveform = 0.002 * torch.randn(len(time), generator=generator)
    for strike in strikes:
        since = (time - strike).clamp(min=0)
        for partial, loudness in ((1.0, 0.30), (2.0, 0.15), (2.76, 0.12), (5.4, 0.06)):
            tone = torch.sin(2 * math.pi * pitch * partial * since) * torch.exp(-since * (4 + 2 * partial))
            waveform += loudness * tone * (time >= strike)
    return waveform.clamp(-1, 1).float()
