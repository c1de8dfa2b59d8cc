"""The load client: what it reads of a stream, and what it makes of many."""

import asyncio
import math
import time
from collections.abc import Callable, Iterator

import pytest

from octavo.bench.load import Answer, chat, closed_loop, connect, percentile, summarise

STREAM = (
    b'data: {"choices":[{"delta":{"role":"assistant","content":""}}]}\n\n',
    b'data: {"choices":[{"delta":{"content":"Hel"}}],"usage":null}\n\n',
    b'data: {"choices":[{"delta":{"content": "lo"}}],"usage":null}\n\n',
    b'data: {"choices":[],"usage":{"prompt_tokens":5,"completion_tokens":2,'
    b'"prompt_tokens_details":{"cached_tokens":3}}}\n\n',
    b"data: [DONE]\n\n",
)
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
BUSY = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 4\r\n\r\nbusy"
USER = [{"role": "user", "content": "Hello"}]


def chunked(*parts: bytes) -> bytes:
    """Parts of a body as HTTP sends them when it does not know how many will come."""
    return b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"


def ask(answer: Callable[[asyncio.StreamWriter], Iterator[bytes]], times: int = 1, pause: float = 0.01) -> list[Answer]:
    """What the client reads on one connection to a server that writes what `answer` gives, `pause` seconds apart."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for _ in range(times):
            await reader.readuntil(b"\r\n\r\n")
            await reader.readuntil(b"}")
            for part in answer(writer):
                writer.write(part)
                await asyncio.sleep(pause)
        writer.close()

    async def run() -> list[Answer]:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        async with server:
            url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
            connection = await connect(url)
            return [await connection.ask(chat(url, [], max_tokens=2)) for _ in range(times)]

    return asyncio.run(asyncio.wait_for(run(), 10))


@pytest.mark.parametrize("size", [1, 7, 10_000])
def test_a_stream_is_read_to_its_end_however_it_is_cut(size: int) -> None:
    data = HEAD + chunked(*STREAM)
    answers = ask(lambda _: iter([data[at : at + size] for at in range(0, len(data), size)]), times=2, pause=0)
    for answer in answers:
        assert answer.status == 200 and answer.body == data
        assert answer.usage["completion_tokens"] == 2 and answer.usage["prompt_tokens_details"]["cached_tokens"] == 3
        assert answer.sent < answer.done


def test_the_first_text_is_not_the_role() -> None:
    parts = [HEAD, *(chunked(part)[:-5] for part in STREAM), b"0\r\n\r\n"]
    (answer,) = ask(lambda _: iter(parts))
    assert len(answer.arrivals) == 2 and answer.first == answer.arrivals[0]
    assert answer.first - answer.sent >= 0.02  # two parts came before, 10 ms each
    assert answer.arrivals[1] - answer.arrivals[0] >= 0.005


def test_a_refusal_is_its_status() -> None:
    first, second = ask(lambda _: iter([BUSY]), times=2)
    assert (first.status, second.status, first.first, first.usage) == (503, 503, 0.0, {})


def test_a_connection_that_breaks_is_an_answer() -> None:
    def break_off(writer: asyncio.StreamWriter) -> Iterator[bytes]:
        yield HEAD + chunked(STREAM[0])[:-5]
        writer.transport.abort()

    (answer,) = ask(break_off)
    assert answer.status == 200 and answer.first == 0.0 and answer.done and not answer.usage


def test_percentiles_are_values_that_occurred() -> None:
    values = [float(value) for value in range(1, 101)]
    assert [percentile(values, share) for share in (0.5, 0.95, 1.0)] == [50.0, 95.0, 100.0]
    assert percentile([3.0], 0.5) == 3.0 and math.isnan(percentile([], 0.5))


def test_the_summary_counts_what_ended_in_the_window() -> None:
    body = HEAD + chunked(*STREAM)
    answers = [
        Answer(sent, 200, first=sent + 0.2, done=done, arrivals=[sent + 0.2, sent + 0.3], body=body)
        for sent, done in ((0.0, 0.9), (0.5, 1.0), (1.0, 2.5), (2.0, 2.9), (2.5, 3.0))
    ]
    found = summarise([*answers, Answer(1.0, 503, done=1.5)], 4, begin=1.0, end=3.0, client_cpu=0.1)
    assert found.requests == 3
    assert (found.tokens_s, found.completion_tokens_s) == (3 * 7 / 2, 3 * 2 / 2)
    assert (found.prompt_tokens, found.completion_tokens, found.cached_tokens) == (5, 2, 3)
    assert found.first_p95 == pytest.approx(0.2) and found.gap_p50 == pytest.approx(0.1)
    assert found.whole_p50 == pytest.approx(0.9)
    assert found.statuses == {200: 5, 503: 1}


def test_clients_ask_again_until_the_time_is_over() -> None:
    async def run() -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal together, most
            while await reader.read(1000):
                together += 1
                most = max(most, together)
                await asyncio.sleep(0.02)
                together -= 1
                writer.write(HEAD + chunked(*STREAM))

        together = most = 0
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        async with server:
            url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
            many = (chat(url, USER) for _ in range(10_000))
            answers = await closed_loop(url, many, 3, time.perf_counter() + 0.3)
            assert most == 3 and 9 <= len(answers) <= 45
            with pytest.raises(ValueError, match="not enough"):
                await closed_loop(url, (chat(url, USER) for _ in range(2)), 3, time.perf_counter() + 5)

    asyncio.run(asyncio.wait_for(run(), 20))
