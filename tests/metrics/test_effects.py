import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from avlens.errors import MetricError
from avlens.metrics.effects import bootstrap_mean, draws, paired_difference, percentiles, ratio_of_sums

numbers = st.lists(st.floats(-1, 1), min_size=2, max_size=20)


def test_the_mean_of_two_values_lies_between_them():
    # Draws of two clips: (1, 1), (1, 3), (3, 1), (3, 3); a quarter each of 1 and 3, half of 2.
    interval = bootstrap_mean([1.0, 3.0], level=0.95)
    assert (interval.estimate, interval.low, interval.high) == (2.0, 1.0, 3.0)
    assert (interval.n, interval.n_clusters, interval.n_missing) == (2, 2, 0)
    assert bootstrap_mean([1.0, 3.0], level=0.4).low == 2.0


def test_clips_are_drawn_whole():
    # Clip a has 0, 0, 0 and clip b 4: draws are aa -> 0, ab -> 4/4, bb -> 4. Never 2, which single values could give.
    interval = bootstrap_mean([0.0, 0.0, 0.0, 4.0], clusters=["a", "a", "a", "b"])
    assert (interval.estimate, interval.low, interval.high, interval.n_clusters) == (1.0, 0.0, 4.0, 2)
    middle = bootstrap_mean([0.0, 0.0, 0.0, 4.0], clusters=["a", "a", "a", "b"], level=0.4)
    assert middle.low == middle.high == 1.0


def test_a_value_that_is_nan_is_left_out_and_counted():
    interval = bootstrap_mean([1.0, math.nan, 3.0])
    assert (interval.estimate, interval.n, interval.n_missing) == (2.0, 2, 1)


def test_what_cannot_be_computed_is_nan():
    nothing, one = bootstrap_mean([]), bootstrap_mean([5.0])
    assert math.isnan(nothing.estimate) and nothing.n == 0
    assert one.estimate == 5.0 and math.isnan(one.low) and math.isnan(one.high)
    assert math.isnan(ratio_of_sums([1.0, 2.0], [0.0, 0.0]).estimate)
    half = ratio_of_sums([1.0, 1.0], [0.0, 2.0])  # a quarter of the draws has no divisor
    assert half.estimate == 1.0 and math.isnan(half.low)
    assert math.isnan(bootstrap_mean([0.0] * 3, clusters=["a"] * 3).low)


def test_the_share_of_the_total_effect_is_a_ratio_of_means():
    interval = ratio_of_sums([0.1, 0.3], [0.2, 0.8])
    assert interval.estimate == pytest.approx(0.4)  # and not (0.5 + 0.375) / 2
    assert (interval.low, interval.high) == (pytest.approx(0.375), pytest.approx(0.5))


@given(numbers, st.integers(0, 5))
def test_a_difference_from_itself_is_nothing_and_from_a_shift_the_shift(values, seed):
    zero = paired_difference(values, values, n_draws=50, seed=seed)
    assert (zero.estimate, zero.low, zero.high) == (0.0, 0.0, 0.0)
    shifted = paired_difference(values, [value - 2 for value in values], n_draws=50, seed=seed)
    assert [shifted.estimate, shifted.low, shifted.high] == pytest.approx([2.0] * 3)


@given(numbers, st.integers(0, 5))
def test_intervals_are_seeded_scale_with_the_values_and_stay_within_them(values, seed):
    interval = bootstrap_mean(values, n_draws=100, seed=seed)
    assert interval == bootstrap_mean(torch.tensor(values, dtype=torch.float64), n_draws=100, seed=seed)
    assert min(values) - 1e-12 <= interval.low <= interval.high <= max(values) + 1e-12
    tenfold = bootstrap_mean(10 * np.array(values), n_draws=100, seed=seed)
    assert [tenfold.low, tenfold.high] == pytest.approx([10 * interval.low, 10 * interval.high])


def test_the_interval_of_a_normal_sample_is_that_of_the_textbook():
    values = np.random.default_rng(0).normal(size=400)
    interval = bootstrap_mean(values)
    half_width = 1.96 * values.std() / 20
    assert interval.high - interval.low == pytest.approx(2 * half_width, rel=0.05)


def test_draws_come_in_pieces_that_hold_them_all(monkeypatch):
    whole = np.concatenate(list(draws(7, 100, seed=3)))
    monkeypatch.setattr("avlens.metrics.effects._DRAWN_AT_ONCE", 50)
    pieces = list(draws(7, 100, seed=3))
    assert len(pieces) == 15 and np.array_equal(np.concatenate(pieces), whole)
    assert np.isnan(percentiles(np.array([]), 0.9)).all()


def test_what_does_not_fit_is_refused():
    with pytest.raises(MetricError, match="in one order"):
        paired_difference([1.0], [1.0, 2.0])
    with pytest.raises(MetricError, match="Name the clip of each value"):
        bootstrap_mean([1.0], clusters=["a", "b"])
    with pytest.raises(MetricError, match=r"such as 0\.95"):
        bootstrap_mean([1.0], level=95)
    with pytest.raises(MetricError, match="at least once"):
        bootstrap_mean([1.0], n_draws=0)


def test_it_prints_and_has_a_frame():
    interval = bootstrap_mean([1.0, 3.0])
    assert repr(interval) == "2 [1, 3] (n=2)"
    assert interval.to_frame().loc[0, "estimate"] == 2.0
