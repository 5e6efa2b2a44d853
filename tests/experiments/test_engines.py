"""Whichever engine runs an experiment, records are the same; killed workers and killed runs lose nothing."""

import importlib.util
import multiprocessing
import sys
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from avlens import HookedAVModel, cli
from avlens.errors import ExperimentError
from avlens.experiments import InProcess, ModelSource, Processes, Ray, processes, run
from avlens.experiments import ray as ray_engine
from avlens.records import read_records
from tests.experiments import kill
from tests.experiments.measures import (
    LOUDNESS,
    WHEREABOUTS,
    deadly_experiment,
    model_for_any_device,
    no_model,
    no_model_at_length,
    read,
    samples,
    small_model,
)

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
forks = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="runs are forked, and found in /proc")
on_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed: avlens[ray]")


@pytest.fixture(scope="module")
def cluster():
    """A Ray that believes it has two GPUs: its address, and a function that lists its workers."""
    with kill.cluster(2, gpus=2) as its:
        yield its


def results(records):
    return [one.result for one in records.records]


def apart(function, *args):
    """Call a function in a process of its own: Ray's threads do not stay in this one, which forks."""
    process = multiprocessing.get_context("fork").Process(target=function, args=args)
    process.start()
    process.join(300)
    if process.exitcode is None:
        process.kill()
    assert process.exitcode == 0


def run_deadly(engine, folder):
    run(deadly_experiment(folder), small_model, samples(8), folder / "two", read=read, engine=engine)


def check_same_records_but_for_what_kills(engine, folder):
    """Two workers give what one gives, though one is killed; a sample that kills whoever measures it is lost, nothing else."""
    apart(run_deadly, engine, folder)
    assert (folder / "once").exists()
    some = [one for one in samples(8) if one.record["index"] != 3]
    alone = run(deadly_experiment(folder), small_model(), some, folder / "alone", read=read)
    found = read_records(folder / "two")
    assert [bool(one.problem) for one in found.records] == [i == 3 for i in range(8)]
    assert "the worker died each time" in found.records[3].problem
    assert [one.result for one in found.records if not one.problem] == results(alone)


@forks
def test_two_processes_give_the_records_of_one(tmp_path):
    check_same_records_but_for_what_kills(Processes(2), tmp_path)


def test_what_other_processes_cannot_be_sent_is_said(tmp_path):
    once = replace(LOUDNESS, conditions={"one": {"parts": 1}}, seeds=(0,))
    for wrong in (
        {"experiment": replace(once, measure=lambda *_: [])},
        {"read": lambda sample: read(sample)},
        {"model": lambda: 1},
    ):
        given = {"experiment": once, "model": small_model, "read": read} | wrong
        with pytest.raises(ExperimentError, match="at the top of a module"):
            run(given["experiment"], given["model"], samples(1), tmp_path, read=given["read"], engine=Processes(1))
    asked = samples(2)
    asked[0].record["open"] = lambda: None
    found = run(once, small_model, asked, tmp_path, read=read, engine=Processes(1))
    assert [one.problem.partition(": ")[0] for one in found.records] == ["it could not be sent to a worker", ""]


@forks
def test_a_second_ctrl_c_does_not_wait_for_what_is_being_measured():
    def interrupted(**_):
        raise KeyboardInterrupt

    pool = object.__new__(processes._Pool)
    fork = multiprocessing.get_context("fork")
    own, worker = (fork.Process(target=time.sleep, args=(60,)) for _ in range(2))
    own.start()
    pool.others, pool.executor = set(multiprocessing.active_children()), SimpleNamespace(shutdown=interrupted)
    worker.start()
    with pytest.raises(KeyboardInterrupt):
        pool.close()
    worker.join(30)
    assert worker.exitcode == -9 and own.is_alive()
    own.kill()


@forks
@on_ray
def test_two_workers_on_ray_give_the_records_of_one(tmp_path, cluster):
    check_same_records_but_for_what_kills(Ray(2, address=cluster[0]), tmp_path)


def run_whereabouts(address, folder):
    run(WHEREABOUTS, model_for_any_device, samples(6), folder, read=read, engine=Ray(2, gpus=1, address=address))


@forks
@on_ray
def test_ray_places_workers_by_their_gpus(tmp_path, cluster):
    apart(run_whereabouts, cluster[0], tmp_path)
    there = read_records(tmp_path).to_frame()
    assert set(there.on) == {"cuda"} and there.groupby("pid").sees.nunique().eq(1).all()
    assert set(there.sees) == {"0", "1"}


@forks
@on_ray
def test_runs_on_ray_killed_at_random_moments_end_with_the_records_of_an_undisturbed_one(tmp_path, cluster):
    torch.set_num_threads(1)
    address, workers = cluster
    kill.measure(tmp_path / "whole", 12, InProcess(), small_model(), 10.0)
    there = kill.disturbed(
        tmp_path / "cut", 12, Ray(2, address=address), small_model, kills=3, seed=0, longest=1.0, pause=0.2, workers=workers
    )  # fmt: skip
    assert {killed for killed, _ in there} == {"run", "worker"}
    assert kill.same(tmp_path / "whole", tmp_path / "cut") and len(read_records(tmp_path / "cut")) == 12


@forks
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_runs_killed_at_random_moments_end_with_the_records_of_an_undisturbed_one(tmp_path):
    torch.set_num_threads(1)
    model = small_model()
    kill.measure(tmp_path / "whole", 12, InProcess(), model, 10.0)
    there = kill.disturbed(tmp_path / "cut", 12, InProcess(), model, kills=5, seed=3, longest=0.5)
    assert len(there) == 5 and [n for _, n in there] == sorted(n for _, n in there)
    assert kill.same(tmp_path / "whole", tmp_path / "cut") and len(read_records(tmp_path / "cut")) == 12


@pytest.mark.parametrize("engine", [Processes, Ray])
def test_a_model_that_workers_cannot_share_is_refused(tmp_path, engine):
    with pytest.raises(ExperimentError, match="each worker needs its own"):
        run(LOUDNESS, small_model(), samples(1), tmp_path, read=read, engine=engine(2))
    with pytest.raises(ExperimentError, match="Start one worker or more"):
        run(LOUDNESS, small_model, samples(1), tmp_path, read=read, engine=engine(0))


def test_without_ray_it_is_said_how_to_have_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ExperimentError, match=r"pip install 'avlens\[ray\]'"):
        run(LOUDNESS, small_model, samples(1), tmp_path, read=read, engine=Ray(1))


def test_workers_that_find_no_room_are_refused():
    there = SimpleNamespace(cluster_resources=lambda: {"CPU": 8.0, "GPU": 1.0})
    ray_engine._check_room(there, 2, {"CPU": 4, "GPU": 0.5})
    with pytest.raises(ExperimentError, match="2 workers with 1 GPUs each need 2, and Ray has 1"):
        ray_engine._check_room(there, 2, {"CPU": 4, "GPU": 1.0})
    with pytest.raises(ExperimentError, match="3 workers with 4 CPUs each need 12, and Ray has 8"):
        ray_engine._check_room(there, 3, {"CPU": 4, "GPU": 0})


def test_an_address_where_nothing_listens_is_refused_at_once(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(is_initialized=lambda: False))
    with pytest.raises(ExperimentError, match=r"no Ray answers at '127.0.0.1:9' .*leave it out to start Ray"):
        run(LOUDNESS, small_model, samples(1), tmp_path, read=read, engine=Ray(1, address="127.0.0.1:9"))


def test_a_process_on_one_cluster_is_not_sent_to_another(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(is_initialized=lambda: True))
    with pytest.raises(ExperimentError, match="connected to Ray already"):
        run(LOUDNESS, small_model, samples(1), tmp_path, read=read, engine=Ray(1, address="auto"))


def test_models_that_are_to_be_put_on_gpus_ask_for_one():
    for options, gpus in (({}, 0), ({"device": "cpu"}, 0), ({"device": "cuda"}, 1), ({"device_map": "auto"}, 1)):
        assert ray_engine._wants_gpu(ModelSource("x", options)) == bool(gpus)
    assert not ray_engine._wants_gpu(small_model)


def test_processes_share_out_their_devices(monkeypatch):
    asked, model = [], small_model()
    monkeypatch.setattr(
        HookedAVModel, "from_pretrained", lambda name, **options: asked.append((name, options)) or model
    )
    for number in range(3):
        processes._on(("cuda:0", "cuda:1"), number, ModelSource("x", {"dtype": "bfloat16", "device": "cuda"}))
    assert asked == [("x", {"dtype": "bfloat16", "device": f"cuda:{i}"}) for i in (0, 1, 0)]
    assert processes._on(("cuda:1",), 0, model_for_any_device).was_put_on == "cuda:1"
    assert processes._on((), 0, model_for_any_device).was_put_on == "cpu"


def test_processes_take_all_gpus_where_cuda_is_asked_for(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert cli.run._each_gpu("cuda") == ("cuda:0", "cuda:1")
    assert all(cli.run._each_gpu(device) == () for device in ("cuda:1", "cpu", None))


@pytest.mark.skipif(importlib.util.find_spec("accelerate") is None, reason="device_map needs accelerate")
def test_a_model_spread_by_device_map_gives_the_same_records(tmp_path):
    small_model().save_pretrained(tmp_path / "model")
    sources = {"whole": {}, "spread": {"device_map": "auto"}}
    whole, spread = (
        run(LOUDNESS, ModelSource(str(tmp_path / "model"), options), samples(2), tmp_path / name, read=read)
        for name, options in sources.items()
    )
    assert results(whole) == results(spread)


def check_reason(engine, folder):
    with pytest.raises(ExperimentError) as told:
        run(LOUDNESS, no_model, samples(1), folder, read=read, engine=engine)
    assert str(told.value).startswith("a worker could not load the model; ")
    assert str(told.value).endswith("It said: there is no such model. Pass another.")


def test_why_workers_have_no_model_is_said_and_nothing_more(tmp_path, capfd):
    check_reason(Processes(1), tmp_path)
    assert "Traceback" not in capfd.readouterr().err


def check_long_reason(folder):
    with pytest.raises(ExperimentError, match="It said: RuntimeError: missing key xxx.*…$") as told:
        run(LOUDNESS, no_model_at_length, samples(1), folder, read=read, engine=Processes(1))
    assert len(str(told.value)) < 2500


@forks
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_why_workers_have_no_model_may_be_a_long_story(tmp_path):
    apart(check_long_reason, tmp_path)


@on_ray
@forks
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_why_workers_on_ray_have_no_model_is_said(tmp_path, cluster):
    address, _ = cluster
    apart(check_reason, Ray(1, gpus=0, address=address), tmp_path)
