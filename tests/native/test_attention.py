"""Attention over pages and the lightning recurrence against their definitions, for each instruction set."""

import numpy as np
import pytest
import torch
from torch import Tensor

from octavo.ops.attention import attention_reference
from octavo.ops.linear_attention import recurrent_attention
from tests.compare import assert_same
from tests.native.kernels import PAGE, Softmaxes, lightning

pytestmark = pytest.mark.usefixtures("isa")


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def in_int8(x: Tensor) -> tuple[Tensor, Tensor]:
    """x [tokens, D] as int8 numbers and a scale for each token."""
    top = x.abs().amax(-1)
    return (x * (127 / top)[:, None]).round().to(torch.int8), top / 127


class Pages:
    """Keys and values [tokens, D] laid into pages; whatever they do not fill is NaN, or in int8 has NaN scales."""

    def __init__(self, keys: Tensor, values: Tensor, int8: bool) -> None:
        self.tokens, dim = keys.shape
        self.count = -(-self.tokens // PAGE)
        width, dtype = -(-dim // 16) * 16, np.int8 if int8 else np.float32
        fill = 99 if int8 else np.nan
        self.keys = np.full((self.count, dim, PAGE), fill, dtype)
        self.values = np.full((self.count, PAGE, width), fill, dtype)
        self.scales = np.full((self.count, 2, PAGE), np.nan, np.float32) if int8 else None
        self.exact = [keys, values]
        for token in range(self.tokens):
            page, at = divmod(token, PAGE)
            key, value = keys[token], values[token]
            if int8:
                (key, key_scale), (value, value_scale) = (in_int8(x[token : token + 1]) for x in (keys, values))
                self.scales[page, :, at] = key_scale.item(), value_scale.item()
                key, value = key[0], value[0]
            self.keys[page, :, at] = key.numpy()
            self.values[page, at] = 0
            self.values[page, at, :dim] = value.numpy()
        if int8:
            self.exact = [q.float() * scale[:, None] for q, scale in map(in_int8, (keys, values))]

    def attend(self, queries: Tensor, first: int, last: int, cuts: tuple[int, ...] = ()) -> Tensor:
        """Queries [count, D] over tokens first..last-1; each cut begins a softmax of its own, joined in order."""
        scaled = queries * queries.shape[1] ** -0.5
        parts, pages = [], range(first // PAGE, -(-last // PAGE))
        for page in pages:
            if not parts or page in cuts:
                parts.append(Softmaxes(len(queries), queries.shape[1]))
            scales = None if self.scales is None else tuple(self.scales[page])
            seen = max(first - page * PAGE, 0), min(last - page * PAGE, PAGE)
            parts[-1].attend(scaled, self.keys[page], self.values[page], *seen, scales)
        for part in parts[1:]:
            parts[0].merge(part)
        return parts[0].result()

    def reference(self, queries: Tensor, first: int, last: int) -> Tensor:
        keys, values = (x[first:last, None].double() for x in self.exact)
        rows = [attention_reference(q[None, None].double(), keys, values, [1], [last - first]) for q in queries]
        return torch.cat(rows)[:, 0].float()


@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("dim", [1, 2, 6, 8, 15, 16, 17, 20, 64, 80, 128])
def test_attention_equals_the_definition(dim, int8) -> None:
    pages = Pages(random(83, dim, seed=1), random(83, dim, seed=2), int8)
    generator = np.random.default_rng(dim)
    for count in range(1, 10):
        first, last = sorted(generator.choice(84, 2, replace=False))
        queries = random(count, dim, seed=count) * 3
        found = pages.attend(queries, first, last, cuts=(1,) if count % 2 else ())
        assert_same(found, pages.reference(queries, first, last), rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("int8", [False, True])
def test_attention_with_extreme_scores(int8) -> None:
    """Scores of 1e30 and differences that underflow: one key takes all. A key of zeros has an int8 scale of 0."""
    keys, values = random(70, 16, seed=1), random(70, 16, seed=2)
    keys[40] = 1.0
    values[40] = torch.arange(16) - 7.5
    for size in (1e3, 1e15, 1e30):
        pages = Pages(keys, values, int8)
        found = pages.attend(torch.full((3, 16), size), 0, 70, cuts=(2,))
        assert_same(found, pages.reference(torch.full((3, 16), size), 0, 70), rtol=1e-6, atol=0)
    pages = Pages(keys, values, int8)
    for array in (pages.keys, pages.values):
        array[0] = 0
    if int8:
        pages.scales[0] = 0
    for exact in pages.exact:
        exact[:32] = 0
    assert_same(pages.attend(keys[:5], 0, 70), pages.reference(keys[:5], 0, 70), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("int8", [False, True])
def test_a_query_has_the_same_bits_alone_and_among_others(int8) -> None:
    pages, queries = Pages(random(83, 20, seed=1), random(83, 20, seed=2), int8), random(11, 20)
    alone = torch.cat([pages.attend(queries[i : i + 1], 3, 80, cuts=(1,)) for i in range(11)])
    for count in range(1, 12):
        assert torch.equal(pages.attend(queries[-count:], 3, 80, cuts=(1,)), alone[-count:])


@pytest.mark.parametrize("int8", [False, True])
def test_a_nan_reaches_only_those_who_see_it(int8) -> None:
    keys, values = random(70, 20, seed=1), random(70, 20, seed=2)
    pages, queries = Pages(keys, values, int8), random(3, 20)
    expected = pages.attend(queries, 10, 60)
    for which in ("keys", "values"):
        spoilt = Pages(keys, values, int8)
        for token in (9, 60):
            if int8:
                spoilt.scales[token // PAGE, int(which == "values"), token % PAGE] = np.nan
            elif which == "keys":
                spoilt.keys[token // PAGE, :, token % PAGE] = np.nan
            else:
                spoilt.values[token // PAGE, token % PAGE] = np.nan
        assert torch.equal(spoilt.attend(queries, 10, 60), expected)
        assert spoilt.attend(queries, 9, 60).isnan().all() and spoilt.attend(queries, 10, 61).isnan().all()
    queries[1, 3] = torch.nan
    found = pages.attend(queries, 10, 60)
    assert found[1].isnan().all() and torch.equal(found[[0, 2]], expected[[0, 2]])


def test_merging_with_a_part_that_saw_nothing_changes_nothing() -> None:
    pages, queries = Pages(random(40, 20, seed=1), random(40, 20, seed=2), False), random(3, 20)
    expected = pages.attend(queries, 0, 32)
    for empty_first in (False, True):
        parts = Softmaxes(3, 20), Softmaxes(3, 20)
        parts[empty_first].attend(queries * 20**-0.5, pages.keys[0], pages.values[0], 0, 32)
        total = Softmaxes(3, 20)
        for part in parts:
            total.merge(part)
        assert torch.equal(total.result(), expected)


# ---- lightning


@pytest.mark.parametrize("width", [1, 3, 6, 8, 15, 16, 17, 20, 33, 64])
def test_lightning_equals_the_recurrence(width) -> None:
    for seed, count in enumerate((1, 2, 3, 4, 5, 8, 23)):
        q, k, v = (random(count, width, seed=3 * seed + i) for i in range(3))
        state, slope = random(width, width, seed=seed), torch.tensor([0.01 + 0.3 * seed])
        decay = (-slope).exp().item()
        out, after = lightning(q, k, v, decay, state)
        each = (x[:, None].double() for x in (q, k, v))
        expected, expected_after = recurrent_attention(
            *each, -torch.tensor([decay]).double().log(), [count], state[None, None].double()
        )
        assert_same(out, expected[:, 0].float(), rtol=1e-5, atol=1e-5)
        assert_same(after, expected_after[0, 0].float(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("width", [6, 16, 20, 33])
def test_lightning_in_any_chunks_has_the_same_bits(width) -> None:
    q, k, v = (random(23, width, seed=i) for i in range(3))
    expected, expected_after = lightning(q, k, v, 0.9, random(width, width))
    for chunks in ([1] * 23, [4, 4, 15], [3, 20], [22, 1], [5] * 4 + [3]):
        state, outs = random(width, width), []
        for part in zip(*(x.split(chunks) for x in (q, k, v)), strict=True):
            out, state = lightning(*part, 0.9, state)
            outs.append(out)
        assert torch.equal(torch.cat(outs), expected) and torch.equal(state, expected_after)
    assert expected.count_nonzero()
