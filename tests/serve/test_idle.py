"""500 streams in which nothing happens: each is kept alive, none is in the way, and each goes on in the end."""

import asyncio
import resource
import time
from collections.abc import Callable

import pytest

from octavo.bench.load import Connection, chat, connect
from tests.serve.serving import MODEL, Puppet, says, serving

STREAMS = 500


@pytest.fixture(autouse=True)
def room_for_files() -> None:
    """Both ends of each connection are here."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < 3 * STREAMS:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(3 * STREAMS, hard), hard))


async def until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    """Return as soon as the condition holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        await asyncio.sleep(0.02)


@pytest.mark.slow
def test_idle_streams_are_held_and_are_in_nobodys_way() -> None:
    puppet = Puppet(*says("late"))

    async def hold(url: str) -> list[Connection]:
        request = chat(url, [{"role": "user", "content": "Hello"}], model=MODEL)
        idle = [await connect(url) for _ in range(STREAMS)]
        for connection in idle:
            connection.send(request)
        await until(lambda: len(puppet.under_way) == STREAMS)
        await until(lambda: all(each.answer.body.count(b": keep-alive") >= 2 for each in idle))
        health = f"GET /health HTTP/1.1\r\nHost: {url.removeprefix('http://')}\r\n\r\n".encode()
        visitor, seconds = await connect(url), []
        for _ in range(20):
            began = time.monotonic()
            assert (await visitor.ask(health)).status == 200
            seconds.append(time.monotonic() - began)
        assert sorted(seconds)[10] < 0.2, seconds
        assert not any(each.over.done() for each in idle)
        puppet.step(2 * STREAMS)
        await until(lambda: all(each.over.done() for each in idle))
        visitor.leave()
        for connection in idle:
            connection.leave()
        return idle

    with serving(puppet, keep_alive=1.0) as url:
        held = asyncio.run(hold(url))
    bodies = [each.answer.body for each in held]
    assert all(each.answer.status == 200 and each.answer.first for each in held)
    assert all(body.count(b"late") == 1 and b"[DONE]" in body for body in bodies)
