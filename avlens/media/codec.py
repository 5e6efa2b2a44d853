"""How do arrays, tensors, and the frames that PyAV writes become one another?

Pictures are bytes [frame, 3, height, width]; sound is mono, float32 in [-1, 1], at a rate in Hz.
"""

import heapq
import itertools
import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32, Shaped, UInt8
from torch import Tensor

from avlens.errors import MediaError

_AAC_RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000)
_CHUNK = 1 << 16  # samples
_BT709, _LIMITED = 1, 1  # FFmpeg's numbers for these
_FASTEST = 768_000  # Hz; a resampler's filter grows with the rates
_LOUDEST = 16.0  # samples beyond this are integers that nobody scaled; codecs overshoot 1 by far less

_DTYPES = {"u8": np.uint8, "s16": np.int16, "s32": np.int32, "s64": np.int64, "flt": np.float32, "dbl": np.float64}

Samples = Float32[np.ndarray, " chunk"]


def as_frames(given: Any) -> UInt8[Tensor, "frame 3 height width"]:
    """A tensor or array of frames as a tensor.

    Raises:
        MediaError: If its type or shape is another; says how to convert it.
    """
    frames = _as_tensor(given, "frames")
    told = f"frames must be uint8 [frame, 3, height, width]; given: {frames.dtype} {list(frames.shape)}."
    if frames.ndim == 3:
        raise MediaError(f"{told} This is one picture: give frames[None].")
    if frames.ndim == 4 and frames.shape[1] != 3 and frames.shape[3] == 3:
        raise MediaError(f"{told} The channels are last: give torch.as_tensor(frames).permute(0, 3, 1, 2).")
    if frames.ndim != 4 or frames.shape[1] != 3:
        raise MediaError(f"{told} Give the three channels red, green and blue of every frame.")
    if frames.numel() == 0:
        raise MediaError(f"{told} There is nothing in it: give at least one frame, or frames=None.")
    if frames.dtype.is_floating_point:
        raise MediaError(f"{told} If they are in [0, 1], give (frames * 255).round().to(torch.uint8).")
    if frames.dtype != torch.uint8:
        raise MediaError(f"{told} If they are in 0..255, give frames.to(torch.uint8).")
    return frames


def as_waveform(given: Any, source: str | Path | None) -> Float32[Tensor, " sample"]:
    """Floats or PCM integers, of one channel or several, as their mean in [-1, 1].

    Raises:
        MediaError: If they are of another type or shape, not finite, or not scaled.
    """
    samples = _as_tensor(given, "waveform")
    told = f"waveform must be floats or PCM integers, [sample]; given: {samples.dtype} {list(samples.shape)}."
    if samples.dtype in (torch.int64, torch.bool) or samples.is_complex():
        raise MediaError(f"{told} If these are 16-bit samples, give waveform.to(torch.int16).")
    if samples.ndim not in (1, 2) or samples.numel() == 0:
        raise MediaError(f"{told} Give at least one sample, as [sample] or [channel, sample], or waveform=None.")
    if samples.ndim == 2 and samples.shape[0] > 8 >= samples.shape[1]:
        raise MediaError(f"{told} The channels are last: give waveform.T.")
    floats = samples.float() if samples.is_floating_point() else torch.from_numpy(as_float(samples.numpy()))
    mono = floats if floats.ndim == 1 else floats.mean(0)
    _check_samples(mono, source)
    return mono


def as_times(given: Any, n: int, fps: float) -> Float[Tensor, " frame"]:
    """When each of `n` frames is shown; every 1/fps where not given.

    Raises:
        MediaError: If there is not one time for each frame, in order.
    """
    if given is None:
        return torch.arange(n, dtype=torch.float64) / fps
    seconds = _as_tensor(given, "frame_seconds")
    if seconds.shape != (n,) or not seconds.is_floating_point():
        told = f"given: {seconds.dtype} {list(seconds.shape)}"
        raise MediaError(
            f"frame_seconds must be floats, one for each of the {n} frames; {told}. Leave it out for 1/fps."
        )
    if not torch.isfinite(seconds).all() or seconds.min() < 0 or (seconds.diff() < 0).any():
        raise MediaError(
            f"frame_seconds must not be negative or decrease; given: {seconds.tolist()[:8]}. Sort the frames."
        )
    return seconds


def checked_rate(name: str, rate: float | int | np.integer | None, part: str, *, given: bool) -> float | None:
    """The rate of a part that is given; None for one that is not.

    Raises:
        MediaError: If it is missing, left over, or not a positive number.
    """
    if not given and rate is None:
        return None
    if not given:
        raise MediaError(f"{name}={rate} is given without {part}. Give both or neither.")
    if rate is None:
        raise MediaError(f"{part} is given without {name}, so that its times are unknown. Give {name}=... as well.")
    if not 0 < rate < math.inf:
        raise MediaError(f"{name}={rate} is not a rate. Give a positive number per second.")
    return float(rate)


def as_whole_number(rate: float | int) -> int:
    """A sample rate as an int.

    Raises:
        MediaError: If it is not whole.
    """
    if rate != int(rate):
        raise MediaError(f"sample_rate={rate} is not a whole number of Hz. Round it.")
    return int(rate)


def resize(frames: UInt8[Tensor, "frame 3 height width"], height: int, width: int) -> UInt8[Tensor, "frame 3 h w"]:
    """Bicubic with antialiasing, on bytes."""
    if frames.shape[2:] == (height, width):
        return frames
    return F.interpolate(frames, (height, width), mode="bicubic", antialias=True)


def as_float(samples: Shaped[np.ndarray, "*axes"]) -> Float32[np.ndarray, "*axes"]:
    """Samples of any width as floats in [-1, 1]. Those without a sign are silent at half of their range."""
    if samples.dtype.kind == "f":
        return samples.astype(np.float32)
    half = 2.0 ** (8 * samples.dtype.itemsize - 1)
    silent = half if samples.dtype.kind == "u" else 0.0
    return ((samples.astype(np.float64) - silent) / half).astype(np.float32)


def channels_of(frame: Any) -> Shaped[np.ndarray, "channel sample"]:
    """The samples of PyAV's frame, whose own `to_ndarray` reads beyond its channels where there are eight or more.

    Raises:
        MediaError: If they are of a type that nobody writes.
    """
    dtype = _DTYPES.get(frame.format.name.removesuffix("p"))
    if dtype is None:
        raise MediaError(f"Sound of {frame.format.name} samples cannot be read. Convert it to 16 bits, or to floats.")
    n, planar = frame.layout.nb_channels, frame.format.is_planar
    count = frame.samples if planar else frame.samples * n
    planes = [np.frombuffer(plane, dtype, count) for plane in frame.planes[: n if planar else 1]]
    return np.stack(planes) if planar else planes[0].reshape(-1, n).T


def fit(waveform: Float32[Tensor, " sample"], length: int) -> Float32[Tensor, " length"]:
    """Cut, or filled up with silence, to `length` samples."""
    return F.pad(waveform[:length], (0, max(0, length - len(waveform))))


def resample(waveform: Float32[Tensor, " sample"], rate: int, new_rate: int) -> Float32[Tensor, " new_sample"]:
    """The same sound at another rate: FFmpeg's windowed sinc, without delay."""
    chunks = ((rate, waveform[at : at + _CHUNK].numpy()) for at in range(0, len(waveform), _CHUNK))
    return fit(joined(resampled(chunks, new_rate)), max(1, round(len(waveform) * new_rate / rate)))


def joined(chunks: Iterable[Samples]) -> Float32[Tensor, " sample"]:
    """All of them, one after the other; possibly none."""
    return torch.from_numpy(np.concatenate([np.zeros(0, np.float32), *chunks]))


def resampled(chunks: Iterable[tuple[int, Samples]], new_rate: int) -> Iterator[Samples]:
    """Stretches of sound, each with its rate, as stretches at one rate.

    Raises:
        MediaError: If a rate is higher than any that sound is kept at.
    """
    for rate, run in itertools.groupby(chunks, key=lambda chunk: chunk[0]):
        if rate == new_rate:
            yield from (samples for _, samples in run)
            continue
        if max(rate, new_rate) > _FASTEST:
            raise MediaError(
                f"Sound at {rate} Hz cannot be brought to {new_rate} Hz. Give rates of at most {_FASTEST} Hz, or copy the file "
                "again."
            )
        resampler, at = av.AudioResampler(format="flt", layout="mono", rate=new_rate), 0
        for _, samples in run:
            frames = resampler.resample(_audio_frame(samples, rate, "flt", at)) if len(samples) else []
            at += len(samples)
            yield from (frame.to_ndarray()[0] for frame in frames)
        yield from (frame.to_ndarray()[0] for frame in resampler.resample(None))


def sample_at(seconds: float | int, rate: int) -> int:
    """Which sample begins at a time; the end of time is beyond any sound."""
    return round(min(seconds * rate, 2.0**62))


def silence(length: int, rate: int) -> Iterator[tuple[int, Samples]]:
    """As many samples of silence, in stretches that are never long."""
    for done in range(0, length, _CHUNK):
        yield rate, np.zeros(min(_CHUNK, length - done), np.float32)


def write_mp4(
    path: Path,
    film: tuple[UInt8[Tensor, "frame 3 height width"], float] | None,
    sound: tuple[Float32[Tensor, " sample"], int] | None,
    *,
    rate: int | None = None,
) -> None:
    """Write frames with their rate per second, sound with its rate in Hz, or both: a file that browsers play.

    Args:
        path: Where to.
        film: Frames, and how many a second.
        sound: Samples, and how many a second.
        rate: How many bits a second it may take, a sixth of them for the sound; as many as good pictures need if not given.

    Raises:
        MediaError: If the file cannot be written.
    """
    with created(path, {"movflags": "+faststart"}) as container:
        streams: dict[type, Any] = {}
        frames: list[Iterator[Any]] = []
        if film is not None:
            streams[av.VideoFrame] = _add_video(container, *film, rate)
            frames.append(_video_frames(*film))
        if sound is not None:
            waveform, heard_at = at_aac_rate(*sound)
            streams[av.AudioFrame] = container.add_stream("aac", rate=heard_at, layout="mono")
            if rate is not None:
                streams[av.AudioFrame].bit_rate = rate // 6
            frames.append(audio_frames(waveform, heard_at, "flt"))
        for frame in heapq.merge(*frames, key=lambda frame: frame.pts * frame.time_base):
            container.mux(streams[type(frame)].encode(frame))
        for stream in streams.values():
            container.mux(stream.encode(None))


def write_wav(path: Path, waveform: Float32[Tensor, " sample"], sample_rate: int) -> None:
    """Write mono sound with 16 bits per sample.

    Raises:
        MediaError: If the file cannot be written.
    """
    with created(path, {}) as container:
        stream = container.add_stream("pcm_s16le", rate=sample_rate, layout="mono")
        whole = (waveform * 32768).round().clamp(-32768, 32767).to(torch.int16)
        for frame in audio_frames(whole, sample_rate, "s16"):
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def _as_tensor(given: Any, name: str) -> Tensor:
    if isinstance(given, np.ndarray):
        native = given.astype(given.dtype.newbyteorder("="), copy=False)
        return torch.from_numpy(np.require(native, requirements=["C", "W"]))
    if not isinstance(given, Tensor):
        raise MediaError(f"{name} must be a tensor or a numpy array; given: {type(given).__name__}. Convert it to one.")
    return given.detach().cpu()


def _check_samples(samples: Float32[Tensor, " sample"], source: str | Path | None) -> None:
    name = "The waveform" if source is None else f"The sound of {source}"
    loudest = max(abs(float(peak)) for peak in samples.aminmax())  # NaN if any sample is
    if not math.isfinite(loudest):
        bad = int((~torch.isfinite(samples)).sum())
        raise MediaError(
            f"{name} holds {bad} NaN or infinite of {len(samples)} samples. Give torch.nan_to_num(waveform)."
        )
    if loudest > _LOUDEST:
        raise MediaError(f"{name} must be in [-1, 1]; its loudest sample is {loudest:g}. Divide by 32768 if 16-bit.")


@contextmanager
def created(path: Path, options: dict[str, str]) -> Iterator[Any]:
    """The file, for writing, until the block ends."""
    try:
        with av.open(str(path.absolute()), "w", options=options) as container:
            yield container
    except (av.FFmpegError, OSError) as error:
        reason = error.strerror or str(error)
        raise MediaError(
            f"{path} cannot be written: {reason}. Check that its folder exists and is writable."
        ) from error


def _add_video(
    container: Any, frames: UInt8[Tensor, "frame 3 height width"], fps: float, rate: int | None = None
) -> Any:
    codec = next(name for name in ("libx264", "libopenh264", "mpeg4") if name in av.codecs_available)
    options = {"crf": "18", "preset": "veryfast", "bf": "0"} if codec == "libx264" else {}
    if codec == "libx264" and rate is not None:
        options = {"crf": "26", "preset": "medium", "maxrate": f"{rate * 5 // 6}", "bufsize": f"{rate}"}
    stream = container.add_stream(codec, rate=_as_fraction(fps), options=options)
    if codec != "libx264" and rate is not None:
        stream.bit_rate = rate * 5 // 6
    stream.height, stream.width = (side + side % 2 for side in frames.shape[2:])
    stream.pix_fmt = "yuv420p"
    context = stream.codec_context  # the colours of HD video, said explicitly: players guess by size
    context.colorspace = context.color_primaries = context.color_trc = _BT709
    context.color_range = _LIMITED
    return stream


def _as_fraction(fps: float) -> Fraction:
    return Fraction(fps).limit_denominator(1001)


def _video_frames(frames: UInt8[Tensor, "frame 3 height width"], fps: float) -> Iterator[Any]:
    """One at a time, with an odd height or width made even by repeating the edge."""
    height, width = frames.shape[2:]
    for i, picture in enumerate(frames):
        pixels = picture.permute(1, 2, 0).numpy()
        pixels = np.pad(pixels, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
        frame = frame.reformat(format="yuv420p", dst_colorspace="ITU709", dst_color_range="MPEG")
        frame.pts, frame.time_base = i, 1 / _as_fraction(fps)
        yield frame


def at_aac_rate(waveform: Float32[Tensor, " sample"], rate: int) -> tuple[Float32[Tensor, " new_sample"], int]:
    """The samples at a rate that AAC knows, and the rate."""
    if rate in _AAC_RATES:
        return waveform, rate
    return resample(waveform, rate, 48000), 48000


def audio_frames(waveform: Shaped[Tensor, " sample"], rate: int, sample_format: str) -> Iterator[Any]:
    """The samples as PyAV's frames."""
    for start in range(0, len(waveform), 1024):
        yield _audio_frame(waveform[start : start + 1024].numpy(), rate, sample_format, start)


def _audio_frame(samples: Shaped[np.ndarray, " sample"], rate: int, sample_format: str, at: int) -> Any:
    frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples)[None], format=sample_format, layout="mono")
    frame.sample_rate, frame.pts, frame.time_base = rate, at, Fraction(1, rate)
    return frame
