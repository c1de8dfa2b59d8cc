"""API keys: every route is closed without one, whatever the header looks like, and no key leaves a trace."""

import logging
import re
import socket
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from starlette.routing import Route

from octavo.engine.engine import Engine
from octavo.errors import UsageError, UserError
from octavo.serve.app import create_app
from octavo.serve.keys import Keys, read_keys
from octavo.serve.options import ServeOptions
from octavo.serve.page import PAGE_PATHS
from octavo.serve.server import listen
from tests.serve.serving import MODEL, Puppet, body, says, serving

CHAT = "/v1/chat/completions"
get, post = partial(httpx.get, timeout=30), partial(httpx.post, timeout=30)
KEY, OTHER = "first-of-the-keys-8d1f", "second-of-the-keys-77aa"
PUBLIC = {"/health", "/ready", *PAGE_PATHS}


@pytest.fixture(scope="module")
def closed_url(engine: Engine) -> Iterator[str]:
    with serving(engine, keys=Keys([KEY, OTHER])) as address:
        yield address


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def test_every_route_but_the_public_ones_is_closed(closed_url: str) -> None:
    app = create_app({MODEL: Puppet()}, ServeOptions())
    routes = [
        (route.path, method) for route in app.routes if isinstance(route, Route) for method in route.methods or ()
    ]
    paths = {path for path, _ in routes}
    assert {CHAT, "/v1/models", "/metrics", "/health", "/ready", "/"} <= paths
    with httpx.Client(base_url=closed_url, timeout=30) as client:
        for path, method in routes:
            response = client.request(method, re.sub(r"\{.*?\}", "x", path))
            if path in PUBLIC:
                assert response.status_code == 200, path
            else:
                assert response.status_code == 401, path
                assert response.headers["www-authenticate"] == "Bearer"
                assert method == "HEAD" or response.json()["error"]["code"] == "invalid_api_key"
                assert "default-src 'none'" in response.headers["content-security-policy"]


@pytest.mark.parametrize(
    "path", ["/nothing", "//health", "/health/", "/HEALTH", "/v1/%2e%2e/health", "/v1/../health", "/%2fhealth",
             "/health%00", "/health;x", "//v1/models", "/chat.js/", "/v1/models?x=/health"]  # fmt: skip
)  # fmt: skip
def test_no_spelling_gets_round_it(closed_url: str, path: str) -> None:
    place = urlsplit(closed_url)
    for method in ("GET", "HEAD", "OPTIONS", "POST", "DELETE"):
        with socket.create_connection((place.hostname, place.port)) as connection:
            connection.sendall(f"{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
            assert connection.recv(100).split()[1] == b"401", (method, path)


@pytest.mark.parametrize(
    "lines",
    [
        b"",
        b"Authorization:",
        b"Authorization: Bearer",
        b"Authorization: Bearer ",
        b"Authorization: Bearer \xff\xfe\x80",
        b"Authorization: \xc3\xa9\xc3\xa9 " + KEY.encode(),
        b"Authorization: Bearer " + b"x" * 60_000,
        b"Authorization: Bearer " + KEY.encode() + b"x",
        b"Authorization: Bearer " + KEY[:-1].encode(),
        b"Authorization: Bearer " + KEY.upper().encode(),
        b"Authorization: Bearer ' OR '1'='1",
        b"Authorization: Basic " + KEY.encode(),
        b"Authorization: " + KEY.encode(),
        b"Authorization: Bearer x\r\nAuthorization: Bearer " + KEY.encode(),
        b"Authorization: Bearer " + KEY.encode() + b", Bearer " + OTHER.encode(),
        b"X-Api-Key: " + KEY.encode(),
    ],
)
def test_odd_headers_are_refused_and_never_break_it(closed_url: str, lines: bytes) -> None:
    place = urlsplit(closed_url)
    with socket.create_connection((place.hostname, place.port), timeout=10) as connection:
        connection.sendall(b"GET /v1/models HTTP/1.1\r\nHost: x\r\nConnection: close\r\n" + lines + b"\r\n\r\n")
        status = connection.recv(100).split()[1]
    assert status in ((b"401", b"400", b"431") if len(lines) > 10_000 else (b"401",))
    assert get(closed_url + "/v1/models", headers=bearer(KEY)).status_code == 200


@pytest.mark.parametrize("value", [f"Bearer {KEY}", f"bearer {KEY}", f"BEARER   {KEY}", f"Bearer {OTHER}"])
def test_a_key_opens_it_under_any_host(closed_url: str, value: str) -> None:
    for more in ({}, {"Host": "models.example"}, {"Host": "x/?", "Origin": "http://models.example"}):
        headers = {"Authorization": value, **more}
        response = post(closed_url + CHAT, json=body(max_tokens=1), headers=headers)
        assert response.status_code == 200
        assert not [name for name in response.headers if name.startswith("access-control")]
    assert get(closed_url + "/metrics", headers={"Authorization": value}).status_code == 200


def test_preflights_get_no_leave(closed_url: str) -> None:
    asked = {"Origin": "http://evil.example", "Access-Control-Request-Headers": "authorization"}
    response = httpx.options(closed_url + CHAT, timeout=30, headers=asked)
    assert response.status_code == 401
    assert not [name for name in response.headers if name.startswith("access-control")]


def test_each_key_is_a_tenant() -> None:
    puppet = Puppet(*says("x"))
    puppet.step(100)
    with serving(puppet, keys=Keys([KEY, OTHER])) as url:
        for key in (KEY, OTHER, KEY):
            assert post(url + CHAT, json=body(), headers=bearer(key)).status_code == 200
    first, second, third = puppet.tenants
    assert first == third != second and all(re.fullmatch("[0-9a-f]{16}", each) for each in puppet.tenants)


def test_tenants_share_no_prefixes(closed_url: str) -> None:
    question = body("In which of the towns on the river was the oldest of the bridges built? " * 8, max_tokens=1)

    def cached(key: str) -> int:
        usage = post(closed_url + CHAT, json=question, headers=bearer(key)).json()["usage"]
        return usage["prompt_tokens_details"]["cached_tokens"]

    # the few tokens that begin every chat may be known from other tests
    assert cached(KEY) < 10 and cached(KEY) > 50
    assert cached(OTHER) < 10


def test_no_key_is_logged_or_shown(engine: Engine, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    keys = Keys([KEY])
    with serving(engine, keys=keys, log_requests=True) as url:
        answers = [
            get(url + "/v1/models", headers=bearer(key)).text
            for key in (KEY, KEY + "wrong", "é".join("abc"))
            if key.isascii()
        ]
        answers.append(get(url + "/metrics", headers=bearer(KEY)).text)
    # httpx's own lines do not count
    lines = [record.getMessage() for record in caplog.records if not record.name.startswith("http")]
    assert any("/v1/models 200" in line for line in lines)
    assert KEY not in "\n".join([*lines, *answers, repr(keys), repr(ServeOptions(keys=keys)), str(vars(keys))])


def test_lines_of_the_log(engine: Engine, caplog: pytest.LogCaptureFixture) -> None:
    with serving(engine) as url, caplog.at_level(logging.INFO, "octavo.serve.access"):
        get(url + "/v1/models")
    assert not caplog.records
    with serving(engine, log_requests=True) as url:
        post(url + CHAT, json=body("a secret question", max_tokens=1), headers={"x-request-id": "mine-1"})
        get(url + "/v1/models/a%1bb")
    first, second = [r.getMessage() for r in caplog.records if r.name == "octavo.serve.access"]
    assert re.fullmatch(rf"127\.0\.0\.1 POST {CHAT} 200 \d+ bytes \d+\.\d\d\d s mine-1", first)
    assert "GET /v1/models/{name:path} 404" in second and second.isprintable()


@pytest.mark.parametrize("given", ["mine_1.2-3", "x" * 64])
def test_request_ids_are_accepted(closed_url: str, given: str) -> None:
    response = get(closed_url + "/v1/models", headers={"x-request-id": given, **bearer(KEY)})
    assert response.headers["x-request-id"] == given
    assert re.fullmatch(r"\d+", response.headers["openai-processing-ms"])


@pytest.mark.parametrize("given", ["", "x" * 65, "a b", "http://169.254.169.254/", "<script>", "é"])
def test_odd_request_ids_are_replaced(closed_url: str, given: str) -> None:
    headers = [(b"x-request-id", given.encode("latin-1"))]
    for path, status in (("/health", 200), (CHAT, 401)):
        response = get(closed_url + path, headers=headers)
        assert response.status_code == status
        assert re.fullmatch(r"req_[0-9a-f]{32}", response.headers["x-request-id"])


def test_a_failure_has_an_id_too() -> None:
    puppet = Puppet(RuntimeError("inside"))
    puppet.step()
    with serving(puppet) as url:
        response = post(url + CHAT, json=body(), headers={"x-request-id": "mine"})
        assert (response.status_code, response.headers["x-request-id"]) == (500, "mine")


def test_keys_that_no_header_carries_are_refused() -> None:
    for bad in ("", "a b", "é", "tab\t", "line\n"):
        with pytest.raises(UsageError, match="API key") as refused:
            Keys(["fine", bad])
        assert not bad or bad not in str(refused.value)


def test_files_of_keys(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("# of the team\n\n  one \ntwo\r\n")
    assert read_keys(file) == ["one", "two"]
    file.write_text("# nobody\n")
    with pytest.raises(UserError, match="no key in it"):
        read_keys(file)
    with pytest.raises(UserError, match="absent.*cannot be read"):
        read_keys(tmp_path / "absent")
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="UTF-8"):
        read_keys(file)


def test_public_addresses_need_a_key() -> None:
    for host in ("0.0.0.0", "::", "192.168.1.2", "example.com"):
        with pytest.raises(UsageError, match="--api-key"):
            listen(host, 0)
    with listen("0.0.0.0", 0, has_keys=True) as listener:
        assert listener.getsockname()[0] == "0.0.0.0"
    with pytest.raises(UserError, match="no-such-host.invalid: no such address"):
        listen("no-such-host.invalid", 0, has_keys=True)
    with listen("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(UserError, match=rf"port {port} \(address already in use\): choose another with --port"):
            listen("127.0.0.1", port)
