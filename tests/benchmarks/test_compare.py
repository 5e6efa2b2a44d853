"""The comparison runs end to end on a tiny decoder, in this process, and all peers find the same."""

import importlib.util
import re

import pytest

from tests.benchmarks import page, worker
from tests.benchmarks.compare import PARTS, Comparison, Script, forget, in_a_process, jobs, measure, read
from tests.benchmarks.found import Found, operations
from tests.benchmarks.goals import GOALS
from tests.benchmarks.peers import PEERS
from tests.benchmarks.tasks import TASKS
from tests.benchmarks.workload import SHAPES, Workload

EXTRA = ("nnsight", "pyvene")
HERE = [who for who in PEERS if who not in EXTRA]


def in_this_process(module, options, memory):
    return {"found": worker.measured(worker.options(options))}


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    """Peers whose packages the tests have, measured once."""
    file = tmp_path_factory.mktemp("benchmarks") / "measured.jsonl"
    measure(["smoke"], file, peers=HERE, start=in_this_process)
    measure(["smoke memory"], file, peers=["avlens", "stock"], start=in_this_process)
    return file


@pytest.mark.filterwarnings("ignore")
def test_every_peer_does_its_work_and_finds_what_avlens_finds(records):
    found = Found(read(records))
    assert found.failures() == {}
    assert found.apart() < 1e-5
    done = {who: {task for task in TASKS if found.ratios("smoke", who, task)} for who in HERE}
    assert done["avlens"] == set(TASKS)
    assert done["plain hooks"] >= {
        task for task in TASKS if task.startswith(("trace", "knockouts", "patch grid", "sinks"))
    }
    assert all(found.ratio("smoke", who, task) > 0 for who in HERE for task in done[who])
    assert all(found.peak("smoke memory", who, task) >= 0 for who in ("avlens", "stock") for task in done[who])


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore")
def test_the_same_runs_on_a_gpu(records, tmp_path):
    file = tmp_path / "measured.jsonl"
    measure(["smoke", "smoke memory"], file, peers=HERE, device="cuda", start=in_this_process)
    found = Found(read(file))
    assert found.failures() == {}
    assert Found([*read(records), *found.records]).apart() < 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("who", [who for who in EXTRA if importlib.util.find_spec(who)])
def test_packages_of_the_benchmark_alone_find_the_same(records, tmp_path, who):
    file = tmp_path / "measured.jsonl"
    file.write_text(records.read_text())
    measure(["smoke"], file, peers=[who], start=in_a_process)
    found = Found(read(file))
    assert found.failures() == {}
    assert found.apart() < 1e-5
    assert found.ratios("smoke", who, "trace, modalities")


@pytest.mark.filterwarnings("ignore")
def test_what_is_measured_is_not_measured_again_until_it_is_forgotten(records, tmp_path):
    file = tmp_path / "measured.jsonl"
    file.write_text(records.read_text())

    def never(module, options, memory):
        raise AssertionError

    measure(["smoke"], file, peers=HERE, start=never)
    forget(["smoke"], file)
    assert {one["part"] for one in read(file)} == {"smoke memory"}
    measure(["smoke"], file, peers=["stock"], start=lambda *asked: {"error": "it broke"})
    assert Found(read(file)).failures() == {"stock": "it broke"}


def record(part, who, **ratios):
    tasks = {
        name: {"seconds": [ratio, 3 * ratio], "stock": [1.0, 2.0], "answer": [0.0]} for name, ratio in ratios.items()
    }
    return {"part": part, "who": who, "turn": 0, "on": "here", "found": tasks}


def test_goals_are_ratios_of_medians_and_say_what_is_missed():
    hooks = record("1024", "plain hooks", **{"patch grid": 10.0})
    for ours, said in ((2.0, "| 0.20 |"), (6.0, "| **0.60** missed |")):
        found = Found([record("1024", "avlens", **{"patch grid": ours}), hooks])
        assert found.ratio("1024", "avlens", "patch grid") == pytest.approx(1.25 * ours)  # of 1 and 1.5 times
        assert said in next(line for line in page.goals(found).splitlines() if line.startswith("| G6"))
        assert ("G6" in page.missed(found)) == (ours == 6.0)


def test_answers_that_differ_are_told():
    ours, theirs = record("1024", "avlens", forward=1.0), record("1024", "stock", forward=1.0)
    theirs["found"]["forward"]["answer"] = [0.5]
    assert Found([ours, theirs]).apart() == 0.5


def test_operations_by_hand():
    # 2 layers of d_model 4, 2 heads over 1 key-value head, MLP of 8: of 50 positions 3 are media.
    SMALL = type(SHAPES["tiny"])(n_layers=2, d_model=4, n_heads=2, n_key_value_heads=1, d_mlp=8)
    n, media = 50, len(Workload(SMALL, 50).media)
    keys, row, pair = 4 * 4 * 2, 4 * 16 + 6 * 32, 4 * 4
    whole = 2 * n * keys + (n + 1) * row + pair * (n * (n + 1) / 2 + n)
    assert media == 3
    assert operations(SMALL, n) == whole
    left = whole - 3 * keys - 3 * pair  # of the last layer, whose last row reads three keys fewer
    assert operations(SMALL, n, leave_at=1) == left


def test_prompts_of_both_runs_differ_in_audio_and_video_only():
    work = Workload(SHAPES["tiny"], 300)
    differs = (work.ids != work.clean_ids)[0].nonzero()[:, 0]
    assert set(differs.tolist()) <= set(work.media.tolist())
    assert all(set(one.tolist()) <= set(work.media.tolist()) for sets in work.sets.values() for one in sets)
    assert [len(sets) for sets in work.sets.values()] == [16, 16, 16]


def test_every_part_names_peers_and_tasks_that_there_are():
    for name, part in PARTS.items():
        assert list(jobs(name))
        if isinstance(part, Script):
            assert importlib.util.find_spec(f"tests.benchmarks.{part.name}")
        elif isinstance(part, Comparison):
            assert set(part.peers) <= set(PEERS)
            assert set(part.tasks) <= set(TASKS)


@pytest.mark.filterwarnings("ignore")
def test_the_page_has_a_place_for_every_table_and_figure(records, tmp_path, monkeypatch):
    told = page.PAGE.read_text(encoding="utf-8")
    found = Found([one | {"part": part} for one in read(records) for part in _shown_as(one["part"])])
    tables = page.tables(found)
    assert set(tables) >= {"measured on", "goals", "missed", "works 1024", "memory", "memory by length", "length"}
    assert set(re.findall(r"<!-- (.+) -->\n", told)) - {"end"} == {*tables, "loading", "decoding"}
    assert all(f"images/{name}.png" in told for name in page.FIGURES)
    monkeypatch.setattr(
        "plotly.graph_objects.Figure.write_image", lambda figure, path, **_: path.write_text(figure.to_json())
    )
    copy = tmp_path / "benchmarks.md"
    copy.write_text(told, encoding="utf-8")
    page.write(found, copy)
    assert all(table in copy.read_text(encoding="utf-8") for table in tables.values())
    assert all((tmp_path / "images" / f"{name}.png").stat().st_size > 1000 for name in page.FIGURES)


def _shown_as(part):
    memory = part == "smoke memory"
    return [
        name
        for name, one in PARTS.items()
        if isinstance(one, Comparison) and "smoke" not in name and one.memory == memory
    ]


def test_every_goal_that_can_be_missed_is_measured_somewhere():
    known = {*PARTS, "float32", "bfloat16", "qwen2_5_omni", "qwen3_omni", "length"}
    assert all(set(goal.parts) <= known for goal in GOALS)
    assert {goal.name for goal in GOALS} == {f"G{i}" for i in range(1, 11)}
