"""Servers as processes of their own, for what only a process can show: signals, exit statuses, the time to start."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

CLI = "import sys; from octavo.cli import main; main(sys.argv[1:])"
ROOT = Path(__file__).parents[2]


@contextmanager
def process(code: str, *arguments: str, **variables: str) -> Iterator[subprocess.Popen[str]]:
    """A Python process that runs `code`, killed in the end."""
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": path} | variables
    started = subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        cwd=ROOT,
    )
    try:
        yield started
    finally:
        started.kill()
        started.communicate()


def next_line(started: subprocess.Popen[str]) -> str:
    """The next line of its standard output, which must come."""
    assert started.stdout
    line = started.stdout.readline()
    assert line, started.stderr.read() if started.stderr else ""
    return line.strip()
