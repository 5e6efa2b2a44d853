import math
from unittest.mock import patch

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from avlens import attention
from tests.helpers import assert_equal


def unchanged(x):
    return x


def test_three_tokens_by_hand():
    # d_head 4, so scores are q.k / 2; one head.
    q = torch.tensor([[[[2.0, 0, 0, 0], [0, 2, 0, 0], [2, 2, 0, 0]]]])
    k = torch.tensor([[[[1.0, 0, 0, 0], [0, math.log(2), 0, 0], [0, math.log(3), 0, 0]]]])
    v = torch.tensor([[[[1.0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]]]])
    visible = attention.visible_keys(torch.arange(3), torch.arange(3), torch.zeros(1, dtype=torch.long))
    seen = {}
    z = attention.explicit(
        q, k, v, visible, on_scores=lambda s: seen.setdefault("s", s), on_pattern=lambda p: seen.setdefault("p", p)
    )
    inf = torch.inf
    scores = [[1, -inf, -inf], [0, math.log(2), -inf], [1, math.log(2), math.log(3)]]
    e = math.e
    pattern = [[1, 0, 0], [1 / 3, 2 / 3, 0], [e / (e + 5), 2 / (e + 5), 3 / (e + 5)]]
    assert_equal(seen["s"][0, 0], torch.tensor(scores))
    assert_equal(seen["p"][0, 0], torch.tensor(pattern))
    assert_equal(z[0, 0, :, :3], torch.tensor(pattern))


def test_a_padding_row_reads_only_itself_and_nobody_reads_it():
    visible = attention.visible_keys(torch.arange(4), torch.arange(4), torch.tensor([2, 0]))
    assert visible[0, 0].int().tolist() == [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 1, 1]]
    assert visible[1, 0].int().tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1]]


def test_keys_that_were_discarded_leave_the_rest_in_order():
    visible = attention.visible_keys(torch.tensor([5]), torch.tensor([0, 3, 5]), torch.tensor([0]))
    assert visible.tolist() == [[[[True, True, True]]]]
    visible = attention.visible_keys(torch.tensor([3, 5]), torch.tensor([0, 3, 5]), torch.tensor([0]))
    assert visible[0, 0].tolist() == [[True, True, False], [True, True, True]]


@given(
    batch=st.integers(1, 3),
    groups=st.sampled_from([1, 2, 3]),
    share=st.sampled_from([1, 2, 4]),
    past=st.integers(0, 5),
    n=st.integers(1, 7),
    seed=st.integers(0, 99),
)
def test_fused_equals_explicit_equals_chunked_equals_repeated_keys(batch, groups, share, past, n, seed):
    generator = torch.Generator().manual_seed(seed)
    q = torch.randn(batch, groups * share, n, 8, generator=generator)
    k, v = torch.randn(2, batch, groups, past + n, 8, generator=generator)
    padding = torch.randint(0, past + 1, (batch,), generator=generator)
    rows, keys = torch.arange(past, past + n), torch.arange(past + n)
    visible = attention.visible_keys(rows, keys, padding)

    repeated_k, repeated_v = k.repeat_interleave(share, 1), v.repeat_interleave(share, 1)
    scores = (q @ repeated_k.transpose(-1, -2) / math.sqrt(8)).masked_fill(~visible, -torch.inf)
    wanted = scores.softmax(-1) @ repeated_v

    edits = {"on_scores": unchanged, "on_pattern": unchanged}
    whole = attention.explicit(q, k, v, visible, **edits)
    assert_equal(attention.attention_scores(q, k, visible), scores)
    assert_equal(whole, wanted)
    for n_rows in (64, 2):
        with patch.dict(attention.CHUNK_ROWS, cpu=n_rows):
            chunks = list(attention.row_chunks(rows, keys, padding, None, q))
        assert len(chunks) == -(-n // n_rows)
        assert_equal(attention.fused_in_chunks(q, k, v, chunks), wanted)
    if past == 0:
        assert_equal(attention.fused(q, k, v, causal=True), wanted)
    parts = [
        attention.explicit(q[:, :, i : i + 2], k, v, attention.visible_keys(rows[i : i + 2], keys, padding), **edits)
        for i in range(0, n, 2)
    ]
    assert_equal(torch.cat(parts, 2), wanted)


@pytest.mark.parametrize(
    ("heads", "keys", "queries"), [(28, 500, 500), (28, 4096, 4096), (1, 1, 1), (28, 10**8, 5), (28, 10**5, 10**5)]
)
def test_a_chunk_stays_within_its_bytes_unless_it_would_have_few_rows(heads, keys, queries):
    rows = attention.chunk_rows(heads, keys, queries)
    assert 1 <= rows <= queries
    assert rows == min(queries, attention.CHUNK_LEAST) or rows * heads * keys * 4 <= attention.CHUNK_BYTES
