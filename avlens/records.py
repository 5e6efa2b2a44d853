"""How are the results of a long run kept, so that nothing is lost, mixed or counted twice?

    folder/manifest.json     what the run is; a folder of another run is refused
    folder/000017.jsonl      records, one JSON object a line, in the order in which they came

A file of records is written under another name, flushed to the disk and then renamed, so that there are only whole ones: a
process that is killed loses what it had not written yet, never half of it. Files are added, never changed. A record is
known by its sample, condition and seed. Of two with one key the last counts; there are two only where the first had a problem.

One process writes at a time, which a lock holds that ends with its process.
"""

import json
import math
import os
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any

import pandas as pd
from filelock import FileLock, Timeout

from avlens import display
from avlens.errors import RecordError

MANIFEST = "manifest.json"
SHORTEST = 10.0
"""Seconds between two files of records, or a hundredth of the run so far where that is longer."""
MOST_UNWRITTEN = 1000
"""So many records wait for room on a full disk before the run is given up."""

_OWN = frozenset({"sample", "condition", "seed", "clip"})
_LARGEST = 1000
"""Bits of an integer, which as a number with a point must not be infinite."""

Key = tuple[str, str, int]


@dataclass(frozen=True)
class Record:
    """What one sample gave under one condition.

    Attributes:
        sample: The sample's id.
        condition: The condition's name.
        seed: The condition's seed.
        rows: What was measured: numbers, texts, and lists of them, by name. NaN where a value could not be computed.
        problem: Why nothing was measured; empty where it was.
        notes: What was unusual about it, such as a clip that is damaged in places.
        asks: A fingerprint of what was asked, since ids may be used again.
        settings: Those of the condition.
        made_by: Model, dtype and versions.
        seconds: How long it took.
        memory: Peak memory meanwhile, in bytes, of the GPU where there is one.
        time: When it was made, in UTC, as ISO 8601.
        clip: The sample's clip, where other samples may be about the same one.
    """

    sample: str
    condition: str = ""
    seed: int = 0
    rows: tuple[Mapping[str, Any], ...] = ()
    problem: str = ""
    notes: tuple[str, ...] = ()
    asks: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    made_by: Mapping[str, Any] = field(default_factory=dict)
    seconds: float = float("nan")
    memory: int = 0
    time: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    clip: str = ""

    @property
    def key(self) -> Key:
        """What it is known by."""
        return (self.sample, self.condition, self.seed)

    @property
    def result(self) -> tuple[Any, ...]:
        """What another run of the same must give too: all but when it was made, how long it took, and how much it needed."""
        return (*self.key, self.problem, tuple(map(_sorted_line, self.rows)))


@dataclass(frozen=True, eq=False)
class RecordTable:
    """Records, by sample, condition and seed.

    Attributes:
        records: In the order of their keys.
        made_by: What the run is.
    """

    records: tuple[Record, ...]
    made_by: Mapping[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.records)

    @property
    def failures(self) -> tuple[Record, ...]:
        """Those with a problem."""
        return tuple(one for one in self.records if one.problem)

    def to_frame(self, *, having: Collection[str] = ()) -> pd.DataFrame:
        """One row per row that was measured; only of those that have some columns, where any has them.

        Where several samples may be about one clip, a column says which.
        """
        several = any(one.clip for one in self.records)
        rows = [
            {**_named(one), **({"clip": one.clip or one.sample} if several else {}), **row}
            for one in self.records
            for row in one.rows
        ]
        chosen = [row for row in rows if all(name in row for name in having)] or rows
        return pd.DataFrame(chosen) if rows else pd.DataFrame(columns=["sample", "condition", "seed"])

    def problems(self) -> pd.DataFrame:
        """One row per record that has a problem or a note."""
        rows = [
            {**_named(one), "problem": one.problem, "notes": "; ".join(one.notes)}
            for one in self.records
            if one.problem or one.notes
        ]  # fmt: skip
        return pd.DataFrame(rows, columns=["sample", "condition", "seed", "problem", "notes"])

    def __repr__(self) -> str:
        clips = len({one.sample for one in self.records})
        return f"RecordTable({len(self.records)} records of {clips} samples, {len(self.failures)} with a problem)"

    def _repr_html_(self) -> str:
        return display.table(repr(self), self.to_frame(), self.made_by)


class RecordFolder:
    """A folder that a run adds its records to, to be used in a `with` block.

    Attributes:
        folder: Where it is.
        done: The records it holds, by key.
        unwritten: How many wait for room on the disk.
        trouble: Why they wait; empty where they do not.
    """

    def __init__(self, folder: str | Path, identity: Mapping[str, Any]) -> None:
        """Open a folder, new or of the same run.

        Args:
            folder: Where records are kept.
            identity: What the run is, as JSON holds it. Its `conditions`, by name, may become more later.

        Raises:
            RecordError: If the folder is another run's, another process writes to it, it cannot be written to, or it holds
                what is no record.
        """
        self.folder = Path(folder)
        self._lock = FileLock(self.folder / ".lock")
        with _usable(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock.acquire(timeout=0)
            try:
                self._claim(_restored(json.loads(_line(identity))))
                for left in self.folder.glob("*.part"):
                    left.unlink()
                self.done = {record.key: record for record in _read(self.folder)}
            except BaseException:
                self._lock.release()
                raise
        self._waiting: list[str] = []
        self._started = self._written = time.monotonic()
        self.trouble = ""

    @property
    def unwritten(self) -> int:
        """How many records are not on the disk yet."""
        return len(self._waiting)

    def find(self, key: Key, asks: str) -> Record | None:
        """The record of a key; None where there is none yet.

        Raises:
            RecordError: If it answers something else. One with a problem answers nothing.
        """
        record = self.done.get(key)
        if record is not None and not record.problem and record.asks != asks:
            raise RecordError(
                f"{self.folder} answers another question about {key[0]!r}, or its clip, its options or what is known of it "
                "were others. Write to another folder."
            )
        return record

    def add(self, record: Record) -> None:
        """Keep a record; a problem that is known already is not said again.

        Raises:
            RecordError: If the record cannot be written down, or too many wait for a disk that takes none.
        """
        before = self.done.get(record.key)
        if before is not None and before.problem and before.problem == record.problem:
            return
        if before is not None and not before.problem:
            raise RecordError(f"{record.key} has a record already. Each sample, condition and seed is measured once.")
        self._waiting.append(_line(vars(record)))
        self.done[record.key] = record
        now = time.monotonic()
        if now - self._written >= max(SHORTEST, (now - self._started) / 100):
            self._try()

    def write(self) -> None:
        """Put on the disk what waits.

        Raises:
            RecordError: If the disk takes it not.
        """
        self._try()
        if self._waiting:
            raise RecordError(
                f"{len(self._waiting)} records could not be written to {self.folder} ({self.trouble}). All others are there: "
                "free some space and run again, and only these are measured again."
            )

    def _try(self) -> None:
        self._written = time.monotonic()
        if not self._waiting:
            return
        try:
            write_whole(self.folder / f"{self._next():06d}.jsonl", "".join(f"{line}\n" for line in self._waiting))
        except OSError as error:
            self.trouble = error.strerror or str(error)
            if len(self._waiting) >= MOST_UNWRITTEN:
                raise RecordError(
                    f"{self.folder} takes no records ({self.trouble}). Free some space and run again; what is not on the disk "
                    "is measured again."
                ) from error
            return
        self._waiting, self.trouble = [], ""

    def _next(self) -> int:
        return 1 + max((int(path.stem) for path in _files(self.folder)), default=0)

    def _claim(self, identity: Mapping[str, Any]) -> None:
        path = self.folder / MANIFEST
        if not path.exists():
            if _files(self.folder):
                raise RecordError(f"{self.folder} holds records but no {MANIFEST}. Write to another folder.")
            write_whole(path, _line(identity) + "\n")
            return
        before = read_manifest(self.folder)
        merged = _merged(before, identity, str(self.folder))
        if merged != before:
            write_whole(path, _line(merged) + "\n")

    def __enter__(self) -> "RecordFolder":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self.write()
            else:
                self._try()
        finally:
            self._lock.release()


@contextmanager
def _usable(folder: Path) -> Iterator[None]:
    """What goes wrong inside is the fault of a folder that is in use, read-only, full, or no folder.

    Raises:
        RecordError: Instead.
    """
    try:
        yield
    except Timeout as error:
        raise RecordError(
            f"another process is writing to {folder}. Wait for it, or write to another folder."
        ) from error
    except OSError as error:
        raise RecordError(
            f"the folder {folder} cannot be used ({error.strerror or error}). Pass one that is new, or that can be written to."
        ) from error


def _named(record: Record) -> dict[str, Any]:
    return {"sample": record.sample, "condition": record.condition, "seed": record.seed}


def read_records(folder: str | Path) -> RecordTable:
    """The records of a folder, whether or not its run has ended.

    Raises:
        RecordError: If the folder has no manifest, or a file holds what is no record.
    """
    made_by = read_manifest(Path(folder))
    with _usable(Path(folder)):
        found = {record.key: record for record in _read(Path(folder))}
    return RecordTable(tuple(found[key] for key in sorted(found)), made_by)


def read_manifest(folder: Path) -> dict[str, Any]:
    """What the run of a folder is.

    Raises:
        RecordError: If there is no manifest, or it is none of ours.
    """
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise RecordError(
            f"{folder} holds no {MANIFEST} that can be read. Give a folder that a run wrote to."
        ) from error
    for held in (manifest, manifest.get("conditions", {}) if isinstance(manifest, dict) else {}):
        if not isinstance(held, dict):
            raise RecordError(f"{path} holds a {type(held).__name__}. Give a folder that a run wrote to.")
    return _restored(manifest)


def refuse_other(folder: str | Path, identity: Mapping[str, Any]) -> None:
    """Refuse a folder that holds another run, as far as is known what this one is.

    Raises:
        RecordError: If it does.
    """
    if (Path(folder) / MANIFEST).exists():
        _merged(read_manifest(Path(folder)), _restored(json.loads(_line(identity))), str(folder))


def write_whole(path: Path, text: str) -> None:
    """Write a file so that it is there in full or not at all, even if the process is killed or the power fails."""
    part = path.with_name(path.name + ".part")
    try:
        with part.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError:
        part.unlink(missing_ok=True)
        raise
    if os.name == "posix":  # A rename is on the disk when its folder is.
        handle = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def plain_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row as records hold it: numbers, texts, truth values, and lists of them. Tensors become numbers or lists.

    Raises:
        RecordError: If a value is something else, or has a name that records have themselves.
    """
    if own := _OWN.intersection(row):
        raise RecordError(f"a row has a value {min(own)!r}, which every record has of its own. Give it another name.")
    return {str(name): _value(value, str(name)) for name, value in row.items()}


def line_length(record: Record) -> int:
    """How many bytes a record takes on the disk."""
    return len(_line(vars(record))) + 1


def nan_names(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """Which values of some rows are NaN."""
    return sorted({name for row in rows for name, value in row.items() if is_nan(value)})


def is_nan(value: Any) -> bool:
    """Whether a value of a row is NaN, or a list of nothing else."""
    if isinstance(value, list):
        return bool(value) and all(map(is_nan, value))
    return isinstance(value, float) and math.isnan(value)


def _value(value: Any, name: str) -> Any:
    if hasattr(value, "tolist"):  # A tensor, an array, or a number of numpy's.
        value = value.tolist()
    if isinstance(value, (list, tuple)):
        return [_value(one, name) for one in value]
    if value is None or isinstance(value, float):
        return float("nan") if value is None or not math.isfinite(value) else float(value)
    if isinstance(value, str):
        return readable(value)
    if isinstance(value, int) and value.bit_length() <= _LARGEST:
        return value if isinstance(value, bool) else int(value)
    raise RecordError(
        f"the value {name!r} is a {type(value).__name__}{' of many digits' if isinstance(value, int) else ''}. Records hold "
        "numbers, texts and lists of them: keep it elsewhere."
    )


def readable(text: str) -> str:
    """A text that can be written anywhere: halves of characters, as in names of files that are no UTF-8, are written out."""
    return text.encode("utf-8", "backslashreplace").decode()


def _files(folder: Path) -> list[Path]:
    return sorted((path for path in folder.glob("*.jsonl") if path.stem.isdecimal()), key=lambda path: int(path.stem))


def _read(folder: Path) -> Iterator[Record]:
    for path in _files(folder):
        for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], start=1):
            try:
                yield _record(json.loads(line))
            except (ValueError, TypeError, LookupError, AttributeError, OverflowError, RecursionError) as error:
                raise RecordError(
                    f"{path}, line {number} is no record. If something else than a run wrote it, give another folder; if it is "
                    "damaged, delete the line: what it held is measured again."
                ) from error


_TYPES: Mapping[str, Callable[[Any], Any]] = {"rows": lambda x: tuple(map(dict, x)), "notes": tuple, "seed": int}


def _record(stored: Any) -> Record:
    known = {one.name for one in fields(Record)}
    values = {name: _restored(value) for name, value in stored.items() if name in known}
    record = Record(**{name: _TYPES[name](value) if name in _TYPES else value for name, value in values.items()})
    if wrong := [
        one
        for one in (*record.key[:2], record.problem, record.asks, record.clip, *record.notes)
        if not isinstance(one, str)
    ]:
        raise TypeError(f"{wrong[0]!r} is no text")
    return record


def _line(value: Any) -> str:
    return json.dumps(_without_nan(value), allow_nan=False)


def _sorted_line(value: Any) -> str:
    """The same whatever the order of names."""
    return json.dumps(_without_nan(value), allow_nan=False, sort_keys=True)


def _without_nan(value: Any) -> Any:
    """JSON has no NaN; null stands for it."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, (str, int)):  # Most values; whether something is a mapping takes longer to tell.
        return value
    if isinstance(value, Mapping):
        return {str(key): _without_nan(one) for key, one in value.items()}
    return [_without_nan(one) for one in value] if isinstance(value, (list, tuple)) else value


def _restored(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _restored(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_restored(one) for one in value]
    return float("nan") if value is None else value


def _merged(before: Mapping[str, Any], now: Mapping[str, Any], folder: str) -> dict[str, Any]:
    """What a run is, with the conditions of both.

    Raises:
        RecordError: If they contradict each other.
    """
    flat = [{**identity, **_by_name(identity.get("conditions", {}))} for identity in (before, now)]
    for name in flat[1]:
        if name != "conditions" and name in flat[0] and _sorted_line(flat[0][name]) != _sorted_line(flat[1][name]):
            raise RecordError(
                f"{folder} holds a run whose {name} is {_short(flat[0][name])}, not {_short(flat[1][name])}. Write to another "
                "folder."
            )
    return {**before, **now, "conditions": {**before.get("conditions", {}), **now.get("conditions", {})}}


def _by_name(conditions: Mapping[str, Any]) -> dict[str, Any]:
    return {f"condition {name!r}": settings for name, settings in conditions.items()}


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 120 else f"{text[:117]}..."
