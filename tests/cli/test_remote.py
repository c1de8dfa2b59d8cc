"""`octavo generate` and `octavo chat` with a URL: against octavo's own server, and a stub that plays other makes'."""

import json
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from octavo.cli import main
from octavo.cli.remote import Remote
from octavo.config import SamplingParams
from octavo.engine.engine import Engine
from octavo.errors import UsageError, UserError
from octavo.serve.keys import Keys
from tests.serve.processes import CLI, process
from tests.serve.serving import MODEL, serving, tiny_engine

GREEDY = ("--temperature", "0", "--max-new-tokens", "12")


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with tiny_engine() as opened:
        yield opened


@pytest.fixture(autouse=True)
def no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OCTAVO_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)


def octavo(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, list[str]]:
    """Exit status, standard output, and the lines of standard error."""
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    captured = capsys.readouterr()
    return int(ended.value.code or 0), captured.out, captured.err.splitlines()


class Stub:
    """A server that says what it is told, and keeps what it was asked."""

    def __init__(self, *events: str, status: int = 200, models: Any = None, **headers: str) -> None:
        self.events, self.status, self.headers = events, status, headers
        self.models = {"data": [{"id": "m", "owned_by": "somebody"}]} if models is None else models
        self.asked: list[tuple[str, dict[str, str], Any]] = []
        self.left = threading.Event()


@contextmanager
def stubbed(stub: Stub) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.answer(200, "application/json", [json.dumps(stub.models)])

        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
            stub.asked.append((self.path, dict(self.headers.items()), asked))
            kind = "text/event-stream" if stub.status == 200 else "application/json"
            self.answer(stub.status, kind, stub.events)

        def answer(self, status: int, kind: str, parts: Any) -> None:
            self.send_response(status)
            for name, value in ({"Content_Type": kind} | stub.headers).items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            try:
                for part in parts:
                    self.wfile.write(part.encode())
                    self.wfile.flush()
                    if part == ": wait\n":
                        while True:  # until the client has gone
                            time.sleep(0.02)
                            self.wfile.write(b": still here\n")
            except OSError:
                stub.left.set()

        def log_message(self, *_: Any) -> None:
            """Nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


def says(*texts: str) -> list[str]:
    chunks = [
        json.dumps({"choices": [{"delta": {"content": text}, "text": text}]}, ensure_ascii=False) for text in texts
    ]
    return [*(f"data: {chunk}\n\n" for chunk in chunks), "data: [DONE]\n\n"]


@pytest.mark.parametrize("suffix", ["", "/", "/v1", "/v1/"])
def test_our_own_server_answers_as_the_engine(capsys, engine: Engine, suffix: str) -> None:
    with serving(engine) as url:
        status, out, _ = octavo(capsys, "generate", url + suffix, "The capital", "--chat", *GREEDY)
    messages = [{"role": "user", "content": "The capital"}]
    assert (status, out) == (0, engine.complete(messages, SamplingParams(max_new_tokens=12)).text + "\n")


def test_keys_come_from_the_option_or_the_environment(capsys, engine: Engine, monkeypatch) -> None:
    with serving(engine, keys=Keys(["right"])) as url:
        ask = ("generate", url, "x", "--chat", *GREEDY)
        status, out, err = octavo(capsys, *ask)
        assert (status, out, len(err)) == (1, "", 1) and "(401" in err[0] and "--api-key" in err[0]
        assert octavo(capsys, *ask, "--api-key", "wrong")[0] == 1
        assert octavo(capsys, *ask, "--api-key", "right")[0] == 0
        monkeypatch.setenv("OPENAI_API_KEY", "right")
        assert octavo(capsys, *ask)[0] == 0
        monkeypatch.setenv("OCTAVO_API_KEY", "wrong")
        assert octavo(capsys, *ask)[0] == 1


def test_a_conversation(capsys, engine: Engine, monkeypatch) -> None:
    lines = iter(["hello", "and then?", "x " * 5000, "/new", "hello", "/exit"])
    monkeypatch.setattr("builtins.input", lambda _: next(lines))
    with serving(engine) as url:
        status, out, err = octavo(capsys, "chat", url, "--system", "Be brief.", *GREEDY)
    params, turns = SamplingParams(max_new_tokens=12), [{"role": "system", "content": "Be brief."}]
    answers = []
    for question in ("hello", "and then?"):
        turns.append({"role": "user", "content": question})
        answers.append(engine.complete(turns, params).text)
        turns.append({"role": "assistant", "content": answers[-1]})
    assert (status, out) == (0, "\n".join([*answers, answers[0]]) + "\n")
    assert any("do not fit the context" in line for line in err)


def test_sampling_is_passed_on(capsys) -> None:
    stub = Stub(*says("a", "b"))
    with stubbed(stub) as url:
        plain = octavo(capsys, "generate", url, "hi")
        assert plain[:2] == (0, "ab\n")
        octavo(capsys, "generate", url, "hi", "--chat", "--temperature", "0.5", "--top-k", "3", "--top-p", "0.9",
               "--min-p", "0.1", "--repetition-penalty", "1.1", "--presence-penalty", "0.2",
               "--frequency-penalty", "0.3", "--seed", "7", "--stop", "x", "--stop", "y", "--max-new-tokens", "9",
               "--model", "other", "--api-key", "k")  # fmt: skip
    (path, headers, asked), (chat_path, chat_headers, chat) = stub.asked
    assert path == "/v1/completions" and "Authorization" not in headers
    assert asked == {"model": "m", "prompt": "hi", "stream": True, "max_tokens": 256, "temperature": 0.0, "top_p": 1.0}
    assert chat_path == "/v1/chat/completions" and chat_headers["Authorization"] == "Bearer k"
    assert chat == {
        "model": "other", "messages": [{"role": "user", "content": "hi"}], "stream": True, "max_tokens": 9,
        "temperature": 0.5, "top_k": 3, "top_p": 0.9, "min_p": 0.1, "repetition_penalty": 1.1, "presence_penalty": 0.2,
        "frequency_penalty": 0.3, "seed": 7, "stop": ["x", "y"],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("owner", "options", "field"),
    [
        ("somebody", ("--chat", "--json-schema"), {"response_format": {
            "type": "json_schema", "json_schema": {"name": "answer", "strict": True, "schema": {"type": "null"}}}}),
        ("somebody", ("--json-schema",), None),
        ("somebody", ("--chat", "--regex", "a+"), None),
        ("llamacpp", ("--choice", "a"), None),
        ("vllm", ("--json-schema",), {"structured_outputs": {"json": {"type": "null"}}}),
        ("vllm", ("--chat", "--regex", "a+"), {"structured_outputs": {"regex": "a+"}}),
        ("octavo", ("--choice", "a", "--choice", "b"), {"structured_outputs": {"choice": ["a", "b"]}}),
    ],
)  # fmt: skip
def test_grammars_go_where_they_are_held(capsys, tmp_path, owner: str, options: tuple[str, ...], field: Any) -> None:
    schema = tmp_path / "schema.json"
    schema.write_text('{"type": "null"}')
    given = [part for option in options for part in ((option, str(schema)) if option == "--json-schema" else (option,))]
    stub = Stub(*says("x"), models={"data": [{"id": "m", "owned_by": owner}]})
    with stubbed(stub) as url:
        status, out, err = octavo(capsys, "generate", url, "hi", *given)
    if field is None:
        assert (status, out, stub.asked) == (2, "", []) and "is not known to hold answers" in err[-1]
    else:
        assert status == 0 and field.items() <= stub.asked[0][2].items()


def test_odd_streams_are_read(capsys) -> None:
    parts = [
        ": comment\n\n", "event: message\r\n", 'data:{"choices":[{"text":"a\u2028b\\n"}]}\r\n\r\n',
        'data: {"choices": []}\n\n', 'data: {"choices":[{"delta":{"content":null}}],"usage":null}\n\nda',
        'ta: {"choices":[{"te', 'xt":"c"}]}\n\n', 'data: {"usage": {}}', "\n\n",
    ]  # fmt: skip
    with stubbed(Stub(*parts)) as url:
        assert octavo(capsys, "generate", url, "hi")[:2] == (0, "a\u2028b\nc\n")


@pytest.mark.parametrize(
    ("stub", "status", "words"),
    [
        (Stub('{"error": {"message": "no such model x"}}', status=404), 1, ("(404)", "no such model x")),
        (Stub('{"error": {"message": "full"}}', status=503, Retry_After="7"), 1, ("busy (503: full)", "in 7 s")),
        (Stub('{"detail": "slow down"}', status=429), 1, ("(429: slow down)", "later")),
        (Stub("<html>", status=502), 1, ("(502): no reason given",)),
        (Stub('{"error": "Unauthorized"}', status=401), 1, ("without a key (401: Unauthorized)", "--api-key")),
        (Stub(status=307, Location="http://x.example/"), 1, ("has moved to http://x.example/",)),
        (Stub(*says("a")[:1], 'data: {"error": {"message": "engine died"}}\n\n'), 1, ("broke off", "engine died")),
        (Stub("data: [1]\n\n"), 1, ("no JSON object",)),
        (Stub("x", Content_Type="text/html"), 1, ("no stream of events",)),
        (Stub(models={"data": []}), 1, ("has these models: none", "--model")),
        (Stub(models={"data": [{"id": "a"}, {"id": "b"}]}), 1, ("a, b", "--model")),
        (Stub(models=["x"]), 1, ("no list of models",)),
        (Stub(models={"data": [1]}), 1, ("no list of models",)),
    ],
)
def test_refusals_are_one_clear_line(capsys, stub: Stub, status: int, words: tuple[str, ...]) -> None:
    with stubbed(stub) as url:
        code, _, err = octavo(capsys, "generate", url, "hi")
    assert code == status and len(err) == 1 and all(word in err[0] for word in words), err


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (("generate", "http://127.0.0.1:9", "hi"), 1, ("cannot be reached", "is a server running")),
        (("generate", "http://", "hi"), 2, ("http://HOST:PORT",)),
        (("generate", "http://h/v1?x=1", "hi"), 2, ("http://HOST:PORT",)),
        (("generate", "http://h:99999999/", "hi"), 2, ("http://h:99999999",)),
        (("generate", "http://h", "hi", "--quant", "int4"), 2, ("--quant", "http://h")),
        (("generate", "localhost:8000", "hi"), 2, ("give http://localhost:8000",)),
        (("chat", "http://h", "--context", "5"), 2, ("--context",)),
        (("generate", "http://h", "hi", "--api-key", "é"), 2, ("--api-key",)),
        (("generate", "folder", "hi", "--api-key", "x"), 2, ("--api-key", "at a URL")),
        (("chat", "folder", "--model", "x"), 2, ("--model", "at a URL")),
    ],
)
def test_mistakes_are_one_clear_line(capsys, arguments: tuple[str, ...], status: int, words: tuple[str, ...]) -> None:
    code, out, err = octavo(capsys, *arguments)
    assert (code, out, len(err)) == (status, "", 1) and all(word in err[0] for word in words), err


@pytest.mark.parametrize("arguments", [("generate", "{}", "hi"), ("chat", "{}")])
def test_what_went_wrong_begins_its_own_line(capsys, monkeypatch, arguments: tuple[str, ...]) -> None:
    lines = iter(["hi", "/exit"])
    monkeypatch.setattr("builtins.input", lambda _: next(lines))
    with stubbed(Stub(says("a")[0], 'data: {"error": {"message": "engine died"}}\n\n')) as url:
        _, out, err = octavo(capsys, *(argument.format(url) for argument in arguments))
    assert out == "a\n" and "engine died" in err[-1]


def test_closing_an_answer_ends_it_there() -> None:
    stub = Stub(*says("a")[:1], ": wait\n")
    with stubbed(stub) as url, Remote(url) as remote:
        texts = remote.chat([{"role": "user", "content": "x"}], SamplingParams())
        assert next(texts) == "a"
        assert not stub.left.is_set()
        texts.close()
        assert stub.left.wait(5)


def test_ctrl_c_ends_generate_and_the_answer() -> None:
    stub = Stub(*says("half")[:1], ": wait\n")
    with stubbed(stub) as url, process(CLI, "generate", url, "x") as client:
        assert client.stdout and client.stdout.read(4) == "half"
        client.send_signal(signal.SIGINT)
        assert client.wait(10) == 130
        assert stub.left.wait(5)


def test_ctrl_c_in_a_chat_keeps_what_came(capsys, monkeypatch) -> None:
    stub = Stub(*says("half")[:1], ": wait\n")
    lines = iter(["first", "second", "/exit"])
    monkeypatch.setattr("builtins.input", lambda _: next(lines))
    original = Remote.chat

    def interrupted(*arguments: Any) -> Iterator[str]:
        texts = original(*arguments)
        yield next(texts)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Remote, "chat", interrupted)
    with stubbed(stub) as url:
        status, out, _ = octavo(capsys, "chat", url)
    assert (status, out) == (0, "half\nhalf\n")
    assert [turn["role"] for turn in stub.asked[1][2]["messages"]] == ["user", "assistant", "user"]


def test_a_remote_is_told_apart() -> None:
    for bad in ("http:///x", "https://h/#x"):
        with pytest.raises(UsageError):
            Remote(bad)
    with pytest.raises(UserError, match="no answer|cannot be reached"):
        Remote("http://127.0.0.1:1", model=MODEL)
