"""Twice as many clients as there is room for, many of whom leave: memory, answers and waits stay as they are.

Three minutes; OCTAVO_SOAK_MINUTES=30 for the long one. The server is a process of its own, so that what it holds can be
told from what the clients hold.
"""

import asyncio
import contextlib
import ctypes
import gc
import json
import os
import random
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from octavo.bench.load import Answer, Connection, chat, connect, percentile
from octavo.serve.server import listen, run
from tests.serve.serving import MODEL, tiny_engine

MINUTES = float(os.environ.get("OCTAVO_SOAK_MINUTES", "3"))
RUNNING, WAITING = 6, 10
CLIENTS = 2 * (RUNNING + WAITING)
WARM = 0.25  # share of the time after which memory has reached its high-water mark
SLOPE = 1.0  # MiB a minute
PATIENCE = 30.0  # seconds that a request may take


# ---- the server


def serve() -> None:
    """A server that says on standard output what it holds whenever a line comes in; ends with its input."""
    with tiny_engine(max_running=RUNNING, max_waiting=WAITING) as engine, listen("127.0.0.1", 0) as listener:

        def report() -> None:
            for _ in sys.stdin:
                gc.collect()
                with contextlib.suppress(AttributeError):  # a C library without it
                    ctypes.CDLL(None).malloc_trim(0)
                now = engine.statistics()
                held = {
                    "mib": int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20,
                    "requests": now.running + now.waiting,
                    "pages": engine.runner.num_pages - now.pages_free - now.pages_cached,
                    "files": len(os.listdir("/proc/self/fd")),
                    "threads": threading.active_count(),
                    "closed": engine.closed,
                }
                print(json.dumps(held), flush=True)
            os._exit(0)

        def announce(url: str) -> None:
            print(url, flush=True)
            threading.Thread(target=report, daemon=True).start()

        run({MODEL: engine}, listener, announce)


@dataclass
class Server:
    """The server's process."""

    process: "subprocess.Popen[str]"
    url: str

    def held(self) -> dict[str, float]:
        """What it holds now."""
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return dict(json.loads(self.process.stdout.readline()))


@contextlib.contextmanager
def server() -> Iterator[Server]:
    """A server, until the end of the block."""
    root = Path(__file__).parents[2]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-c", "from tests.serve.test_soak import serve; serve()"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, cwd=root
    ) as process:
        assert process.stdout
        try:
            yield Server(process, process.stdout.readline().strip())
        finally:
            process.kill()


# ---- the clients


@dataclass
class Seen:
    """What the clients saw: how often each thing happened, and (moment, seconds to the first text) of each answer."""

    counts: Counter[str] = field(default_factory=Counter)
    firsts: list[tuple[float, float]] = field(default_factory=list)
    wrong: list[bytes] = field(default_factory=list)


def request(url: str, dice: random.Random) -> bytes:
    """A request like many: some share a beginning, most are short, a few long, one in ten is not streamed."""
    words = [dice.choice(("what", "is", "the", "how", "a", "of")) for _ in range(dice.choice((3, 3, 20, 150)))]
    system = {"role": "system", "content": "You are kind. " * 20}
    messages = [system] * (dice.random() < 0.5) + [{"role": "user", "content": " ".join(words)}]
    length = dice.choice((1, 5, 10, 20, 60, 200))
    sampling = {"temperature": 0} if dice.random() < 0.5 else {"temperature": 1.5, "seed": dice.randrange(1000)}
    return chat(url, messages, model=MODEL, max_tokens=length, stream=dice.random() < 0.9, **sampling)


def judge(answer: Answer, seen: Seen, moment: float) -> bool:
    """Count an answer that was read to its end; whether it was one."""
    seen.counts[str(answer.status)] += 1
    ended = answer.body.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n") or b"\r\ncontent-length:" in answer.body.lower()
    if answer.status not in (200, 503) or not ended or (answer.status == 200 and b'"error"' in answer.body):
        seen.wrong.append(answer.body[-500:])
    if answer.status == 200 and answer.first and b"text/event-stream" in answer.body:
        seen.firsts.append((moment, answer.first - answer.sent))
    return answer.status == 200


async def client(url: str, number: int, start: float, until: float, seen: Seen) -> None:
    """Ask again and again; leave one time in four, before the head, while the prompt is read, or amid the text."""
    dice = random.Random(number)
    connection: Connection | None = None
    while time.perf_counter() < until:
        if connection is None or connection.lost:
            connection = await connect(url)
        connection.send(request(url, dice))
        if dice.random() < 0.25:
            moment = dice.choice((0.0, 0.01, 0.05, dice.uniform(0, 1.0)))
            amid = dice.random() < 0.5  # of the text, or as soon as the moment has come
            await asyncio.wait([connection.over], timeout=moment)
            while amid and not (connection.answer.first or connection.over.done()):
                await asyncio.sleep(0.002)
            if not connection.over.done():
                seen.counts["left amid the text" if connection.answer.first else "left before any text"] += 1
                connection.leave()
                connection = None
                continue
        await asyncio.wait_for(asyncio.shield(connection.over), PATIENCE)
        if not judge(connection.answer, seen, connection.answer.sent - start):
            await asyncio.sleep(dice.uniform(0.05, 0.3))
    if connection is not None:
        connection.leave()


async def soak(place: Server, seconds: float, seen: Seen) -> list[tuple[float, float]]:
    """Let all clients loose; memory of the server in MiB at moments."""
    start = time.perf_counter()
    clients = [
        asyncio.create_task(client(place.url, number, start, start + seconds, seen)) for number in range(CLIENTS)
    ]
    memory = []
    while time.perf_counter() < start + seconds and not any(task.done() for task in clients):
        await asyncio.sleep(seconds / 90)
        held = await asyncio.to_thread(place.held)
        memory.append((time.perf_counter() - start, held["mib"]))
    await asyncio.gather(*clients)
    return memory


@pytest.mark.slow
@pytest.mark.timeout(MINUTES * 60 + 120)
def test_twice_the_capacity_with_clients_that_leave() -> None:
    seconds, seen = MINUTES * 60, Seen()
    with server() as place:
        before = place.held()
        memory = asyncio.run(soak(place, seconds, seen))
        until = time.monotonic() + 10
        while (
            (after := place.held())["requests"] or after["files"] > before["files"] + 2
        ) and time.monotonic() < until:
            time.sleep(0.05)
    settled = np.array([each for each in memory if each[0] > WARM * seconds])
    slope = 60 * np.polyfit(settled[:, 0], settled[:, 1], 1)[0]
    firsts = [[wait for moment, wait in seen.firsts if third <= 3 * moment / seconds < third + 1] for third in range(3)]
    p99 = [percentile(waits, 0.99) for waits in firsts]
    figures = f"{seen.counts} slope {slope:.2f} MiB/min, p99 {p99}, {memory[0]} to {memory[-1]}, {before} {after}"
    print(figures)
    assert not seen.wrong, (seen.wrong[:3], figures)
    assert set(seen.counts) == {"200", "503", "left amid the text", "left before any text"}, figures
    assert min(seen.counts.values()) >= 20, figures
    assert (after["requests"], after["pages"], after["closed"]) == (0, 0, False), figures
    assert after["files"] <= before["files"] + 2 and after["threads"] <= before["threads"] + 8, figures
    assert slope < SLOPE, figures
    assert p99[2] < 1.5 * p99[0] + 0.2, figures
