"""Causal softmax attention over packed sequences, with grouped queries and an optional sliding window.

Shapes: Q query rows and K key rows of all sequences laid end to end, Hq query heads, Hk key/value heads,
D head width. Query head h reads key/value head h // (Hq / Hk). The queries of a sequence are its *last*
rows: with a cache there are more keys than queries, without one as many.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

QUERY_BLOCK = 1024  # rows of an explicit mask at a time; bounds memory at QUERY_BLOCK x keys


def attention_reference(
    q: Tensor, k: Tensor, v: Tensor, query_lengths: Sequence[int], key_lengths: Sequence[int], window: int | None = None
) -> Tensor:
    """The definition, one query row at a time: softmax(q k^T / sqrt(D)) v over the keys a row may see.

    q: [Q, Hq, D]; k, v: [K, Hk, D]. A row at position p sees positions max(0, p - window + 1) .. p of its own
    sequence. Returns [Q, Hq, D] in q's dtype.
    """
    rows = []
    q_start = k_start = 0
    group = q.shape[1] // k.shape[1]
    for q_len, k_len in zip(query_lengths, key_lengths, strict=True):
        for row in range(q_len):
            position = k_len - q_len + row
            first = 0 if window is None else max(0, position - window + 1)
            seen = slice(k_start + first, k_start + position + 1)
            keys = k[seen].repeat_interleave(group, dim=1)
            values = v[seen].repeat_interleave(group, dim=1)
            scores = torch.einsum("hd,khd->hk", q[q_start + row], keys) * q.shape[-1] ** -0.5
            rows.append(torch.einsum("hk,khd->hd", scores.softmax(-1), values))
        q_start, k_start = q_start + q_len, k_start + k_len
    return torch.stack(rows)


def packed_attention(
    q: Tensor, k: Tensor, v: Tensor, query_lengths: Sequence[int], key_lengths: Sequence[int], window: int | None = None
) -> Tensor:
    """`attention_reference` through torch's scaled_dot_product_attention; same arguments and result.

    Sequences of one length go through a single batched call, others one by one: no work is spent on
    masked-out pairs of different documents.
    """
    if not q.shape[0]:
        return torch.zeros_like(q)
    if len(set(query_lengths)) == 1 and len(set(key_lengths)) == 1:
        batch = len(query_lengths)
        q, k, v = (x.unflatten(0, (batch, -1)).transpose(1, 2) for x in (q, k, v))
        return _causal(q, k, v, window).transpose(1, 2).flatten(0, 1)
    pieces = zip(q.split(list(query_lengths)), k.split(list(key_lengths)), v.split(list(key_lengths)), strict=True)
    return torch.cat([_one_sequence(q, k, v, window) for q, k, v in pieces])


def _one_sequence(q: Tensor, k: Tensor, v: Tensor, window: int | None) -> Tensor:
    """q: [Tq, Hq, D]; k, v: [Tk, Hk, D]."""
    q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))
    return _causal(q, k, v, window)[0].transpose(0, 1)


def _causal(q: Tensor, k: Tensor, v: Tensor, window: int | None) -> Tensor:
    """q: [B, Hq, Tq, D]; k, v: [B, Hk, Tk, D]; queries are the last Tq of Tk positions."""
    q_len, k_len = q.shape[2], k.shape[2]
    if q_len == 0:
        return q
    if window is not None and window >= k_len:
        window = None
    if window is None and q_len == 1:
        return _sdpa(q, k, v)
    if window is None and q_len == k_len:
        return _sdpa(q, k, v, causal=True)
    return torch.cat([_masked_block(q, k, v, window, start) for start in range(0, q_len, QUERY_BLOCK)], dim=2)


def _masked_block(q: Tensor, k: Tensor, v: Tensor, window: int | None, start: int) -> Tensor:
    """One block of query rows with an explicit mask, over only the keys that block can see."""
    block = q[:, :, start : start + QUERY_BLOCK]
    offset = k.shape[2] - q.shape[2] + start
    first = 0 if window is None else max(0, offset - window + 1)
    last = offset + block.shape[2]
    rows = torch.arange(offset, last, device=q.device)[:, None]
    columns = torch.arange(first, last, device=q.device)[None, :]
    visible = columns <= rows
    if window is not None:
        visible &= columns > rows - window
    return _sdpa(block, k[:, :, first:last], v[:, :, first:last], mask=visible)


def _sdpa(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, causal: bool = False) -> Tensor:
    return F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=causal, enable_gqa=q.shape[1] != k.shape[1]
    )
