"""AVHBench: does a model hear what it only sees, or see what it only hears? Yes-no questions and captions about clips.

Each record has `video_id`, `task` ("Video-driven Audio Hallucination", "Audio-driven Video Hallucination", "AV Matching",
"AV Captioning"), `text` (the question) and `label` ("Yes", "No", or a caption). They are in one file, or in one per clip.

Source: Sung-Bin et al. 2025, "AVHBench", ICLR, arXiv:2410.18325; kaist-ami/AVHBench, README.md (the format).
"""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from avlens.errors import DatasetError
from avlens.samples import Sample, inside, reader

_KEYS = ("video_id", "task", "text", "label")


@reader
def read_avhbench(
    questions: str | Path, folder: str | Path, *, task: str | None = None, suffix: str = ".mp4"
) -> Iterator[Sample]:
    """The questions, in order; ids are the clip's, a slash, and which question of the clip it is, from 0.

    Args:
        questions: A json file with a list of records, or a folder of such files.
        folder: Where the clips are. Those that are missing are yielded too; opening them says so.
        task: Only the questions of this task.
        suffix: Of the clips' files.

    Raises:
        DatasetError: If a file holds no list of such records.
    """
    source, asked = Path(questions), Counter[str]()
    for file in sorted(source.glob("*.json")) if source.is_dir() else [source]:
        for record in _records(file):
            video = str(record["video_id"])
            name = f"{video}/{asked[video]}"
            asked[video] += 1
            if task in (None, record["task"]):
                yield Sample(
                    id=name, path=inside(folder, f"{video}{suffix}", str(file)), question=record["text"], label=record["label"],
                    clip=video, record={"video_id": video, "task": record["task"]},
                )  # fmt: skip


def _records(file: Path) -> list[dict[str, Any]]:
    try:
        records = json.loads(file.read_text(encoding="utf-8-sig"))
    except json.JSONDecodeError as error:
        raise DatasetError(f"{file} is no JSON: {error}. Download it again.") from error
    if not isinstance(records, list):
        raise DatasetError(f"{file} holds a {type(records).__name__}. Give a list of records with {', '.join(_KEYS)}.")
    for number, record in enumerate(records):
        if missing := [key for key in _KEYS if key not in record]:
            raise DatasetError(f"{file}, record {number} lacks {missing[0]!r}. A record has {', '.join(_KEYS)}.")
    return records
