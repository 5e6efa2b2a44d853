"""Counterfactual clips: what does a model say where sound and sight tell different stories?

Some clips of a data set keep their sound, the others get the sound of one another, so that it fits the video as little as
can be: with the similarity s of captions' embeddings, the sounds are dealt out so that

    sum over clips of s(own caption, caption of the new sound)

is least, every sound is used once, and no clip keeps its own (the assignment problem). Pictures are copied packet by packet;
every sound, also of the clips that keep theirs, goes through the same encoder.

Source: the counterfactual data of "Do Audio-Visual Large Language Models Really See and Hear?" (250 of 500 AudioCaps clips),
whose released records have `audio_captions` and `video_captions`, as those written here.

Differs from the source: the embeddings are pluggable (there: not said), by default of words and letters, which works offline.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from avlens import display
from avlens.errors import DatasetError, MediaError
from avlens.media import Clip
from avlens.metrics.aloha import Embedder, OverlapEmbedder, best_matching
from avlens.samples import Sample, inside
from avlens.version import versions

QUESTION = "Describe what you see and hear."
MANIFEST = "manifest.json"

_FORBIDDEN = 1e6
"""The cost of a pair that must not be, far above the sum of all similarities."""


@dataclass(frozen=True, eq=False)
class Swaps:
    """Which clip's sound each clip gets.

    Attributes:
        source: Index of the clip whose sound it is.
        similarity: Of the clip's own caption and that of its new sound.
        chance: The mean similarity of two different clips, which random swaps would have.
    """

    source: Int[np.ndarray, " clip"]
    similarity: Float[np.ndarray, " clip"]
    chance: float

    def to_frame(self) -> pd.DataFrame:
        """One row per clip."""
        return pd.DataFrame({"source": self.source, "similarity": self.similarity}).rename_axis("clip")

    def __repr__(self) -> str:
        return f"Swaps({len(self.source)} clips, similarity {self.similarity.mean():.3f}, by chance {self.chance:.3f})"

    def _repr_html_(self) -> str:
        return display.table(repr(self), self.to_frame())


def mismatched(captions: Sequence[str], *, embed: Embedder | None = None) -> Swaps:
    """Deal sounds out so that they fit as little as can be.

    Clips whose captions are the same never get each other's sound.

    Args:
        captions: One per clip, of its sound or of all of it.
        embed: Compares captions; by default `OverlapEmbedder()`; `sentence_embedder(...)` gives a sentence-transformers model.

    Raises:
        DatasetError: If there is no way to give each clip another's sound.
    """
    if len(captions) < 2:
        raise DatasetError(f"{len(captions)} clips cannot swap sounds. Pass two or more.")
    vectors = np.asarray((embed or OverlapEmbedder())(list(captions)), dtype=np.float64)
    similarity = vectors @ vectors.T
    names = np.array([caption.strip().lower() for caption in captions])
    same = names[:, None] == names[None]
    pairs = best_matching(-np.where(same, _FORBIDDEN, similarity))
    source = np.array([column for _row, column in sorted(pairs)], dtype=np.int64)
    rows = np.arange(len(source))
    if same[rows, source].any():
        raise DatasetError(
            f"{int(same.sum(1).max())} of {len(captions)} clips have the same caption, so that some would keep a sound like "
            "their own. Leave some of them out."
        )
    return Swaps(source, similarity[rows, source], float(similarity[~np.eye(len(rows), dtype=bool)].mean()))


@dataclass(frozen=True)
class Dubbed:
    """One clip of the data set.

    Attributes:
        id: Its name.
        file: The file, in the data set's folder.
        counterfactual: Whether its sound is another clip's.
        video_id: The clip that its pictures come from.
        audio_id: The clip that its sound comes from.
        video_captions: What is seen.
        audio_captions: What is heard now.
        similarity: Of both clips' captions; 1 where the sound is its own.
        problem: Why it has no file; empty where it has one.
    """

    id: str
    file: str
    counterfactual: bool
    video_id: str
    audio_id: str
    video_captions: tuple[str, ...]
    audio_captions: tuple[str, ...]
    similarity: float
    problem: str = ""


@dataclass(frozen=True, eq=False)
class Counterfactuals:
    """A data set of factual and counterfactual clips in a folder.

    Attributes:
        folder: Where its files are.
        clips: Its records.
        made_by: What made it.
    """

    folder: Path
    clips: tuple[Dubbed, ...]
    made_by: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: str | Path) -> "Counterfactuals":
        """Read the manifest of a folder.

        Raises:
            DatasetError: If there is none, or it holds something else.
        """
        path = Path(folder) / MANIFEST
        try:
            held = json.loads(path.read_text(encoding="utf-8"))
            lists = ("video_captions", "audio_captions")
            clips = tuple(Dubbed(**{**clip, **{key: tuple(clip[key]) for key in lists}}) for clip in held["clips"])
        except FileNotFoundError as error:
            raise DatasetError(f"{path} does not exist. Pass the folder that write_counterfactuals wrote.") from error
        except (ValueError, LookupError, TypeError, RecursionError, OSError) as error:
            raise DatasetError(f"{path} is no manifest of write_counterfactuals: {error}. Write it again.") from error
        return cls(Path(folder), clips, held["made_by"])

    def samples(self, question: str = QUESTION) -> Iterator[Sample]:
        """The clips that have a file, each with the question; the record says what is seen and heard.

        Raises:
            DatasetError: If a file is said to lie outside of the folder.
        """
        for clip in self.clips:
            if not clip.problem:
                path = inside(self.folder, clip.file, f"{self.folder / MANIFEST}, clip {clip.id!r}")
                yield Sample(id=clip.id, path=path, question=question, record=asdict(clip))

    @property
    def problems(self) -> dict[str, str]:
        """Why clips have no file, by id."""
        return {clip.id: clip.problem for clip in self.clips if clip.problem}

    def to_frame(self) -> pd.DataFrame:
        """One row per clip."""
        return pd.DataFrame([asdict(clip) for clip in self.clips])

    def __repr__(self) -> str:
        swapped = sum(clip.counterfactual for clip in self.clips)
        factual, lost = len(self.clips) - swapped, len(self.problems)
        return f"Counterfactuals({factual} factual, {swapped} counterfactual, {lost} without a file)"

    def _repr_html_(self) -> str:
        return display.table(repr(self), self.to_frame(), self.made_by)


def write_counterfactuals(
    samples: Sequence[Sample],
    captions: Sequence[str],
    folder: str | Path,
    *,
    video_captions: Sequence[str] | None = None,
    factual: float = 0.5,
    embed: Embedder | None = None,
    seed: int = 0,
) -> Counterfactuals:
    """Write a data set: .mp4 files and a manifest.

    A clip whose files cannot be read or written stays in the manifest with the reason, and does not end the run.

    Args:
        samples: The clips, whole files.
        captions: Of each clip's sound, or of all of it.
        folder: Where to write; made if it is not there.
        video_captions: Of each clip's pictures, where they differ.
        factual: The share of clips that keep their sound, drawn at random.
        embed: Compares captions; see `mismatched`.
        seed: Of the draw.

    Raises:
        DatasetError: If there are not as many captions as clips, ids come twice, or too few clips are left to swap.
    """
    _check(samples, captions, video_captions, factual)
    seen = captions if video_captions is None else video_captions
    order = np.random.default_rng(seed).permutation(len(samples))
    n_factual = round(factual * len(samples))
    swapped = np.sort(order[n_factual:])
    source, similarity = np.arange(len(samples)), np.ones(len(samples))
    if len(swapped):
        swaps = mismatched([captions[i] for i in swapped], embed=embed)
        source[swapped], similarity[swapped] = swapped[swaps.source], swaps.similarity
    into = Path(folder)
    into.mkdir(parents=True, exist_ok=True)
    clips = []
    for i, sample in enumerate(samples):
        donor = samples[source[i]]
        clips.append(
            Dubbed(
                id=sample.id, file=f"{_file_name(sample.id)}.mp4", counterfactual=donor is not sample, video_id=sample.id,
                audio_id=donor.id, video_captions=(seen[i],), audio_captions=(captions[source[i]],),
                similarity=float(similarity[i]), problem=_dubbed(sample, donor, into / f"{_file_name(sample.id)}.mp4"),
            )
        )  # fmt: skip
    made_by = {
        "seed": seed,
        "factual": factual,
        "embed": type(embed or OverlapEmbedder()).__name__,
        "versions": versions(),
    }
    written = json.dumps({"made_by": made_by, "clips": [asdict(clip) for clip in clips]}, indent=1)
    (into / MANIFEST).write_text(written + "\n", encoding="utf-8")
    return Counterfactuals(into, tuple(clips), made_by)


def _dubbed(sample: Sample, donor: Sample, path: Path) -> str:
    """Write one clip; why it could not be written, or nothing."""
    if sample.stills or sample.start is not None or sample.end is not None:
        return f"{sample.id} is a piece of a file, or stills: write it as a file of its own first"
    heard = donor.sound or donor.path
    try:
        Clip.from_file(heard, video=False, sample_rate=48000, start=donor.start, end=donor.end).dub(sample.path, path)
    except (MediaError, OSError) as error:
        return f"{type(error).__name__}: {error}"
    return ""


def _file_name(name: str) -> str:
    """An id as a file can be called."""
    return "".join(letter if letter.isalnum() or letter in "-_." else "_" for letter in name)


def _check(
    samples: Sequence[Sample], captions: Sequence[str], video_captions: Sequence[str] | None, factual: float
) -> None:
    for texts in (captions, *([] if video_captions is None else [video_captions])):
        if len(texts) != len(samples):
            raise DatasetError(f"{len(texts)} captions were given for {len(samples)} clips. Pass one for each.")
    names = [_file_name(sample.id) for sample in samples]
    if twice := [name for name in names if names.count(name) > 1]:
        raise DatasetError(f"two clips are called {twice[0]!r}. Give each an id of its own.")
    if not 0 <= factual <= 1 or len(samples) - round(factual * len(samples)) == 1:
        raise DatasetError(
            f"factual is {factual} of {len(samples)} clips. Pass a share from 0 to 1 that leaves none or two and more to swap."
        )
