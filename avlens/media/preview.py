"""How does a clip become so small that a page can hold it?

A file that every browser plays and that is light enough stays as it is. Any other is read again, at up to 12 pictures of
320 x 240 a second, and written with at most 30 kB a second.
"""

from pathlib import Path

from avlens.media.clip import Clip
from avlens.media.codec import write_mp4
from avlens.media.scanning import opened, pick

_BYTES_PER_SECOND, _BYTES_MORE = 40_000, 50_000
_RATE = 30_000 * 8  # bits per second that are written
_FPS, _PIXELS, _MOST_FRAMES, _SAMPLE_RATE = 12.0, 320 * 240, 900, 24_000
_ENDINGS = (".mp4", ".m4a", ".webm", ".mp3", ".wav")
_CODECS = ("h264", "vp8", "vp9", "av1", "aac", "mp3", "opus", "vorbis", "pcm_s16le")
_PIXEL_FORMATS = ("yuv420p", "yuvj420p")


def is_light(path: Path, seconds: float) -> bool:
    """Whether a page can hold the file as it is: few bytes for its length, and known to every browser.

    Raises:
        MediaError: If it cannot be opened.
    """
    if path.suffix.lower() not in _ENDINGS or path.stat().st_size > _BYTES_MORE + _BYTES_PER_SECOND * seconds:
        return False
    with opened(path) as container:
        video, audio = pick(container.streams.video), pick(container.streams.audio)
        codecs = [stream.codec_context.name for stream in (video, audio) if stream is not None]
        is_seen = video is None or video.codec_context.pix_fmt in _PIXEL_FORMATS
        return is_seen and all(any(codec.startswith(known) for known in _CODECS) for codec in codecs)


def write_preview(path: Path, source: Path) -> None:
    """Write what a file shows and sounds like, in little room.

    Raises:
        MediaError: If one cannot be read, or the other not written.
    """
    clip = Clip.from_file(
        source, fps=_FPS, min_frames=1, max_frames=_MOST_FRAMES, max_pixels=_PIXELS, sample_rate=_SAMPLE_RATE
    )
    film = None if clip.frames is None or clip.fps is None else (clip.frames, clip.fps)
    sound = None if clip.waveform is None else (clip.waveform, _SAMPLE_RATE)
    write_mp4(path, film, sound, rate=_RATE)
