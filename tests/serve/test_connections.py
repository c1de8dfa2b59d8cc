"""Connections that take their time do not keep others waiting, and are let go of in the end."""

import json
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from urllib.parse import urlsplit

import httpx
import pytest

from octavo.serve import connections
from octavo.serve.connections import allow_many_files, give_up_silent_clients
from tests.engine.engines import wait_until
from tests.serve.serving import Puppet, body, says, serving

CHAT = "/v1/chat/completions"
HEAD = b"Host: localhost\r\n"


def connect(url: str) -> socket.socket:
    place = urlsplit(url)
    return socket.create_connection((place.hostname, place.port), timeout=20)


def chat_bytes(**fields: object) -> bytes:
    content = json.dumps(body(**fields)).encode()
    return b"POST %s HTTP/1.1\r\n%sContent-Length: %d\r\n\r\n%s" % (CHAT.encode(), HEAD, len(content), content)


def seconds_of_health(url: str) -> float:
    """The longest of some answers."""
    with httpx.Client(base_url=url, timeout=20) as client:
        client.get("/health")
        times = []
        for _ in range(10):
            began = time.perf_counter()
            assert client.get("/health").status_code == 200
            times.append(time.perf_counter() - began)
    return max(times)


@pytest.fixture(scope="module", autouse=True)
def many_files() -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    allow_many_files()
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] >= min(before[1], connections.MOST_FILES)
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_the_limit_of_files_is_raised() -> None:
    code = (
        "import resource as r; from octavo.serve.connections import allow_many_files as a; "
        "hard = r.getrlimit(r.RLIMIT_NOFILE)[1]; r.setrlimit(r.RLIMIT_NOFILE, (64, hard)); a(); "
        "print(r.getrlimit(r.RLIMIT_NOFILE)[0] == min(hard, 65536))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "True\n"


@pytest.mark.parametrize(
    "pieces",
    [
        [],  # connected, and nothing more
        [b"GET /health HT"],
        [b"GET /health HTTP/1.1\r\n", *[b"X-%d: y\r\n" % number for number in range(100)]],
        [b"GET /health HTTP/1.1\r\n" + HEAD + b"\r\n", b"GET /health"],  # after a first answer
        # a body that nobody reads comes on and on
        [b"GET /health HTTP/1.1\r\n" + HEAD + b"Content-Length: 100000\r\n\r\n", *[b"x"] * 100],
    ],
)
def test_requests_that_never_end_are_cut_off(monkeypatch: pytest.MonkeyPatch, pieces: list[bytes]) -> None:
    monkeypatch.setattr(connections, "HEAD_SECONDS", 0.5)
    with serving(Puppet()) as url, connect(url) as slow:
        began = time.monotonic()
        slow.settimeout(0.1)
        for piece in [*pieces, *[b""] * 100]:
            try:
                if piece:
                    slow.sendall(piece)
                while slow.recv(10_000):
                    pass
                break
            except TimeoutError:
                continue
            except ConnectionError:
                break
        else:
            pytest.fail("it was never cut off")
        assert 0.4 < time.monotonic() - began < 5


def test_a_body_that_never_ends_is_refused() -> None:
    with serving(Puppet(), body_seconds=0.5) as url, connect(url) as slow:
        slow.sendall(b"POST %s HTTP/1.1\r\n%sContent-Length: 100\r\n\r\n{" % (CHAT.encode(), HEAD))
        answer = b""
        while part := slow.recv(10_000):
            answer += part
        head, content = answer.split(b"\r\n\r\n")
        assert head.split()[1] == b"408" and b"connection: close" in head.lower()
        assert json.loads(content)["error"]["code"] == "request_timeout"


def test_patient_clients_are_not_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither while they wait for an answer, nor between two requests."""
    monkeypatch.setattr(connections, "HEAD_SECONDS", 0.4)
    puppet = Puppet(*says("late"))
    with serving(puppet) as url, connect(url) as patient:
        for _ in range(2):
            patient.sendall(chat_bytes())
            time.sleep(1)
            puppet.step(2)
            assert b'"late"' in patient.recv(10_000)
            time.sleep(1)


@pytest.mark.parametrize("stream", [False, True])
def test_who_leaves_with_a_next_request_sent_is_noticed(stream: bool) -> None:
    puppet = Puppet(*says("a", "b"))
    with serving(puppet) as url:
        with connect(url) as leaving:
            leaving.sendall(chat_bytes(stream=stream))
            wait_until(lambda: len(puppet.under_way) == 1)
            leaving.sendall(b"GET /v1/models HTTP/1.1\r\n%s\r\n" % HEAD)
            time.sleep(0.2)
        wait_until(lambda: not puppet.under_way)


def test_requests_that_come_at_once_are_answered_one_after_the_other() -> None:
    puppet = Puppet(*says("late"))
    with serving(puppet) as url, connect(url) as client:
        get = b"GET /health HTTP/1.1\r\n%s\r\n" % HEAD
        client.sendall(chat_bytes() + get * 40)
        wait_until(lambda: len(puppet.under_way) == 1)
        puppet.step(2)
        answers = b""
        while answers.count(b"HTTP/1.1 200") < 41 or not answers.endswith(b"}"):
            answers += client.recv(100_000)
        assert answers.index(b'"late"') < answers.index(b'{"status":"ok"}')


@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize("chunked", [True, False])
def test_who_asks_for_http_2_is_answered_in_http_1(together: bool, chunked: bool) -> None:
    """As Java's HTTP client does with every request, Spring's and JetBrains' among them."""
    puppet = Puppet(*says("yes"))
    asked = b"Connection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAEAAEAAAAIA\r\nUpgrade: h2c\r\n"
    head, content = chat_bytes().replace(HEAD, HEAD + asked).split(b"\r\n\r\n")
    if chunked:
        head = head.replace(b"Content-Length: %d" % len(content), b"Transfer-Encoding: chunked")
        content = b"%x\r\n%s\r\n0\r\n\r\n" % (len(content), content)
    with serving(puppet) as url, connect(url) as client:
        for _ in range(2):
            for part in [head + b"\r\n\r\n" + content] if together else [head + b"\r\n\r\n", content[:9], content[9:]]:
                client.sendall(part)
                time.sleep(0.05)
            puppet.step(2)
            answer = client.recv(10_000)
            assert answer.startswith(b"HTTP/1.1 200") and b'"yes"' in answer
        get = b"GET /health HTTP/1.1\r\n" + HEAD
        client.sendall(2 * (get + asked + b"\r\n") + get + b"\r\n" + get + asked + b"\r\n")
        answer = b""
        while answer.count(b'{"status":"ok"}') < 4:
            answer += client.recv(10_000)
        with connect(url) as greedy:
            greedy.sendall(1000 * (get + asked + b"\r\n"))
            with suppress(ConnectionError):
                while greedy.recv(10_000):
                    pass
        client.sendall(b"CONNECT localhost:1 HTTP/1.1\r\n" + HEAD + b"\r\n")
        assert client.recv(10_000).startswith(b"HTTP/1.1 40")


def test_a_reader_that_sleeps_holds_nobody_up() -> None:
    """Far more than the buffers of two sockets hold is on its way to it."""
    puppet = Puppet(*says(*["x" * 100_000] * 200))
    with serving(puppet) as url, connect(url) as sleeper:
        sleeper.sendall(chat_bytes(stream=True))
        until = time.monotonic() + 10
        while not puppet.under_way:
            assert time.monotonic() < until
        puppet.step(201)
        time.sleep(0.3)
        puppet.step(201)
        answer = httpx.post(url + CHAT, json=body(), timeout=20)
        assert len(answer.json()["choices"][0]["message"]["content"]) == 200 * 100_000
        assert seconds_of_health(url) < 1
        received = 0
        while received < 200 * 100_000:  # what it was sent is still to be had
            received += len(sleeper.recv(1_000_000))


def test_idle_streams_do_not_slow_it() -> None:
    puppet = Puppet(*says("x"))
    with serving(puppet) as url, ExitStack() as held:
        streams = []
        for _ in range(500):
            streams.append(held.enter_context(connect(url)))
            streams[-1].sendall(chat_bytes(stream=True))
        until = time.monotonic() + 60
        while len(puppet.under_way) < 500:
            assert time.monotonic() < until, len(puppet.under_way)
            time.sleep(0.05)
        assert seconds_of_health(url) < 1
        puppet.step(1000)
        for stream in streams:
            answer = b""
            while b"[DONE]" not in answer:
                part = stream.recv(100_000)
                assert part
                answer += part


def test_idle_connections_do_not_slow_it() -> None:
    with serving(Puppet()) as url, ExitStack() as held:
        idle = [held.enter_context(connect(url)) for _ in range(2000)]
        for connection in idle:
            connection.sendall(b"GET /health HTTP/1.1\r\n" + HEAD + b"\r\n")
        for connection in idle:
            assert b"200 OK" in connection.recv(10_000)
        assert seconds_of_health(url) < 1
        idle[0].sendall(b"GET /health HTTP/1.1\r\n" + HEAD + b"\r\n")
        assert b"200 OK" in idle[0].recv(10_000)


def test_one_connection_too_many_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "MOST_CONNECTIONS", 3)
    with serving(Puppet()) as url, ExitStack() as held:
        for _ in range(3):
            held.enter_context(connect(url)).sendall(b"GET /health HTTP/1.1\r\n" + HEAD + b"\r\n")
        time.sleep(0.2)
        with connect(url) as further:
            answer = further.recv(10_000)
        assert b" 503 " in answer.splitlines()[0] and b"Retry-After: 5" in answer
        assert json.loads(answer.split(b"\r\n\r\n")[1])["error"]["code"] == "overloaded"
        held.close()
        time.sleep(0.2)
        assert httpx.get(url + "/health").status_code == 200


def test_the_kernel_gives_up_silent_clients() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        give_up_silent_clients(listener)
        with socket.create_connection(listener.getsockname()), listener.accept()[0] as accepted:
            assert accepted.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            limit = accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)
            assert limit == connections.SILENT_SECONDS * 1000


def test_a_reader_that_sleeps_for_ever_is_given_up(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """One that merely has nothing to read is not."""
    monkeypatch.setattr(connections, "SILENT_SECONDS", 1)
    puppet = Puppet(*says(*["x" * 100_000] * 200))
    with serving(puppet, log_requests=True) as url, connect(url) as sleeper, connect(url) as waiter:
        for client in (sleeper, waiter):
            client.sendall(chat_bytes(stream=True))
            time.sleep(0.3)
        puppet.step(201)
        until = time.monotonic() + 30
        while not any(CHAT in record.getMessage() for record in caplog.records):  # it is over
            assert time.monotonic() < until
            time.sleep(0.05)
        puppet.step(201)
        received = 0
        while received < 200 * 100_000:
            received += len(waiter.recv(1_000_000))


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"GET /health HTTP/1.1\r\nX: " + b"y" * 100_000, b"431"),
        (b"GET /health HTTP/1.1\r\n" + b"X: y\r\n" * 20_000, b"431"),
        (b"GET /" + b"y" * 100_000, b"431"),
        (b"nonsense\r\n\r\n", b"400"),
        (b"GET /\xff HTTP/1.1\r\n\r\n", b"400"),
    ],
)
def test_heads_that_are_no_heads(sent: bytes, status: bytes) -> None:
    with serving(Puppet()) as url, connect(url) as client:
        with suppress(ConnectionError):
            client.sendall(sent)
        answer = b""
        with suppress(ConnectionError):
            while part := client.recv(10_000):
                answer += part
        assert answer.split()[1] == status
        assert set(json.loads(answer.split(b"\r\n\r\n")[1])["error"]) == {"message", "type", "param", "code"}
        assert httpx.get(url + "/health").status_code == 200
