"""Weights in 4 and 8 bits, activations in 8: bounds, extremes, odd widths, grids that come back, and the product."""

import pytest
import torch
from torch import Tensor

from octavo.ops.quantize import (
    GROUP,
    LARGEST_SCALE,
    Quantized,
    dequantize,
    integers,
    quantize,
    quantize_activations,
    quantized_linear,
)
from tests.compare import assert_rms, assert_same

WIDTHS = (1, 31, 32, 33, 64, 77, 160)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def there_and_back(weight: Tensor, bits: int) -> Tensor:
    return dequantize(quantize(weight, bits), weight.shape[-1])


def q4_0(weight: Tensor) -> Tensor:
    """What ggml's reference quantiser of Q4_0 stores, dequantised: [N, K] with K a multiple of 32."""
    groups = weight.unflatten(-1, (-1, GROUP))
    largest = groups.gather(-1, groups.abs().argmax(-1, keepdim=True))
    scale = largest / -8
    inverse = torch.where(scale == 0, 0, 1 / scale)
    q = (groups * inverse + 8.5).trunc().clamp(max=15) - 8
    return (q * scale.half().float()).flatten(-2)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("columns", WIDTHS)
def test_what_is_stored(bits, columns) -> None:
    weight = random(3, 5, columns)
    quantized = quantize(weight, bits)
    groups = -(-columns // GROUP)
    assert quantized.scales.dtype == torch.float16 and quantized.scales.shape == (3, 5, groups)
    if bits == 8:
        assert quantized.qweight.dtype == torch.int8 and quantized.qweight.shape == weight.shape
        expected = quantized.qweight.float()
    else:
        assert quantized.qweight.dtype == torch.uint8 and quantized.qweight.shape == (3, 5, -(-columns // 2))
        low, high = quantized.qweight & 15, quantized.qweight >> 4
        if columns % 2:
            assert (high[..., -1] == 8).all()
        expected = torch.empty(3, 5, columns)
        expected[..., 0::2] = low.float() - 8
        expected[..., 1::2] = (high.float() - 8)[..., : columns // 2]
    assert torch.equal(integers(quantized, columns).float(), expected)
    for column in range(columns):
        expected[..., column] *= quantized.scales[..., column // GROUP].float()
    assert_same(dequantize(quantized, columns), expected, rtol=0, atol=0)
    for expert in range(3):  # a stack of matrices is its matrices
        alone = quantize(weight[expert], bits)
        assert torch.equal(alone.qweight, quantized.qweight[expert])
        assert torch.equal(alone.scales, quantized.scales[expert])


@pytest.mark.parametrize("columns", WIDTHS)
def test_int8_is_off_by_half_a_step_at_most(columns) -> None:
    weight = random(40, columns) * torch.logspace(-3, 3, 40)[:, None]
    quantized = quantize(weight, 8)
    steps = quantized.scales.float().repeat_interleave(GROUP, -1)[:, :columns]
    # and by the 127 / 2048 of a step by which rounding the scale to fp16 can clip the largest value
    assert ((dequantize(quantized, columns) - weight).abs() <= 0.5001 * steps).all()
    assert quantized.qweight.int().abs().amax() == 127
    assert_rms(dequantize(quantized, columns), weight, 1e-2)


def distributions() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    normal = torch.randn(64, 256, generator=generator) * 0.02
    outliers = normal.clone()
    outliers[torch.rand(64, 256, generator=generator) < 0.01] *= 30
    uniform = torch.rand(64, 256, generator=generator)
    laplace = -uniform.sub(0.5).sign() * (1 - 2 * (uniform - 0.5).abs()).clamp_min(1e-6).log()
    return {"normal": normal, "laplace": laplace, "outliers": outliers, "one sign": uniform, "bf16": normal.bfloat16()}


@pytest.mark.parametrize(("name", "gain"), [("normal", 0.9), ("laplace", 0.93), ("outliers", 0.98), ("bf16", 0.9)])
def test_int4_is_better_than_q4_0_in_all_and_never_worse(name, gain) -> None:
    weight = distributions()[name]
    ours, theirs = ((q - weight.float()).square() for q in (there_and_back(weight, 4), q4_0(weight.float())))
    by_group = [error.unflatten(-1, (-1, GROUP)).sum(-1) for error in (ours, theirs)]
    assert (by_group[0] <= by_group[1] * (1 + 1e-6)).all()
    assert 0 < ours.sum() < gain * theirs.sum()


@pytest.mark.parametrize("name", list(distributions()))
@pytest.mark.parametrize("bits", [4, 8])
def test_quantising_again_changes_nothing(name, bits) -> None:
    once = there_and_back(distributions()[name], bits)
    assert_same(there_and_back(once, bits), once, rtol=0, atol=0)


@pytest.mark.parametrize("most", range(1, 9))
@pytest.mark.parametrize("sign", [1, -1])
def test_weights_on_a_grid_come_back_bit_for_bit(most, sign) -> None:
    generator = torch.Generator().manual_seed(most)
    scales = sign * 10 ** (torch.rand(2000, 1, generator=generator) * 11 - 7)
    scales = scales.half().float()
    q = torch.randint(-most, min(most, 7) + 1, (2000, 77), generator=generator)
    assert_same(there_and_back(q * scales, 4), q * scales, rtol=0, atol=0)


def test_results_do_not_depend_on_neighbours() -> None:
    weight = random(3000, 64)  # several chunks
    whole = quantize(weight, 4)
    for start in (0, 1023, 1024, 2999):
        alone = quantize(weight[start : start + 1], 4)
        assert torch.equal(alone.qweight, whole.qweight[start : start + 1])
        assert torch.equal(alone.scales, whole.scales[start : start + 1])


@pytest.mark.parametrize("bits", [4, 8])
def test_extremes(bits) -> None:
    limit = LARGEST_SCALE * (8 if bits == 4 else 127)
    # the largest weights there are: no scale overflows
    for weight in (torch.full((2, 64), limit), torch.full((2, 64), -limit), random(2, 64) * limit / 5):
        quantized = quantize(weight, bits)
        assert quantized.scales.isfinite().all()
        assert_rms(dequantize(quantized, 64), weight, 0.15 if bits == 4 else 1e-2)
    for bad in (limit * 1.01, -limit * 1.01, float("nan"), float("inf"), -float("inf")):
        weight = random(3, 64)
        weight[1, 40] = bad
        with pytest.raises(ValueError, match="not finite or above"):
            quantize(weight, bits)


@pytest.mark.parametrize("bits", [4, 8])
def test_zeros_and_numbers_below_fp16(bits) -> None:
    zeros = quantize(torch.zeros(2, 40), bits)
    assert not zeros.scales.any() and not zeros.scales.signbit().any() and not dequantize(zeros, 40).any()
    assert (zeros.qweight == (0x88 if bits == 4 else 0)).all()
    mixed = torch.cat((torch.zeros(1, 32), random(1, 32)), 1)
    assert quantize(mixed, bits).scales[0, 0] == 0 and there_and_back(mixed, bits)[0, :32].eq(0).all()
    # scales among fp16's subnormals: half of the smallest step, or what the bits allow; int8 does not clip
    for size in (1e-10, 1e-8, 1e-7, 1e-6, 3e-6, 1e-5, 1e-4):
        weight = random(200, 32) * size
        error = (there_and_back(weight, bits) - weight).abs().amax(-1)
        steps = (weight.abs().amax(-1) / (7 if bits == 4 else 127)).clamp_min(2.0**-24)
        assert (error <= (2.5 if bits == 4 else 1.01) * steps).all(), size
        assert (error <= 0.51 * 2.0**-24).all() or size > 1e-7
    assert quantize(torch.full((1, 32), 1e-40), bits).scales.isfinite().all()  # an fp32 subnormal


def test_other_bits_and_shapes_are_refused() -> None:
    for weight, bits in ((random(4, 32), 3), (random(32), 4)):
        with pytest.raises(ValueError, match="4 or 8 bits"):
            quantize(weight, bits)


@pytest.mark.parametrize("columns", WIDTHS)
def test_activations(columns) -> None:
    x = random(9, columns) * torch.logspace(-20, 20, 9)[:, None]
    q, scales = quantize_activations(x)
    padded = -(-columns // GROUP) * GROUP
    assert q.dtype == torch.int8 and q.shape == (9, padded) and scales.shape == (9, padded // GROUP)
    assert not q[:, columns:].any()
    for row in range(9):
        for group in range(padded // GROUP):
            values = x[row, group * GROUP : (group + 1) * GROUP]
            amax = values.abs().max()
            assert scales[row, group] == amax / 127
            expected = (values * (torch.tensor(127.0) / amax)).round().to(torch.int8)
            assert torch.equal(q[row, group * GROUP : (group + 1) * GROUP][: len(values)], expected)
            assert expected.abs().max() == 127
    back = (q.unflatten(-1, (-1, GROUP)) * scales[..., None]).flatten(-2)[:, :columns]
    for row in range(9):
        assert_rms(back[row], x[row], 1e-2)


def test_halves_go_to_even() -> None:
    x = torch.zeros(1, 32)
    x[0, :6] = torch.tensor([127.0, 0.5, 1.5, 2.5, -0.5, -1.5])
    assert quantize_activations(x)[0][0, :6].tolist() == [127, 0, 2, 2, 0, -2]


def test_activations_that_are_zero_tiny_or_not_finite() -> None:
    x = random(1, 32 * 6)
    x[0, 0:32] = 0
    x[0, 32:64] = 1e-39
    x[0, 70] = float("nan")
    x[0, 100] = float("inf")
    x[0, 130] = -3.4e38
    q, scales = quantize_activations(x)
    groups = q.unflatten(-1, (-1, GROUP))[0]
    assert scales[0, 0] == scales[0, 1] == 0 and not groups[:4].any()
    assert scales[0, 2:4].isnan().all() and scales[0, 4:].isfinite().all()
    assert groups[4, 2] == -127 and groups[4].count_nonzero() == 1 and groups[5].any()


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("columns", WIDTHS)
def test_the_product_is_that_of_what_was_stored(bits, columns) -> None:
    x, weight = random(6, columns, seed=2), random(11, columns, seed=3)
    quantized = quantize(weight, bits)
    q, scales = quantize_activations(x)
    wide = (q.double().unflatten(-1, (-1, GROUP)) * scales[..., None].double()).flatten(-2)[:, :columns]
    out = quantized_linear(x, quantized, columns)
    assert out.dtype == torch.float32
    assert_rms(out, wide @ dequantize(quantized, columns).double().T, 1e-6)
    if columns > 1:
        assert_rms(out, x @ dequantize(quantized, columns).T, 2e-2)


def test_the_product_is_a_chain_of_fused_steps() -> None:
    x, weight = random(2, 96, seed=4), random(3, 96, seed=5)
    quantized = quantize(weight, 4)
    q, scales = quantize_activations(x)
    dots = torch.einsum("ngk,ogk->nog", *(t.unflatten(-1, (-1, GROUP)).double() for t in (q, integers(quantized, 96))))
    acc = torch.zeros(2, 3)
    for group in range(3):
        factor = scales[:, None, group] * quantized.scales[None, :, group].float()  # rounded to fp32
        acc = (dots[..., group] * factor.double() + acc.double()).float()
    assert_same(quantized_linear(x, quantized, 96), acc, rtol=0, atol=0)


def test_saturation_at_every_limit_stays_exact() -> None:
    """All integers at their limits, where an int16 sum of a group would overflow."""
    for q, bits, value in ((torch.full((2, 64), 0), 4, -8), (torch.full((2, 64), 255), 4, 7),
                           (torch.full((2, 64), -127), 8, -127), (torch.full((2, 64), 127), 8, 127)):  # fmt: skip
        stored = q[:, :32].to(torch.uint8) if bits == 4 else q.to(torch.int8)
        quantized = Quantized(stored, torch.ones(2, 2, dtype=torch.float16), bits)
        for activation in (127.0, -127.0):
            out = quantized_linear(torch.full((1, 64), activation), quantized, 64)
            assert (out == 64 * activation * value).all()


def test_what_is_not_finite_comes_out_as_nan_where_it_reaches() -> None:
    x = random(3, 64)
    x[1, 5], x[2, 60] = float("nan"), float("inf")
    out = quantized_linear(x, quantize(random(4, 64, seed=1), 8), 64)
    assert out[0].isfinite().all() and out[1:].isnan().all()
