"""How a worker answers: one JSON object a line. Standard library only, and no part of octavo is needed.

First comes `{"ready": true, ...}` with what the worker says of itself, or `{"error": ...}`. Each request is an
object with `metric`; its answer an object, or `{"error": one line}`, after which the worker can be asked again. It
ends when its standard input does.
"""

import contextlib
import json
import os
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any


def serve(load: "Callable[[], tuple[dict[str, Any], Callable[[dict[str, Any]], dict[str, Any]]]]") -> int:
    """Call `load`, which returns what to say of oneself and the function that answers requests; then answer them.

    Returns the exit status. Whatever else is printed on standard output meanwhile goes to standard error.
    """
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def answer(content: "dict[str, Any]") -> None:
        answers.write(json.dumps(content) + "\n")
        answers.flush()

    began = time.perf_counter()
    try:
        about, handle = load()
    except Exception as error:  # noqa: BLE001 - whatever it is, the parent is who can tell the user
        answer({"error": _one_line(error)})
        return 1
    figures = {"load_seconds": time.perf_counter() - began, "resident_bytes": _resident_bytes()}
    answer({"ready": True, **figures, **about})
    for line in sys.stdin:
        try:
            answer(handle(json.loads(line)))
        except Exception as error:  # noqa: BLE001 - the same
            answer({"error": _one_line(error)})
    return 0


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:500]


def _resident_bytes() -> "int | None":
    """Memory of this process that is in RAM; None where /proc does not say."""
    with contextlib.suppress(OSError, ValueError), open("/proc/self/status") as status:
        for line in status:
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
    return None
