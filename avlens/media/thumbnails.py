"""What does a clip look like at a glance: a strip of frames and the outline of its sound, as HTML?

Nothing but a PNG and an SVG inside the page, so that it shows wherever a notebook is shown.
"""

import base64
import struct
import zlib
from fractions import Fraction

import av
import torch
from jaxtyping import Float, Float32, UInt8
from torch import Tensor

from avlens.media.codec import resize

_THUMBNAILS, _HEIGHT = 8, 72  # frames and pixels
_WAVE_WIDTH, _WAVE_HEIGHT = 640, 48  # pixels


def strip(frames: UInt8[Tensor, "frame 3 height width"], seconds: Float[Tensor, " frame"]) -> str:
    """A few frames side by side, with their times."""
    chosen = torch.linspace(0, len(frames) - 1, min(_THUMBNAILS, len(frames))).round().long()
    width = max(1, round(frames.shape[3] * _HEIGHT / frames.shape[2]))
    small = resize(frames[chosen], _HEIGHT, width)  # frame 3 height width
    data = base64.b64encode(png_bytes(small.permute(2, 0, 3, 1).flatten(1, 2))).decode()
    times = ", ".join(f"{second:.1f}" for second in seconds[chosen].tolist())
    return (
        f"<img alt='frames' src='data:image/png;base64,{data}' style='display:block;max-width:100%'>"
        f"<div style='font:11px sans-serif'>at {times} s</div>"
    )


def wave(waveform: Float32[Tensor, " sample"]) -> str:
    """The lowest and highest sample of every stretch, as an outline."""
    stretches = waveform.tensor_split(min(_WAVE_WIDTH // 2, len(waveform)))
    middle, step = _WAVE_HEIGHT / 2, _WAVE_WIDTH / len(stretches)
    highs = [f"{i * step:.1f},{middle * (1 - min(1.0, float(s.max()))):.1f}" for i, s in enumerate(stretches)]
    lows = [f"{i * step:.1f},{middle * (1 - max(-1.0, float(s.min()))):.1f}" for i, s in enumerate(stretches)]
    return (
        f"<svg width='{_WAVE_WIDTH}' height='{_WAVE_HEIGHT}' style='max-width:100%' role='img' aria-label='sound'>"
        f"<polygon points='{' '.join(highs + lows[::-1])}' fill='#4878a8' stroke='#4878a8'/></svg>"
    )


def png_bytes(pixels: UInt8[Tensor, "height width 3"]) -> bytes:
    """An RGB picture as a PNG file."""
    height, width, _ = pixels.shape
    rows = torch.cat([torch.zeros(height, 1, dtype=torch.uint8), pixels.reshape(height, -1).cpu()], 1)  # 0: no filter
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = (b"IHDR", header), (b"IDAT", zlib.compress(rows.numpy().tobytes(), 6)), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(_png_chunk(kind, data) for kind, data in chunks)


def jpeg_bytes(pixels: UInt8[Tensor, "height width 3"]) -> bytes:
    """An RGB picture as a JPEG file, a tenth of a PNG where it is a photograph."""
    height, width, _ = pixels.shape
    encoder = av.CodecContext.create("mjpeg", "w")
    encoder.width, encoder.height, encoder.pix_fmt, encoder.time_base = width, height, "yuvj420p", Fraction(1)
    encoder.options = {"qmin": "4", "qmax": "4"}
    frame = av.VideoFrame.from_ndarray(pixels.contiguous().numpy(), format="rgb24")
    packets = [*encoder.encode(frame.reformat(format="yuvj420p")), *encoder.encode(None)]
    return b"".join(bytes(packet) for packet in packets)


def _png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
