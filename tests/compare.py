"""Comparisons that cannot pass by accident: each also asserts that zeros in place of the result would fail."""

import torch
from torch import Tensor


def assert_same(actual: Tensor, expected: Tensor, **tolerances: float) -> None:
    """torch's assert_close, which must not hold for zeros."""
    torch.testing.assert_close(actual, expected, **tolerances)
    if expected.numel() and expected.count_nonzero():
        try:
            torch.testing.assert_close(torch.zeros_like(actual), expected, **tolerances)
        except AssertionError:
            return
        raise AssertionError("the tolerance is so wide that zeros would pass")
    raise AssertionError("nothing to compare: the expected tensor is empty or all zeros")


def assert_rms(actual: Tensor, expected: Tensor, bound: float = 1e-5, what: str = "") -> None:
    """Relative RMS of the difference: |actual - expected| / |expected|. Zeros would give exactly 1."""
    assert actual.shape == expected.shape, f"{tuple(actual.shape)} against {tuple(expected.shape)}"
    assert bound < 1 and expected.count_nonzero(), "zeros would pass"
    error = (actual.double() - expected.double()).norm() / expected.double().norm()
    assert error <= bound, f"{what} relative RMS {error:.2e} is above {bound:.0e}"
