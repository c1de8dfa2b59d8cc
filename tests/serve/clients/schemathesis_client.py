"""Schemathesis: every operation of the served OpenAPI document, with bodies that fit it and bodies that do not.

`python schemathesis_client.py URL EXAMPLES`: whatever is sent, the answer is there within SECONDS, is none of the
server's failures, tells errors in OpenAI's envelope, and the next chat is answered.
"""

import collections
import json
import sys
import threading
import time
import traceback
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import requests
import schemathesis
from cases import MODEL, QUESTION, URL
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import Case, GenerationMode

EXAMPLES = int(sys.argv[2])
SECONDS = 5.0
seen: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
slowest: dict[str, float] = collections.defaultdict(float)  # seconds
session = requests.Session()


def document(mode: GenerationMode) -> Any:
    """What the server serves, and what only this model says: its name, its tokens, and that it needs one of them.
    Without these, most bodies that fit would be refused for the same reason."""
    found = session.get(f"{URL}/openapi.json", timeout=SECONDS).json()
    for schema in found["components"]["schemas"].values():
        fields = schema.get("properties", {})
        if "model" in fields:
            fields["model"] = {"enum": [MODEL]}
        if "role" in fields and mode is GenerationMode.POSITIVE:
            fields["role"]["enum"].remove("tool")  # answers a call of an earlier message, which no schema can say
        for name in ("prompt", "input"):
            if "model" in fields and name in fields:
                narrow(fields[name])
    return found


def narrow(schema: Any) -> None:
    """Texts of at least one token, token ids of this model."""
    for each in schema.get("anyOf", [schema]):
        if each.get("type") == "string":
            each["minLength"] = 1
        elif each.get("type") == "integer":
            each["maximum"] = 300
        elif each.get("type") == "array":
            each["minItems"] = 1
            narrow(each["items"])


class Clock:
    """Tells time that passed from time in which the machine stood still, as machines that are lent do."""

    def __init__(self) -> None:
        self.stood = 0.0  # seconds
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        last = time.monotonic()
        while True:
            time.sleep(0.1)
            now = time.monotonic()
            if now - last > 1:
                self.stood += now - last
            last = now

    def now(self) -> float:
        """Seconds in which it ran."""
        return time.monotonic() - self.stood


clock = Clock()


def send(request: Callable[[], Any], what: str) -> tuple[Any, float]:
    """The answer, and the seconds it took."""
    for tries_left in (1, 0):
        stood, began = clock.stood, clock.now()
        try:
            answer = request()
        except requests.RequestException as error:
            time.sleep(0.3)  # for the clock to notice
            if not tries_left or clock.stood == stood:
                raise AssertionError(f"{error}: {what}") from None
        else:
            return answer, clock.now() - began
    raise AssertionError


def check(case: Case, kind: str) -> None:
    command = case.as_curl_command()[:2000]
    answer, took = send(lambda: case.call(base_url=URL, session=session, timeout=SECONDS), command)
    slowest[case.path] = max(slowest[case.path], took)
    seen[f"{case.method} {case.path}"][f"{kind} {answer.status_code}"] += 1
    assert took < SECONDS, f"answered after {took:.1f} s: {command}"
    assert answer.status_code < 500, f"{answer.status_code} {answer.text[:300]}: {command}"
    text = answer.text if case.method != "HEAD" else ""
    if answer.status_code >= 400 and text:
        check_envelope(json.loads(text), command)
    for line in text.splitlines() if text.startswith("data: ") else ():
        said = json.loads(line[6:]) if line.startswith("data: {") else {}
        assert "error" not in said, f"{line[:300]}: {command}"
    canary(command)


def check_envelope(body: Any, command: str) -> None:
    assert set(body) == {"error"} and set(body["error"]) == {"message", "type", "param", "code"}, f"{body}: {command}"
    error = body["error"]
    assert error["message"] and isinstance(error["message"], str) and len(error["message"]) < 2000, command
    assert isinstance(error["type"], str), command
    assert all(error[name] is None or isinstance(error[name], str) for name in ("param", "code")), command


def canary(command: str) -> None:
    body = {"model": MODEL, "messages": QUESTION, "max_tokens": 1, "temperature": 0}
    answer, _ = send(
        lambda: session.post(f"{URL}/v1/chat/completions", json=body, timeout=SECONDS), f"a chat after {command}"
    )
    assert answer.status_code == 200 and answer.json()["usage"]["completion_tokens"] == 1, f"no chat after {command}"


def fuzz(operation: Any, mode: GenerationMode) -> None:
    """Values at the borders of each field first, then random ones."""
    borders = operation.schema.iter_coverage_cases(
        operation, generation_modes=[mode], generation_config=operation.schema.config.generation_for()
    )
    for case in borders:
        check(case, mode.value)
    if mode is GenerationMode.NEGATIVE and operation.method.upper() == "GET":
        return  # a path has no wrong type; other methods were among the borders

    @settings(
        max_examples=EXAMPLES, deadline=None, database=None, derandomize=True,
        suppress_health_check=list(HealthCheck), phases=[Phase.generate], report_multiple_bugs=False,
    )  # fmt: skip
    @given(operation.as_strategy(generation_mode=mode))
    def one(case: Case) -> None:
        check(case, mode.value)

    one()


def main() -> None:
    """Print what was found, as the other scripts do."""
    passed, failed = [], {}
    for mode in GenerationMode:
        for found in schemathesis.openapi.from_dict(document(mode)).get_all_operations():
            operation = found.ok()
            name = f"{operation.label} {mode.value}"
            try:
                fuzz(operation, mode)
            except Exception as error:  # noqa: BLE001 (the next operation is to be tried all the same)
                failed[name] = str(error) if isinstance(error, AssertionError) else traceback.format_exc()
            else:
                passed.append(name)
    versions = {"schemathesis": version("schemathesis")}
    print(
        json.dumps(
            {
                "versions": versions,
                "passed": passed,
                "failed": failed,
                "seen": seen,
                "slowest": slowest,
                "stood": clock.stood,
            }
        )
    )
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
