"""AudioSet: ten-second pieces of YouTube videos with the sounds that are in them, to be described.

A segments table (`eval_segments.csv`, `balanced_train_segments.csv`, ...) begins with lines of comments; then each line has the
YouTube id, start and end in seconds, and labels such as "/m/04rlf,/m/09x0r". `class_labels_indices.csv` says what these mean.

Source: Gemmeke et al. 2017, "Audio Set: An ontology and human-labeled dataset for audio events".
"""

import csv
from collections.abc import Iterator, Mapping
from pathlib import Path

from avlens.errors import DatasetError
from avlens.samples import Sample, inside, reader

QUESTION = "Describe what you see and hear in a single sentence."


@reader
def read_audioset(
    table: str | Path,
    folder: str | Path,
    *,
    classes: str | Path | None = None,
    names: str = "{id}.mp4",
    whole_videos: bool = False,
    question: str = QUESTION,
) -> Iterator[Sample]:
    """The table's segments, in order; a sample's label lists its sounds, its record has them as a list.

    Args:
        table: A segments table.
        folder: Where the clips are. Those that are missing are yielded too; opening them says so.
        classes: class_labels_indices.csv, to write "Speech" instead of "/m/09x0r".
        names: How files are named: `{id}`, `{start}` and `{end}` in seconds, `{start_ms}` and `{end_ms}` are filled in.
        whole_videos: Whether the files are whole videos, of which only the segment is to be read.
        question: What to ask.

    Raises:
        DatasetError: If a line of a table has other columns, or a label is no class.
    """
    known = None if classes is None else _class_names(Path(classes))
    with Path(table).open(newline="", encoding="utf-8-sig") as lines:
        for number, row in enumerate(csv.reader(lines, skipinitialspace=True), start=1):
            if not row or row[0].startswith("#"):
                continue
            youtube, start, end, sounds = _segment(row, f"{table}, line {number}")
            sounds = [_class_name(sound, known, f"{table}, line {number}") for sound in sounds]
            spans = {
                "start": f"{start:g}",
                "end": f"{end:g}",
                "start_ms": round(1000 * start),
                "end_ms": round(1000 * end),
            }
            yield Sample(
                id=f"{youtube}_{round(1000 * start)}", question=question,
                path=inside(folder, names.format(id=youtube, **spans), f"{table}, line {number}"),
                label=", ".join(sounds), start=start if whole_videos else None, end=end if whole_videos else None,
                record={"youtube": youtube, "start": start, "end": end, "sounds": sounds},
            )  # fmt: skip


def _segment(row: list[str], where: str) -> tuple[str, float, float, list[str]]:
    try:
        youtube, start, end, sounds = row
        round(1000 * float(start)), round(1000 * float(end))  # Refuses what is no number of seconds, such as nan.
        return youtube, float(start), float(end), [sound.strip() for sound in sounds.split(",")]
    except (ValueError, OverflowError) as error:
        raise DatasetError(
            f"{where} is {', '.join(row)!r}. Write YouTube id, start and end in seconds, and labels in double quotes."
        ) from error


def _class_names(table: Path) -> dict[str, str]:
    with table.open(newline="", encoding="utf-8-sig") as lines:
        reader = csv.DictReader(lines)
        if not {"mid", "display_name"} <= set(reader.fieldnames or ()):
            raise DatasetError(f"{table} has the columns {reader.fieldnames}. Give index, mid and display_name.")
        return {row["mid"]: row["display_name"] for row in reader}


def _class_name(sound: str, known: Mapping[str, str] | None, where: str) -> str:
    if known is None:
        return sound
    if sound not in known:
        raise DatasetError(
            f"{where} has the label {sound!r}, which is none of the {len(known)} classes. Check both tables."
        )
    return known[sound]
