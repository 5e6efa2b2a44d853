"""Attention as pure functions: fused, explicit, and explicit in chunks of query rows.

With q, k, v split into heads, and g = heads / key-value heads,

    scores[h, i, j] = scale * q[h, i] . k[h // g, j],  -inf where i may not read j; scale is 1 / sqrt(d_head) unless given
    pattern = softmax_j(scores),   z[h, i] = sum_j pattern[h, i, j] v[h // g, j]

The heads that share a key are laid side by side as more query rows, so k and v are never copied. All functions
take heads second: `[batch, head, pos, d_head]`.
"""

from collections.abc import Callable, Iterable, Iterator

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

CHUNK_BYTES = 4 * 2**20
"""How large the scores of one chunk of query rows may be, in fp32: what is still near when it is read again."""

CHUNK_LEAST = 32
"""How many rows a chunk has at least on a CPU: products of fewer are slow, however many keys they read."""

DEVICE_CHUNKS = 32
"""How many such chunks other devices take at once, which are kept busy by large ones only."""

CHUNK_ROWS = {"cpu": 64}
"""How many query rows the fused kernel takes at once where some of the keys are hidden: keys after the last of them cost
nothing then. Kernels of other devices need more rows to be busy."""

Edit = Callable[[Tensor], Tensor]


def fused(
    q: Float[Tensor, "batch head query_pos d_head"],
    k: Float[Tensor, "batch key_value_head key_pos d_head"],
    v: Float[Tensor, "batch key_value_head key_pos d_head"],
    *,
    causal: bool,
    scale: float | None = None,
) -> Float[Tensor, "batch head query_pos d_head"]:
    """Attend by torch's fused kernel, which never holds the pattern."""
    return F.scaled_dot_product_attention(q, k, v, is_causal=causal, scale=scale, enable_gqa=q.shape[1] != k.shape[1])


def fused_in_chunks(
    q: Float[Tensor, "batch head query_pos d_head"],
    k: Float[Tensor, "batch key_value_head key_pos d_head"],
    v: Float[Tensor, "batch key_value_head key_pos d_head"],
    chunks: Iterable[tuple[int, Float[Tensor, "#batch 1 _chunk _seen"]]],
    *,
    scale: float | None = None,
) -> Float[Tensor, "batch head query_pos d_head"]:
    """The same for rows and keys at any ascending positions, some rows at a time, as `row_chunks` cuts them."""
    parts, start = [], 0
    for seen, mask in chunks:
        rows = q[:, :, start : start + mask.shape[2]]
        parts.append(F.scaled_dot_product_attention(
            rows, k[:, :, :seen], v[:, :, :seen], attn_mask=mask, scale=scale, enable_gqa=q.shape[1] != k.shape[1]
        ))  # fmt: skip
        start += mask.shape[2]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)


def row_chunks(
    query_index: Int[Tensor, " query_pos"],
    key_index: Int[Tensor, " key_pos"],
    padding: Int[Tensor, " batch"],
    window: int | None,
    like: Tensor,
) -> Iterator[tuple[int, Float[Tensor, "#batch 1 _chunk _seen"]]]:
    """Of each chunk of query rows: how many keys it may see, and what is added to its scores, 0 or -inf.

    Args:
        query_index: Tensor positions of the rows.
        key_index: Those of the keys.
        padding: Left padding of each row of the batch.
        window: How many of the last positions are read; None for all.
        like: A tensor whose type and device the masks have.
    """
    keys, padding = key_index.to(like.device), padding.to(like.device)
    for index in query_index.split(CHUNK_ROWS.get(like.device.type, 1024)):
        seen = int(torch.searchsorted(key_index, index[-1:], right=True).sum())
        rows = index.to(like.device)
        visible = visible_keys(rows, keys[:seen], padding)
        if window is not None:
            visible = within(visible, rows, keys[:seen], window)
        yield seen, like.new_zeros(visible.shape).masked_fill_(~visible, -torch.inf)


def explicit(
    q: Float[Tensor, "batch head query_pos d_head"],
    k: Float[Tensor, "batch key_value_head key_pos d_head"],
    v: Float[Tensor, "batch key_value_head key_pos d_head"],
    visible: Bool[Tensor, "#batch 1 query_pos key_pos"],
    *,
    on_scores: Edit,
    on_pattern: Edit,
    scale: float | None = None,
    clear: int = 0,
) -> Float[Tensor, "batch head query_pos d_head"]:
    """Attend by way of the scores and the pattern, each handed to its edit on the way; every row sees the first `clear` keys."""
    scores = on_scores(attention_scores(q, k, visible, scale, clear))
    pattern = on_pattern(scores.softmax(-1, dtype=torch.float32).to(q.dtype))
    groups = pattern.unflatten(1, (k.shape[1], -1)).flatten(2, 3)
    return (groups @ v).unflatten(2, (q.shape[1] // k.shape[1], q.shape[2])).flatten(1, 2)


def attention_scores(
    q: Float[Tensor, "batch head query_pos d_head"],
    k: Float[Tensor, "batch key_value_head key_pos d_head"],
    visible: Bool[Tensor, "#batch 1 query_pos key_pos"],
    scale: float | None = None,
    clear: int = 0,
) -> Float[Tensor, "batch head query_pos key_pos"]:
    """Scaled scores, -inf where a key is not visible; the first `clear` of them are, to every row."""
    groups = q.unflatten(1, (k.shape[1], -1)).flatten(2, 3)
    scores = (groups @ k.transpose(-1, -2)).unflatten(2, (q.shape[1] // k.shape[1], q.shape[2])).flatten(1, 2)
    # In place: nothing else holds what the product made.
    scores.mul_(q.shape[-1] ** -0.5 if scale is None else scale)[..., clear:].masked_fill_(
        ~visible[..., clear:], -torch.inf
    )
    return scores


def visible_keys(
    query_index: Int[Tensor, " query_pos"], key_index: Int[Tensor, " key_pos"], padding: Int[Tensor, " batch"]
) -> Bool[Tensor, "#batch 1 query_pos key_pos"]:
    """Which keys each query may read: those not after it and not padding; a padding row reads only itself."""
    q, k, pad = query_index[None, :, None], key_index[None, None, :], padding[:, None, None]
    seen = (k <= q) & ((k >= pad) | (k == q)) if bool(padding.any()) else (k <= q)
    return seen[:, None]


def within(
    visible: Bool[Tensor, "#batch 1 query_pos key_pos"],
    query_index: Int[Tensor, " query_pos"],
    key_index: Int[Tensor, " key_pos"],
    window: int,
) -> Bool[Tensor, "#batch 1 query_pos key_pos"]:
    """Of the visible keys, the last `window`, the query's own included."""
    return visible & (key_index[None, :] > query_index[:, None] - window).to(visible.device)


def chunk_rows(n_heads: int, n_keys: int, n_queries: int, device: str = "cpu") -> int:
    """How many query rows to compute at once, so that their scores stay within `CHUNK_BYTES`, or are few rows."""
    many, least = (1, CHUNK_LEAST) if device == "cpu" else (DEVICE_CHUNKS, 1)
    return min(n_queries, max(least, many * CHUNK_BYTES // (4 * n_heads * n_keys)))
