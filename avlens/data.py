"""Which data set does a name or a file mean? One call that reads any of them, for the command line and for examples.

    read_data("synthetic:40", task="choice")                         clips made in memory, which avlens-tiny knows
    read_data("vggsound.csv", "clips/", task="describe")             any format of `avlens.datasets`, told by its content
    read_data("questions.jsonl", "clips/")                           questions of your own

Two tasks: `choice`, the data set's own questions with options, and `describe`, a request to describe the clip, with what the clip
holds as the truth.
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np

from avlens.analyses.selection import Ask
from avlens.datasets import synthetic
from avlens.datasets.audiocaps import read_audiocaps
from avlens.datasets.audioset import QUESTION as DESCRIBE
from avlens.datasets.audioset import read_audioset
from avlens.datasets.avhbench import read_avhbench
from avlens.datasets.counterfactual import MANIFEST, Counterfactuals
from avlens.datasets.crossmodal_hub import read_prompts
from avlens.datasets.questions import read_questions
from avlens.datasets.vggsound import read_vggsound
from avlens.errors import DatasetError
from avlens.media import Clip
from avlens.metrics.vocabulary import Vocabulary
from avlens.samples import LETTERS, Sample, read_clip, unreadable

Task = Literal["choice", "describe"]


@dataclass(frozen=True, eq=False)
class Data:
    """Samples, and how to use them.

    Attributes:
        samples: What is asked about which clip.
        read: Opens a sample's clip.
        ask: How `unimodal_dominance` should ask.
        vocabulary: Objects that captions may mention.
    """

    samples: tuple[Sample, ...]
    read: Callable[[Sample], Clip]
    ask: Ask
    vocabulary: Vocabulary

    @property
    def chance(self) -> float:
        """The share of right answers where options are guessed; NaN where there are none."""
        shares = [1 / len(sample.options) for sample in self.samples if sample.options]
        return sum(shares) / len(shares) if shares else math.nan

    def truth(self, sample: Sample) -> list[str]:
        """As `truth_of`."""
        return truth_of(sample)

    def __repr__(self) -> str:
        return f"Data({len(self.samples)} samples, asked by {self.ask}, {self.vocabulary!r})"


def truth_of(sample: Sample) -> list[str]:
    """What a clip holds, as names, labels or captions; empty where the data set does not say."""
    record = sample.record
    if "objects" in record:
        held = record["objects"]
        return held.split("/") if isinstance(held, str) else list(held)
    if "sounds" in record:
        return list(record["sounds"])
    if "audio_captions" in record:
        return [*record.get("video_captions", ()), *record["audio_captions"]]
    event = record.get("event", record.get("label_name", record.get("single_label", "")))
    return [event] if event else []


def read_data(
    source: str | Path,
    clips: str | Path = ".",
    *,
    task: Task = "choice",
    limit: int | None = None,
    sampling: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> Data:
    """The data set that a name or a file means.

    Args:
        source: `synthetic` or `synthetic:40`, or a file: VGGSound's, AudioSet's or AudioCaps's csv, AVHBench's or
            crossmodal-hub's json, a jsonl of questions, or a folder that `write_counterfactuals` wrote.
        clips: The folder with the clips.
        task: What is asked.
        limit: How many samples at most, the first ones.
        sampling: How clips are read, such as `model.family.sampling`.
        seed: Of synthetic clips.

    Raises:
        DatasetError: If there is no such file or folder, nothing knows its format, it names no clip, or `limit` is below 1.
    """
    name, _, count = str(source).partition(":")
    if seed < 0:
        raise DatasetError(f"seed is {seed}. Pass a number from 0 on.")
    if limit is not None and limit < 1:
        raise DatasetError(f"limit is {limit}. Pass a number from 1 on, or None for all samples.")
    if name == "synthetic":
        if count and not (count.isdecimal() and 0 < int(count) < 10**7):
            raise DatasetError(
                f"{str(source)!r} says how many clips are drawn, but {count!r} is no such number. Write synthetic:40."
            )
        n = int(count or 40)
        return _synthetic(n if limit is None else min(n, limit), task, seed)
    path = Path(source)
    if not path.exists():
        raise DatasetError(
            f"there is no data set {str(source)!r}. Pass 'synthetic:40', or a csv, json or jsonl file that exists."
        )
    if not Path(clips).is_dir():
        raise DatasetError(f"there is no folder {str(clips)!r}. Pass the one with the clips of {source}.")
    found = tuple(islice(_samples(path, Path(clips), task), limit))
    if not found:
        raise DatasetError(f"{source} names no clip. Pass a data set that does.")
    if task == "describe":
        found = tuple(replace(one, question=DESCRIBE, options=(), label="") for one in found)
    return Data(found, partial(read_clip, **(sampling or {})), "letters", Vocabulary.sounding())


def _samples(path: Path, clips: Path, task: Task) -> Iterator[Sample]:
    if path.suffix.lower() == ".jsonl":
        return read_questions(path, clips, question=DESCRIBE if task == "describe" else "")
    if path.suffix.lower() == ".csv":
        return _table(path, clips)
    if (path / MANIFEST).exists():
        return Counterfactuals.read(path).samples()
    if path.is_dir():
        return read_avhbench(path, clips)
    try:
        records = json.loads(path.read_text(encoding="utf-8-sig"))
        return read_prompts(path, clips) if isinstance(records[0], list) else read_avhbench(path, clips)
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise DatasetError(
            f"nothing reads {path}. Pass VGGSound's, AudioSet's or AudioCaps's csv, AVHBench's or crossmodal-hub's json, a jsonl "
            "or a folder of counterfactual clips."
        ) from error


def _table(path: Path, clips: Path) -> Iterator[Sample]:
    with unreadable(path), path.open(encoding="utf-8-sig") as lines:
        head = lines.readline()
    if "audiocap_id" in head:
        return read_audiocaps(path, clips)
    if head.startswith("#"):
        classes = path.parent / "class_labels_indices.csv"
        return read_audioset(path, clips, classes=classes if classes.exists() else None)
    return read_vggsound(path, clips, n_options=None)


def _synthetic(n: int, task: Task, seed: int) -> Data:
    """Clips in which shape and sound are no pair, so that sight and sound speak for different answers."""
    samples = []
    for i in range(n):
        content, _ = _content(seed, i)
        question: synthetic.Question = "describe" if task == "describe" else ("sound", "object")[i % 2]
        kinds = {"sound": synthetic.SOUNDS, "object": synthetic.SHAPES}.get(question, ())
        label = LETTERS[kinds.index(content.answer(question))] if kinds else ""
        name = f"{question}-{seed}-{i}"
        captions = {"video_captions": [f"a {content.shape}"], "audio_captions": [f"a {content.sound}"]}
        record = {"objects": [content.shape, content.sound], **captions, "seed": seed, "index": i}
        samples.append(Sample(name, Path(name), synthetic.QUESTIONS[question], tuple(kinds), label, record=record))
    named = Vocabulary(dict.fromkeys((*synthetic.SHAPES, *synthetic.SOUNDS), ()))
    return Data(tuple(samples), read_synthetic, "words", named)


def read_synthetic(sample: Sample) -> Clip:
    """Draw the clip of a synthetic sample."""
    content, generator = _content(sample.record["seed"], sample.record["index"])
    return synthetic.draw_clip(content, generator, seconds=4.0)


def _content(seed: int, index: int) -> tuple[synthetic.Content, np.random.Generator]:
    """What a clip of `synthetic_clips` holds, and the generator that draws it."""
    generator = np.random.default_rng([seed, index])
    return synthetic.draw_content(generator, blank=0, silent=0, matching=0), generator
