"""Do two conditions differ, and does that survive that many were compared?

With d_c the mean difference of clip c = 1..n between two conditions, and s_c = +-1 drawn at random,

    p = share of all sign changes s with |sum s_c d_c| >= |sum d_c|,   in (0, 1]

all 2^n of them where n <= 13, else of B draws, the observed one counted among them. It holds without any assumption
on the distribution but that a difference and its opposite were equally likely if the conditions did not differ.

Of m comparisons, sorted p_1 <= ... <= p_m, an adjusted p is to be compared with the level as if it were the only one:

    holm   max over j <= i of min(1, (m - j + 1) p_j)       bounds the chance of a single false finding
    bh     min over j >= i of min(1, m p_j / j)             bounds the share of false findings among those found

Source: Fisher 1935, "The Design of Experiments", chapter 3 (sign changes); Holm 1979; Benjamini and Hochberg 1995.
"""

from typing import Literal, get_args

import numpy as np
from jaxtyping import Float

from avlens.errors import MetricError

Correction = Literal["holm", "bh", "none"]
_EXACT = 13
_DRAWN_AT_ONCE = 2**20
_SAME = 1e-12


def sign_change_p(differences: Float[np.ndarray, " clip"], *, n_draws: int = 10_000, seed: int = 0) -> float:
    """The p of a mean difference that is not 0, two-sided. NaN with fewer than two clips; 1 where nothing differs.

    Args:
        differences: The mean difference of each clip; NaN where there is none, which is left out.
        n_draws: How many sign changes are drawn where there are too many to try all.
        seed: Of the draws.
    """
    d = differences[~np.isnan(differences)]
    if len(d) < 2:
        return float("nan")
    # A sum is compared with its own rounding in mind, or the observed one might not count as itself.
    observed = abs(d.sum()) - _SAME * np.abs(d).sum()
    if len(d) <= _EXACT:
        signs = 1 - 2 * (np.arange(2 ** len(d))[:, None] >> np.arange(len(d)) & 1)
        return float((np.abs(signs @ d) >= observed).mean())
    generator, as_far = np.random.default_rng(seed), 0
    at_once = max(1, _DRAWN_AT_ONCE // len(d))
    for start in range(0, n_draws, at_once):
        signs = generator.integers(0, 2, (min(at_once, n_draws - start), len(d))) * 2 - 1
        as_far += int((np.abs(signs @ d) >= observed).sum())
    return (1 + as_far) / (1 + n_draws)


def adjusted(p: Float[np.ndarray, " comparison"], correction: Correction = "holm") -> Float[np.ndarray, " comparison"]:
    """The p of several comparisons, corrected for there being several; NaN stays, and is not counted.

    Raises:
        MetricError: If there is no such correction.
    """
    if correction not in get_args(Correction):
        raise MetricError(f"correction is {correction!r}. Pass one of {', '.join(get_args(Correction))}.")
    known = np.flatnonzero(~np.isnan(p))
    order = known[np.argsort(p[known], kind="stable")]
    m, ranked = len(order), p[order]
    if correction == "holm":
        ranked = np.maximum.accumulate(np.minimum(1, (m - np.arange(m)) * ranked))
    elif correction == "bh":
        ranked = np.minimum.accumulate(np.minimum(1, m * ranked / np.arange(1, m + 1))[::-1])[::-1]
    found = np.full_like(p, np.nan)
    found[order] = ranked
    return found
