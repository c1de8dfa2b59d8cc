"""A lean load client for servers with OpenAI's chat API: sockets and asyncio only, to leave the cores to the server.

    python -m octavo.bench.load http://127.0.0.1:8000 texts.json --clients 8 --seconds 30

Closed loop: a client sends its next request when it has read the last answer. The file holds {"system": text,
"users": [text, ...], "fields": {...}}: each user text is sent once, in order, with `fields` in its body. The same bytes
go to every server. It prints a `Summary` as JSON.
"""

import argparse
import asyncio
import json
import re
import statistics
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

_CONTENT = re.compile(rb'"content": ?"[^"]')  # text, not the empty string of a role chunk
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_CHUNKED = re.compile(rb"\r\ntransfer-encoding: *chunked", re.IGNORECASE)
_LAST_CHUNK = b"\r\n0\r\n\r\n"  # cannot be part of an event: JSON has no bare line breaks


@dataclass
class Answer:
    """What became of a request; moments by time.perf_counter(), 0 for what did not happen.

    status: 0 where the connection broke before the head. arrivals: the reads that brought text, `first` the first of
    them. body: all that was read, head included.
    """

    sent: float
    status: int = 0
    first: float = 0.0
    done: float = 0.0
    arrivals: list[float] = field(default_factory=list)
    body: bytes = b""

    @property
    def usage(self) -> dict[str, Any]:
        """The token counts that the server gave; empty where it gave none."""
        for event in reversed(re.findall(rb"data: (\{.*\})", self.body)):
            if b'"usage"' in event and (usage := json.loads(event).get("usage")):
                return dict(usage)
        return {}


class Connection(asyncio.Protocol):
    """A connection that is kept alive, with one request at a time."""

    transport: asyncio.Transport

    def __init__(self) -> None:
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.lost = False
        self._begin()

    def _begin(self) -> None:
        self._answer = Answer(time.perf_counter())
        self._parts: list[bytes] = []
        self._left = -1  # bytes of a body that said its length
        self._chunked, self._tail = False, b""

    @property
    def answer(self) -> Answer:
        """What has been read so far."""
        self._answer.body = b"".join(self._parts)
        return self._answer

    def send(self, request: bytes) -> None:
        """Send a request; `over` is done when its answer is, or the connection broke."""
        self.over = asyncio.get_running_loop().create_future()
        self._begin()
        self.transport.write(request)
        if self.lost:
            self._end()

    async def ask(self, request: bytes) -> Answer:
        """Send a request and read its answer to the end."""
        self.send(request)
        await self.over
        return self.answer

    def leave(self) -> None:
        """Cut the connection at once, as a client does that dies."""
        self.transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by asyncio."""
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by asyncio."""
        self.lost = True
        self._end()

    def data_received(self, data: bytes) -> None:
        """Called by asyncio."""
        now = time.perf_counter()
        self._parts.append(data)
        if _CONTENT.search(data):
            self._answer.arrivals.append(now)
            self._answer.first = self._answer.first or now
        if self._answer.status:
            self._left -= len(data)
        else:
            self._read_head()
        self._tail = (self._tail + data)[-len(_LAST_CHUNK) :]
        if self._tail == _LAST_CHUNK if self._chunked else self._left == 0:
            self._end()

    def _read_head(self) -> None:
        head, found, body = b"".join(self._parts).partition(b"\r\n\r\n")
        if found:
            self._answer.status = int(head.split(b" ", 2)[1])
            self._chunked = bool(_CHUNKED.search(head))
            length = _LENGTH.search(head)
            self._left = int(length[1]) - len(body) if length else -1

    def _end(self) -> None:
        if not self.over.done():
            self._answer.done = time.perf_counter()
            self.over.set_result(None)


async def connect(url: str) -> Connection:
    """A new connection to a server. Raises OSError where nobody listens."""
    address = urlsplit(url)
    loop = asyncio.get_running_loop()
    return (await loop.create_connection(Connection, address.hostname or "", address.port or 80))[1]


def chat(url: str, messages: Sequence[Mapping[str, str]], **fields: Any) -> bytes:
    """A POST of a chat request that streams."""
    body = json.dumps({"messages": messages, "stream": True, **fields}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {urlsplit(url).netloc}\r\nContent-Type: application/json\r\n"
    return head.encode() + b"Content-Length: %d\r\n\r\n" % len(body) + body


@dataclass(frozen=True)
class Summary:
    """Of the requests that ended in the `seconds` measured. Times in seconds.

    tokens_s: prompt and completion tokens a second, completion_tokens_s the latter alone; prompt_tokens,
    completion_tokens, cached_tokens: means of a request, as the server counts (0 where it does not). first: to the
    first text; gap: between two reads of text; whole: to the end. statuses: of all requests, and how many had each.
    client_cpu: the share of a core that this client took.
    """

    clients: int
    seconds: float
    requests: int
    tokens_s: float
    completion_tokens_s: float
    prompt_tokens: float
    completion_tokens: float
    cached_tokens: float
    first_p50: float
    first_p95: float
    gap_p50: float
    gap_p95: float
    whole_p50: float
    statuses: dict[int, int]
    client_cpu: float


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest of the values that at least `share` of them do not exceed; NaN for none."""
    ordered = sorted(values)
    return ordered[max(0, -int(-share * len(ordered) // 1) - 1)] if ordered else float("nan")


async def closed_loop(url: str, requests: Iterator[bytes], clients: int, until: float) -> list[Answer]:
    """All answers to `clients` that ask again when they were answered, until the clock says `until`. Raises ValueError
    when there are no requests left."""
    answers: list[Answer] = []

    async def client() -> None:
        connection = await connect(url)
        while time.perf_counter() < until:
            request = next(requests, None)
            if request is None:
                raise ValueError("there are not enough user texts for so many seconds")
            answer = Answer(0.0) if connection.lost else await connection.ask(request)
            if not answer.body:  # a server may close a connection between two requests
                connection = await connect(url)
                answer = await connection.ask(request)
            answers.append(answer)
        connection.leave()

    await asyncio.gather(*(client() for _ in range(clients)))
    return answers


def summarise(answers: Sequence[Answer], clients: int, begin: float, end: float, client_cpu: float) -> Summary:
    """Those that ended between the moments `begin` and `end`. What began before and what ends after cancel out."""
    seconds = end - begin
    good = [each for each in answers if each.status == 200 and each.first and begin <= each.done < end]
    usages = [each.usage for each in good]
    details = [usage.get("prompt_tokens_details") or {} for usage in usages]
    prompt = sum(usage.get("prompt_tokens", 0) for usage in usages)
    completion = sum(usage.get("completion_tokens", 0) for usage in usages)
    cached = sum(each.get("cached_tokens", 0) for each in details)
    gaps = [later - sooner for each in good for sooner, later in zip(each.arrivals, each.arrivals[1:], strict=False)]
    first, count = [each.first - each.sent for each in good], max(1, len(good))
    return Summary(
        clients=clients,
        seconds=seconds,
        requests=len(good),
        tokens_s=(prompt + completion) / seconds,
        completion_tokens_s=completion / seconds,
        prompt_tokens=prompt / count,
        completion_tokens=completion / count,
        cached_tokens=cached / count,
        first_p50=percentile(first, 0.5),
        first_p95=percentile(first, 0.95),
        gap_p50=percentile(gaps, 0.5),
        gap_p95=percentile(gaps, 0.95),
        whole_p50=statistics.median([each.done - each.sent for each in good]) if good else float("nan"),
        statuses=dict(Counter(each.status for each in answers)),
        client_cpu=client_cpu,
    )


def main() -> None:
    """Load a server."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("texts", type=Path)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=30, help="measured, after the warm-up")
    parser.add_argument("--warm", type=float, default=6, help="seconds before that")
    parser.add_argument("--skip", type=int, default=0, help="user texts that were sent before")
    given = parser.parse_args()
    texts = json.loads(given.texts.read_text())
    system = {"role": "system", "content": texts["system"]}
    requests = (
        chat(given.url, [system, {"role": "user", "content": user}], **texts["fields"])
        for user in texts["users"][given.skip :]
    )
    start, cpu = time.perf_counter(), time.process_time()
    begin = start + given.warm
    threading.Timer(given.warm, print, ["the warm-up is over"], {"file": sys.stderr, "flush": True}).start()
    answers = asyncio.run(closed_loop(given.url, requests, given.clients, begin + given.seconds))
    share = (time.process_time() - cpu) / (time.perf_counter() - start)
    print(json.dumps(asdict(summarise(answers, given.clients, begin, begin + given.seconds, share))))


if __name__ == "__main__":
    main()
