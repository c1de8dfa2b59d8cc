"""Programs that people use, against a live server: each in an environment of its own, as its users have it."""

import json
import os
import subprocess
import sys
import venv
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from octavo.engine.core import Busy
from octavo.engine.engine import Engine
from tests.serve.serving import MODEL, Puppet, says, serving

SCRIPTS = Path(__file__).parent / "clients"
REQUIREMENTS = {  # what each environment is made of
    "openai2": ("openai>=2,<3", "pydantic"),
    "openai3": ("openai>=3,<4", "pydantic", "langchain-openai"),
    "litellm": ("litellm",),
}


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
    """A server of a real model, one that breaks off in the middle of each answer, and one that is often busy."""
    breaks = Puppet(*says("half an ")[:1], RuntimeError("broken by the test"))
    busy = BusyAtFirst(*says("at ", "last"))
    for puppet in (breaks, busy):
        puppet.step(10**9)
    with serving({MODEL: engine, "breaks": breaks, "busy": busy}) as address:
        yield address


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The interpreter of an environment with a client: one of the folder $OCTAVO_CLIENT_ENVS, else a new one."""

    def make(name: str) -> Path:
        kept = os.environ.get("OCTAVO_CLIENT_ENVS")
        folder = (Path(kept) if kept else tmp_path_factory.mktemp("clients")) / name
        python = folder / "bin" / "python"
        if not python.exists():
            venv.create(folder, with_pip=True)
            install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *REQUIREMENTS[name]]
            made = subprocess.run(install, capture_output=True, text=True, timeout=600)
            if made.returncode:
                pytest.skip(f"pip cannot install {REQUIREMENTS[name]}: {made.stderr.strip()[-300:]}")
        return python

    return make


def play(python: str | Path, script: str, *arguments: str) -> Mapping[str, Any]:
    """What a client script reports. Its environment is bare: no proxy, no path to octavo."""
    bare = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    offline = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    ran = subprocess.run(
        [python, SCRIPTS / script, *arguments],
        capture_output=True, text=True, timeout=240, env=bare | offline | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert ran.stdout.strip(), ran.stderr[-3000:]
    report: dict[str, Any] = json.loads(ran.stdout.splitlines()[-1])
    assert not report["failed"], "\n".join(f"{name}: {trace}" for name, trace in report["failed"].items())
    assert ran.returncode == 0, ran.stderr[-3000:]
    return report


def cases(script: str) -> Sequence[str]:
    """The names of a script's cases."""
    lines = (SCRIPTS / script).read_text().splitlines()
    return [line.split()[1].split("(")[0] for line in lines if line.startswith("def case_")]


def test_the_installed_openai_client(odd_url: str) -> None:
    report = play(sys.executable, "openai_client.py", odd_url)
    assert report["passed"] == cases("openai_client.py") and len(report["passed"]) > 10


@pytest.mark.slow
@pytest.mark.network
@pytest.mark.parametrize(
    ("name", "script", "package", "major"),
    [
        ("openai2", "openai_client.py", "openai", "2."),
        ("openai3", "openai_client.py", "openai", "3."),
        ("openai3", "langchain_client.py", "langchain-openai", "1."),
        ("litellm", "litellm_client.py", "litellm", "1."),
    ],
)
def test_client(
    odd_url: str, environment: Callable[[str], Path], name: str, script: str, package: str, major: str
) -> None:
    report = play(environment(name), script, odd_url)
    assert report["passed"] == cases(script)
    assert report["versions"][package].startswith(major)
