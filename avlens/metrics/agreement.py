"""Do two ways to score the same things agree?

    Spearman   correlation of ranks, in [-1, 1]: 1 where both put the things in one order
    Pearson    correlation of the scores themselves
    sign       share of the things to which both give the same sign, of those that neither scores 0
    top k      share of the k largest (in size) of one that are among the k largest of the other

Source: Spearman 1904, "The proof and measurement of association between two things".
"""

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float
from torch import Tensor

from avlens import display
from avlens.errors import MetricError


@dataclass(frozen=True)
class Agreement:
    """How two scores of the same things agree; NaN where one of them is constant.

    Attributes:
        spearman: Of ranks; ties share their mean rank.
        pearson: Of the scores.
        sign: Share of equal signs.
        top: Share of the largest that both have in common.
        k: How many the largest are.
        n: How many things have both scores.
    """

    spearman: float
    pearson: float
    sign: float
    top: float
    k: int
    n: int

    def to_frame(self) -> pd.DataFrame:
        """One row."""
        return pd.DataFrame([vars(self)])

    def __repr__(self) -> str:
        return f"Agreement(Spearman {self.spearman:.3f}, Pearson {self.pearson:.3f}, top {self.k}: {self.top:.2f}, n={self.n})"

    def _repr_html_(self) -> str:
        return display.table(repr(self), self.to_frame())


def agreement(one: Float[Tensor, "*thing"], other: Float[Tensor, "*thing"], *, k: int = 10) -> Agreement:
    """Compare two scores, thing by thing; a thing with a NaN is left out.

    Raises:
        MetricError: If they score different things, or `k` is none.
    """
    if one.shape != other.shape or k < 1:
        raise MetricError(
            f"scores of shapes {list(one.shape)} and {list(other.shape)}, top {k}. Pass two of one shape, and k >= 1."
        )
    x, y = (scores.detach().double().cpu().flatten().numpy() for scores in (one, other))
    known = ~(np.isnan(x) | np.isnan(y))
    x, y = x[known], y[known]
    said = (x != 0) | (y != 0)
    largest = [set(np.argsort(-np.abs(scores), kind="stable")[:k].tolist()) for scores in (x, y)]
    return Agreement(
        spearman=_correlation(_ranks(x), _ranks(y)), pearson=_correlation(x, y),
        sign=float((np.sign(x) == np.sign(y))[said].mean()) if said.any() else math.nan,
        top=len(largest[0] & largest[1]) / len(largest[0]) if len(x) else math.nan, k=min(k, len(x)), n=len(x),
    )  # fmt: skip


def _ranks(x: Float[np.ndarray, " thing"]) -> Float[np.ndarray, " thing"]:
    return pd.Series(x).rank().to_numpy(dtype=np.float64)


def _correlation(x: Float[np.ndarray, " thing"], y: Float[np.ndarray, " thing"]) -> float:
    if len(x) < 2 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return math.nan
    return float(np.corrcoef(x, y)[0, 1])
