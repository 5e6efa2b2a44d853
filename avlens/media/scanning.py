"""Which tracks does a media file hold, from when to when, and is it whole?

Answered from its packets alone, without decoding any. Time 0 is where the first of its tracks
starts. A cover picture is not a track.
"""

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.stream import Disposition
from jaxtyping import Float64, Int64

from avlens.errors import MediaError

# These fill their last packet up with silence, and only some containers say how much.
_PADDED_CODECS = frozenset({"aac", "aac_latm", "mp2", "mp2float", "mp3", "mp3float", "ac3", "eac3"})
# Containers that state how long they are; the length of others is guessed from their size.
_STATES_ITS_LENGTH = ("mov", "matroska", "wav", "flac", "avi")
_UNKNOWN_SIZE = 0x7FFFF000  # bytes; what is written to a pipe claims as much or more


@dataclass(frozen=True, eq=False)
class VideoTrack:
    """The packets of a file's pictures. Times are in seconds since the file's time 0.

    Attributes:
        index: Which stream of the file it is.
        base: Seconds per unit of the file's clock.
        pts: When each picture is shown, on the file's clock, sorted.
        times: The same in seconds.
        rate: Pictures per second as the file states it; NaN where it does not.
        end: When the last picture stops being shown.
    """

    index: int
    base: Fraction
    pts: Int64[np.ndarray, " packet"]
    times: Float64[np.ndarray, " packet"]
    rate: float
    end: float


@dataclass(frozen=True)
class AudioTrack:
    """The packets of a file's sound.

    Attributes:
        index: Which stream of the file it is.
        end: When the sound stops, in seconds since the file's time 0.
        padding: Seconds of silence that may follow it unannounced.
    """

    index: int
    end: float
    padding: float


@dataclass(frozen=True, eq=False)
class Contents:
    """What a file holds, from its packets alone.

    Attributes:
        path: The file.
        kind: The names of its format, such as "mov,mp4,m4a".
        origin: What its own clock shows, in seconds, at what is called 0 s here.
        video: Its pictures, if it has any.
        audio: Its sound, if it has any.
        missing: Seconds that it says it has beyond those that are there.
    """

    path: Path
    kind: str
    origin: float
    video: VideoTrack | None
    audio: AudioTrack | None
    missing: float

    @property
    def seconds(self) -> float:
        """How long the file is."""
        return max(track.end for track in (self.video, self.audio) if track is not None)


def scan(path: Path) -> Contents:
    """Read every packet of a file without decoding any."""
    with opened(path) as container:
        video, audio = pick(container.streams.video), pick(container.streams.audio)
        if video is None and audio is None:
            raise MediaError(f"{path} holds neither pictures nor sound that can be decoded. Give another file.")
        origin = _origin([stream for stream in (video, audio) if stream is not None])
        pts, ends = _packet_times(container, video)
        return Contents(
            path=path,
            kind=container.format.name,
            origin=origin,
            video=None if video is None else _video_track(video, pts, ends, origin),
            audio=None if audio is None else _audio_track(audio, ends, origin),
            missing=_missing(container, ends),
        )


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """The file, for reading, until the block ends."""
    _refuse_what_is_no_file(path)
    try:
        # The whitelist keeps a playlist from reaching for other machines; tags need not be UTF-8.
        options = {"protocol_whitelist": "file"}
        container = av.open(str(path.absolute()), options=options, metadata_errors="replace")
    except (av.FFmpegError, OSError) as error:
        raise MediaError(
            f"{path} cannot be opened as audio or video: {error.strerror or error}. It is cut short, damaged, or "
            f"another kind of file. Give an mp4, mov, mkv, webm, wav, mp3 or flac that plays elsewhere."
        ) from error
    with container:
        if container.format.name == "tty":
            raise MediaError(f"{path} is text, not audio or video. Give an mp4, mov, mkv, webm, wav, mp3 or flac.")
        yield container


def _refuse_what_is_no_file(path: Path) -> None:
    if path.is_dir():
        raise MediaError(f"{path} is a folder, not a media file. Give one of the files in it.")
    if not path.exists():
        raise MediaError(f"{path} does not exist. Check the path; the current folder is {Path.cwd()}.")
    if not path.is_file():
        raise MediaError(f"{path} is a device or a pipe, not a file. Save it to a file first.")
    if path.stat().st_size == 0:
        raise MediaError(f"{path} is empty (0 bytes). Copy or record it again.")


def pick(streams: Any) -> Any:
    """The first track that can be decoded and is not a cover picture."""
    return next((stream for stream in streams if stream.codec_context is not None and not _is_cover(stream)), None)


def _is_cover(stream: Any) -> bool:
    return bool(stream.disposition & Disposition.attached_pic)


def _origin(streams: list[Any]) -> float:
    starts = [float(stream.start_time * stream.time_base) for stream in streams if stream.start_time is not None]
    return min(starts, default=0.0)


def _packet_times(container: Any, video: Any) -> tuple[list[int | None], dict[int, float]]:
    """When each picture is shown, on the file's clock, and when each stream's last packet ends, in seconds."""
    pts: list[int | None] = []
    ends: dict[int, float] = {}
    for packet in packets(container, None):
        at = packet.dts if packet.pts is None else packet.pts
        if packet.size == 0 or packet.is_discard or _is_cover(packet.stream):
            continue
        if packet.stream is video:
            pts.append(at)
        if at is not None:
            end = float((at + (packet.duration or 0)) * packet.time_base)
            ends[packet.stream.index] = max(end, ends.get(packet.stream.index, -math.inf))
    return pts, ends


def packets(container: Any, stream: Any) -> Iterator[Any]:
    """The packets of a stream, or of all, up to where the file ends or cannot be read on."""
    packets = container.demux() if stream is None else container.demux(stream)
    with suppress(av.FFmpegError):
        yield from packets


def _video_track(video: Any, pts: list[int | None], ends: dict[int, float], origin: float) -> VideoTrack:
    rate = video.average_rate or video.guessed_rate
    known = [at for at in pts if at is not None]
    if len(known) < len(pts):  # a bare stream of pictures has no times
        known = [round(i / ((rate or 25) * video.time_base)) for i in range(len(pts))]
    ticks = np.sort(np.array(known, dtype=np.int64))
    times = ticks * float(video.time_base) - origin
    end = ends.get(video.index, 0.0) - origin
    if len(times) and end <= times[-1]:  # no duration is stated
        end = float(times[-1]) + (float(1 / rate) if rate else 0.0)
    if len(times) and rate and abs(len(times) / float(rate) - (end - times[0])) <= 2 * float(video.time_base):
        end = float(times[0]) + len(times) / float(rate)  # the rate is finer than a clock of milliseconds
    return VideoTrack(video.index, video.time_base, ticks, times, float(rate or math.nan), max(end, 0.0))


def _audio_track(audio: Any, ends: dict[int, float], origin: float) -> AudioTrack:
    end = max(0.0, ends.get(audio.index, 0.0) - origin)
    # mp4 counts in samples, so that the duration of its last packet is that of the sound in it.
    exact = bool(audio.rate) and audio.time_base == Fraction(1, audio.rate)
    if exact or not audio.rate or audio.codec_context.name not in _PADDED_CODECS:
        return AudioTrack(audio.index, end, 0.0)
    return AudioTrack(audio.index, end, (audio.codec_context.frame_size or 1024) / audio.rate)


def _missing(container: Any, ends: dict[int, float]) -> float:
    """Seconds between where the packets end and where the file says that they do."""
    if not container.format.name.startswith(_STATES_ITS_LENGTH):
        return 0.0
    last = max(ends.values(), default=0.0)
    lacks = [_stated_seconds(stream) - ends.get(stream.index, 0.0) for stream in container.streams]
    lacks += [] if container.duration is None else [float(container.duration / av.time_base) - last]
    lacks += [_missing_of_wav(Path(container.name), last)] if container.format.name == "wav" else []
    return max(0.0, *lacks)


def _stated_seconds(stream: Any) -> float:
    """How long a stream is by the file's table of contents; 0 where that does not say."""
    if _is_cover(stream) or stream.type not in ("video", "audio"):
        return 0.0
    if stream.duration is not None:
        return float(stream.duration * stream.time_base)
    clock = re.fullmatch(r"(\d+):(\d\d):(\d\d(?:\.\d+)?)", stream.metadata.get("DURATION", ""))  # matroska's tag
    return 0.0 if clock is None else 3600 * int(clock[1]) + 60 * int(clock[2]) + float(clock[3])


def _missing_of_wav(path: Path, seconds: float) -> float:
    """From the size in its header, which FFmpeg ignores where the file is shorter."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8)[4:], "little") + 8
    there = path.stat().st_size
    return 0.0 if size > _UNKNOWN_SIZE else seconds * max(0, size - there) / there
