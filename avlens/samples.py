"""What is asked about which clip: one record of a data set, and how its clip is opened.

Readers in `avlens.datasets` yield Samples without opening their files. `open_clips` opens one after the other; a file that is
missing or broken comes back with its reason instead of a clip, so that one of ten thousand does not end a run.
"""

import csv
import hashlib
import json
import math
import ntpath
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import wraps
from pathlib import Path, PureWindowsPath
from typing import Any, ParamSpec

import torch

from avlens.errors import AVLensError, DatasetError, MediaError
from avlens.media import Clip

_LONGEST_NAME = 4096
Given = ParamSpec("Given")

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass(frozen=True)
class Sample:
    """One record of a data set.

    Attributes:
        id: Its name, of which a data set has one each.
        path: Its video or sound; of stills, their folder.
        question: What is asked. It lists the options itself, or leaves that to the prompt.
        options: Answers to choose from; they have the letters A, B, ... in this order.
        label: The right answer: a letter where there are options, else a text; empty where nobody knows.
        stills: Pictures in order that stand for a video.
        sound: A file with the sound, where it is not in the video.
        start: Where the clip begins in the file, in seconds.
        end: Where it ends.
        record: What else the data set says.
        clip: What its clip is called, where other samples may be about the same one; they are not independent.
    """

    id: str
    path: Path
    question: str
    options: tuple[str, ...] = ()
    label: str = ""
    stills: tuple[Path, ...] = ()
    sound: Path | None = None
    start: float | None = None
    end: float | None = None
    record: Mapping[str, Any] = field(default_factory=dict)
    clip: str = ""

    def __post_init__(self) -> None:
        _check_fields(self)
        if len(self.options) > len(LETTERS):
            raise DatasetError(
                f"{self.id} has {len(self.options)} options. Give at most {len(LETTERS)}, one per letter."
            )
        if self.options and self.label and self.label not in self.letters:
            raise DatasetError(
                f"{self.id} has the label {self.label!r}, but its options are {self.letters[0]} to {self.letters[-1]}. "
                "Give the letter of the right option."
            )

    @property
    def letters(self) -> tuple[str, ...]:
        """The letters of its options."""
        return tuple(LETTERS[: len(self.options)])

    @property
    def lists_options(self) -> bool:
        """Whether the question lists the options itself."""
        lines = {line.strip() for line in self.question.splitlines()}
        listed = [f"{letter}. {option}" in lines for letter, option in zip(self.letters, self.options, strict=True)]
        return bool(listed) and all(listed)

    @property
    def asks(self) -> str:
        """A fingerprint of what is asked about which file, and of what is said to be true of it: any of it may change later."""
        files = [path.name for path in (self.path, *self.stills, *([self.sound] if self.sound else []))]
        asked = json.dumps(
            [self.question, self.options, self.label, self.start, self.end, files, {str(k): v for k, v in self.record.items()}],
            sort_keys=True, default=lambda other: type(other).__name__,
        )  # fmt: skip
        return hashlib.sha256(asked.encode()).hexdigest()[:16]


@dataclass(frozen=True, eq=False)
class Opened:
    """A sample with its clip, or with the reason why it has none.

    Attributes:
        sample: The record.
        clip: None where it could not be read.
        problem: Why; empty where it could.
        other: Another sample that was opened, whose sound or frames this one may take; None where none is needed.
    """

    sample: Sample
    clip: Clip | None
    problem: str
    other: "Opened | None" = None


def _check_fields(sample: Sample) -> None:
    """Refuse fields of another type, which data sets' files may hold.

    Raises:
        DatasetError: With the first.
    """
    texts = {"id": sample.id, "question": sample.question, "label": sample.label, "clip": sample.clip}
    if wrong := [name for name, value in texts.items() if not _is_text(value)]:
        raise DatasetError(
            f"{sample.id!r:.80} has the {wrong[0]} {texts[wrong[0]]!r:.80}, which is no text. Write it as one."
        )
    if not isinstance(sample.options, tuple) or not all(map(_is_text, sample.options)):
        raise DatasetError(f"{sample.id!r:.80} has the options {sample.options!r:.80}. Give a list of texts.")
    for name, value in (("start", sample.start), ("end", sample.end)):
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if value is not None and not (number and math.isfinite(value)):
            raise DatasetError(f"{sample.id!r:.80} has the {name} {value!r:.80}. Give seconds, or leave it out.")


def _is_text(value: Any) -> bool:
    """Whether it is a text of whole characters; JSON may hold halves of them."""
    return isinstance(value, str) and not any("\ud800" <= letter <= "\udfff" for letter in value)


def choice_question(question: str, options: Sequence[str], closing: str = "") -> str:
    """A question that lists its options, one per line with a letter, between a blank line and a closing line."""
    lines = [f"{letter}. {option}" for letter, option in zip(LETTERS, options, strict=False)]
    return "\n".join([question, "", *lines, *([closing] if closing else [])])


def inside(folder: str | Path, name: Any, where: str) -> Path:
    """The path of a file that a data set names, which must stay in the data set's folder, on whichever system.

    Raises:
        DatasetError: If the name is absolute or climbs out, or a link leads out. The folder itself may be a link.
    """
    if not isinstance(name, str) or not name or "\0" in name or len(name) > _LONGEST_NAME or _climbs(name):
        raise DatasetError(
            f"{where} names the file {name!r:.200}, which is not below {folder}. Give a path relative to it."
        )
    path = Path(folder) / name
    with unreadable(path):
        leads = path.resolve()
    if not leads.is_relative_to(Path(folder).resolve()):
        raise DatasetError(
            f"{where} names the file {name!r:.200}, a link to {leads}, which is not below {folder}: what a data set "
            "names may not lead out of its folder. The folder itself may be a link: pass the one that holds the file as the "
            "folder of clips, with names relative to it, or copy the file."
        )
    return path


@contextmanager
def unreadable(path: str | Path) -> Iterator[None]:
    """What goes wrong inside is the fault of a data set's file, whose records may hold anything.

    Raises:
        DatasetError: Instead of what reading and parsing raise.
    """
    try:
        yield
    except AVLensError:
        raise
    except (
        OSError,
        ValueError,
        TypeError,
        LookupError,
        AttributeError,
        RuntimeError,
        ArithmeticError,
        csv.Error,
    ) as error:
        raise DatasetError(
            f"{path} cannot be read ({type(error).__name__}: {str(error)[:200]}). Compare it with the format that its reader "
            "names."
        ) from error


def reader(read: Callable[Given, Iterator[Sample]]) -> Callable[Given, Iterator[Sample]]:
    """A function that reads samples from a file, its first argument, which may be damaged."""

    @wraps(read)
    def checked(*args: Given.args, **kwargs: Given.kwargs) -> Iterator[Sample]:
        with unreadable(str(args[0] if args else next(iter(kwargs.values())))):
            yield from read(*args, **kwargs)

    return checked


def _climbs(name: str) -> bool:
    """Whether a name leads out of its folder, or begins elsewhere, on this system or on Windows."""
    theirs = PureWindowsPath(ntpath.normpath(name))
    out = (Path(os.path.normpath(name)).parts[:1], theirs.parts[:1])
    return (os.pardir,) in out or Path(name).is_absolute() or bool(theirs.drive or theirs.root)


def read_clip(
    sample: Sample, *, fps: float = 2.0, max_frames: int = 768, max_pixels: int | None = None, sample_rate: int = 16000
) -> Clip:
    """The clip of a sample: its piece of the file, or its stills (at `fps`), with the sound of another file if it names one.

    Raises:
        MediaError: If a file is missing or cannot be read, or its stills differ in size.
    """
    settings: dict[str, Any] = {"max_pixels": max_pixels, "sample_rate": sample_rate}
    piece: dict[str, Any] = {"start": sample.start, "end": sample.end}
    if sample.stills:
        film = _film_of(sample, fps, max_pixels)
    else:
        film = Clip.from_file(sample.path, fps=fps, max_frames=max_frames, **settings, **piece)
    if sample.sound is None:
        return film
    heard = Clip.from_file(sample.sound, video=False, **settings, **piece)
    return Clip(film.frames, film.fps, heard.waveform, heard.sample_rate, film.frame_seconds, film.source)


def open_clips(samples: Iterable[Sample], read: Callable[[Sample], Clip] = read_clip) -> Iterator[Opened]:
    """Each sample with its clip, one at a time; with the reason where its clip cannot be read."""
    for sample in samples:
        yield open_clip(sample, read)


def open_clip(sample: Sample, read: Callable[[Sample], Clip] = read_clip) -> Opened:
    """A sample with its clip, or with the reason why it has none."""
    try:
        return Opened(sample, read(sample), "")
    except (MediaError, OSError) as error:
        return Opened(sample, None, f"{type(error).__name__}: {error}")


def _film_of(sample: Sample, fps: float, max_pixels: int | None) -> Clip:
    pictures = [Clip.from_file(still, audio=False, max_pixels=max_pixels).frames for still in sample.stills]
    frames = [picture[0] for picture in pictures if picture is not None]
    sizes = {tuple(frame.shape[1:]) for frame in frames}
    if len(sizes) != 1:
        raise MediaError(f"the stills of {sample.id} have the sizes {sorted(sizes)}. Give stills of one size.")
    return Clip(torch.stack(frames), fps, source=sample.path)
