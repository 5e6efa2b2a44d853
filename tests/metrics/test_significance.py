import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from avlens.errors import MetricError
from avlens.metrics.significance import adjusted, sign_change_p


def test_all_sign_changes_by_hand():
    # 1, 2, 3: |sum| is 6 for +++ and ---, of 8.
    assert sign_change_p(np.array([1.0, 2.0, 3.0])) == 2 / 8
    # 1, 2, -3: every sum is at least as far from 0 as 0.
    assert sign_change_p(np.array([1.0, 2.0, -3.0])) == 1
    # 3, 1, -1: |sum| 3 or more: 5 (x2), 3 (x4) of 8.
    assert sign_change_p(np.array([3.0, 1.0, -1.0])) == 6 / 8
    assert sign_change_p(np.array([0.0, 0.0])) == 1
    assert np.isnan(sign_change_p(np.array([1.0, np.nan])))


@given(st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=25), st.floats(1e-3, 1e3))
def test_laws_of_p(differences, scale):
    d = np.array(differences)
    p = sign_change_p(d, n_draws=500)
    assert 0 < p <= 1
    assert sign_change_p(-d, n_draws=500) == p
    assert sign_change_p(np.append(d, np.nan), n_draws=500) == p
    if len(d) <= 13:
        assert sign_change_p(d[::-1] * 2.0) == pytest.approx(p, abs=2 / 2 ** len(d))


def test_draws_agree_with_all_changes_and_hold_the_level():
    d = np.array([0.3, -0.1, 0.5, 0.2, -0.4, 0.6, 0.1, 0.05, 0.2, 0.3, -0.2, 0.1, 0.4])
    exact = sign_change_p(d)
    drawn = sign_change_p(np.append(d, 0.0), n_draws=20_000)  # a 0 changes no sum, but makes them too many to try
    assert drawn == pytest.approx(exact, abs=0.01)
    rng = np.random.default_rng(0)
    found = [sign_change_p(rng.normal(size=20), n_draws=400, seed=i) <= 0.05 for i in range(400)]
    assert 0.02 < np.mean(found) < 0.09


def test_corrections_by_hand():
    p = np.array([0.01, 0.04, 0.03, np.nan])
    np.testing.assert_allclose(adjusted(p, "holm"), [0.03, 0.06, 0.06, np.nan])
    np.testing.assert_allclose(adjusted(p, "bh"), [0.03, 0.04, 0.04, np.nan])
    np.testing.assert_allclose(adjusted(p, "none"), p)
    assert adjusted(np.array([0.9, 0.8]), "holm").tolist() == [1, 1]
    with pytest.raises((MetricError, TypeError), match="holm.*bh.*none"):
        adjusted(p, "bonferroni")


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_a_correction_never_makes_p_smaller_and_keeps_the_order(p):
    p = np.array(p)
    holm, bh = adjusted(p, "holm"), adjusted(p, "bh")
    assert (holm >= bh - 1e-12).all() and (bh >= p - 1e-12).all() and (holm <= 1).all()
    order = np.argsort(p, kind="stable")
    assert (np.diff(holm[order]) >= 0).all() and (np.diff(bh[order]) >= 0).all()


@given(st.lists(st.floats(1e-6, 1), min_size=1, max_size=12))
def test_corrections_are_those_of_other_implementations(p):
    stats = pytest.importorskip("scipy.stats")
    assert adjusted(np.array(p), "bh") == pytest.approx(stats.false_discovery_control(p, method="bh"))
    for level in (
        0.01,
        0.05,
        0.3,
    ):  # Holm's procedure: reject from the smallest p on, until one exceeds level / those left.
        order, rejected = np.argsort(p, kind="stable"), np.zeros(len(p), dtype=bool)
        for rank, i in enumerate(order):
            if p[i] > level / (len(p) - rank):
                break
            rejected[i] = True
        near = np.abs(adjusted(np.array(p), "holm") - level) < 1e-12
        assert ((adjusted(np.array(p), "holm") <= level) == rejected)[~near].all()


@given(st.lists(st.integers(-20, 20), min_size=2, max_size=9))
def test_sign_changes_are_those_of_another_implementation(differences):
    stats = pytest.importorskip("scipy.stats")
    d = np.array(differences, dtype=float)
    other = stats.permutation_test((d,), lambda x, axis: np.abs(x.sum(axis)), permutation_type="samples",
                                   vectorized=True, n_resamples=np.inf, alternative="greater")  # fmt: skip
    assert sign_change_p(d) == pytest.approx(other.pvalue)
