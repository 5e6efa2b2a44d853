"""How sure is a mean over clips: its bootstrap interval, a paired difference, and an effect's share of the total effect?

With values x_c of clips c = 1..n, drawn with replacement B times,

    mean       mean(x)               interval: percentiles of the mean of B draws
    difference mean(x - y)           the same, with x and y of one clip drawn together
    share      mean(x) / mean(y)     the same; e.g. IE / TE, which is 1 where a patch restores all that was corrupted

Where several values come from one clip, whole clips are drawn (`clusters`), since their values are not independent.

Source: Efron and Tibshirani 1993, "An Introduction to the Bootstrap", chapters 13 (percentiles) and 8 (clusters). IE and TE:
Jung et al. 2026, arXiv:2605.10815; its released code, preprocess/step2/causal_effect.py:34-93.

Differs from the source: the released code gives plain means, no interval and no share.
"""

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float, Int
from torch import Tensor

from avlens import display
from avlens.errors import MetricError

Values = Sequence[float] | Float[np.ndarray, " value"] | Float[Tensor, " value"]

_DRAWN_AT_ONCE = 2**20  # values; bounds the memory of a bootstrap over very many clips


@dataclass(frozen=True)
class Interval:
    """An estimate and where it would lie for other clips, in the unit of the values.

    Attributes:
        estimate: Of the values given; NaN where there are none.
        low: Lower end; NaN where fewer than two clips say how much they differ.
        high: Upper end; the same.
        level: Share of the draws that lie between the ends.
        n: How many values it rests on.
        n_clusters: How many clips they come from.
        n_missing: How many values were NaN, and left out.
    """

    estimate: float
    low: float
    high: float
    level: float
    n: int
    n_clusters: int
    n_missing: int

    def to_frame(self) -> pd.DataFrame:
        """One row."""
        return pd.DataFrame([vars(self)])

    def __repr__(self) -> str:
        return f"{self.estimate:.4g} [{self.low:.4g}, {self.high:.4g}] (n={self.n})"

    def _repr_html_(self) -> str:
        return display.table(repr(self), self.to_frame())


def bootstrap_mean(
    values: Values,
    *,
    clusters: Sequence[Hashable] | None = None,
    n_draws: int = 10_000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """The mean of some values, with its interval.

    Args:
        values: One per run; NaN where it could not be computed.
        clusters: Which clip each value comes from; each its own by default.
        n_draws: How often clips are drawn.
        level: Share of the draws that the interval holds.
        seed: Of the draws.

    Raises:
        MetricError: If the lengths differ, or a setting is none.
    """
    x = _as_array(values)
    return ratio_of_sums(x, np.ones_like(x), clusters=clusters, n_draws=n_draws, level=level, seed=seed)


def paired_difference(
    values: Values,
    others: Values,
    *,
    clusters: Sequence[Hashable] | None = None,
    n_draws: int = 10_000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """The mean of values - others, run by run, with its interval. A pair with a NaN is left out.

    Args:
        values: One per run.
        others: What each is compared with, in the same order.
        clusters: As in `bootstrap_mean`.
        n_draws: How often clips are drawn.
        level: Share of the draws that the interval holds.
        seed: Of the draws.

    Raises:
        MetricError: If the lengths differ, or a setting is none.
    """
    x, y = _paired(_as_array(values), _as_array(others))
    return bootstrap_mean(x - y, clusters=clusters, n_draws=n_draws, level=level, seed=seed)


def ratio_of_sums(
    above: Values,
    below: Values,
    *,
    clusters: Sequence[Hashable] | None = None,
    n_draws: int = 10_000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """sum(above) / sum(below), with its interval; of effects, IE / TE as a ratio of means.

    A draw whose `below` sums to 0 has no ratio. If there is one, the ends are NaN: the share of what may be nothing is
    not known.

    Args:
        above: One per run, such as the indirect effect.
        below: The same runs' divisor, such as the total effect.
        clusters: As in `bootstrap_mean`.
        n_draws: How often clips are drawn.
        level: Share of the draws that the interval holds.
        seed: Of the draws.

    Raises:
        MetricError: If the lengths differ, or a setting is none.
    """
    _check(n_draws, level)
    x, y = _paired(_as_array(above), _as_array(below))
    labels = _labels(clusters, len(x))
    known = ~(np.isnan(x) | np.isnan(y))
    sums_x, sums_y = (_per_cluster(labels[known], one[known]) for one in (x, y))
    n_clusters, n_missing = len(sums_x), int((~known).sum())
    low, high = np.nan, np.nan
    if n_clusters > 1:
        drawn = [_ratio(sums_x[i].sum(1), sums_y[i].sum(1)) for i in draws(n_clusters, n_draws, seed)]
        low, high = percentiles(np.concatenate(drawn), level)
    estimate = float(_ratio(sums_x.sum(keepdims=True), sums_y.sum(keepdims=True))[0])
    return Interval(estimate, low, high, level, int(known.sum()), n_clusters, n_missing)


def draws(n: int, n_draws: int, seed: int) -> Iterator[Int[np.ndarray, "draw n"]]:
    """Which of n clips each bootstrap draw holds, some draws at a time."""
    generator = np.random.default_rng(seed)
    at_once = max(1, _DRAWN_AT_ONCE // max(n, 1))
    for start in range(0, n_draws, at_once):
        yield generator.integers(0, n, (min(at_once, n_draws - start), n))


def percentiles(drawn: Float[np.ndarray, " draw"], level: float) -> tuple[float, float]:
    """Both ends of the interval that holds `level` of the draws; NaN where a draw has no finite value."""
    if not len(drawn) or not np.isfinite(drawn).all():
        return np.nan, np.nan
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _check(n_draws: int, level: float) -> None:
    if n_draws < 1:
        raise MetricError(f"n_draws is {n_draws}. Draw at least once; 10000 is usual.")
    if not 0 < level < 1:
        raise MetricError(f"level is {level}. Pass a share between 0 and 1, such as 0.95.")


def _as_array(values: Values) -> Float[np.ndarray, " value"]:
    array = np.asarray(values.detach().cpu() if isinstance(values, Tensor) else values, dtype=np.float64)
    if array.ndim != 1:
        raise MetricError(f"values have the shape {list(array.shape)}. Pass one number per run.")
    return array


def _paired(
    x: Float[np.ndarray, " value"], y: Float[np.ndarray, " other"]
) -> tuple[Float[np.ndarray, " value"], Float[np.ndarray, " value"]]:
    if len(x) != len(y):
        raise MetricError(f"{len(x)} values cannot be paired with {len(y)}. Pass both of the same runs, in one order.")
    return x, y


def _labels(clusters: Sequence[Hashable] | None, n: int) -> Int[np.ndarray, " value"]:
    if clusters is None:
        return np.arange(n)
    if len(clusters) != n:
        raise MetricError(f"{len(clusters)} clusters were given for {n} values. Name the clip of each value.")
    number: dict[Hashable, int] = {}
    return np.array([number.setdefault(cluster, len(number)) for cluster in clusters], dtype=np.int64)


def _per_cluster(labels: Int[np.ndarray, " known"], values: Float[np.ndarray, " known"]) -> Float[np.ndarray, " clip"]:
    kept, index = np.unique(labels, return_inverse=True)
    return np.bincount(index, weights=values, minlength=len(kept)).astype(np.float64)


def _ratio(above: Float[np.ndarray, " draw"], below: Float[np.ndarray, " draw"]) -> Float[np.ndarray, " draw"]:
    return np.divide(above, below, out=np.full_like(above, np.nan), where=below != 0)
