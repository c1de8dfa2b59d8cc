"""The parent of `grammar_worker.py`: starts it, asks it, ends it when an answer is late."""

import contextlib
import json
import os
import subprocess
import sys
import threading
import weakref
from pathlib import Path
from typing import Any

COMPILE_SECONDS = 1.0
COMPILE_BYTES = 256 * 2**20
START_SECONDS = 60.0  # Python, llguidance and the vocabulary
_WORKER = Path(__file__).with_name("grammar_worker.py")
_MAX_REASON_CHARS = 300


class Trial:
    """A running `grammar_worker.py`."""

    def __init__(self, texts: list[bytes], eos_ids: frozenset[int], limits: dict[str, Any]) -> None:
        self._process = subprocess.Popen(
            # -P: the folder of the script, with modules of ours, stays off its path
            [sys.executable, "-P", str(_WORKER), str(COMPILE_BYTES)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, "MALLOC_ARENA_MAX": "1"},  # mallinfo2 counts one
            start_new_session=True,  # Ctrl-C in a terminal is meant for the answer, not for this process
        )
        self.usable, self._late = True, False
        weakref.finalize(self, _end, self._process)
        tokens = ",".join(text.hex() for text in texts)
        if self._ask({"tokens": tokens, "eos": sorted(eos_ids), "limits": limits}, START_SECONDS) is None:
            raise RuntimeError("the process that tries grammars does not start")

    def compile(self, source: str) -> int:
        """Bytes that the compiled grammar holds. Raises ValueError, saying why, if it cannot be compiled."""
        answer = self._ask({"grammar": source}, COMPILE_SECONDS)
        if answer is None:
            raise ValueError(
                f"it takes longer than {COMPILE_SECONDS:g} seconds to compile"
                if self._late
                else f"it takes more than {COMPILE_BYTES >> 20} MiB of memory to compile, or too many references"
            )
        if "error" in answer:
            raise ValueError(reason(answer["error"]))
        return int(answer["bytes"])

    def _ask(self, request: dict[str, Any], seconds: float) -> dict[str, Any] | None:
        """The answer, or None if the process died or was killed for being late."""
        assert self._process.stdin and self._process.stdout
        self.usable = False  # until a whole answer was read: after Ctrl-C one may be left in the pipe
        timer = threading.Timer(seconds, self._kill)
        timer.start()
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        finally:
            timer.cancel()
        self.usable = line.endswith("\n") and not self._late
        return json.loads(line) if line.endswith("\n") else None

    def _kill(self) -> None:
        self._late = True
        self._process.kill()


def _end(process: "subprocess.Popen[str]") -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        with contextlib.suppress(BrokenPipeError):  # half a request may still be in the buffer
            if pipe:
                pipe.close()


def reason(message: str) -> str:
    """The telling line of llguidance's message, printable and short."""
    lines = [line.strip() for line in message.splitlines() if line.strip()] or ["unknown error"]
    line = next((line.removeprefix("error: ") for line in lines if line.startswith("error: ")), lines[0])
    if line.startswith("NoExtension"):
        line = "nothing that this vocabulary can write matches it"
    line = "".join(char if char.isprintable() else "?" for char in line)
    return line if len(line) <= _MAX_REASON_CHARS else line[:_MAX_REASON_CHARS] + "..."
