"""What the client scripts have in common. They are run by the interpreter of an environment that has the client, and
nothing of octavo: `python SCRIPT URL [NAME ...]`."""

import json
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any
from unittest.mock import patch

MODEL = "lab/tiny"  # of the server's models the one that is real; what the others do: tests/serve/test_clients.py
URL = sys.argv[1].rstrip("/")
BASE = f"{URL}/v1"
QUESTION: Any = [{"role": "user", "content": "What is the capital of France?"}]


def run(script: dict[str, Any], *packages: str) -> None:
    """Run the script's functions whose names begin with case_ (those that the command line names, if it does), and
    print which passed, as JSON. The exit status is 1 if any failed."""
    cases = {name: case for name, case in script.items() if name.startswith("case_")}
    passed, failed = [], {}
    for name in sys.argv[2:] or cases:
        try:
            cases[name]()
        except Exception:  # noqa: BLE001 (the next case is to run all the same)
            failed[name] = traceback.format_exc()
        else:
            passed.append(name)
    print(json.dumps({"versions": {each: version(each) for each in packages}, "passed": passed, "failed": failed}))
    sys.exit(1 if failed else 0)


@contextmanager
def raises(kind: type[Exception], *words: str) -> Iterator[Any]:
    """The block must raise `kind`, with each of `words` in its message. Gives a namespace whose `value` it becomes."""

    class Raised:
        value: Any = None

    raised = Raised()
    try:
        yield raised
    except kind as error:
        raised.value = error
        missing = [word for word in words if word not in str(error)]
        assert not missing, f"{missing} not in: {error}"
    else:
        raise AssertionError(f"no {kind.__name__} was raised")


@contextmanager
def no_waiting() -> Iterator[list[float]]:
    """What a client would have slept between its tries, in seconds."""
    slept: list[float] = []
    with patch("time.sleep", slept.append):
        yield slept
