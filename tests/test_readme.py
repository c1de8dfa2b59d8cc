"""Whatever the README tells a reader to type is run: by .ci/run (the set-up lines) or here, on a tiny model.

The commands run from top to bottom in one scratch folder, so a later one may use what an earlier one made. Words
that stand for the reader's own things (MODEL, ...) are replaced; see `words`. A command that needs more than being
run has an entry in HOW; one that cannot be run at all needs a reason in NOT_RUN.
"""

import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
FIRST_COMMAND_BEFORE = 25
SHOWN_PORT = "8000"  # the port in the README; the test serves on a free one


class Block(NamedTuple):
    """One fenced block: its language, the line of its opening fence, its text."""

    language: str
    line: int
    text: str


def blocks(text: str) -> list[Block]:
    """The fenced blocks of a Markdown text."""
    found: list[Block] = []
    body: list[str] = []
    opened = None
    for number, line in enumerate(text.splitlines(), 1):
        if line.startswith("```"):
            if opened is None:
                opened, body = (line[3:].strip(), number), []
            else:
                found.append(Block(*opened, "\n".join(body)))
                opened = None
        elif opened is not None:
            body.append(line)
    return found


def commands(text: str) -> list[str]:
    """The commands of all bash blocks in order: comments and blank lines dropped, continued lines joined."""
    shell = "\n".join(block.text for block in blocks(text) if block.language == "bash").replace("\\\n", " ")
    stripped = (re.sub(r"(^|\s+)#\s.*", "", line).strip() for line in shell.splitlines())
    return [line for line in stripped if line]


def run_by_ci() -> list[str]:
    """The command lines that .ci/run takes from the README, as it runs them."""
    done = subprocess.run(["bash", ROOT / ".ci/run", "--commands"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def in_ci(command: str, ci: list[str]) -> bool:
    """Does .ci/run run the command: as a line or the end of one, with or without the --once that CI adds?"""
    lines = [*ci, *(line.split(" --once")[0] for line in ci)]
    return any(f"&& {line}".endswith(f"&& {command}") for line in lines)


TEXT = README.read_text(encoding="utf-8") if README.exists() else ""
COMMANDS = list(dict.fromkeys(commands(TEXT)))
PYTHON = [block for block in blocks(TEXT) if block.language == "python"]


# ---- running the commands


@dataclass
class Workspace:
    """A scratch folder with an `octavo` command, and the server that the README starts in it."""

    folder: Path
    environment: dict[str, str]
    words: dict[str, str]  # what stands in the README -> what the test puts there
    port: str
    server: subprocess.Popen[bytes] | None = None
    log: Path = field(init=False)

    def __post_init__(self) -> None:
        self.log = self.folder / "server.log"

    def fill_in(self, text: str) -> str:
        """The README's text with the test's own words and port."""
        for word, value in self.words.items():
            text = re.sub(rf"\b{re.escape(word)}\b", value, text)
        return text.replace(f":{SHOWN_PORT}", f":{self.port}")

    def run(self, command: list[str], typed: str = "") -> str:
        """Run to the end in the folder, `typed` on its standard input; returns what it printed."""
        done = subprocess.run(
            command, cwd=self.folder, env=self.environment, input=typed, capture_output=True, text=True, timeout=240
        )
        assert done.returncode == 0, f"{command} exits with {done.returncode}:\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def serve(self, command: str) -> None:
        """Start a server in the background, in place of one that runs, and wait until it answers."""
        self.stop()
        with self.log.open("wb") as log:
            # exec: the shell becomes the server, so that stop() reaches it
            started = ["bash", "-c", f"exec {command} --port {self.port}"]
            self.server = subprocess.Popen(started, cwd=self.folder, env=self.environment, stdout=log, stderr=log)
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and self.server.poll() is None:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/ready", timeout=5):
                    return
            except (urllib.error.URLError, TimeoutError, ConnectionError):  # 503 while it loads, too
                time.sleep(0.2)
        pytest.fail(f"{command} does not answer:\n{self.log.read_text()}")

    def stop(self) -> None:
        """End the server, if one runs."""
        if self.server:
            self.server.terminate()
            try:
                self.server.wait(20)
            except subprocess.TimeoutExpired:
                self.server.kill()
            self.server = None


def run_and_end(space: Workspace, command: str) -> None:
    """It ends by itself with status 0 and prints something."""
    assert space.run(["bash", "-c", command]).strip()


def chat(space: Workspace, command: str) -> None:
    """It answers one typed line, and the end of input ends it."""
    assert space.run(["bash", "-c", command], typed="hello\n").strip()


def serve(space: Workspace, command: str) -> None:
    """It serves until the workspace is closed, or the next `octavo serve`."""
    space.serve(command)


def ask(space: Workspace, command: str) -> None:
    """A curl line to the server that is running."""
    assert space.server, "the README shows curl before it starts a server"
    if not shutil.which("curl"):
        pytest.skip("no curl here")
    assert '"error"' not in space.run(["bash", "-c", command.replace("curl ", "curl -sS --fail-with-body ", 1)])


HOW = [  # the first pattern that matches the start of a command says how it is run
    (r"octavo serve\b", serve),
    (r"octavo chat\b", chat),
    (r"octavo quickstart\b", None),  # needs the network and the real model: only through .ci/run
    (r"octavo\b", run_and_end),
    (r"curl\b", ask),
]
NOT_RUN: dict[str, str] = {}  # command line -> why no test can run it


@pytest.fixture(scope="module")
def space(
    tmp_path_factory: pytest.TempPathFactory, tiny_moe_folder: Path, tiny_dense_folder: Path
) -> Iterator[Workspace]:
    folder = tmp_path_factory.mktemp("readme")
    (folder / "bin").mkdir()
    octavo = folder / "bin/octavo"  # the octavo under test, whether it is installed or not
    octavo.write_text(f'#!/bin/sh\nexec "{sys.executable}" -c "from octavo.cli import main; main()" "$@"\n')
    octavo.chmod(0o755)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    import octavo as package

    environment = {
        **os.environ,
        "PATH": f"{octavo.parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(Path(package.__file__).parents[1]),
        "OCTAVO_HOME": str(folder / "home"),
    }
    words = {"MODEL": str(tiny_moe_folder), "DENSE": str(tiny_dense_folder)}
    workspace = Workspace(folder, environment, words, port)
    yield workspace
    workspace.stop()


# ---- tests


def test_first_command_is_near_the_top() -> None:
    first = next((block.line for block in blocks(TEXT) if block.language == "bash"), None)
    assert first is not None, "README.md shows no command"
    assert first < FIRST_COMMAND_BEFORE


def test_every_block_names_its_language() -> None:
    """A block without one would be missed by the tests below."""
    assert {block.language for block in blocks(TEXT)} <= {"bash", "python", "text", "json", "toml"}


def test_ci_runs_the_set_up_lines() -> None:
    """The two lines that .ci/run takes are in the README word for word; the main job gets only --once more."""
    test_line, main_line = run_by_ci()
    assert test_line in COMMANDS
    assert main_line.split(" --once")[0] in COMMANDS


@pytest.mark.parametrize("command", COMMANDS)
def test_command(command: str, request: pytest.FixtureRequest) -> None:
    if in_ci(command, run_by_ci()):
        return
    if command in NOT_RUN:
        pytest.skip(NOT_RUN[command])
    how = next((how for pattern, how in HOW if re.match(pattern, command)), None)
    assert how, f"no test runs this README command: {command}"
    space = request.getfixturevalue("space")  # only now: the set-up lines need no model
    how(space, space.fill_in(command))


@pytest.mark.parametrize("block", PYTHON, ids=lambda block: f"line{block.line}")
def test_python_block(block: Block, space: Workspace) -> None:
    space.run([sys.executable, "-c", space.fill_in(block.text)])


# ---- the reader of the README itself

SAMPLE = """# x
```bash
# a comment
one --flag \\
    value  # why
echo "a#b"
```
```python
print(1)
```
"""


def test_blocks_and_commands() -> None:
    assert [(block.language, block.line) for block in blocks(SAMPLE)] == [("bash", 2), ("python", 8)]
    assert commands(SAMPLE) == ["one --flag      value", 'echo "a#b"']


def test_in_ci() -> None:
    ci = ["a && pip install . && octavo quickstart --once 'Why?'"]
    assert in_ci("a && pip install . && octavo quickstart", ci)
    assert in_ci("octavo quickstart", ci)
    assert in_ci("octavo quickstart --once 'Why?'", ci)
    assert not in_ci("octavo quickstart --once 'Who?'", ci)
    assert not in_ci("a && pip install .", ci)
