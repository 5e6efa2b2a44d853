"""What does a sound look like: energy by time and pitch?

A short-time Fourier transform with a Hann window, its power summed into triangular bands that are evenly spaced on the
mel scale, m = 2595 log10(1 + f / 700), in decibels below the loudest band. For looking only: it is not what any
encoder is given.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

_WINDOW_SECONDS, _HOP_SECONDS = 0.032, 0.01
_CHUNK = 4096  # columns at once
_QUIETEST = -80.0  # dB; what is quieter looks alike


@dataclass(frozen=True, eq=False)
class Spectrogram:
    """Loudness by band and time.

    Attributes:
        decibels: From -80 to 0, relative to the loudest; all -80 where there is silence.
        seconds: The middle of each column.
        hertz: The middle of each band.
    """

    decibels: Float[Tensor, "band column"]
    seconds: Float[Tensor, " column"]
    hertz: Float[Tensor, " band"]


def mel_spectrogram(
    waveform: Float[Tensor, " sample"], sample_rate: int, *, n_bands: int = 64, at_most: int = 1200
) -> Spectrogram:
    """The spectrogram of a waveform every 10 ms, or, of a long one, the loudest of neighbours in at most so many columns."""
    n_fft, hop = max(16, round(_WINDOW_SECONDS * sample_rate)), max(1, round(_HOP_SECONDS * sample_rate))
    padded = F.pad(waveform.float(), (n_fft // 2, n_fft - n_fft // 2))
    edges = _from_mel(torch.linspace(0, float(_to_mel(torch.tensor(sample_rate / 2))), n_bands + 2))
    bands, window = _bands(edges, n_fft, sample_rate), torch.hann_window(n_fft)
    pieces = padded.unfold(0, n_fft, hop)  # column sample
    energy = torch.cat([(torch.fft.rfft(some * window).abs() ** 2) @ bands.T for some in pieces.split(_CHUNK)])
    together = math.ceil(len(energy) / at_most)
    energy = F.max_pool1d(energy.T[None], together, ceil_mode=True)[0]  # band column
    seconds = (torch.arange(energy.shape[1]) + 0.5 - 0.5 / together) * together * hop / sample_rate
    return Spectrogram(_in_decibels(energy), seconds, edges[1:-1])


def _in_decibels(energy: Float[Tensor, "band column"]) -> Float[Tensor, "band column"]:
    loudest = energy.max()
    if loudest <= 1e-10:
        return torch.full_like(energy, _QUIETEST)
    return (10 * (energy / loudest).log10()).clamp(min=_QUIETEST)


def _bands(edges: Float[Tensor, " edge"], n_fft: int, sample_rate: int) -> Float[Tensor, "band frequency"]:
    """Triangles over the frequencies of the transform, each of weight 1, or the nearest frequency where none is inside."""
    frequencies = torch.fft.rfftfreq(n_fft, 1 / sample_rate)
    low, middle, high = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    rising, falling = (frequencies - low) / (middle - low), (high - frequencies) / (high - middle)
    weights = torch.minimum(rising, falling).clamp(min=0)
    nearest = F.one_hot((frequencies - middle).abs().argmin(-1), len(frequencies)).float()
    weights = torch.where(weights.sum(-1, keepdim=True) > 0, weights, nearest)
    return weights / weights.sum(-1, keepdim=True)


def _to_mel(hertz: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    return 2595 * (1 + hertz / 700).log10()


def _from_mel(mel: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    return 700 * (10 ** (mel / 2595) - 1)
