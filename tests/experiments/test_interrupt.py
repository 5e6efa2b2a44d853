"""Ctrl-C in a terminal, which every process there gets: the run says where it stands, and leaves no process behind."""

import importlib.util
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from avlens.records import RecordFolder, read_records
from tests.experiments.kill import below

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="processes are found in /proc")
ENGINES = {
    "in-process": [],
    "processes": ["--engine", "processes", "--workers", "2"],
    "ray": ["--engine", "ray", "--workers", "2"],
}
if importlib.util.find_spec("ray") is None:
    del ENGINES["ray"]


def heeds_ctrl_c():
    """What a shell starts in the background is started to ignore it, and so is all below that."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def started(folder, engine):
    command = ["run", "lens", "--data", "synthetic:2000", "--out", str(folder), *ENGINES[engine]]
    return subprocess.Popen(
        [sys.executable, "-m", "avlens", *command], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        start_new_session=True, preexec_fn=heeds_ctrl_c,
    )  # fmt: skip


def check_gone(processes):
    for _ in range(300):
        left = [pid for pid in processes if Path(f"/proc/{pid}").exists()]
        if not left:
            break
        time.sleep(0.1)
    assert not left, [Path(f"/proc/{pid}/cmdline").read_bytes() for pid in left]


@pytest.mark.parametrize("engine", ENGINES)
def test_ctrl_c_leaves_whole_records_and_no_process(tmp_path, engine):
    with started(tmp_path / "out", engine) as process:
        said = next((line for line in process.stderr if "estimate" in line), "")
        its = below(process.pid)
        os.killpg(process.pid, signal.SIGINT)
        rest, shown = process.stderr.read(), process.stdout.read()
    assert process.returncode == 130, said + rest
    assert f"interrupted; what was measured is in {tmp_path / 'out'}" in rest and "Traceback" not in rest and not shown
    kept = read_records(tmp_path / "out")
    assert kept.records and all(not one.problem for one in kept.records)
    assert not list((tmp_path / "out").glob("*.part"))
    # Nobody holds it, and what is kept is not measured again.
    with RecordFolder(tmp_path / "out", kept.made_by) as folder:
        assert folder.done.keys() == {one.key for one in kept.records}
    check_gone(its)


def test_ctrl_c_while_workers_start_says_no_more_than_later(tmp_path):
    with started(tmp_path / "out", "processes") as process:
        # Its two workers, and what tracks what they share.
        while process.poll() is None and len(its := below(process.pid)) < 3:
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGINT)
        rest = process.stderr.read()
    assert process.returncode == 130 and "interrupted" in rest and "Traceback" not in rest, rest
    check_gone(its)
