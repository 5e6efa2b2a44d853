"""Whichever engine runs an experiment, records are the same; killed workers and killed runs lose nothing."""

import os

import pytest
import torch

from avlens.errors import ExperimentError
from avlens.experiments import InProcess, Processes, run
from avlens.records import read_records
from tests.experiments import kill
from tests.experiments.measures import DEADLY, LOUDNESS, read, samples, small_model

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")


def results(records):
    return [one.result for one in records.records]


def check_same_records_but_for_what_kills(engine, folder):
    """Two workers give what one gives; a sample that kills whoever measures it is lost, and nothing else is."""
    some = samples(8)
    alone = run(DEADLY, small_model(), [one for one in some if one.record["index"] != 3], folder / "alone", read=read)
    found = run(DEADLY, small_model, some, folder / "two", read=read, engine=engine)
    assert [bool(one.problem) for one in found.records] == [i == 3 for i in range(8)]
    assert "the worker died each time" in found.records[3].problem
    assert [one.result for one in found.records if not one.problem] == results(alone)
    assert len(read_records(folder / "two")) == 8


def test_two_processes_give_the_records_of_one(tmp_path):
    check_same_records_but_for_what_kills(Processes(2), tmp_path)


def test_a_model_that_workers_cannot_share_is_refused(tmp_path):
    with pytest.raises(ExperimentError, match="each worker needs its own"):
        run(LOUDNESS, small_model(), samples(1), tmp_path, read=read, engine=Processes(2))
    with pytest.raises(ExperimentError, match="Start one worker or more"):
        run(LOUDNESS, small_model, samples(1), tmp_path, read=read, engine=Processes(0))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="runs are forked")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_runs_killed_at_random_moments_end_with_the_records_of_an_undisturbed_one(tmp_path):
    torch.set_num_threads(1)
    model = small_model()
    kill.measure(tmp_path / "whole", 12, InProcess(), model, 10.0)
    there = kill.disturbed(tmp_path / "cut", 12, InProcess(), model, kills=5, seed=3, longest=0.5)
    assert len(there) == 5 and there == sorted(there)
    assert kill.same(tmp_path / "whole", tmp_path / "cut") and len(read_records(tmp_path / "cut")) == 12
