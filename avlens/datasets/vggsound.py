"""VGGSound: ten-second clips, each with one of 309 sounding events, as a 20-way choice.

`vggsound.csv` has no header; its columns are the YouTube id, the start in seconds, the label and the split. Clips are files named
after id and start, such as `---g-f_I2yQ_000001.mp4`.

Source: Chen et al. 2020, "VGGSound: A Large-scale Audio-Visual Dataset", arXiv:2004.14368. The question: Jung et al. 2026,
arXiv:2605.10815; its released code, preprocess/step1/output2input_*.py:28-53.

Differs from the source: which wrong options a question lists is not published; here they are drawn from a seed and the clip's id.
"""

import csv
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from avlens.errors import DatasetError
from avlens.samples import LETTERS, Sample, choice_question, inside, reader

QUESTION = "Classify the sounding object into one of the categories below:"


@reader
def read_vggsound(
    table: str | Path,
    folder: str | Path,
    *,
    split: Literal["train", "test"] | None = None,
    n_options: int | None = 20,
    seed: int = 0,
    suffix: str = ".mp4",
) -> Iterator[Sample]:
    """The table's clips, in order, each with the question which of `n_options` events it shows.

    Args:
        table: vggsound.csv.
        folder: Where the clips are. Those that are missing are yielded too; opening them says so.
        split: Only the clips of this split.
        n_options: How many events to choose from, the right one included; None for 20, or all of a table that has fewer.
        seed: Of the wrong options and their order. A clip's do not depend on the other clips.
        suffix: Of the clips' files.

    Raises:
        DatasetError: If a line of the table has other columns, or it has fewer events than options.
    """
    rows = _rows(Path(table))
    events = sorted({label for _id, _start, label, _split in rows})
    n = min(len(events), 20) if n_options is None else n_options
    if not 1 <= n <= min(len(events), len(LETTERS)):
        raise DatasetError(f"{table} has {len(events)} events. Ask for 1 to {min(len(events), 26)} options, not {n}.")
    for youtube, start, label, part in rows:
        if split in (None, part):
            name = f"{youtube}_{start:06d}"
            options = _options(label, events, n, [seed, zlib.crc32(name.encode())])
            closing = f"Respond ONLY with a single label letter (A–{LETTERS[n - 1]})."
            yield Sample(
                id=name, path=inside(folder, f"{name}{suffix}", f"{table}, clip {name!r}"),
                question=choice_question(QUESTION, options, f"\n{closing}"),
                options=options, label=LETTERS[options.index(label)], record={"event": label, "split": part},
            )  # fmt: skip


def _rows(table: Path) -> list[tuple[str, int, str, str]]:
    rows = []
    with table.open(newline="", encoding="utf-8-sig") as lines:
        found = csv.reader(lines)
        for row in (list(map(str.strip, row)) for row in found):
            if row in ([], [""]):
                continue
            if len(row) != 4 or not all(row[:3]) or not row[1].isdecimal() or "\n" in row[2]:
                raise DatasetError(
                    f"{table}, line {found.line_num} is {','.join(row)!r}. Write YouTube id, start in seconds, label and split."
                )
            rows.append((row[0], int(row[1]), row[2], row[3]))
    if not rows:
        raise DatasetError(f"{table} names no clip. Pass a data set that does.")
    return rows


def _options(label: str, events: Sequence[str], n: int, seed: list[int]) -> tuple[str, ...]:
    generator = np.random.default_rng(seed)
    others = [event for event in events if event != label]
    chosen = [others[i] for i in generator.permutation(len(others))[: n - 1]]
    chosen.insert(int(generator.integers(0, n)), label)
    return tuple(chosen)
