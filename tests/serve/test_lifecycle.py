"""How a server starts and stops, as whoever runs it sees that: signals, probes, exit statuses."""

import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from tests.serve.processes import next_line, process
from tests.serve.serving import body

CHAT = "/v1/chat/completions"

# A puppet that lets a piece out for each byte of standard input. argv: seconds to drain, seconds to load, an error.
SERVER = """
import os, sys, threading, time
from octavo.serve.options import ServeOptions
from octavo.serve.server import listen, run
from tests.serve.serving import MODEL, Puppet, says

def load():
    time.sleep(float(sys.argv[2]))
    if sys.argv[3:]:
        raise RuntimeError(sys.argv[3])
    return {MODEL: puppet}

def step():
    while os.read(0, 1):
        puppet.step()

puppet = Puppet(*says("one ", "two ", "three"))
threading.Thread(target=step, daemon=True).start()
listener = listen("127.0.0.1", 0)
print(f"http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
run(load, listener, lambda url: print("ready", flush=True), ServeOptions(drain_seconds=float(sys.argv[1])))
print("ended")
"""


def test_a_drain_finishes_what_has_begun() -> None:
    with process(SERVER, "30", "0") as server, ThreadPoolExecutor() as pool:
        url, _ = next_line(server), next_line(server)
        assert server.stdin
        with httpx.stream("POST", url + CHAT, json=body(stream=True), timeout=30) as answer:
            whole = pool.submit(httpx.post, url + CHAT, json=body(), timeout=30)
            events = answer.iter_lines()
            next(events)
            server.stdin.write("x")
            server.stdin.flush()
            while "one" not in next(events):
                pass
            time.sleep(0.5)  # for the second one to arrive
            server.send_signal(signal.SIGTERM)
            wait_until(lambda: httpx.get(url + "/ready").status_code == 503)
            refused = httpx.post(url + CHAT, json=body())
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "shutting_down")
            assert 0 < int(refused.headers["retry-after"]) <= 120
            assert httpx.get(url + "/health").status_code == 200
            server.stdin.write("x" * 10)
            server.stdin.flush()
            rest = list(events)
            assert "data: [DONE]" in rest and '"three"' in "".join(rest)
        assert whole.result().json()["choices"][0]["message"]["content"] == "one two three"
        assert server.wait(10) == 0
        assert server.stdout and server.stdout.read() == "ended\n"
        assert server.stderr and "finishing 2 answers, another signal stops it at once" in server.stderr.read()


def test_a_drain_has_an_end() -> None:
    with process(SERVER, "0.5", "0") as server, ThreadPoolExecutor() as pool:
        url, _ = next_line(server), next_line(server)
        with httpx.stream("POST", url + CHAT, json=body(stream=True), timeout=30) as answer:
            whole = pool.submit(httpx.post, url + CHAT, json=body(), timeout=30)
            time.sleep(0.5)
            began = time.monotonic()
            server.send_signal(signal.SIGTERM)
            assert "shutting_down" in answer.read().decode()
        assert (whole.result().status_code, whole.result().json()["error"]["code"]) == (503, "shutting_down")
        assert server.wait(10) == 0
        assert time.monotonic() - began < 5


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_second_signal_stops_at_once(number: signal.Signals, status: int) -> None:
    with process(SERVER, "30", "0") as server:
        url, _ = next_line(server), next_line(server)
        with httpx.stream("POST", url + CHAT, json=body(stream=True), timeout=30) as answer:
            server.send_signal(number)
            wait_until(lambda: httpx.get(url + "/ready").status_code == 503)
            assert server.poll() is None
            began = time.monotonic()
            server.send_signal(number)
            assert "shutting_down" in answer.read().decode()
        assert server.wait(10) == status
        assert time.monotonic() - began < 5
        assert server.stderr and ("Ctrl-C again" in server.stderr.read()) == (number == signal.SIGINT)


def test_it_lives_before_it_is_ready() -> None:
    with process(SERVER, "30", "1.5") as server:
        url = next_line(server)
        wait_until(lambda: answers(url))
        assert httpx.get(url + "/health").json() == {"status": "loading"}
        for response in (httpx.get(url + "/ready"), httpx.post(url + CHAT, json=body()), httpx.get(url + "/")):
            assert (response.status_code, response.json()["error"]["code"]) == (503, "loading")
            assert int(response.headers["retry-after"]) > 0 and "x-content-type-options" in response.headers
        foreign = httpx.get(url + "/health", headers={"Host": "evil.example"})
        assert foreign.status_code == 403
        assert next_line(server) == "ready"
        assert httpx.get(url + "/ready").status_code == httpx.get(url + "/health").status_code == 200
        server.send_signal(signal.SIGTERM)
        assert server.wait(10) == 0


def test_what_fails_while_loading_ends_it() -> None:
    with process(SERVER, "30", "0.1", "no such model") as server:
        url = next_line(server)
        assert server.wait(20) == 1
        assert server.stderr and "no such model" in server.stderr.read()
        assert not answers(url)


def answers(url: str) -> bool:
    try:
        return httpx.get(url + "/health").status_code == 200
    except httpx.TransportError:
        return False


def wait_until(condition: Callable[[], bool], seconds: float = 10) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.02)
