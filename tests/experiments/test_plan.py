import pytest
from hypothesis import given
from hypothesis import strategies as st

from avlens.errors import ExperimentError
from avlens.experiments.plan import drawn, simulate


def test_schedules_by_hand():
    assert simulate([3, 1, 1, 1], 2).makespan == 3 and simulate([3, 1, 1, 1], 2).efficiency == 1
    assert simulate([1, 1, 1, 3], 2).makespan == 4 and simulate([1, 1, 1, 3], 2).efficiency == 6 / 8
    assert simulate([2, 2], 2, start=1).makespan == 3
    assert simulate([3, 1, 1, 1], 2).tail == 0 and simulate([1, 1, 1, 3], 2).tail == 2
    # A file is written when the fourth item is handed over, at 12, since 10 s have passed; that takes 2 s more.
    assert simulate([4] * 4, 1, write=2).makespan == 18
    # Handed over at 1, 2, 3 and 4, one at a time, the last is done at 5: four workers, but one pair of hands.
    busy = simulate([1] * 4, 4, overhead=1)
    assert busy.makespan == 5 and busy.limit == 1


times = st.lists(st.floats(0.01, 100), min_size=1, max_size=60)


@given(times, st.integers(1, 12), st.floats(0, 0.5))
def test_bounds_of_list_scheduling(seconds, workers, overhead):
    done = simulate(seconds, workers, overhead=overhead)
    ideal = max(sum(seconds) / workers, max(seconds))
    assert (
        ideal * (1 - 1e-9)
        <= done.makespan
        <= (sum(seconds) / workers + max(seconds) + overhead * len(seconds)) * (1 + 1e-9)
    )
    assert 0 < done.efficiency <= 1 + 1e-9
    assert simulate(seconds, 1, overhead=overhead).makespan == pytest.approx(sum(seconds) + overhead * len(seconds))


def test_drawn_times_keep_the_shape_of_those_measured():
    times = drawn([1.0, 3.0], 20_000, mean=10.0)
    assert set(times) == {5.0, 15.0} and sum(times) / len(times) == pytest.approx(10, rel=0.02)
    assert times == drawn([1.0, 3.0], 20_000, mean=10.0)


def test_what_cannot_be_planned_is_said():
    for wrong in (([], 1), ([1.0], 0), ([-1.0], 1)):
        with pytest.raises(ExperimentError, match="one or more of each"):
            simulate(*wrong)
    with pytest.raises(ExperimentError, match="no times to draw from"):
        drawn([], 3)
