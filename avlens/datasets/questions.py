"""Questions of your own: a file with one JSON object a line, and a folder of clips.

    {"id": "dog-1", "clip": "dog.mp4", "question": "What do you hear?", "options": ["a dog", "a cat"], "label": "A",
     "objects": ["dog"]}

`clip` is a path below the folder, and all but it may be left out: the id is then the clip's name, the question the one that is
asked of every clip. Several lines may ask about one clip; each then needs an id. What else a line says, such as `objects`
(what the clip holds, for CHAIR), is in the sample's record.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from avlens.errors import DatasetError
from avlens.samples import Sample, inside, reader

_OWN = ("id", "clip", "question", "options", "label", "start", "end")


@reader
def read_questions(table: str | Path, folder: str | Path = ".", *, question: str = "") -> Iterator[Sample]:
    """The file's questions, in order.

    Args:
        table: The file.
        folder: Where the clips are. Those that are missing are yielded too; opening them says so.
        question: What to ask where a line does not say it.

    Raises:
        DatasetError: If a line is no JSON object with a clip.
    """
    with Path(table).open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                record = _record(line, f"{table}, line {number}")
                yield Sample(
                    id=str(record.get("id") if record.get("id") is not None else Path(record["clip"]).stem),
                    path=inside(folder, record["clip"], f"{table}, line {number}"),
                    question=record.get("question", question), options=tuple(record.get("options", ())),
                    label=record.get("label", ""), start=record.get("start"), end=record.get("end"),
                    record={key: value for key, value in record.items() if key not in _OWN}, clip=record["clip"],
                )  # fmt: skip


def _record(line: str, where: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise DatasetError(f"{where} is no JSON: {error}. Write one JSON object a line.") from error
    if not isinstance(record, dict) or not isinstance(record.get("clip"), str):
        raise DatasetError(f'{where} names no clip. Write an object such as {{"clip": "dog.mp4"}}.')
    if not isinstance(record.get("options", []), list):
        raise DatasetError(
            f'{where} has the options {record["options"]!r:.80}. Write a list, such as ["a dog", "a cat"].'
        )
    return record
