"""Packed attention against its definition: windows, caches, grouped queries, block borders, gradients."""

import pytest
import torch

from octavo.ops import attention
from octavo.ops.attention import attention_reference, packed_attention
from tests.compare import assert_rms

CASES = [  # query lengths, key lengths
    ((9,), (9,)),
    ((1,), (1,)),
    ((5, 5, 5), (5, 5, 5)),
    ((7, 1, 13), (7, 1, 13)),
    ((1, 1), (17, 17)),
    ((1, 4, 6), (11, 4, 9)),
]


def inputs(queries: tuple[int, ...], keys: tuple[int, ...], dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(sum(queries) + sum(keys))
    shapes = ((sum(queries), 6, 8), (sum(keys), 3, 8), (sum(keys), 3, 8))
    return [torch.randn(shape, generator=generator, dtype=dtype).requires_grad_() for shape in shapes]


@pytest.mark.parametrize("window", [None, 1, 3, 8, 100])
@pytest.mark.parametrize(("queries", "keys"), CASES)
def test_output_and_gradients_equal_the_definition(queries, keys, window) -> None:
    fast, plain = inputs(queries, keys), inputs(queries, keys, torch.float64)
    plain = [x.detach().double().requires_grad_() for x in fast]
    out, expected = packed_attention(*fast, queries, keys, window), attention_reference(*plain, queries, keys, window)
    assert_rms(out, expected)
    weights = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    (out * weights.float()).sum().backward()
    (expected * weights).sum().backward()
    for name, mine, theirs in zip("qkv", fast, plain, strict=True):
        if theirs.grad.count_nonzero() and theirs.grad.norm() > 1e-9:  # one visible key: q and k have no gradient
            assert_rms(mine.grad, theirs.grad, what=name)
        else:
            assert mine.grad.norm() < 1e-5


@pytest.mark.parametrize("window", [None, 4])
def test_query_blocks_join_without_a_seam(window, monkeypatch) -> None:
    monkeypatch.setattr(attention, "QUERY_BLOCK", 3)
    q, k, v = inputs((10,), (14,))
    assert_rms(packed_attention(q, k, v, (10,), (14,), window), attention_reference(q, k, v, (10,), (14,), window))


def test_sequences_without_new_rows_and_empty_batches() -> None:
    q, k, v = inputs((3, 0, 2), (5, 4, 2))
    for window in (None, 2):
        expected = attention_reference(q, k, v, (3, 0, 2), (5, 4, 2), window)
        assert_rms(packed_attention(q, k, v, (3, 0, 2), (5, 4, 2), window), expected)
    nothing = torch.zeros(0, 6, 8)
    assert packed_attention(nothing, nothing, nothing, (), ()).shape == (0, 6, 8)


def test_a_window_keeps_memory_linear(monkeypatch) -> None:
    """With a window each block of queries meets only the keys it can see, not all that came before."""
    seen = []
    original = attention._sdpa
    monkeypatch.setattr(attention, "_sdpa", lambda q, k, v, **kw: seen.append(k.shape[2]) or original(q, k, v, **kw))
    monkeypatch.setattr(attention, "QUERY_BLOCK", 64)
    q, k, v = (x.detach() for x in inputs((1000,), (1000,)))
    packed_attention(q, k, v, (1000,), (1000,), window=16)
    assert max(seen) <= 64 + 16
