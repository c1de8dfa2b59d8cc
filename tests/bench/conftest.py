"""Parties that are only scripts."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from octavo.bench.party import Party

Fake = Callable[..., Party]


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "log"


@pytest.fixture
def fake(log: Path) -> Fake:
    def party(name: str, rates: str = "100", mode: str = "well", **options) -> Party:
        command = [sys.executable, str(Path(__file__).with_name("fake_worker.py")), name, str(log), mode, rates]
        return Party(name, command, **options)

    return party
