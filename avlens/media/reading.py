"""What is in a media file: which pictures at which times, and which sound?

A file is first scanned without decoding it, then its pictures and its sound are decoded one after
the other, keeping only what was asked for. Time 0 is where the first of its tracks starts.

Of the `total` pictures asked for, at `rate` pictures per second, those numbered
`linspace(0, total - 1, n).round()` are kept, where

    n = total / rate * fps, at least min_frames, at most max_frames and total, even (floor).

Source: `smart_nframes` and `_read_video_torchvision` in QwenLM/Qwen2.5-VL,
qwen-vl-utils/src/qwen_vl_utils/vision_process.py.

Differs from the source: a file of one picture gives that picture (there: an error); the times of
the pictures are those in the file, also where its rate varies; a stated rate that those times
contradict by more than 5 % is replaced by theirs.
"""

import itertools
import math
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from jaxtyping import Float32, Float64, UInt8
from torch import Tensor

from avlens.errors import MediaError
from avlens.media.codec import Samples, as_float, channels_of, joined, resampled, resize, sample_at, silence
from avlens.media.scanning import AudioTrack, Contents, VideoTrack, opened, packets, scan

# Containers with an index, in which a seek lands where it should.
_HAS_INDEX = ("mov", "matroska")
_LATE_SECONDS = 0.05  # sound that is later than this after the sound before it follows a gap
_MISSING_SECONDS = 0.5  # containers round their own length; beyond this, a part is missing


@dataclass(frozen=True)
class Wanted:
    """What to read of a file. `Clip.from_file` says what each setting means."""

    fps: float | int
    min_frames: int
    max_frames: int
    max_pixels: int | None
    sample_rate: int
    start: float | int | None
    end: float | int | None
    max_bytes: int

    def __post_init__(self) -> None:
        for name in ("fps", "min_frames", "sample_rate", "max_bytes"):
            if not 0 < getattr(self, name) < math.inf:
                raise MediaError(f"{name}={getattr(self, name)} is not a positive number. Give one, or leave it out.")
        if self.max_frames < max(2, self.min_frames):
            given = f"max_frames={self.max_frames}, min_frames={self.min_frames}"
            raise MediaError(
                f"max_frames must be at least 2 and at least min_frames; given: {given}. Raise max_frames."
            )
        if self.max_pixels is not None and self.max_pixels < 4:
            raise MediaError(f"max_pixels={self.max_pixels} leaves no picture. Give height * width, such as 360 * 640.")


@dataclass(frozen=True, eq=False)
class Film:
    """Pictures chosen from a file.

    Attributes:
        frames: The pictures.
        fps: The rate at which they were chosen.
        frame_seconds: When each is shown, from the start of the file or of the piece asked for.
        broken: How many packets or pictures were damaged.
    """

    frames: UInt8[Tensor, "frame 3 height width"]
    fps: float | int
    frame_seconds: Float64[Tensor, " frame"]
    broken: int


@dataclass(frozen=True, eq=False)
class Sound:
    """The mean of a file's channels, in [-1, 1]; `broken` counts the packets that were damaged."""

    waveform: Float32[Tensor, " sample"]
    broken: int


def read_file(path: Path, wanted: Wanted, *, video: bool, audio: bool) -> tuple[Film | None, Sound | None]:
    """The pictures and the sound of a file, each None where the file or the piece asked for has none.

    Raises:
        MediaError: If the file cannot be read, or nothing of what was asked for is in it.
    """
    try:
        contents = scan(path)
        check_piece(wanted.start, wanted.end, contents.seconds, str(path))
        film = _read_film(contents, contents.video, wanted) if video and contents.video is not None else None
        sound = _read_sound(contents, contents.audio, wanted) if audio and contents.audio is not None else None
    except av.FFmpegError as error:
        raise MediaError(
            f"{path} cannot be read: {error.strerror or error}. It is damaged: copy or record it again."
        ) from error
    if film is None and sound is None:
        _refuse_nothing(contents, wanted, video=video, audio=audio)
    _warn_of_damage(contents, film, sound)
    return film, sound


def check_piece(start: float | int | None, end: float | int | None, seconds: float, name: str) -> None:
    """Refuse a piece that is empty or outside of what is there.

    Raises:
        MediaError: With the duration of what is there.
    """
    first, last = 0.0 if start is None else start, math.inf if end is None else end
    if not 0 <= first < last:
        raise MediaError(
            f"start={start}, end={end} is not a piece of {name}, which is {seconds:.3f} s long. "
            f"Give seconds with 0 <= start < end."
        )
    if first > 0 and first >= seconds:
        raise MediaError(
            f"start={start} is beyond the end of {name}, which is {seconds:.3f} s long. Give a smaller start."
        )


def shown_between(
    times: Float64[np.ndarray, " frame"], until: float, start: float | int | None, end: float | int | None
) -> slice:
    """Which frames begin from `start` to before `end`, or else the one that is on at `start`.

    Args:
        times: When each frame begins, sorted.
        until: When the last one ends.
        start: From the first where None.
        end: To the last where None.
    """
    begins = times + 1e-6  # a rounding error must not move a frame across a border
    first = 0 if start is None else int(np.searchsorted(begins, start))
    last = len(times) if end is None else int(np.searchsorted(begins, end))
    if 0 < first == last and start is not None and start < until:
        first -= 1
    return slice(first, max(first, last))


def frame_count(total: int, rate: float, wanted: Wanted) -> int:
    """How many of `total` pictures, at `rate` per second, are kept."""
    least = math.ceil(wanted.min_frames / 2) * 2
    most = math.floor(min(wanted.max_frames, total) / 2) * 2
    n = min(min(max(total / rate * wanted.fps, least), most), total)
    return max(math.floor(n / 2) * 2, 1)


# -------------------------------------------------------------------------------- decoding pictures


@dataclass(frozen=True, eq=False)
class _Take:
    """One pass over the pictures: those kept and when each is shown, of `total` that could be decoded."""

    frames: UInt8[Tensor, "room 3 height width"] | None
    seconds: list[float]
    total: int
    broken: int


class _Decoder:
    """Decodes a stream from where the file stands; `broken` counts the packets that could not be."""

    def __init__(self, container: Any, stream: Any) -> None:
        self.container, self.stream, self.broken = container, stream, 0

    def __iter__(self) -> Iterator[Any]:
        # The last None gets out what the decoder still holds if the file breaks off.
        for packet in itertools.chain(packets(self.container, self.stream), [None]):
            try:
                frames = self.stream.decode(packet)
            except av.error.EOFError:
                return
            except av.FFmpegError:
                self.broken += 1
                continue
            yield from frames


def _read_film(contents: Contents, track: VideoTrack, wanted: Wanted) -> Film | None:
    """The chosen pictures; decoded again if the packets promised another number of them."""
    shown = shown_between(track.times, track.end, wanted.start, wanted.end)
    promised = shown.stop - shown.start
    if promised == 0:
        return None
    rate = _rate(track, shown)
    take = _decode_film(contents, track, wanted, shown, frame_count(promised, rate, wanted), promised)
    if take.total not in (0, promised):
        take = _decode_film(contents, track, wanted, shown, frame_count(take.total, rate, wanted), take.total)
    if take.frames is None:
        return None
    seconds = torch.tensor(take.seconds, dtype=torch.float64) - (wanted.start or 0.0)
    fps = len(seconds) / take.total * rate
    return Film(take.frames[: len(seconds)], fps, seconds.clamp(min=0), take.broken)


def _rate(track: VideoTrack, shown: slice) -> float:
    """Pictures per second: as the file states it, unless the times of the pictures say otherwise."""
    times = [*track.times[shown.start : shown.stop + 1], track.end]
    total = shown.stop - shown.start
    measured = total / max(float(times[total] - times[0]), 1e-3)
    return track.rate if abs(measured - track.rate) <= 0.05 * measured else measured


def _decode_film(contents: Contents, track: VideoTrack, wanted: Wanted, shown: slice, n: int, total: int) -> _Take:
    """Decode the pictures `shown`, and keep `n` of them, spread evenly if they are `total`."""
    chosen = set(torch.linspace(0, total - 1, n).round().long().tolist())
    seconds: list[float] = []
    frames, seen, broken = None, 0, 0
    with opened(contents.path) as container:
        decoder = _decoder_at(container, contents, track, shown)
        for at, frame in _pictures(decoder, track, shown):
            broken += bool(frame.is_corrupt)
            if seen in chosen:
                picture = _as_tensor(frame, wanted, None if frames is None else frames.shape[2:])
                frames = _room(n, picture, contents.path, wanted) if frames is None else frames
                frames[len(seconds)] = picture
                seconds.append(float(at * track.base) - contents.origin)
            seen += 1
    return _Take(frames, seconds, seen, broken + decoder.broken)


def _decoder_at(container: Any, contents: Contents, track: VideoTrack, shown: slice) -> _Decoder:
    """A decoder that starts no later than the pictures `shown`."""
    stream = container.streams[track.index]
    stream.thread_type = "AUTO"
    if shown.start > 0 and contents.kind.startswith(_HAS_INDEX):
        # A second early, because files are indexed by the order of decoding, not of showing.
        early = int(track.pts[shown.start]) - round(1 / track.base)
        with suppress(av.FFmpegError):
            container.seek(max(early, int(track.pts[0])), stream=stream, backward=True)
    return _Decoder(container, stream)


def _pictures(decoder: _Decoder, track: VideoTrack, shown: slice) -> Iterator[tuple[int, Any]]:
    """The pictures `shown`, and when each is, on the file's clock."""
    first, last = int(track.pts[shown.start]), int(track.pts[shown.stop - 1])
    for i, frame in enumerate(decoder):
        at = int(track.pts[min(i, len(track.pts) - 1)]) if frame.pts is None else frame.pts
        if at > last:
            return
        if at >= first:
            yield at, frame


def _as_tensor(frame: Any, wanted: Wanted, size: Sequence[int] | None) -> UInt8[Tensor, "3 height width"]:
    """A picture the right way up and no larger than asked for; of `size`, where pictures before it had that."""
    if 3 * frame.width * frame.height > wanted.max_bytes:
        raise MediaError(
            f"A picture of {frame.height}x{frame.width} needs more than max_bytes allows ({wanted.max_bytes / 2**30:.3g} GiB). "
            "If the file really holds such pictures, raise max_bytes; else it is damaged: copy it again."
        )
    pixels = np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90) % 4)
    picture = torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1)
    height, width = size or _size_within(wanted.max_pixels, *picture.shape[1:])
    return resize(picture[None], height, width)[0]


def _size_within(max_pixels: int | None, height: int, width: int) -> tuple[int, int]:
    if max_pixels is None or height * width <= max_pixels:
        return height, width
    scale = math.sqrt(max_pixels / (height * width))
    return max(2, math.floor(height * scale / 2) * 2), max(2, math.floor(width * scale / 2) * 2)


def _room(
    n: int, picture: UInt8[Tensor, "3 height width"], path: Path, wanted: Wanted
) -> UInt8[Tensor, "frame 3 height width"]:
    """Memory for n pictures like this one, if that is not too much."""
    _, height, width = picture.shape
    if n * picture.numel() > wanted.max_bytes:
        raise MediaError(
            f"{n} frames of {height}x{width} from {path} need {n * picture.numel() / 2**30:.3g} GiB, more than "
            f"max_bytes allows ({wanted.max_bytes / 2**30:.3g} GiB). Lower fps, max_frames or max_pixels, read a "
            f"piece with start and end, or raise max_bytes."
        )
    return torch.zeros((n, 3, height, width), dtype=torch.uint8)


# ----------------------------------------------------------------------------------- decoding sound


def _read_sound(contents: Contents, track: AudioTrack, wanted: Wanted) -> Sound | None:
    """The sound from start to end, without the codec's padding."""
    first = sample_at(wanted.start or 0.0, wanted.sample_rate)
    last = None if wanted.end is None else sample_at(wanted.end, wanted.sample_rate)
    with opened(contents.path) as container:
        decoder = _Decoder(container, container.streams[track.index])
        chunks = _bounded(_mono(decoder, contents.origin), contents.path, wanted)
        waveform = joined(_between(resampled(chunks, wanted.sample_rate), first, last))
    length = _unpadded_length(contents, track, first + len(waveform), wanted.sample_rate) - first
    return Sound(waveform[:length], decoder.broken) if length > 0 else None


def _mono(decoder: _Decoder, origin: float) -> Iterator[tuple[int, Samples]]:
    """Stretches of sound with their rates, one after the other from 0 s on, with silence in the gaps."""
    end, held = 0.0, None  # one frame is held back, because the last one may be partly padding
    for frame in decoder:
        if held is not None:
            yield held.sample_rate, _mean_of_channels(held)
        gap = 0.0 if frame.time is None else frame.time - origin - end
        # Small differences are rounding of the container's clock, except before the first sound.
        if gap > (0.0 if held is None else _LATE_SECONDS):
            yield from silence(round(gap * frame.sample_rate), frame.sample_rate)
            end += gap
        end, held = end + frame.samples / frame.sample_rate, frame
    if held is not None:
        yield held.sample_rate, _mean_of_channels(held)[: _true_length(held)]


def _mean_of_channels(frame: Any) -> Samples:
    """All channels count alike; a resampler's own mono of two is louder by the square root of 2."""
    mean: Samples = as_float(channels_of(frame)).mean(0)
    return mean


def _true_length(frame: Any) -> int:
    """Samples of the last frame that are sound, where the container says so."""
    exact = frame.time_base == Fraction(1, frame.sample_rate) and 0 < frame.duration < frame.samples
    return int(frame.duration if exact else frame.samples)


def _bounded(chunks: Iterable[tuple[int, Samples]], path: Path, wanted: Wanted) -> Iterator[tuple[int, Samples]]:
    """The same up to a little after the end; refused where it would not fit in memory."""
    at, end = 0.0, math.inf if wanted.end is None else wanted.end
    for rate, chunk in chunks:
        at += len(chunk) / rate
        if 4 * wanted.sample_rate * (min(at, end) - (wanted.start or 0.0)) > wanted.max_bytes:
            raise MediaError(
                f"The sound of {path} needs more than max_bytes allows ({wanted.max_bytes / 2**30:.3g} GiB are full "
                f"after {at:.0f} s). Read a piece with start and end, lower sample_rate, or raise max_bytes."
            )
        yield rate, chunk
        if at > end + 1.0:  # what resampling looks ahead is far less
            return


def _between(chunks: Iterable[Samples], first: int, last: int | None) -> Iterator[Samples]:
    """The samples from `first` to before `last`."""
    at = 0
    for chunk in chunks:
        stop = len(chunk) if last is None else max(0, last - at)
        yield chunk[max(0, first - at) : stop]
        at += len(chunk)


def _unpadded_length(contents: Contents, track: AudioTrack, length: int, sample_rate: int) -> int:
    """Without what the codec may have added after the end of the pictures."""
    if contents.video is None or not 0 < length / sample_rate - contents.video.end <= track.padding:
        return length
    return round(contents.video.end * sample_rate)


# ---------------------------------------------------------------------------------------- reporting


def _refuse_nothing(contents: Contents, wanted: Wanted, *, video: bool, audio: bool) -> None:
    has = [name for name, track in (("pictures", contents.video), ("sound", contents.audio)) if track is not None]
    asked = f"video={video}, audio={audio}, start={wanted.start}, end={wanted.end}"
    raise MediaError(
        f"Nothing of what was asked for could be decoded from {contents.path}, which is {contents.seconds:.3f} s long "
        f"and holds {' and '.join(has)}; asked for: {asked}. Ask for a part that it has; if it is damaged, copy it "
        f"again."
    )


def _warn_of_damage(contents: Contents, film: Film | None, sound: Sound | None) -> None:
    broken = (0 if film is None else film.broken) + (0 if sound is None else sound.broken)
    if broken == 0 and contents.missing < _MISSING_SECONDS:
        return
    read = [] if film is None else [f"{len(film.frames)} frames, the last at {film.frame_seconds[-1]:.2f} s"]
    read += [] if sound is None else [f"{len(sound.waveform)} samples of sound"]
    warnings.warn(
        f"{contents.path} is damaged: {broken} of its packets could not be decoded, and {contents.missing:.2f} s that "
        f"it says it holds are not there. Read: {' and '.join(read)}. Copy or record it again to have all of it.",
        UserWarning,
        stacklevel=4,
    )
