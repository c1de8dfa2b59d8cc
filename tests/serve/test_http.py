"""What is below the official client: errors in their envelope, bodies that are too long, callers that are foreign."""

import http.client
import json
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from octavo.engine.engine import Engine
from octavo.errors import UsageError, UserError
from octavo.serve.guard import is_loopback
from octavo.serve.options import ServeOptions
from octavo.serve.page import PAGE_PATHS
from octavo.serve.server import listen, run
from tests.serve.serving import MODEL, Puppet, body, says, serving

CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def http_client(url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=url, timeout=30) as client:
        yield client


def error_of(response: httpx.Response) -> dict[str, Any]:
    error = response.json()["error"]
    assert set(response.json()) == {"error"} and set(error) == {"message", "type", "param", "code"}
    assert isinstance(error["message"], str) and error["message"]
    assert response.headers["x-content-type-options"] == "nosniff"
    return error


@pytest.mark.parametrize(
    ("content", "status", "named"),
    [
        (b"{", 400, "JSON"),
        (b"", 400, "JSON"),
        (json.dumps(body(temperature="hot")).encode(), 400, "temperature"),
        (json.dumps(body(echo=True)).encode(), 400, "echo is true"),
        (json.dumps(body(model="other")).encode(), 404, "other"),
        (json.dumps({"messages": []}).encode(), 400, "model"),
        (json.dumps(body(max_tokens=10**6)).encode(), 400, "do not fit the context"),
        (json.dumps(body("word " * 20_000)).encode(), 400, "do not fit the context"),
        (json.dumps(body() | {"messages": [{"role": "user"}] * 9_000}).encode(), 400, "do not fit the context"),
        (json.dumps(body(stream=True, max_tokens=10**6)).encode(), 400, "do not fit the context"),
    ],
)
def test_bad_requests(http_client: httpx.Client, content: bytes, status: int, named: str) -> None:
    response = http_client.post(CHAT, content=content)
    assert response.status_code == status
    assert named in error_of(response)["message"]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nothing", 404),
        ("POST", "/nothing", 404),
        ("POST", CHAT + "/", 404),
        ("GET", "/docs", 404),
        ("GET", "/../server.py", 404),
        ("GET", "/web/index.html", 404),
        ("GET", "/v1/models/other", 404),
        ("GET", CHAT, 405),
        ("DELETE", "/v1/models", 405),
        ("OPTIONS", CHAT, 405),
    ],
)
def test_routes_that_are_not_there(http_client: httpx.Client, method: str, path: str, status: int) -> None:
    response = http_client.request(method, path)
    assert response.status_code == status
    assert error_of(response)["type"] == "invalid_request_error"
    assert status != 405 or "allow" in response.headers


def test_what_is_there_instead(http_client: httpx.Client) -> None:
    assert error_of(http_client.post("/chat/completions"))["message"].startswith("there is no '/chat/completions' here")
    assert error_of(http_client.get(CHAT))["message"] == f"'{CHAT}' takes POST, not GET"
    assert "'box.lan:1'" in error_of(http_client.get("/", headers={"Host": "box.lan:1"}))["message"]


@pytest.mark.parametrize("chunked", [False, True])
def test_long_bodies_are_refused_unread(http_client: httpx.Client, chunked: bool) -> None:
    long = b" " * (ServeOptions.max_body_bytes + 1)
    response = http_client.post(CHAT, content=iter([long[:1000], long[1000:]]) if chunked else long)
    assert response.status_code == 413
    assert error_of(response)["code"] == "request_too_large"

    fits = json.dumps(body(max_tokens=1)).encode().ljust(ServeOptions.max_body_bytes)
    assert http_client.post(CHAT, content=iter([fits]) if chunked else fits).status_code == 200


def test_an_announced_long_body_is_refused_before_it_comes(url: str) -> None:
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=10)
    connection.putrequest("POST", CHAT)
    connection.putheader("Content-Length", str(10**12))
    connection.endheaders()
    assert connection.getresponse().status == 413
    connection.close()


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:9", "[::1]:8000", "LOCALHOST:1"])
def test_own_names(http_client: httpx.Client, host: str) -> None:
    assert http_client.get("/health", headers={"Host": host}).json() == {"status": "ok"}
    response = http_client.post(CHAT, json=body(max_tokens=1), headers={"Host": host, "Origin": f"http://{host}"})
    assert response.status_code == 200


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "localhost.evil.example:80", "10.0.0.1",
                                  "x@localhost", "localhost/x", "", "[::1", "0.0.0.0"])  # fmt: skip
def test_foreign_hosts_are_refused(http_client: httpx.Client, host: str) -> None:
    for path in ("/", "/health", "/v1/models"):
        response = http_client.get(path, headers={"Host": host})
        assert response.status_code == 403
        assert error_of(response)["code"] == "foreign_host"


def test_one_host_is_needed(url: str) -> None:
    for lines in (b"", b"Host: localhost\r\nHost: localhost\r\n"):
        with socket.create_connection((urlsplit(url).hostname, urlsplit(url).port)) as connection:
            connection.sendall(b"GET /health HTTP/1.1\r\nConnection: close\r\n" + lines + b"\r\n")
            assert connection.recv(100).split()[1] in (b"400", b"403")


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://localhost:1", "file://", "http://127.0.0.1"])
def test_foreign_origins_are_refused(http_client: httpx.Client, origin: str) -> None:
    # what a form or a fetch without preflight of a foreign page sends
    response = http_client.post(CHAT, content=json.dumps(body(max_tokens=1)), headers={"Origin": origin})
    assert response.status_code == 403
    assert error_of(response)["code"] == "foreign_origin"
    assert not [name for name in response.headers if name.startswith("access-control")]


def test_no_answer_allows_other_origins(http_client: httpx.Client) -> None:
    preflight = {"Origin": "http://evil.example", "Access-Control-Request-Method": "POST"}
    for response in (http_client.options(CHAT, headers=preflight), http_client.get("/v1/models", headers=preflight)):
        assert not [name for name in response.headers if name.startswith("access-control")]


def test_page(http_client: httpx.Client) -> None:
    kinds = {".js": "text/javascript", ".css": "text/css", "": "text/html"}
    assert {"/", "/web/chat.js", "/web/page.css"} <= PAGE_PATHS
    for path in PAGE_PATHS:
        response = http_client.get(path)
        assert response.status_code == 200
        assert response.headers["content-type"].split(";")[0] == kinds[Path(path).suffix]
        policy = response.headers["content-security-policy"]
        assert "default-src 'none'" in policy and "script-src 'self'" in policy and "unsafe" not in policy
        assert response.headers["x-content-type-options"] == "nosniff"
        assert "http://" not in response.text.replace("http://www.w3.org/2000/svg", "")
        assert "https://" not in response.text
        assert not re.search(
            r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function", response.text
        )
    assert http_client.head("/").status_code == 200


def test_health_and_models(http_client: httpx.Client) -> None:
    assert http_client.get("/health").json() == {"status": "ok"}
    assert [card["id"] for card in http_client.get("/v1/models").json()["data"]] == [MODEL]


def test_stream_format(http_client: httpx.Client) -> None:
    with http_client.stream("POST", CHAT, json=body(max_tokens=4, stream=True)) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        *events, done, end = response.read().decode().split("\n\n")
    assert (done, end) == ("data: [DONE]", "")
    chunks = [json.loads(event.removeprefix("data: ")) for event in events]
    assert all(chunk["object"] == "chat.completion.chunk" and chunk["usage"] is None for chunk in chunks)
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks][-1] == "length"


def test_events_are_ascii() -> None:
    """Clients that cut lines as Python's splitlines does must not find a line end inside an answer."""
    puppet = Puppet(*says("a\u2028b\x85c\x0b"))
    puppet.step(10)
    with serving(puppet) as url, httpx.stream("POST", url + CHAT, json=body(stream=True)) as response:
        events = [json.loads(line[6:]) for line in response.iter_lines() if line.startswith("data: {")]
    assert events[1]["choices"][0]["delta"]["content"] == "a\u2028b\x85c\x0b"


def test_addresses() -> None:
    assert all(map(is_loopback, ("127.0.0.1", "127.8.9.10", "::1", "localhost")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "192.168.1.2", "example.com", "localhost.example.com", "")))


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.2", "example.com"])
def test_only_loopback_is_served(engine: Engine, host: str) -> None:
    with pytest.raises(UsageError, match="--host"):
        listen(host, 0)


def test_a_port_that_is_taken(engine: Engine) -> None:
    with listen("127.0.0.1", 0) as taken, pytest.raises(UserError, match="--port"):
        listen("127.0.0.1", taken.getsockname()[1])
    with pytest.raises(UsageError, match="--port"):
        listen("127.0.0.1", 65536)


def test_page_files_have_no_inline_code() -> None:
    """The policy would block it; a browser only says so in its console."""
    page = (Path(run.__code__.co_filename).parent / "web" / "index.html").read_text(encoding="utf-8")
    assert not re.search(r"<style|\sstyle=|\son\w+=|javascript:", page)
    assert page.count("<script") == 1 and '<script src="/web/chat.js"' in page
