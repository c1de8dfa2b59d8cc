"""Programs that people use, against a live server: each in an environment of its own, as its users have it."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from octavo.engine.core import Busy
from octavo.engine.engine import Engine
from octavo.serve.openapi import document
from octavo.serve.options import ServeOptions
from tests.serve.environments import cases, interpreter, play
from tests.serve.serving import MODEL, Puppet, says, serving, tiny_engine

CALL = '<tool_call>\n{{"name": "weather", "arguments": {{"city": "{}"}}}}\n</tool_call>'


class BusyAtFirst(Puppet):
    """Refuses two of three requests."""

    calls = 0

    def submit_all(self, *given: Any) -> Any:
        self.calls += 1
        if self.calls % 3:
            raise Busy("64 requests wait")
        return super().submit_all(*given)


@pytest.fixture(scope="module")
def odd_url(engine: Engine) -> Iterator[str]:
    """A server of a real model, one that breaks off in the middle of each answer, one that is often busy, and one that
    calls two functions."""
    breaks = Puppet(*says("half an ")[:1], RuntimeError("broken by the test"))
    busy = BusyAtFirst(*says("at ", "last"))
    calls = f"Let me see. {CALL.format('Paris')}\n{CALL.format('Rome')}"
    caller = Puppet(*says(*(calls[at : at + 7] for at in range(0, len(calls), 7))))
    for puppet in (breaks, busy, caller):
        puppet.step(10**9)
    models = {MODEL: engine, "breaks": breaks, "busy": busy, "caller": caller}
    with serving(models, stream_interval=ServeOptions.stream_interval) as address:  # as users have it
        yield address


@pytest.fixture(scope="session")
def environments(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("clients")


def test_the_installed_openai_client(odd_url: str) -> None:
    report = play(sys.executable, "openai_client.py", odd_url)
    assert report["passed"] == cases("openai_client.py") and len(report["passed"]) > 10


@pytest.mark.slow
@pytest.mark.network
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("name", "script", "package", "major"),
    [
        ("openai2", "openai_client.py", "openai", "2."),
        ("openai3", "openai_client.py", "openai", "3."),
        ("openai3", "langchain_client.py", "langchain-openai", "1."),
        ("litellm", "litellm_client.py", "litellm", "1."),
    ],
)
def test_client(odd_url: str, environments: Path, name: str, script: str, package: str, major: str) -> None:
    report = play(interpreter(name, environments), script, odd_url)
    assert report["passed"] == cases(script)
    assert report["versions"][package].startswith(major)


@pytest.mark.slow
@pytest.mark.network
@pytest.mark.timeout(900)
def test_schemathesis(environments: Path) -> None:
    """A context of 96 tokens: whatever is asked for, the answer is soon there."""
    python = interpreter("schemathesis", environments)
    with tiny_engine(context=96) as engine, serving(engine) as url:
        report = play(python, "schemathesis_client.py", url, "50", seconds=800)
    operations = [path for paths in document()["paths"].values() for path in paths]
    tried = {operation: sum(counts.values()) for operation, counts in report["seen"].items()}
    assert len(report["passed"]) == 2 * len(operations) > 15
    assert min(tried[f"POST {path}"] for path in ("/v1/chat/completions", "/v1/completions", "/v1/embeddings")) > 100
    assert report["seen"]["POST /v1/chat/completions"]["positive 200"] > 50
    assert report["seen"]["POST /v1/completions"]["positive 200"] > 50
