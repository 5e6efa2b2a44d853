"""Where do training clips come from: a pool of them, made once, as the tensors that the encoders read.

Some of them are written to mp4 and read back, as a user's clips are, so that what compression does is learned.
"""

import json
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int, UInt8
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm.auto import tqdm
from transformers import WhisperFeatureExtractor

from avlens.datasets.synthetic import Content, Sample, synthetic_clips
from avlens.encoders.mel import log_mel
from avlens.media import Clip
from avlens.training.recipe import FRAMES_PER_SECOND, MEL_PER_SECOND

SECONDS = (2, 3)
"""Lengths of the clips trained on."""


@dataclass(frozen=True, eq=False)
class Clips:
    """Clips of one length.

    Attributes:
        seconds: The length of each.
        frames: Pixels.
        mel: What the audio tower reads.
        contents: What is in each.
    """

    seconds: int
    frames: UInt8[Tensor, "clip frame 3 side side"]
    mel: Float[Tensor, "clip mel mel_pos"]
    contents: tuple[Content, ...]

    def __len__(self) -> int:
        return len(self.contents)

    def take(self, index: Int[Tensor, " chosen"]) -> "Clips":
        """Some of them."""
        return Clips(self.seconds, self.frames[index], self.mel[index], tuple(self.contents[i] for i in index.tolist()))


Pool = dict[int, Clips]
"""Clips by length in seconds."""


def make_pool(
    mel: WhisperFeatureExtractor, n: int, *, seed: int, compressed: float = 0.2, progress: bool = False
) -> Pool:
    """`n` clips of each length.

    Args:
        mel: The model's feature extractor.
        n: How many clips of each length.
        seed: Of the clips.
        compressed: The share that goes through an mp4 file.
        progress: Whether to show a bar.
    """
    pool = {}
    for seconds in SECONDS:
        samples = synthetic_clips(n, seed=seed + seconds, seconds=seconds)
        samples = list(_through_files(samples, round(n * compressed), progress))
        contents = tuple(sample.content for sample in samples)
        pool[seconds] = clips_of([sample.clip for sample in samples], contents, seconds, mel)
    return pool


def write_pool(pool: Pool, path: Path) -> None:
    """Write a pool as safetensors."""
    tensors = {
        f"{seconds}.{name}": getattr(clips, name) for seconds, clips in pool.items() for name in ("frames", "mel")
    }
    contents = {seconds: json.dumps([asdict(one) for one in clips.contents]) for seconds, clips in pool.items()}
    save_file(tensors, path, {str(seconds): written for seconds, written in contents.items()})


def read_pool(path: Path) -> Pool:
    """Read what `write_pool` wrote."""
    with safe_open(path, framework="pt") as file:
        held = {int(seconds): json.loads(written) for seconds, written in (file.metadata() or {}).items()}
        return {
            seconds: Clips(
                seconds, file.get_tensor(f"{seconds}.frames"), file.get_tensor(f"{seconds}.mel"),
                tuple(Content(**one) for one in contents),
            )
            for seconds, contents in held.items()
        }  # fmt: skip


def clips_of(clips: list[Clip], contents: tuple[Content, ...], seconds: int, mel: WhisperFeatureExtractor) -> Clips:
    """Clips of one length as tensors."""
    frames = torch.stack([clip.frames[: seconds * FRAMES_PER_SECOND] for clip in clips if clip.frames is not None])
    heard = [log_mel(clip.waveform, mel) for clip in clips if clip.waveform is not None]
    return Clips(seconds, frames, torch.stack([one[:, : seconds * MEL_PER_SECOND] for one in heard]), contents)


def silence_of(model: Any, seconds: int) -> Float[Tensor, "mel mel_pos"]:
    """What the audio tower reads of digital silence."""
    return log_mel(torch.zeros(seconds * 16000), model.family.reading.mel)[:, : seconds * MEL_PER_SECOND]


def _through_files(samples: list[Sample], n: int, progress: bool) -> Iterator[Sample]:
    """The same samples, the first `n` of them written and read back."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip.mp4"
        for i, sample in enumerate(tqdm(samples, desc="clips", unit="clip", disable=not progress)):
            if i < n:
                sample.clip.to_file(path)
                yield Sample(Clip.from_file(path), sample.content, sample.seed)
            else:
                yield sample
