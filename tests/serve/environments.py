"""Environments of clients' own, made with pip: what they need would not go together with what the tests need."""

import json
import os
import subprocess
import venv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

SCRIPTS = Path(__file__).parent / "clients"
REQUIREMENTS = {
    "openai2": ("openai>=2,<3",),
    "openai3": ("openai>=3,<4", "langchain-openai>=1"),
    "litellm": ("litellm>=1.80", "mcp"),  # which its answers to tools import without requiring it
    "lm-eval": ("lm_eval[api]>=0.4.9", "transformers>=5"),
    "schemathesis": ("schemathesis>=4",),
}


def interpreter(name: str, folder: Path) -> Path:
    """The Python of an environment: the one of that name in the folder $OCTAVO_CLIENT_ENVS, which is made where it is
    missing; without the variable a new one in `folder`. Skips where pip cannot make it."""
    home = Path(os.environ.get("OCTAVO_CLIENT_ENVS", folder)) / name
    python = home / "bin" / "python"
    done = home / "made"
    if not done.exists():
        venv.create(home, with_pip=True)
        install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *REQUIREMENTS[name]]
        made = subprocess.run(install, capture_output=True, text=True, timeout=600)
        if made.returncode:
            pytest.skip(f"pip cannot install {', '.join(REQUIREMENTS[name])}: {made.stderr.strip()[-300:]}")
        done.touch()
    return python


def play(python: str | Path, script: str, *arguments: str, seconds: float = 240) -> Mapping[str, Any]:
    """What a client script reports, none of its cases having failed. It sees no proxy and nothing of octavo."""
    variables = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    variables |= {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    ran = subprocess.run(
        [python, SCRIPTS / script, *arguments], capture_output=True, text=True, timeout=seconds, env=variables
    )
    assert ran.stdout.strip(), ran.stderr[-3000:]
    report: dict[str, Any] = json.loads(ran.stdout.splitlines()[-1])
    assert not report["failed"], "\n".join(f"{name}: {trace}" for name, trace in report["failed"].items())
    assert ran.returncode == 0, ran.stderr[-3000:]
    return report


def cases(script: str) -> Sequence[str]:
    """The names of a script's cases."""
    lines = (SCRIPTS / script).read_text().splitlines()
    return [line.split()[1].split("(")[0] for line in lines if line.startswith("def case_")]
