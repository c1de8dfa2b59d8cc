"""Sampling by the CPU core, and by numpy where there is none."""

import pytest

from octavo.engine import draw, logprobs
from octavo.native.library import usable_library


@pytest.fixture(params=["native", "numpy"])
def draws_by(request, monkeypatch) -> None:
    """Runs a test with both."""
    if request.param == "native" and usable_library() is None:
        pytest.skip("there is no CPU core")
    if request.param == "numpy":
        for module in (logprobs, draw):
            monkeypatch.setattr(module, "usable_library", lambda: None)
