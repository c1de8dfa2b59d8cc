"""Kernels on single rows of floats against torch, for each instruction set."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from octavo.ops.norm import rms_norm
from tests.compare import assert_rms, assert_same
from tests.native import kernels

pytestmark = pytest.mark.usefixtures("isa")
LENGTHS = [*range(1, 20), 31, 32, 33, 47, 63, 64, 65, 100, 257]
EXACT = {"rtol": 1e-6, "atol": 1e-38}


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("size", [1e-18, 1.0, 1e15])
def test_norm(size) -> None:
    for length in LENGTHS:
        x, weight = random(length, seed=length) * size, random(length, seed=1)
        assert_same(kernels.norm(x, weight, 1e-6), rms_norm(x, weight, 1e-6), rtol=2e-6, atol=1e-38)


def test_norm_of_zeros_and_of_what_is_not_finite() -> None:
    assert torch.equal(kernels.norm(torch.zeros(33), torch.ones(33), 1e-5), torch.zeros(33))
    for bad in (torch.nan, torch.inf):
        x = torch.ones(33)
        x[32] = bad
        assert torch.equal(kernels.norm(x, torch.ones(33), 1e-5).isnan(), rms_norm(x, torch.ones(33), 1e-5).isnan())


def test_dot() -> None:
    for length in LENGTHS:
        a, b = random(length, seed=length), random(length, seed=1)
        exact = (a.double() @ b.double()).item()
        assert abs(kernels.dot(a, b) - exact) <= 1e-6 * (a.double().abs() @ b.double().abs()).item() < abs(exact) + 1
        assert kernels.dot(a, a) == pytest.approx((a.double() @ a.double()).item(), rel=1e-6)


def everywhere() -> Tensor:
    """Numbers of every size and sign, denormals, limits."""
    sizes = torch.logspace(-44, 38, 401)
    return torch.cat((-sizes, sizes, torch.linspace(-110, 110, 2003), torch.tensor([0.0, -0.0])))


def test_silu_swiglu_and_sigmoid_gate() -> None:
    x = everywhere()
    up = random(len(x))
    # below -87 the sigmoid is cut to 0, where it is 1e-38 or less
    silu, gate = F.silu(x.double()), x.double().sigmoid()
    silu, gate = silu.where(x >= -87, 0), gate.where(x >= -87, 0)
    assert_same(kernels.in_place("silu", x), silu.float(), **EXACT)
    assert_same(kernels.swiglu(x, up), (silu * up).float(), **EXACT)
    assert_same(kernels.in_place("sigmoid_gate", up, x), (gate * up).float(), **EXACT)
    assert torch.equal(kernels.in_place("silu", torch.tensor([torch.inf])), torch.tensor([torch.inf]))


def test_each_length_and_what_is_not_finite_stays_in_its_place() -> None:
    for length in LENGTHS:
        gate, up = random(length, seed=length) * 5, random(length, seed=1)
        up[length // 2] = torch.nan
        for out, expected in (
            (kernels.swiglu(gate, up), F.silu(gate) * up),
            (kernels.swiglu(up, gate), F.silu(up) * gate),
            (kernels.in_place("silu", up), F.silu(up)),
            (kernels.in_place("sigmoid_gate", gate, up), gate * up.sigmoid()),
        ):
            assert out.isnan().nonzero().tolist() == [[length // 2]]
            torch.testing.assert_close(out, expected, equal_nan=True, **EXACT)


def test_a_number_gives_the_same_bits_at_any_place() -> None:
    x, up = everywhere(), random(len(everywhere()))
    whole = kernels.swiglu(x, up), kernels.in_place("silu", x)
    for start in (1, 5, 16, 31, 100):
        parts = kernels.swiglu(x[start:], up[start:]), kernels.in_place("silu", x[start:])
        for part, of in zip(parts, whole, strict=True):
            assert np.array_equal(part.numpy().view(np.int32), of[start:].contiguous().numpy().view(np.int32))


@pytest.mark.parametrize("size", [1e-3, 1.0, 30.0, 1e30])
def test_softmax(size) -> None:
    for length in LENGTHS:
        x = random(length, seed=length) * size
        found = kernels.in_place("softmax", x)
        exact = (x - x.max()).double().softmax(-1)  # the difference is fp32's
        assert_same(found, exact.float(), rtol=1e-6, atol=2e-38)
        assert found.sum().item() == pytest.approx(1, abs=1e-6)


def test_softmax_of_infinities_and_nan() -> None:
    x = torch.tensor([-torch.inf, 3.0, 2.0, -torch.inf, 2.0])
    assert_same(kernels.in_place("softmax", x), x.softmax(-1), rtol=1e-6, atol=0)
    for bad in (torch.tensor([1.0, torch.nan, 2.0]), torch.tensor([torch.nan, 1.0]), torch.tensor([1.0, torch.inf])):
        assert kernels.in_place("softmax", bad).isnan().any() and bad.softmax(-1).isnan().any()


def test_exponentials_are_within_two_units_in_the_last_place() -> None:
    """Through a softmax of pairs (0, x): e^x / (1 + e^x), undone in float64."""
    x = torch.cat((-torch.logspace(-30, 1.94, 3000), -torch.arange(0, 88, 0.25)))
    found = torch.stack([kernels.in_place("softmax", torch.stack((torch.zeros(()), each)))[1] for each in x])
    exact = x.double().sigmoid()
    assert_rms(found, exact, 2e-7)
    assert ((found.double() - exact).abs() <= 3 * 2.0**-23 * exact + 2e-38).all()
