"""One tiny model behind one server for all tests of this folder that do not need their own."""

from collections.abc import Iterator
from typing import Any

import pytest

from octavo.engine.engine import Engine
from tests.engine.engines import engine_threads
from tests.serve.browsing import Page, chromium, new_page
from tests.serve.serving import Puppet, serving, tiny_engine


@pytest.fixture(scope="package")
def engine() -> Iterator[Engine]:
    with tiny_engine() as opened:
        yield opened
    assert not engine_threads()


@pytest.fixture(scope="package")
def url(engine: Engine) -> Iterator[str]:
    with serving(engine) as address:
        yield address


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as opened:
        yield opened


@pytest.fixture
def page(browser: Any) -> Iterator[Page]:
    with new_page(browser) as opened:
        yield opened


@pytest.fixture(scope="module")
def stage() -> Iterator[tuple[Puppet, str]]:
    """A puppet and the address of its server, for all tests of a file."""
    puppet = Puppet(prompt_tokens=420, cached_tokens=400)
    with serving(puppet) as address:
        yield puppet, address
