"""Many requests, slow ones, and clients that leave: nothing blocks, nothing leaks, the queue has an end."""

import asyncio
import http.client
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from octavo.config import SamplingParams
from octavo.engine.generate import Generator
from octavo.serve import server
from octavo.serve.jobs import Gate
from octavo.serve.protocol import ApiError
from tests.serve.serving import CONTEXT, Puppet, body, pages_free, says, serving, wait_until

CHAT = "/v1/chat/completions"
LONG = 1500  # tokens: seconds of work for the tiny model
ENDLESS = says(*["word "] * 10_000)


def call(url: str, content: dict[str, Any]) -> http.client.HTTPConnection:
    """A connection on which a request was sent; `close` hangs up."""
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=30)
    connection.request("POST", CHAT, json.dumps(content))
    return connection


def first_text(response: httpx.Response) -> Iterator[str]:
    """Read until the answer has begun. The lines that follow; httpx hangs up when nobody holds them any more."""
    lines = response.iter_lines()
    next(line for line in lines if '"content": "' in line and '"content": ""' not in line)
    return lines


def test_leaving_a_stream_frees_its_pages(url: str, generator: Generator) -> None:
    free = pages_free(generator)
    for _ in range(3):
        with httpx.stream("POST", url + CHAT, json=body(stream=True, max_tokens=LONG)) as response:
            lines = first_text(response)
            assert pages_free(generator) < free - LONG // 32
            next(lines)
        left = time.monotonic()
        wait_until(lambda: pages_free(generator) == free)
        assert time.monotonic() - left < 1.0


def test_leaving_a_whole_answer_frees_its_pages(url: str, generator: Generator) -> None:
    free = pages_free(generator)
    caller = call(url, body(max_tokens=LONG))
    wait_until(lambda: pages_free(generator) < free)
    caller.close()
    left = time.monotonic()
    wait_until(lambda: pages_free(generator) == free)
    assert time.monotonic() - left < 1.0


@pytest.mark.parametrize("stream", [True, False])
def test_leaving_takes_effect_at_the_next_step(stream: bool) -> None:
    """The answer under way hears of it with its next piece; one that waits, at once."""
    generator = Puppet(*ENDLESS, pages=100)
    content = body(stream=stream, max_tokens=80 * 32 - 5)  # 80 of 100 pages: a second request has to wait
    with serving(generator) as url:
        running = call(url, content)
        wait_until(lambda: generator.under_way == 1)
        waiting = call(url, content)
        time.sleep(0.3)
        waiting.close()
        running.close()
        time.sleep(0.3)
        assert generator.under_way == 1  # blocked in its step
        generator.step()
        wait_until(lambda: generator.under_way == 0)
        third = call(url, content)
        wait_until(lambda: generator.under_way == 1)
        assert len(generator.seen) == 2 and generator.most_under_way == 1
        third.close()
        time.sleep(0.3)
        generator.step()
        wait_until(lambda: generator.under_way == 0)


def test_parallel_requests_give_what_each_gives_alone(url: str, generator: Generator) -> None:
    free = pages_free(generator)
    questions = [f"Question {number}: " + "why? " * number for number in range(4)]
    settings = [{"temperature": 0.0}, {"temperature": 1.2, "seed": 3}] * 2

    def ask(question: str, sampling: dict[str, float]) -> str:
        response = httpx.post(url + CHAT, json=body(question, max_tokens=60) | sampling, timeout=60)
        return response.json()["choices"][0]["message"]["content"]

    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(ask, questions, settings))
    for question, sampling, text in zip(questions, settings, together, strict=True):
        params = SamplingParams(max_new_tokens=60, **sampling)  # type: ignore[arg-type]
        assert text == generator.complete([{"role": "user", "content": question}], params).text
    assert len(set(together)) == 4
    wait_until(lambda: pages_free(generator) == free)


def test_more_memory_than_there_is_waits_its_turn(url: str, generator: Generator) -> None:
    """Each wants more than half of all pages, so one runs at a time, and all are answered."""
    content = body(max_tokens=CONTEXT - 100, stop=["\n", " ", "e", "a", "o"])
    with ThreadPoolExecutor(3) as pool:
        answers = list(pool.map(lambda _: httpx.post(url + CHAT, json=content, timeout=60), range(3)))
    assert [answer.status_code for answer in answers] == [200] * 3


def test_health_answers_during_a_generation(url: str, generator: Generator) -> None:
    with httpx.stream("POST", url + CHAT, json=body(stream=True, max_tokens=LONG)) as response:
        lines = first_text(response)
        with httpx.Client() as client:
            client.get(url + "/health")
            seconds = []
            for _ in range(10):
                began = time.monotonic()
                assert client.get(url + "/health").status_code == 200
                seconds.append(time.monotonic() - began)
        assert pages_free(generator) < CONTEXT // 32  # it is still at it
        next(lines)
    assert sorted(seconds)[5] < 0.1, seconds


def test_health_answers_while_a_step_or_a_prompt_blocks() -> None:
    generator = Puppet(*says("late"))
    generator.may_encode.clear()
    with ThreadPoolExecutor() as pool, serving(generator) as url:
        answer = pool.submit(httpx.post, url + CHAT, json=body(), timeout=30)
        wait_until(lambda: generator.encoding)
        assert httpx.get(url + "/health", timeout=2).status_code == 200
        generator.may_encode.set()
        wait_until(lambda: generator.under_way == 1)
        assert httpx.get(url + "/health", timeout=2).status_code == 200
        generator.step(2)
        assert answer.result().json()["choices"][0]["message"]["content"] == "late"


def test_overload_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "MAX_RUNNING", 2)
    monkeypatch.setattr(server, "MAX_WAITING", 3)
    generator = Puppet(*says("done"))
    with ThreadPoolExecutor(9) as pool, serving(generator) as url:
        sent = [pool.submit(httpx.post, url + CHAT, json=body(), timeout=30) for _ in range(9)]
        wait_until(lambda: sum(one.done() for one in sent) == 4)
        refused = httpx.post(url + CHAT, json=body())
        assert refused.status_code == 503 and int(refused.headers["retry-after"]) <= 120
        assert refused.json()["error"]["code"] == "overloaded"
        assert httpx.get(url + "/health").status_code == 200
        generator.step(100)
        assert sorted(one.result().status_code for one in sent) == [200] * 5 + [503] * 4
        assert generator.most_under_way == 2
        assert httpx.post(url + CHAT, json=body()).status_code == 200


def test_requests_wait_in_line_for_a_slot_of_states(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not in a thread: there they would come in no order, and could not leave."""
    generator = Puppet(*says("done"), slots=2)
    with ThreadPoolExecutor(6) as pool, serving(generator) as url:
        sent = [pool.submit(httpx.post, url + CHAT, json=body(), timeout=30) for _ in range(6)]
        wait_until(lambda: generator.under_way == 2)
        generator.step(100)
        assert [one.result().status_code for one in sent] == [200] * 6
        assert generator.most_under_way == 2


def test_silence_is_filled_with_comments() -> None:
    generator = Puppet(*says("late"))
    with (
        serving(generator, keep_alive=0.1) as url,
        httpx.stream("POST", url + CHAT, json=body(stream=True)) as response,
    ):
        lines = iter(line for line in response.iter_lines() if line)
        assert "assistant" in next(lines)
        assert [next(lines) for _ in range(3)] == [": keep-alive"] * 3
        generator.step(2)
        rest = [line for line in lines if line != ": keep-alive"]
    assert '"late"' in rest[0] and rest[-1] == "data: [DONE]"


def test_steps_without_text_are_silence_too() -> None:
    generator = Puppet(*says(*[""] * 20, "late"))

    def step_slowly() -> None:
        for _ in range(22):
            generator.step()
            time.sleep(0.05)

    with serving(generator, keep_alive=0.3) as url:
        threading.Thread(target=step_slowly).start()
        with httpx.stream("POST", url + CHAT, json=body(stream=True)) as response:
            lines = [line for line in response.iter_lines() if line]
    assert ": keep-alive" in lines and '"late"' in lines[-3]


def test_no_comments_while_there_is_text(url: str) -> None:
    with httpx.stream("POST", url + CHAT, json=body(stream=True, max_tokens=50)) as response:
        assert not [line for line in response.iter_lines() if line.startswith(":")]


def test_stopping_the_server_ends_its_answers(caplog: pytest.LogCaptureFixture) -> None:
    """Those under way and those that wait, at once, telling their clients, and leaving no thread behind."""
    generator = Puppet(*ENDLESS, pages=100)
    with ThreadPoolExecutor() as pool:
        with serving(generator) as url:
            contents = [body(max_tokens=80 * 32 - 5, stream=stream) for stream in (True, True, False)]
            answers = [pool.submit(httpx.post, url + CHAT, json=content, timeout=30) for content in contents]
            wait_until(lambda: generator.under_way == 1)
            time.sleep(0.3)
            began = time.monotonic()
            threading.Timer(0.5, generator.step).start()
        assert generator.under_way == 0
        assert time.monotonic() - began < server.SHUTDOWN_SECONDS
        assert all("the server is shutting down" in answer.result().text for answer in answers)
    assert not caplog.records


RUN = """
import sys
from tests.serve.serving import Puppet, says
from octavo.serve.server import listen, run
run(Puppet(*says("x")), "m", listen("127.0.0.1", 0), on_ready=lambda url: print(url, flush=True))
print("ended")
"""


def test_run_says_when_it_is_ready_and_ends_on_interrupt() -> None:
    root = Path(__file__).parents[2]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])}
    started = subprocess.Popen(
        [sys.executable, "-c", RUN], stdout=subprocess.PIPE, text=True, env=environment, cwd=root
    )
    try:
        assert started.stdout
        address = started.stdout.readline().strip()
        assert httpx.get(address + "/health").status_code == 200  # at the first try
        started.send_signal(signal.SIGINT)
        assert started.stdout.read().strip() == "ended"
        assert started.wait(10) == 0
    finally:
        started.kill()


# ---- the gate by itself


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def test_gate_is_first_come_first_served() -> None:
    async def scenario() -> None:
        gate, order = Gate(running=2, waiting=9, pages=10), []

        async def enter(name: str, pages: int) -> None:
            await gate.enter(pages)
            order.append(name)

        tasks = [asyncio.create_task(enter(*entry)) for entry in (("a", 6), ("b", 6), ("c", 1), ("d", 1))]
        await settle()
        assert order == ["a"]  # c is small enough, but b was first
        gate.leave(6)
        await settle()
        assert order == ["a", "b", "c"]  # two places
        gate.leave(1)
        await asyncio.gather(*tasks)
        assert order == ["a", "b", "c", "d"]

    asyncio.run(scenario())


def test_gate_forgets_who_leaves_the_line() -> None:
    async def scenario() -> None:
        gate = Gate(running=2, waiting=9, pages=10)
        await gate.enter(4)
        big, small = asyncio.create_task(gate.enter(10)), asyncio.create_task(gate.enter(1))
        await settle()
        assert not small.done()
        big.cancel()
        await settle()
        assert big.cancelled() and small.done()  # nobody had to leave for that
        gate.leave(4)
        # let in and cancelled in the same turn of the loop: the place and the pages come back
        last = asyncio.create_task(gate.enter(10))
        await settle()
        gate.leave(1)
        last.cancel()
        await settle()
        assert last.cancelled()
        await asyncio.wait_for(gate.enter(10), 1)

    asyncio.run(scenario())


def test_gate_counts_requests() -> None:
    gate = Gate(running=1, waiting=1, pages=10)
    with gate.inside():
        with gate.inside():
            with pytest.raises(ApiError) as refused, gate.inside():
                pass
            assert refused.value.status == 503
        with gate.inside():
            pass
