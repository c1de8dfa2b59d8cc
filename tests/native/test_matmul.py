"""Quantising, packing and multiplying against ops/quantize.py, for each instruction set."""

import numpy as np
import pytest
import torch
from torch import Tensor

from octavo.native.library import GROUP
from octavo.ops.quantize import (
    LARGEST_SCALE,
    Quantized,
    dequantize,
    integers,
    quantize,
    quantize_activations,
    quantized_linear,
)
from tests.compare import assert_same
from tests.native import kernels

pytestmark = pytest.mark.usefixtures("isa")
FMAX = torch.finfo(torch.float32).max


SHAPES = np.random.default_rng(4).integers((1, 1, 1), (41, 101, 101), (30, 3)).tolist()  # rows of x, K, outputs
SHAPES += [[rows, 64, 32] for rows in (1, 2, 3, 4, 5, 7, 8, 9, 15, 16)] + [[5, 1, 1], [3, 32, 33], [3, 33, 31]]


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def any_weight(rows: int, cols: int, bits: int, seed: int = 0) -> Quantized:
    """Integers over the whole range that a file could hold, -128 and both nibbles' ends, and scales of both signs."""
    generator = torch.Generator().manual_seed(seed)
    if bits == 8:
        q = torch.randint(-128, 128, (rows, cols), generator=generator).to(torch.int8)
    else:
        q = torch.randint(0, 256, (rows, -(-cols // 2)), generator=generator).to(torch.uint8)
        if cols % 2:
            q[:, -1] = q[:, -1] & 15 | 8 << 4
    scales = torch.randn(rows, -(-cols // GROUP), generator=generator) * 0.01
    return Quantized(q, scales.half(), bits)


def bits_of(x: Tensor) -> np.ndarray:
    return x.contiguous().numpy().view(np.uint32)


def assert_product(x: Tensor, weight: Quantized, cols: int) -> None:
    """Equal to the definition but for a rounding at each group, where the machine has no fma, of the sums so far."""
    expected, actual = quantized_linear(x, weight, cols), kernels.matmul(x, weight, cols)
    q, scales = quantize_activations(x)
    steps = q.float() * scales.repeat_interleave(GROUP, -1)
    sizes = steps[:, :cols].abs().double() @ dequantize(weight, cols).abs().double().T
    assert ((actual - expected).abs() <= 1e-6 * sizes).all()
    assert not (expected.abs() <= 1e-6 * sizes).all(), "zeros would pass"


def extremes(limit: float = FMAX) -> Tensor:
    """Rows of three groups [N, 70], the last one short: limits, denormals, zeros, what is not finite."""
    x = random(17, 70)
    x[0] = limit
    x[1] = -limit
    x[2] = 0
    x[3] = 1e-40
    x[4] = 1e-36
    x[5] = 9.9e-37
    x[6, 5] = torch.nan
    x[7, 33] = torch.inf
    x[8, 69] = -torch.inf
    x[9] = -0.0
    x[10, :32] = torch.arange(-16, 16) + 0.5  # halves, beside the 127 that makes the scale 1
    x[10, 0] = 127
    x[11] = torch.tensor([127.0, -127.0]).repeat(35)
    x[12, 1:] = 0
    x[13] = random(70, seed=2) * torch.logspace(-38, 38, 70)
    x[14] = torch.nan
    x[15, 32:64] = 0
    x[16, :32] = torch.arange(32) * 0.125 - 2.0
    return x


# ---- activations


@pytest.mark.parametrize("size", [1e-30, 1e-3, 1.0, 1e30])
def test_activations_equal_the_definition_bit_for_bit(size) -> None:
    for rows, cols, _ in SHAPES:
        x = random(rows, cols, seed=cols) * size
        q, scales, sums = kernels.quantise(x)
        expected, expected_scales = quantize_activations(x)
        assert torch.equal(q, expected) and np.array_equal(bits_of(scales), bits_of(expected_scales))
        assert torch.equal(sums, expected.view(rows, -1, GROUP).sum(-1).int())
        assert q.abs().max() == 127


def test_extreme_activations() -> None:
    q, scales, sums = kernels.quantise(extremes())
    expected, expected_scales = quantize_activations(extremes())
    assert torch.equal(q, expected)
    assert torch.equal(scales.isnan(), expected_scales.isnan()) and scales.isnan().sum() == 3 + 3
    assert np.array_equal(bits_of(scales.nan_to_num()), bits_of(expected_scales.nan_to_num()))
    assert torch.equal(sums, expected.view(len(q), -1, GROUP).sum(-1).int())


# ---- weights


@pytest.mark.parametrize("bits", [4, 8])
def test_packed_rows_come_back_bit_for_bit(bits) -> None:
    for seed, (_, cols, outputs) in enumerate(SHAPES):
        weight = any_weight(outputs, cols, bits, seed)
        assert_same(kernels.unpacked(weight, cols), dequantize(weight, cols), rtol=0, atol=0)


@pytest.mark.parametrize("bits", [4, 8])
def test_every_fp16_scale_comes_back(bits) -> None:
    """All 65536 of them: subnormals, infinities, each NaN."""
    halves = torch.arange(65536).to(torch.uint16).view(torch.float16).view(-1, 64)
    q = (
        torch.ones(1024, 64 * 32, dtype=torch.int8)
        if bits == 8
        else torch.full((1024, 1024), 9 * 17, dtype=torch.uint8)
    )
    found = kernels.unpacked(Quantized(q, halves, bits), 64 * 32)[:, ::32]
    expected = halves.float()
    assert torch.equal(found.isnan(), expected.isnan()) and expected.isnan().sum() == 2046
    assert np.array_equal(bits_of(found.nan_to_num(7)), bits_of(expected.nan_to_num(7)))


# ---- products


@pytest.mark.parametrize("bits", [4, 8])
def test_products_equal_the_definition(bits) -> None:
    for seed, (rows, cols, outputs) in enumerate(SHAPES):
        assert_product(random(rows, cols, seed=seed), any_weight(outputs, cols, bits, seed), cols)


@pytest.mark.parametrize("bits", [4, 8])
def test_integers_are_multiplied_exactly_at_their_limits(bits) -> None:
    """Every limit of the weights against every sign of full activations: sums of 32 * 128 * 127 must not saturate."""
    limits = (-128, -127, -1, 0, 1, 127) if bits == 8 else (-8, -7, -1, 0, 1, 7)
    pairs = torch.tensor([(a, b) for a in limits for b in limits])
    integer = pairs.repeat(1, 32)  # [36, 64]: two full groups of pairs
    if bits == 8:
        q = integer.to(torch.int8)
    else:
        q = (integer[:, 0::2] + 8 | integer[:, 1::2] + 8 << 4).to(torch.uint8)
    weight = Quantized(q, torch.ones(36, 2, dtype=torch.float16), bits)
    assert torch.equal(integers(weight, 64).long(), integer)
    signs = torch.tensor([(a, b, c, d) for a in (-1, 1) for b in (-1, 1) for c in (-1, 1) for d in (-1, 1)])
    x = (127.0 * signs).repeat(1, 16)  # scales of 1, so that products are the integers themselves
    assert_same(kernels.matmul(x, weight, 64), (x.long() @ integer.T).float(), rtol=0, atol=0)
    assert (x.long() @ integer.T).abs().max() == 64 * 127 * -limits[0]


@pytest.mark.parametrize("bits", [4, 8])
def test_only_rows_that_are_not_finite_become_nan(bits) -> None:
    x, weight = extremes(1e34), any_weight(33, 70, bits)  # beyond that, sums overflow, where depends on the machine
    expected = quantized_linear(x, weight, 70)
    actual = kernels.matmul(x, weight, 70)
    spoilt = expected.isnan().any(1)
    assert spoilt.nonzero().flatten().tolist() == [6, 7, 8, 14]
    assert torch.equal(actual.isnan(), expected.isnan()) and actual[spoilt].isnan().all()
    assert_product(x[~spoilt], weight, 70)
    assert (actual[2:6] == 0)[[0, 1, 3]].all()


@pytest.mark.parametrize("bits", [4, 8])
def test_scales_that_leave_fp32(bits) -> None:
    """The largest fp16 scale times the largest activation's is infinite, and so are the outputs it reaches."""
    weight = any_weight(3, 64, bits)
    weight.scales[:] = LARGEST_SCALE
    x = torch.stack((torch.full((64,), FMAX), torch.full((64,), 1.0), torch.full((64,), 1e-30)))
    actual, expected = kernels.matmul(x, weight, 64), quantized_linear(x, weight, 64)
    assert not expected[0].isfinite().any() and expected[1:].isfinite().all()
    assert torch.equal(actual[0].isnan(), expected[0].isnan())
    assert torch.equal(actual[0].nan_to_num(7), expected[0].nan_to_num(7))
    assert_product(x[1:], weight, 64)


@pytest.mark.parametrize("bits", [4, 8])
def test_a_row_has_the_same_bits_alone_and_among_others(bits) -> None:
    """Also where rows are picked in any order, which is how experts get theirs; extreme rows do not spoil it."""
    generator = np.random.default_rng(0)
    x = torch.cat((random(40, 70), extremes()))
    weight = any_weight(50, 70, bits)
    alone = torch.cat([kernels.matmul(x[i : i + 1], weight, 70) for i in range(len(x))])
    assert alone.count_nonzero()
    for count in (*range(1, 18), 31, 40, len(x)):
        picked = generator.integers(0, len(x), count)
        together = kernels.matmul(x, weight, 70, picked.tolist())
        assert np.array_equal(bits_of(together), bits_of(alone[picked])), count
    assert np.array_equal(bits_of(kernels.matmul(x, weight, 70)), bits_of(alone))


# ---- bf16


def bf16_weight(rows: int, cols: int, seed: int = 0) -> Tensor:
    return random(rows, cols, seed=seed + 1).to(torch.bfloat16)


def test_exact_activations_are_filled_up_with_zeros() -> None:
    for rows, cols, _ in SHAPES:
        x = random(rows, cols)
        assert_same(kernels.exact(x), torch.nn.functional.pad(x, (0, -cols % GROUP)), rtol=0, atol=0)


def test_every_bf16_comes_back() -> None:
    """All 65536 of them, whatever their place."""
    weight = torch.arange(65536).to(torch.uint16).view(torch.bfloat16)[torch.randperm(65536)].view(-1, 64)
    found, expected = kernels.unpacked(weight, 64), weight.float()
    assert torch.equal(found.isnan(), expected.isnan()) and expected.isnan().sum() == 254
    assert np.array_equal(bits_of(found.nan_to_num(7)), bits_of(expected.nan_to_num(7)))
    for seed, (_, cols, outputs) in enumerate(SHAPES):
        weight = bf16_weight(outputs, cols, seed)
        assert_same(kernels.unpacked(weight, cols), weight.float(), rtol=0, atol=0)


def test_bf16_products() -> None:
    """Within what fp32 sums in another order may differ: 1e-6 of the sum of magnitudes."""
    for seed, (rows, cols, outputs) in enumerate(SHAPES):
        x, weight = random(rows, cols, seed=seed), bf16_weight(outputs, cols, seed)
        expected, sizes = x.double() @ weight.double().T, x.double().abs() @ weight.double().abs().T
        assert ((kernels.matmul(x, weight, cols) - expected).abs() <= 1e-6 * sizes).all()
        assert not (expected.abs() <= 1e-6 * sizes).all(), "zeros would pass"


def test_bf16_limits_and_what_is_not_finite() -> None:
    """The largest and the smallest numbers go through unrounded; NaN and infinities stay in their row."""
    x = torch.stack((torch.full((70,), FMAX / 128), torch.full((70,), 1e-38), random(70), random(70)))
    x[0, 1:], x[1, 1:], x[2, 69], x[3, 5] = 0, 0, torch.inf, torch.nan
    weight = bf16_weight(33, 70)
    weight[0, 0], weight[1, 0] = 127, 2.0**-7
    found = kernels.matmul(x, weight, 70)
    assert_same(found[:2], x[:2, :1] * weight[:, 0].float(), rtol=0, atol=0)
    assert found[2].isinf().all() and found[3].isnan().all()


def test_a_bf16_row_has_the_same_bits_alone_and_among_others() -> None:
    generator, x, weight = np.random.default_rng(0), random(40, 70), bf16_weight(50, 70)
    alone = torch.cat([kernels.matmul(x[i : i + 1], weight, 70) for i in range(len(x))])
    for count in (*range(1, 18), 31, 40):
        picked = generator.integers(0, len(x), count)
        assert np.array_equal(bits_of(kernels.matmul(x, weight, 70, picked.tolist())), bits_of(alone[picked])), count
    assert np.array_equal(bits_of(kernels.matmul(x, weight, 70)), bits_of(alone)) and alone.count_nonzero()


def test_quantised_weights_are_close_to_what_they_stand_for() -> None:
    """The whole chain against a plain product: scale, order of columns and offset cannot all be wrong alike."""
    weight, x = random(64, 100, seed=1), random(20, 100, seed=2)
    for bits, bound in ((4, 0.12), (8, 0.012)):
        actual = kernels.matmul(x, quantize(weight, bits), 100)
        error = (actual - x @ weight.T).norm() / (x @ weight.T).norm()
        assert error < bound
