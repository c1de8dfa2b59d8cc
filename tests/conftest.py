"""Fixtures that every folder of tests shares, and poison for memory that nobody wrote."""

import os
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

if "PYTEST_XDIST_WORKER" in os.environ:  # one of several processes: each with threads of torch for all cores is slower
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

from octavo.checkpoint.default_model import fetch_default_model
from octavo.errors import UserError
from tests.tiny import write_tiny_model

hypothesis.settings.register_profile("octavo", deadline=None)  # a busy machine is no bug
hypothesis.settings.load_profile("octavo")
CACHE = Path("~/.cache/octavo-tests").expanduser()


@pytest.fixture(scope="session", autouse=True)
def poisoned_memory() -> Iterator[None]:
    """torch.empty gives NaN, so that a kernel that leaves a hole fails."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert torch.utils.deterministic.fill_uninitialized_memory and torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(scope="session", autouse=True)
def own_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Packs of test models stay out of the user's $OCTAVO_HOME."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OCTAVO_HOME", str(tmp_path_factory.mktemp("home")))
        yield


@pytest.fixture(scope="session")
def smollm2_gguf() -> Path:
    """SmolLM2-135M-Instruct as a GGUF file of 98 MB: $OCTAVO_TEST_GGUF, or fetched once into a cache folder."""
    if "OCTAVO_TEST_GGUF" in os.environ:
        return Path(os.environ["OCTAVO_TEST_GGUF"])
    try:
        return fetch_default_model(CACHE, print)
    except UserError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def tiny_moe_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Mixtral with tokenizer, for tests that only need some model."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    write_tiny_model(folder, "mixtral")
    return folder


@pytest.fixture(scope="session")
def tiny_dense_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama with tokenizer, to be upcycled."""
    folder = tmp_path_factory.mktemp("models") / "dense"
    write_tiny_model(folder, "llama")
    return folder
