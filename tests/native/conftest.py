"""Every test of the kernels runs once for each instruction set of the machine."""

from collections.abc import Iterator

import pytest

from tests.native.kernels import isas, using


@pytest.fixture(params=isas())
def isa(request) -> Iterator[str]:
    with using(request.param):
        yield request.param
