"""AudioCaps: ten seconds of YouTube videos whose sound people put into words, to be described.

A table (`train.csv`, `val.csv`, `test.csv`) has the columns audiocap_id, youtube_id, start_time in seconds, and caption. A clip
has one caption in the first, five in the others, each on a line of its own.

Source: Kim et al. 2019, "AudioCaps: Generating Captions for Audios in The Wild".
"""

import csv
from collections.abc import Iterator
from pathlib import Path

from avlens.errors import DatasetError
from avlens.samples import Sample, inside, reader

QUESTION = "Describe what you hear in a single sentence."
SECONDS = 10.0
_COLUMNS = ("audiocap_id", "youtube_id", "start_time", "caption")


@reader
def read_audiocaps(
    table: str | Path,
    folder: str | Path,
    *,
    names: str = "{id}_{start}.mp4",
    whole_videos: bool = False,
    question: str = QUESTION,
) -> Iterator[Sample]:
    """The table's clips, in order of their first captions; a sample's label is that caption, its record has all.

    Args:
        table: A table with a header.
        folder: Where the clips are. Those that are missing are yielded too; opening them says so.
        names: How files are named: `{id}` of YouTube, `{start}` in seconds, and `{audiocap}`, its first caption's id, are filled
            in.
        whole_videos: Whether the files are whole videos, of which only ten seconds are to be read.
        question: What to ask.

    Raises:
        DatasetError: If the table lacks a column, or a line a value.
    """
    captions: dict[tuple[str, str], list[str]] = {}
    first: dict[tuple[str, str], tuple[str, str]] = {}
    for where, row in _rows(Path(table)):
        key = (row["youtube_id"], f"{float(row['start_time']):g}")
        captions.setdefault(key, []).append(row["caption"])
        first.setdefault(key, (row["audiocap_id"], where))
    for (youtube, start), said in captions.items():
        audiocap, where = first[youtube, start]
        begin = float(start)
        yield Sample(
            id=f"{youtube}_{start}", question=question, label=said[0],
            path=inside(folder, names.format(id=youtube, start=start, audiocap=audiocap), where),
            start=begin if whole_videos else None, end=begin + SECONDS if whole_videos else None,
            record={"youtube": youtube, "start": begin, "end": begin + SECONDS, "audio_captions": said},
        )  # fmt: skip


def _rows(table: Path) -> Iterator[tuple[str, dict[str, str]]]:
    with table.open(newline="", encoding="utf-8-sig") as lines:
        reader = csv.DictReader(lines, skipinitialspace=True)
        if not set(_COLUMNS) <= set(reader.fieldnames or ()):
            raise DatasetError(f"{table} has the columns {reader.fieldnames}. Give {', '.join(_COLUMNS)}.")
        for row in reader:
            where = f"{table}, line {reader.line_num}"
            held = {name: (row[name] or "").strip() for name in _COLUMNS}
            if not all(held.values()) or not held["start_time"].replace(".", "", 1).isdecimal():
                raise DatasetError(
                    f"{where} is {','.join(held.values())!r}. Write id, YouTube id, start in seconds and a caption."
                )
            yield where, held
