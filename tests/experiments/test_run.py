"""One definition, whatever happens: resume, failures, interruption, estimates."""

import math
import subprocess
import sys
import warnings
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from avlens import records
from avlens.cost import duration
from avlens.errors import ExperimentError, RecordError
from avlens.experiments import Experiment, run
from avlens.experiments.estimate import estimate_run
from avlens.experiments.experiment import _check_conditions as check_conditions
from avlens.experiments.work import Work, Worker, weights_digest
from avlens.records import Record, read_records
from avlens.testing import tiny_model
from tests.experiments.measures import EACH_KIND, LOUDNESS, loudness, read, samples, small_model


@pytest.fixture(scope="module")
def model():
    return small_model()


def results(records):
    return [one.result for one in records.records]


def test_every_sample_condition_and_seed_is_measured_and_kept(model, tmp_path):
    found = run(LOUDNESS, model, samples(3), tmp_path, read=read)
    assert [one.key for one in found.records] == sorted(
        (f"clip-{i:03d}", name, seed) for i in range(3) for name in ("one", "two") for seed in (0, 1)
    )
    assert results(read_records(tmp_path)) == results(found)
    one = read_records(tmp_path).records[0]
    assert one.made_by["weights"] == weights_digest(model) and one.made_by["model"] == model.cfg.model_name
    assert one.made_by["versions"]["avlens"] and one.settings == {"parts": 1} and one.seconds > 0 and one.memory > 0
    frame = found.to_frame()
    assert len(frame) == 3 * 2 * (1 + 2) and frame.drawn.nunique() == 12  # each item has a seed of its own
    other = run(
        replace(LOUDNESS, conditions={"one": {"parts": 1}}, seeds=(1,)),
        model,
        samples(3)[::-1],
        tmp_path / "b",
        read=read,
    )
    assert set(results(other)) < set(results(found))  # neither order nor company matters


def test_a_run_that_was_interrupted_goes_on(model, tmp_path):
    whole = run(LOUDNESS, model, samples(4), tmp_path / "whole", read=read)
    opened = []

    def interrupted(sample):
        opened.append(sample.id)
        if len(opened) == 6:
            raise KeyboardInterrupt
        return read(sample)

    with pytest.raises(KeyboardInterrupt):
        run(LOUDNESS, model, samples(4), tmp_path / "cut", read=interrupted)
    assert len(read_records(tmp_path / "cut")) == 5
    again = run(LOUDNESS, model, samples(4), tmp_path / "cut", read=interrupted)
    assert results(again) == results(whole) and len(opened) == 6 + 11
    assert results(run(LOUDNESS, model, samples(4), tmp_path / "cut", read=interrupted)) == results(whole)
    assert len(opened) == 17


def test_whatever_goes_wrong_is_recorded_and_the_rest_goes_on(model, tmp_path):
    found = run(EACH_KIND, model, samples(8), tmp_path, read=read)
    problems = [one.problem for one in found.records]
    assert problems[1] == "PromptError: no such prompt. Write another."
    assert problems[2] == "ZeroDivisionError: division by zero"
    assert problems[3] == "every value is NaN: x, y" and found.records[3].rows
    assert not problems[4] and "memory was short: measured again with {'at_once': 1}" in found.records[4].notes
    assert problems[5].startswith("out of memory, 4 times")
    assert "texts and lists" in problems[6]
    assert not problems[0] and not problems[7] and math.isnan(found.records[7].rows[0]["y"])
    assert len(found.failures) == 5 and len(found.problems()) == 6


class UnreadableError(Exception):
    def __str__(self):
        raise RuntimeError("no words")


RETURNED = {
    "None": (None, "measuring returned None. Return a list of rows"),
    "one row": ({"x": 1}, "Return a list of rows"),
    "an empty row": ([{}], "Return a list of rows"),
    "no row": ([1.0], "Return a list of rows"),
    "NaN in a list": ([{"x": torch.tensor([float("nan")] * 2)}], "every value is NaN: x"),
    "its own sample": ([{"sample": "other", "x": 1}], "every record has of its own"),
    "many digits": ([{"x": 10**5000}], "of many digits"),
    "exit": (SystemExit(3), "SystemExit: 3"),
    "no words": (UnreadableError(), "UnreadableError: (what it says cannot be read)"),
    "half a character": (ValueError("no \udcff.mp4"), r"ValueError: no \udcff.mp4"),
}


def returned(model, opened, condition):
    what = list(RETURNED.values())[opened.sample.record["index"]][0]
    if isinstance(what, BaseException):
        raise what
    return what


def test_whatever_a_function_returns_or_raises_is_a_problem_of_its_item_alone(model, tmp_path):
    found = run(Experiment("returned", returned), model, samples(len(RETURNED)), tmp_path, read=read)
    for one, (name, (_, says)) in zip(found.records, RETURNED.items(), strict=True):
        assert says in one.problem, name
    assert results(read_records(tmp_path)) == results(found)
    found.problems().to_string().encode()
    assert "<table" in found._repr_html_()


def test_what_goes_wrong_at_length_is_recorded_in_part(model, tmp_path):
    def wordy(*_):
        warnings.warn("w" * 200_000, stacklevel=1)
        raise ZeroDivisionError("x" * 200_000)

    (found,) = run(Experiment("wordy", wordy), model, samples(1), tmp_path, read=read).records
    assert found.problem.startswith("ZeroDivisionError: xxx") and len(found.problem) == 2000
    assert [len(note) for note in found.notes] == [2000]


@pytest.fixture
def small_disk(tmp_path):
    """A folder on a disk of 24 KiB, and a function that makes it larger."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o"]
    if (
        not sys.platform.startswith("linux")
        or subprocess.run([*mount, "size=24k", "tmpfs", folder], check=False).returncode
    ):
        pytest.skip("no disk may be mounted here")
    yield folder, lambda: subprocess.run([*mount, "remount,size=4m", "tmpfs", folder], check=True)
    subprocess.run(["umount", folder], check=True)


def test_a_run_on_a_full_disk_goes_on_when_there_is_room(model, tmp_path, small_disk, monkeypatch):
    disk, enlarge = small_disk
    monkeypatch.setattr(records, "SHORTEST", 0.0)
    whole = run(LOUDNESS, model, samples(20), tmp_path / "whole", read=read)
    with pytest.raises(RecordError, match="No space left on device.*free some space and run again"):
        run(LOUDNESS, model, samples(20), disk / "run", read=read)
    there = read_records(disk / "run")
    assert 0 < len(there) < 80 and set(results(there)) < set(results(whole))
    assert not list((disk / "run").glob("*.part"))
    enlarge()
    assert results(run(LOUDNESS, model, samples(20), disk / "run", read=read)) == results(whole)


def test_what_had_a_problem_is_tried_again(model, tmp_path):
    run(EACH_KIND, model, samples(8), tmp_path, read=read)
    tried = []

    def reading(sample):
        tried.append(sample.id)
        return read(sample)

    run(EACH_KIND, model, samples(8), tmp_path, read=reading)
    assert sorted(set(tried)) == [f"clip-{i:03d}" for i in (1, 2, 3, 5, 6)]


def test_a_question_that_had_a_problem_may_be_put_right(model, tmp_path):
    asked = samples(3)
    run(EACH_KIND, model, asked, tmp_path, read=read)
    asked[1:] = [replace(one, question="another ?", record={"index": 0}) for one in asked[1:]]
    assert not run(EACH_KIND, model, asked, tmp_path, read=read).failures


def test_files_that_cannot_be_read_and_warnings_are_recorded(model, tmp_path):
    def reading(sample):
        if sample.id == "clip-001":
            raise FileNotFoundError(2, "No such file or directory", "x.mp4")
        warnings.warn("the file is damaged", stacklevel=1)
        return read(sample)

    found = run(replace(LOUDNESS, seeds=(0,)), model, samples(2), tmp_path, read=reading)
    assert ["x.mp4" in one.problem for one in found.records] == [False, False, True, True]
    assert found.records[0].notes == ("UserWarning: the file is damaged",)


def test_an_experiment_that_never_works_ends_soon(model, tmp_path):
    broken = Experiment("broken", _broken)
    with pytest.raises(ExperimentError, match=r"first 20 items all had a problem.*KeyError"):
        run(broken, model, samples(60), tmp_path, read=read)
    assert len(read_records(tmp_path)) == 20


def _broken(model, opened, condition):
    raise KeyError("x")


def test_another_model_or_experiment_is_refused(model, tmp_path):
    one = replace(LOUDNESS, seeds=(0,))
    run(one, model, samples(1), tmp_path, read=read)
    with pytest.raises(RecordError, match="whose weights is"):
        run(one, changed_model(), samples(1), tmp_path, read=read)
    with pytest.raises(RecordError, match="whose experiment is 'loudness', not 'other'"):
        run(replace(one, name="other"), lambda: pytest.fail("loaded a model"), samples(1), tmp_path, read=read)
    asked = [replace(samples(1)[0], question="what do you see ?")]
    others = [
        replace(samples(1)[0], path=Path("other.mp4")),
        replace(samples(1)[0], record={"index": 0, "objects": ["dog"]}),
    ]
    for other in ([*asked], *([other] for other in others)):
        with pytest.raises(RecordError, match="another question about 'clip-000'"):
            run(one, model, other, tmp_path, read=read)
    with pytest.raises(ExperimentError, match="Give each its own"):
        run(one, model, samples(1) * 2, tmp_path, read=read)
    with pytest.raises(ExperimentError, match="options to choose from"):
        run(replace(one, asks_choices=True), model, samples(1), tmp_path / "new", read=read)


def changed_model():
    other = small_model()
    other.W_U.data.mul_(1.5)
    return other


def test_an_experiment_needs_a_name_conditions_and_seeds():
    for wrong in ({"name": ""}, {"conditions": {}}, {"seeds": ()}, {"seeds": (1, 1)}):
        with pytest.raises(ExperimentError, match="at least one of each|each once"):
            replace(LOUDNESS, **wrong)


def test_an_experiment_is_what_a_manifest_can_hold():
    for wrong, says in (
        ({"measure": partial(loudness)}, "Give a function"), ({"conditions": {"a": {"seed": 1}}}, "those of the experiment"),
        ({"conditions": {"a": {"x": torch.ones(1)}}}, "JSON cannot hold"),
    ):  # fmt: skip
        with pytest.raises(ExperimentError, match=says):
            replace(LOUDNESS, **wrong)
    for conditions in (["a"], {1: {}}, {None: {}}, {"a": None}, ({} for _ in "ab")):
        with pytest.raises(ExperimentError, match="Give settings by name|Give a text"):
            check_conditions("x", conditions)


def test_a_run_says_what_it_will_cost_and_may_be_told_to_stop(model, tmp_path):
    told = []
    one = Experiment("loudness", loudness)
    run(one, model, samples(20), tmp_path, read=read, on_estimate=lambda cost: told.append(cost) or False)
    assert len(read_records(tmp_path)) == 8 and told[0].items == 12 and told[0].measured == 8
    run(one, model, samples(20), tmp_path, read=read, on_estimate=told.append)  # Only of what is left.
    assert len(read_records(tmp_path)) == 20 and told[1].items == 6 and told[1].measured == 6


def test_every_condition_is_tried_before_a_run_is_estimated(model, tmp_path):
    several = replace(LOUDNESS, conditions={str(i): {"parts": i} for i in range(1, 5)}, seeds=(0,))
    told = []
    run(several, model, samples(12), tmp_path, read=read, on_estimate=lambda cost: told.append(cost) or False)
    found = read_records(tmp_path).records
    assert sorted({one.condition for one in found}) == ["1", "2", "3", "4"] and len(found) == 12 == told[0].measured
    assert len({one.sample for one in found}) == 3 and told[0].items == 36


def test_conditions_are_weighed_by_what_is_left_of_them(tmp_path):
    some = [Record("0", condition, seconds=x) for condition, x in (("a", 9), ("a", 1), ("b", 10), ("a", 3), ("b", 10))]
    cost = estimate_run(some, {"a": 30, "b": 10}, workers=1, folder=tmp_path)
    assert cost.duration[0] == pytest.approx(30 * 2 + 10 * 10) and cost.items == 40
    assert math.isnan(estimate_run(some, {"c": 1}, workers=1, folder=tmp_path).duration[0])


def test_estimates_by_hand(tmp_path):
    some = [Record(str(i), seconds=float(i), memory=i * 2**30, problem="x" * (i == 3)) for i in (1, 2, 3)]
    cost = estimate_run(some, {"": 100}, workers=4, folder=tmp_path)
    assert cost.duration[0] == 50 and cost.duration[1] < 50 < cost.duration[2]
    cost = estimate_run([Record("0", seconds=9.0), *some], {"": 100}, workers=1, folder=tmp_path)
    # The first does not count. Of 1, 2, 3: mean 2, standard error sqrt(1 / 3), Student's t with 2 degrees of freedom 4.30.
    assert cost.duration[0] == 200 and cost.duration[2] == pytest.approx(200 + 100 * 4.30 / 3**0.5, rel=0.07)
    cost = estimate_run(some, {"": 100}, workers=4, folder=tmp_path)
    assert cost.memory == 3 * 2**30 and 100 * 150 < cost.disk < 100 * 400 and cost.failed == 1
    assert (
        "with 4 workers" in str(cost) and "3.0 GiB of memory each" in str(cost) and "1 of 3 had a problem" in str(cost)
    )
    assert [duration(x) for x in (40, 720, 12600, 180000, float("nan"))] == [
        "40 s",
        "12 min",
        "3.5 h",
        "2.08 days",
        "unknown",
    ]


def test_a_random_state_is_left_as_it_was(model):
    before = torch.random.get_rng_state()
    Worker(Work(LOUDNESS, read), model).measure(LOUDNESS.items(samples(1))[0])
    assert torch.equal(torch.random.get_rng_state(), before)


def test_weights_digests_tell_weights_apart():
    assert weights_digest(small_model()) == weights_digest(small_model())
    assert weights_digest(tiny_model(seed=1, n_layers=1)) != weights_digest(tiny_model(seed=2, n_layers=1))
