"""What does the model see and hear: frames, a waveform, and when each of them is?

A `Clip` is made from arrays or read from a file, and changed into other clips. All changes but
`cut`, `without_audio`, `without_video` and `resampled` keep the number and size of the frames and
the number of samples, so that the prompt keeps its tokens at the same positions, and two runs can
be compared token by token.

Source of `noised`: Leng et al. 2024, "Mitigating Object Hallucinations in Large Vision-Language
Models through Visual Contrastive Decoding", CVPR, arXiv:2311.16922; DAMO-NLP-SG/VCD,
vcd_utils/vcd_add_noise.py.

Differs from the source: noise is added to bytes in [-1, 1], before the model's own normalisation,
and clipped there; sound gets noise relative to its own loudness (there: images only).
"""

import hashlib
import html
import math
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32, Shaped, UInt8
from torch import Tensor

from avlens.errors import MediaError
from avlens.media.codec import (
    as_frames,
    as_times,
    as_waveform,
    as_whole_number,
    checked_rate,
    fit,
    resample,
    resize,
    sample_at,
    write_mp4,
    write_wav,
)
from avlens.media.dubbing import write_dubbed
from avlens.media.reading import Wanted, check_piece, read_file, shown_between
from avlens.media.thumbnails import strip, wave

AnyArray = Shaped[Tensor, "..."] | Shaped[np.ndarray, "..."]


@dataclass(frozen=True, eq=False, init=False)
class Clip:
    """Frames, sound, or both, on one time axis that starts at 0 s.

    numpy arrays become tensors. Integer samples are scaled to [-1, 1], several channels become their mean.

    Attributes:
        frames: RGB bytes.
        fps: Frames per second at which `frames` were sampled.
        waveform: Mono samples in [-1, 1].
        sample_rate: Samples per second, in Hz.
        frame_seconds: When each frame is shown; every 1/fps unless given.
        source: The file that the clip comes from, if any.

    Raises:
        MediaError: If an array has another type or shape, is empty or not finite, or its rate is missing.
    """

    frames: UInt8[Tensor, "frame 3 height width"] | None = None
    fps: float | None = None
    waveform: Float32[Tensor, " sample"] | None = None
    sample_rate: int | None = None
    frame_seconds: Float[Tensor, " frame"] | None = None
    source: Path | None = None

    def __init__(
        self,
        frames: AnyArray | None = None,
        fps: float | int | None = None,
        waveform: AnyArray | None = None,
        sample_rate: float | int | np.integer | None = None,
        frame_seconds: AnyArray | None = None,
        source: str | Path | None = None,
    ) -> None:
        if frames is None and waveform is None:
            raise MediaError("A Clip needs frames, a waveform or both; neither was given. Give one, with its rate.")
        fps = checked_rate("fps", fps, "frames", given=frames is not None)
        rate = checked_rate("sample_rate", sample_rate, "waveform", given=waveform is not None)
        pictures = None if frames is None else as_frames(frames)
        fields = {
            "frames": pictures,
            "fps": fps,
            "waveform": None if waveform is None else as_waveform(waveform, source),
            "sample_rate": None if rate is None else as_whole_number(rate),
            "frame_seconds": None if pictures is None else as_times(frame_seconds, len(pictures), fps or 1.0),
            "source": None if source is None else Path(source),
        }
        for name, value in fields.items():
            object.__setattr__(self, name, value)

    @classmethod
    def from_file(
        cls,
        path: str | Path,
        *,
        fps: float | int = 2.0,
        min_frames: int = 4,
        max_frames: int = 768,
        max_pixels: int | None = None,
        sample_rate: int = 16000,
        start: float | int | None = None,
        end: float | int | None = None,
        video: bool = True,
        audio: bool = True,
        max_bytes: int = 4 * 2**30,
    ) -> "Clip":
        """Read an mp4, mov, mkv, webm, wav, mp3, flac or any other file that FFmpeg knows.

        A file that is damaged in places is read as far as it goes, with a warning that says how far.

        Args:
            path: The file.
            fps: Frames per second to choose, as Qwen's own scripts do; `Clip.fps` is the rate that results.
            min_frames: Choose at least so many, if there are so many.
            max_frames: Choose at most so many.
            max_pixels: Shrink frames to at most this height * width. None: keep their size.
            sample_rate: Of the waveform, in Hz.
            start: Leave out what is before, in seconds.
            end: Leave out what is after, in seconds.
            video: Whether to read the pictures.
            audio: Whether to read the sound.
            max_bytes: Refuse to fill more memory than this with frames, or with sound.

        Raises:
            MediaError: If the file cannot be read, or nothing of what was asked for is in it.
        """
        path = Path(path)
        wanted = Wanted(fps, min_frames, max_frames, max_pixels, sample_rate, start, end, max_bytes)
        film, sound = read_file(path, wanted, video=video, audio=audio)
        return cls(
            frames=None if film is None else film.frames,
            fps=None if film is None else film.fps,
            waveform=None if sound is None else sound.waveform,
            sample_rate=None if sound is None else sample_rate,
            frame_seconds=None if film is None else film.frame_seconds,
            source=path,
        )

    @property
    def has_video(self) -> bool:
        """Whether there are frames."""
        return self.frames is not None

    @property
    def has_audio(self) -> bool:
        """Whether there is sound; silence is sound."""
        return self.waveform is not None

    @property
    def seconds(self) -> float:
        """How long the clip is: its frames or its sound, whichever lasts longer."""
        heard = 0.0 if self.waveform is None or self.sample_rate is None else len(self.waveform) / self.sample_rate
        return max(self._video_seconds, heard)

    @property
    def _video_seconds(self) -> float:
        if self.frames is None or self.fps is None or self.frame_seconds is None:
            return 0.0
        return max(len(self.frames) / self.fps, float(self.frame_seconds[-1]))

    @cached_property
    def sha256(self) -> str:
        """A digest of the frames, the samples, their times and rates; the source does not count."""
        digest = hashlib.sha256()
        for part in (self.frames, self.frame_seconds, self.waveform):
            digest.update(f"{None if part is None else (part.dtype, tuple(part.shape))};".encode())
            if part is not None:
                digest.update(part.contiguous().numpy().data)
        digest.update(f"{self.fps!r};{self.sample_rate!r}".encode())
        return digest.hexdigest()

    def silenced(self) -> "Clip":
        """The same clip with every sample 0."""
        waveform, _ = self._sound("silenced")
        return replace(self, waveform=torch.zeros_like(waveform))

    def blanked(self) -> "Clip":
        """The same clip with every frame black."""
        frames, _ = self._film("blanked")
        return replace(self, frames=torch.zeros_like(frames))

    def without_audio(self) -> "Clip":
        """The frames alone. The prompt loses its audio tokens; `silenced` keeps them."""
        self._film("without_audio")
        return replace(self, waveform=None, sample_rate=None)

    def without_video(self) -> "Clip":
        """The sound alone. The prompt loses its video tokens; `blanked` keeps them."""
        self._sound("without_video")
        return replace(self, frames=None, fps=None, frame_seconds=None)

    def with_audio_of(self, other: "Clip") -> "Clip":
        """These frames with the sound of another clip, cut or followed by silence to the same length."""
        waveform, rate = self._sound("with_audio_of")
        other._sound("with_audio_of")
        heard, _ = other.resampled(rate)._sound("with_audio_of")
        return replace(self, waveform=fit(heard, len(waveform)))

    def with_video_of(self, other: "Clip") -> "Clip":
        """This sound with the frames of another clip, frame by frame, at this clip's size, rate and times.

        Frames too many are left out; where there are too few, the last one stays.
        """
        frames, _ = self._film("with_video_of")
        seen, _ = other._film("with_video_of")
        kept = torch.arange(len(frames)).clamp(max=len(seen) - 1)
        return replace(self, frames=resize(seen, *frames.shape[2:])[kept])

    def noised(self, step: int, *, seed: int = 0, video: bool = True, audio: bool = True) -> "Clip":
        """The clip after `step` + 1 of VCD's 1000 steps of diffusion, from 0 (as good as none) to 999 (all noise).

        Frames are noised in [-1, 1] and clipped. Sound gets noise of its own root mean square, so that silence
        stays silent. The two draws are independent: leaving one out does not change the other.

        Raises:
            MediaError: If there is no such step, or nothing to add noise to.
        """
        if not 0 <= step <= 999:
            raise MediaError(f"step={step} is not a step of the diffusion. Give one from 0 (hardly any noise) to 999.")
        if not (video and self.has_video) and not (audio and self.has_audio):
            raise MediaError(
                f"{self!r} has nothing to add noise to with video={video}, audio={audio}. Set one to True."
            )
        signal = signal_kept(step)
        frames, waveform = self.frames, self.waveform
        if frames is not None and video:
            frames = _noised_frames(frames, signal, torch.Generator().manual_seed(2 * seed))
        if waveform is not None and audio:
            waveform = _noised_waveform(waveform, signal, torch.Generator().manual_seed(2 * seed + 1))
        return replace(self, frames=frames, waveform=waveform)

    def cut(self, start: float | int | None = None, end: float | int | None = None) -> "Clip":
        """The piece from `start` to before `end`, in seconds; its time starts at 0 again.

        Of the frames, those that begin in it, or else the one that is on at `start`. A part that ends before
        `start` is left out.

        Raises:
            MediaError: If the piece is empty or outside of the clip.
        """
        check_piece(start, end, self.seconds, repr(self))
        return replace(self, **self._cut_film(start, end), **self._cut_sound(start, end))

    def _cut_film(self, start: float | int | None, end: float | int | None) -> dict[str, Any]:
        if self.frames is None or self.frame_seconds is None:
            return {}
        shown = shown_between(self.frame_seconds.double().numpy(), self._video_seconds, start, end)
        if shown.start == shown.stop:
            return {"frames": None, "fps": None, "frame_seconds": None}
        seconds = (self.frame_seconds[shown] - (start or 0.0)).clamp(min=0)
        return {"frames": self.frames[shown], "frame_seconds": seconds}

    def _cut_sound(self, start: float | int | None, end: float | int | None) -> dict[str, Any]:
        if self.waveform is None or self.sample_rate is None:
            return {}
        last = None if end is None else sample_at(end, self.sample_rate)
        waveform = self.waveform[sample_at(start or 0.0, self.sample_rate) : last]
        return {"waveform": waveform} if len(waveform) else {"waveform": None, "sample_rate": None}

    def resampled(self, sample_rate: int) -> "Clip":
        """The same clip with its sound at another rate, in Hz; itself where it has that rate.

        Raises:
            MediaError: If there is no sound, or the rate is not a positive number.
        """
        waveform, rate = self._sound("resampled")
        if sample_rate == rate:
            return self
        new_rate = as_whole_number(checked_rate("sample_rate", sample_rate, "waveform", given=True) or 0)
        return replace(self, waveform=resample(waveform, rate, new_rate), sample_rate=new_rate)

    def to_file(self, path: str | Path) -> Path:
        """Write the clip: .mp4 (H.264 and AAC, playable in a browser) or .wav (the sound, 16 bits). Returns the path.

        Frames are written every 1/fps; times that differ from that are not kept. An odd height or width is made
        even by repeating its last line.

        Raises:
            MediaError: If the ending is another, a .wav would be empty, or the file cannot be written.
        """
        path = Path(path)
        if path.suffix.lower() == ".wav":
            write_wav(path, *self._sound("to_file"))
        elif path.suffix.lower() == ".mp4":
            film = self._film("to_file") if self.has_video else None
            write_mp4(path, film, self._sound("to_file") if self.has_audio else None)
        else:
            raise MediaError(f"{path} does not say which format to write. End it in .mp4 or .wav.")
        return path

    def dub(self, video: str | Path, path: str | Path) -> Path:
        """Write the pictures of a video file, packet by packet as they are, with this clip's sound. Returns the path.

        The sound is cut, or followed by silence, to the length of the pictures, and encoded as AAC.

        Args:
            video: Whose pictures are kept.
            path: An .mp4, or an .mkv, which holds any pictures.

        Raises:
            MediaError: If this clip has no sound, the video cannot be read, or its pictures do not fit into such a file.
        """
        path, video = Path(path), Path(video)
        if path.suffix.lower() not in (".mp4", ".mkv") or path.absolute() == video.absolute():
            raise MediaError(
                f"{path} cannot hold {video.name} with other sound. End it in .mp4 or .mkv, beside the video."
            )
        write_dubbed(path, video, self._sound("dub"))
        return path

    def _film(self, asked: str) -> tuple[UInt8[Tensor, "frame 3 height width"], float]:
        """The frames and their rate.

        Raises:
            MediaError: If there are none.
        """
        if self.frames is None or self.fps is None:
            raise MediaError(f"{asked} needs frames, which {self!r} has not. Give a clip with frames and fps.")
        return self.frames, self.fps

    def _sound(self, asked: str) -> tuple[Float32[Tensor, " sample"], int]:
        """The samples and their rate.

        Raises:
            MediaError: If there are none.
        """
        if self.waveform is None or self.sample_rate is None:
            raise MediaError(f"{asked} needs sound, which {self!r} has not. Give a clip with waveform and sample_rate.")
        return self.waveform, self.sample_rate

    def __repr__(self) -> str:
        name = "" if self.source is None else f"{self.source.name}: "
        film = sound = ""
        if self.frames is not None:
            n, _, height, width = self.frames.shape
            film = f", {n} frame{'s' * (n > 1)} {height}x{width} at {self.fps:.1f} fps"
        if self.sample_rate is not None:
            sound = f", sound {self.sample_rate / 1000:g} kHz"
        return f"Clip({name}{self.seconds:.1f} s{film or ', no video'}{sound or ', no sound'})"

    def _repr_html_(self) -> str:
        parts = [f"<div style='font:12px sans-serif'>{html.escape(repr(self))}</div>"]
        if self.frames is not None and self.frame_seconds is not None:
            parts.append(strip(self.frames, self.frame_seconds))
        if self.waveform is not None:
            parts.append(wave(self.waveform))
        return f"<div>{''.join(parts)}</div>"


def signal_kept(step: int) -> float:
    """Alpha-bar: how much of the variance is still signal after the step."""
    betas = torch.sigmoid(torch.linspace(-6, 6, 1000)) * (0.5e-2 - 1e-5) + 1e-5
    return float((1 - betas).cumprod(0)[step])


def _noised_frames(
    frames: UInt8[Tensor, "frame 3 height width"], signal: float, generator: torch.Generator
) -> UInt8[Tensor, "frame 3 height width"]:
    noised = torch.empty_like(frames)
    for i, frame in enumerate(frames):  # one at a time: floats take four times the memory
        x = math.sqrt(signal) * (frame / 127.5 - 1) + math.sqrt(1 - signal) * torch.randn(
            frame.shape, generator=generator
        )
        noised[i] = ((x.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return noised


def _noised_waveform(
    waveform: Float32[Tensor, " sample"], signal: float, generator: torch.Generator
) -> Float32[Tensor, " sample"]:
    noise = torch.randn(waveform.shape, generator=generator) * waveform.square().mean().sqrt()
    return (math.sqrt(signal) * waveform + math.sqrt(1 - signal) * noise).clamp(-1, 1)
