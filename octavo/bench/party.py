"""A process that measures: started once, asked line by line, ended whatever happens."""

import contextlib
import json
import os
import selectors
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from octavo.bench.metrics import Metric
from octavo.errors import UserError


def any_metric(_: Metric) -> bool:
    """Nothing is left out."""
    return True


@dataclass(frozen=True)
class Party:
    """Who takes part: a name, the command of its worker, what it adds to the environment, and which metrics it is
    measured on."""

    name: str
    command: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)
    measures: Callable[[Metric], bool] = any_metric


class PartyError(UserError):
    """A party could not answer: it says what a user can do about it, and `gone` whether its process has ended."""

    def __init__(self, message: str, gone: bool) -> None:
        super().__init__(message)
        self.gone = gone


class Worker:
    """A party's running process. A context manager: leaving it ends the process."""

    def __init__(self, party: Party) -> None:
        self.name, self._rest = party.name, b""
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed by end()
        try:
            self._process = subprocess.Popen(
                list(party.command),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                env={**os.environ, **party.environment},
                start_new_session=True,  # Ctrl-C in a terminal reaches us alone; we end them
            )
        except OSError as error:
            self._errors.close()
            raise PartyError(f"{self.name}: {party.command[0]} cannot be run ({error.strerror})", True) from None

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def ready(self, seconds: float) -> dict[str, Any]:
        """What the worker says of itself once it has loaded. Raises PartyError when it cannot, or is late."""
        return self._answer("loading the model", seconds)

    def ask(self, request: Mapping[str, Any], seconds: float) -> dict[str, Any]:
        """The answer to a request. Raises PartyError for an error, a crash, or none within `seconds`."""
        assert self._process.stdin
        try:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._crashed(str(request["metric"])) from None
        return self._answer(str(request["metric"]), seconds)

    def end(self) -> None:
        """Kill the process if it runs; there is nothing of it to keep."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe
            with contextlib.suppress(BrokenPipeError):  # half a request may still be in the buffer
                pipe.close()
        self._errors.close()

    def _answer(self, task: str, seconds: float) -> dict[str, Any]:
        line = self._line(seconds)
        if line is None:
            self._process.kill()
            raise PartyError(
                f"{self.name}: {task}: no answer within {seconds:g} s; leave it out of --metrics, or allow more with "
                "--timeout", True
            )  # fmt: skip
        if not line:
            raise self._crashed(task)
        try:
            answer = json.loads(line)
        except ValueError:
            self._process.kill()
            raise PartyError(f"{self.name}: {task}: its worker said {line[:100]!r}, which is no answer", True) from None
        if "error" in answer:
            raise PartyError(f"{self.name}: {task}: {answer['error']}", self._process.poll() is not None)
        return answer

    def _line(self, seconds: float) -> bytes | None:
        """The next line of the process, what there is of it if the process ends, None if it is late."""
        assert self._process.stdout
        deadline = time.monotonic() + seconds
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            while b"\n" not in self._rest:
                if not selector.select(max(deadline - time.monotonic(), 0)):
                    return None
                block = os.read(self._process.stdout.fileno(), 65536)
                if not block:
                    break
                self._rest += block
        line, _, self._rest = self._rest.partition(b"\n")
        return line

    def _crashed(self, task: str) -> PartyError:
        """With the last thing that the process had to say."""
        status = self._process.wait()
        self._errors.seek(0)
        said = self._errors.read().decode(errors="replace").strip().splitlines()
        reason = f": {said[-1][:300]}" if said else ""
        how = f"by signal {-status}" if status < 0 else f"with status {status}"
        return PartyError(f"{self.name}: {task}: the process ended {how}{reason}", True)
