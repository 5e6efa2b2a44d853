"""Records: whole or not there, never mixed, never twice; what cannot be written waits."""

import json
import math
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from avlens import records
from avlens.errors import RecordError
from avlens.records import Record, RecordFolder, plain_row, read_records, write_whole

IDENTITY = {"experiment": "x", "model": "m", "conditions": {"a": {"k": 1}}}

texts = st.text(max_size=20)
values = st.recursive(
    texts | st.integers(-(2**53), 2**53) | st.booleans() | st.floats(allow_infinity=False),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=5,
)


def record(sample="s", condition="a", seed=0, **more):
    return Record(sample, condition, seed, **({"rows": ({"x": 1.0},)} | more))


def files(folder):
    return sorted(path.name for path in folder.glob("*.jsonl"))


@given(st.dictionaries(texts, st.lists(st.dictionaries(texts, values, max_size=3), max_size=2), max_size=4))
def test_what_is_written_is_read(tmp_path_factory, rows):
    folder = tmp_path_factory.mktemp("records")
    written = [record(sample, rows=tuple(some), problem=sample[:3]) for sample, some in rows.items()]
    with RecordFolder(folder, IDENTITY) as kept:
        for one in written:
            kept.add(one)
    found = read_records(folder).records
    assert [repr(one) for one in found] == [repr(one) for one in sorted(written, key=lambda one: one.key)]
    assert {one.result for one in found} == {one.result for one in written}


def test_lines_that_text_could_break_hold_together(tmp_path):
    odd = 'a\u2028b\u0085c\n\ud800\x00"\\'
    with RecordFolder(tmp_path, IDENTITY) as kept:
        kept.add(record(odd, rows=({odd: odd},)))
    assert read_records(tmp_path).records[0].rows == ({odd: odd},)


def test_a_folder_of_another_run_is_refused_and_conditions_may_become_more(tmp_path):
    RecordFolder(tmp_path, IDENTITY).__exit__(None, None, None)
    for other, says in (
        ({"model": "n"}, "whose model is 'm', not 'n'"),
        ({"conditions": {"a": {"k": 1, "j": 2}}}, "whose condition 'a' is"),
    ):
        with pytest.raises(RecordError, match=says):
            RecordFolder(tmp_path, IDENTITY | other)
    with RecordFolder(tmp_path, IDENTITY | {"conditions": {"b": {}}}):
        pass
    assert read_records(tmp_path).made_by["conditions"] == {"a": {"k": 1}, "b": {}}


def test_one_key_is_measured_once_but_a_problem_is_tried_again(tmp_path):
    with RecordFolder(tmp_path, IDENTITY) as kept:
        kept.add(record(problem="broken", rows=()))
        kept.add(record(problem="broken", rows=()))
        kept.add(record())
        with pytest.raises(RecordError, match="measured once"):
            kept.add(record())
    found = read_records(tmp_path)
    assert len(found) == 1 and not found.failures and not found.records[0].problem
    assert len((tmp_path / "000001.jsonl").read_text().splitlines()) == 2


def test_another_question_under_an_old_name_is_refused(tmp_path):
    with RecordFolder(tmp_path, IDENTITY) as kept:
        kept.add(record(asks="one"))
        assert kept.find(("s", "a", 0), "one") is not None and kept.find(("t", "a", 0), "two") is None
        with pytest.raises(RecordError, match="answers another question about 's'"):
            kept.find(("s", "a", 0), "two")


def test_a_second_writer_is_refused_and_a_killed_one_leaves_no_lock(tmp_path):
    code = (
        "import sys, os, time; from avlens.records import *; kept = RecordFolder(sys.argv[1], {});"
        "print('open', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"open\n"
        with pytest.raises(RecordError, match="another process is writing"):
            RecordFolder(tmp_path, {})
        other.kill()
    with RecordFolder(tmp_path, {}):
        pass


def test_files_are_added_and_never_changed(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "SHORTEST", 0.0)
    with RecordFolder(tmp_path, IDENTITY) as kept:
        for i in range(3):
            kept._written -= 1000
            kept.add(record(str(i)))
    before = {name: (tmp_path / name).read_bytes() for name in files(tmp_path)}
    assert len(before) == 3
    (tmp_path / "000004.jsonl.part").write_text('{"half')
    with RecordFolder(tmp_path, IDENTITY) as kept:
        assert len(kept.done) == 3
        kept.add(record("3"))
    assert {name: (tmp_path / name).read_bytes() for name in before} == before
    assert files(tmp_path) == [f"{i:06d}.jsonl" for i in (1, 2, 3, 4)] and len(read_records(tmp_path)) == 4


def test_a_full_disk_keeps_records_waiting_until_there_is_room(tmp_path, monkeypatch):
    def full(path, text):
        raise OSError(28, "No space left on device")

    with RecordFolder(tmp_path, IDENTITY) as kept:
        monkeypatch.setattr(records, "write_whole", full)
        kept.add(record("0"))
        with pytest.raises(RecordError, match=r"1 records could not be written .*No space left on device"):
            kept.write()
        kept.add(record("1"))
        assert kept.unwritten == 2 and kept.trouble == "No space left on device"
        monkeypatch.setattr(records, "MOST_UNWRITTEN", 3)
        kept.add(record("2"))
        kept._written -= 1000
        with pytest.raises(RecordError, match="Free some space"):
            kept.add(record("3"))
        monkeypatch.undo()
    assert len(read_records(tmp_path)) == 4


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")  # noqa: PTH110
def test_a_file_that_cannot_be_written_leaves_nothing(tmp_path):
    (tmp_path / "x.part").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left"):
        write_whole(tmp_path / "x", "text" * 100_000)
    assert not list(tmp_path.iterdir())


def test_what_is_no_record_is_refused(tmp_path):
    with pytest.raises(RecordError, match=r"holds no manifest\.json"):
        read_records(tmp_path)
    (tmp_path / "000001.jsonl").write_text('{"sample": 1')
    with pytest.raises(RecordError, match="records but no manifest"):
        RecordFolder(tmp_path, {})
    (tmp_path / "manifest.json").write_text("{}")
    (tmp_path / "000001.jsonl").write_text('{"half": 1\n')
    with pytest.raises(RecordError, match=r"000001\.jsonl, line 1 is no record"):
        RecordFolder(tmp_path, {})
    (tmp_path / "manifest.json").write_text("[1]")
    with pytest.raises(RecordError, match="holds a list"):
        read_records(tmp_path)


@pytest.mark.parametrize(
    "line",
    [
        b"\xff\xfe", b"[" * 200_000, b"\0" * 50, b'{"sample": "s", "cond',
        b'{"sample": 3}', b'{"sample": ["s"]}', b'{"sample": null}',
        b'{"sample": "s", "notes": [1]}', b'{"sample": "s", "seed": 1e400}', b'{"sample": "s", "rows": [1]}', b"",
    ],
)  # fmt: skip
def test_a_damaged_line_is_named_and_without_it_the_run_goes_on(tmp_path, line):
    with RecordFolder(tmp_path, IDENTITY) as kept:
        kept.add(record("0"))
        kept.add(record("1"))
    path = tmp_path / "000001.jsonl"
    whole = path.read_bytes()
    first, _, _ = whole.partition(b"\n")
    path.write_bytes(first + b"\n" + line + b"\n")
    for opened in (lambda: RecordFolder(tmp_path, IDENTITY), lambda: read_records(tmp_path)):
        with pytest.raises(RecordError, match=r"000001\.jsonl, line 2 is no record.*delete the line"):
            opened()
    path.write_bytes(first + b"\n")
    with RecordFolder(tmp_path, IDENTITY) as kept:
        kept.add(record("1"))
    assert [one.sample for one in read_records(tmp_path).records] == ["0", "1"]


def test_damaged_manifests_and_folders_that_cannot_be_used_are_named(tmp_path):
    for text in ("[" * 200_000, '{"conditions": [1]}', '{"conditions": null}', "\0"):
        (tmp_path / "manifest.json").write_text(text)
        with pytest.raises(RecordError, match=r"manifest\.json"):
            RecordFolder(tmp_path, IDENTITY)
    (tmp_path / "manifest.json").unlink()
    (tmp_path / ".lock").unlink()
    (tmp_path / ".lock").mkdir()
    for folder in (tmp_path, __file__, f"{__file__}/below"):
        with pytest.raises(RecordError, match="cannot be used"):
            RecordFolder(folder, IDENTITY)


def test_a_disk_that_is_full_from_the_first_is_named(tmp_path, monkeypatch):
    def full(path, text):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(records, "write_whole", full)
    with pytest.raises(RecordError, match=r"cannot be used \(No space left on device\)"):
        RecordFolder(tmp_path, IDENTITY)
    monkeypatch.undo()
    with RecordFolder(tmp_path, IDENTITY):
        pass


def test_rows_are_numbers_texts_and_lists():
    row = plain_row(
        {"a": torch.tensor(1.5), "b": np.float32(2), "c": np.array([1, 2]), "d": None, "e": float("inf"), "f": True}
    )
    assert (row["a"], row["b"], row["c"], row["f"]) == (1.5, 2.0, [1, 2], True)
    assert math.isnan(row["d"]) and math.isnan(row["e"])
    with pytest.raises(RecordError, match="'x' is a dict"):
        plain_row({"x": {}})


def test_tables_and_results(tmp_path):
    with RecordFolder(tmp_path, IDENTITY) as kept:
        kept.add(record("b", rows=({"x": 1.0}, {"x": float("nan")}), notes=("cut short",)))
        kept.add(record("a", problem="broken", rows=()))
    found = read_records(tmp_path)
    assert found.to_frame()["sample"].tolist() == ["b", "b"] and len(found.failures) == 1
    assert found.problems()["problem"].tolist() == ["broken", ""] and "1 with a problem" in repr(found)
    line = json.loads((tmp_path / "000001.jsonl").read_text().splitlines()[0])
    assert line["rows"] == [{"x": 1.0}, {"x": None}] and line["time"].endswith("+00:00")
    one = found.records[1]
    assert replace(one, seconds=3.0, time="then").result == one.result != replace(one, problem="x").result
