import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from avlens.errors import MetricError
from avlens.metrics.agreement import agreement


def test_by_hand():
    one, other = torch.tensor([[3.0, -2.0], [1.0, 0.0]]), torch.tensor([[9.0, -1.0], [8.0, 0.5]])
    found = agreement(one, other, k=2)
    assert found.spearman == pytest.approx(1.0) and found.n == 4
    assert found.sign == pytest.approx(3 / 3 * 0.75)  # -, +, + agree; 0 and 0.5 do not
    assert found.top == 0.5  # 3, -2 against 9, 8
    swapped = agreement(torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.tensor([2.0, 1.0, 4.0, 3.0]))
    assert swapped.spearman == pytest.approx(1 - 6 * 4 / (4 * 15))
    ties = agreement(torch.tensor([1.0, 1.0, 2.0]), torch.tensor([5.0, 6.0, 7.0]))
    assert ties.spearman == pytest.approx(1.5 / math.sqrt(1.5 * 2))


@given(st.lists(st.integers(-50, 50), min_size=3, max_size=30, unique=True))
def test_what_keeps_the_order_agrees_and_what_reverses_it_disagrees(values):
    x = torch.tensor(values).double()
    assert agreement(x, x.pow(3)).spearman == pytest.approx(1)
    assert agreement(x, -x).spearman == pytest.approx(-1)
    assert agreement(x, x.pow(3)).top == 1


def test_what_is_not_known_is_left_out_or_nan():
    x = torch.tensor([1.0, torch.nan, 3.0, 2.0])
    assert agreement(x, torch.tensor([1.0, 5.0, torch.nan, 2.0])).n == 2
    assert math.isnan(agreement(torch.zeros(3), torch.rand(3)).spearman)
    nothing = agreement(torch.zeros(0), torch.zeros(0))
    assert nothing.n == 0 and math.isnan(nothing.top) and math.isnan(nothing.sign)
    with pytest.raises(MetricError, match="k >= 1"):
        agreement(torch.zeros(3), torch.zeros(3), k=0)
