"""One tiny model behind one server for all tests of this folder that do not need their own."""

from collections.abc import Iterator

import pytest

from octavo.engine.generate import Generator
from tests.serve.serving import serving, tiny_generator


@pytest.fixture(scope="session")
def generator(tmp_path_factory: pytest.TempPathFactory) -> Generator:
    return tiny_generator(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="session")
def url(generator: Generator) -> Iterator[str]:
    with serving(generator) as address:
        yield address
