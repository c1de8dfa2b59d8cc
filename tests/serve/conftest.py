"""One tiny model behind one server for all tests of this folder that do not need their own."""

from collections.abc import Iterator

import pytest

from octavo.engine.engine import Engine
from tests.engine.engines import engine_threads
from tests.serve.serving import serving, tiny_engine


@pytest.fixture(scope="package")
def engine() -> Iterator[Engine]:
    with tiny_engine() as opened:
        yield opened
    assert not engine_threads()


@pytest.fixture(scope="package")
def url(engine: Engine) -> Iterator[str]:
    with serving(engine) as address:
        yield address
