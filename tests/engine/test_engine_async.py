"""Streams for an event loop, and for threads: who stops listening frees what was his, and disturbs nobody."""

import asyncio
import contextlib
import threading
import time
from collections.abc import Coroutine
from typing import Any

import pytest

from octavo.engine.core import Busy, Closed
from octavo.engine.engine import Engine
from octavo.errors import UserError
from tests.engine.watched import (
    HYBRID,
    assert_nothing_left,
    engine_on,
    greedy,
    idle,
    open_tiny,
    oracle,
    random_ids,
    until,
)

NAMES = ["mixtral", HYBRID]
LONG = 450  # tokens that no test waits for: at 2 ms a step, most of a second


@pytest.fixture(params=NAMES)
def engine(request) -> Any:
    with engine_on(open_tiny(request.param)) as engine:
        engine.name = request.param  # type: ignore[attr-defined]
        engine.runner.before = lambda batch: time.sleep(0.002)  # type: ignore[attr-defined]
        yield engine


def alone(engine: Engine, prompt: list[int], new: int) -> list[int]:
    return list(oracle(open_tiny(engine.name), prompt, greedy(new))[0].token_ids)  # type: ignore[attr-defined]


def run(coroutine: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(asyncio.wait_for(coroutine, 60))


async def read(engine: Engine, prompt: list[int], new: int, most: int = 10**9) -> list[int]:
    ids: list[int] = []
    async for piece in engine.stream_async(prompt, greedy(new)):
        ids.append(piece.token_id)
        if len(ids) == most:
            break
    return ids


def assert_freed_soon(engine: Engine) -> None:
    """Nothing is left, and no long request can have ended by itself: fewer steps were run than it takes.

    For an event loop while it runs: once it is closed, its listeners fail, and that ends their requests too.
    """
    until(lambda: idle(engine))
    assert engine.statistics().steps < LONG - 20
    assert_nothing_left(engine)


def test_many_streams_in_one_loop(engine) -> None:
    prompts = [random_ids(5 + 7 * (seed % 6), seed) for seed in range(30)]

    async def all_of_them() -> list[list[int]]:
        return await asyncio.gather(*(read(engine, prompt, 15) for prompt in prompts))

    for prompt, ids in zip(prompts, run(all_of_them()), strict=True):
        assert ids == alone(engine, prompt, 15)
    assert max(sequences for sequences, _ in engine.runner.steps) > 4
    assert_nothing_left(engine)


def test_cancelled_tasks_free_their_memory(engine) -> None:
    async def cancel_most() -> list[int]:
        tasks = [asyncio.create_task(read(engine, random_ids(40, seed), LONG)) for seed in range(8)]
        kept = asyncio.create_task(read(engine, random_ids(20, 99), 30))
        await asyncio.sleep(0.05)
        for task in tasks:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(result, asyncio.CancelledError) for result in results)
        answer = await kept
        await asyncio.to_thread(assert_freed_soon, engine)
        return answer

    assert run(cancel_most()) == alone(engine, random_ids(20, 99), 30)


@pytest.mark.parametrize("turns", [0, 1, 2, 3])
def test_cancelled_while_they_are_handed_in(engine, monkeypatch, turns) -> None:
    """A thread hands the request in; the task that waits for it is cancelled meanwhile."""
    submitted = engine.submit

    def slowly(*args: Any, **kwargs: Any) -> Any:
        time.sleep(0.03)
        return submitted(*args, **kwargs)

    monkeypatch.setattr(engine, "submit", slowly)

    async def cancel_early() -> None:
        tasks = [asyncio.create_task(read(engine, random_ids(40, seed), LONG)) for seed in range(4)]
        for _ in range(turns):
            await asyncio.sleep(0)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(0.2)
        await asyncio.to_thread(assert_freed_soon, engine)

    run(cancel_early())


def test_breaking_out_frees_the_memory(engine) -> None:
    """With the generator closed at once, and when it is only dropped."""

    async def break_out() -> list[list[int]]:
        found = [await read(engine, random_ids(40, seed), LONG, 3) for seed in range(3)]
        stream = engine.stream_async(random_ids(40, 3), greedy(LONG))
        async with contextlib.aclosing(stream):
            async for piece in stream:
                found.append([piece.token_id])
                break
        engine.stream_async(random_ids(40, 4), greedy(LONG))  # never read: never handed in
        await asyncio.sleep(0.05)
        await asyncio.to_thread(assert_freed_soon, engine)
        return found

    found = run(break_out())
    for seed, ids in enumerate(found):
        assert ids == alone(engine, random_ids(40, seed), 3)[: len(ids)]


def test_a_loop_that_ends_with_requests_under_way_disturbs_nobody(engine) -> None:
    """Its listeners can not be called any more."""
    prompt = random_ids(30, 50)
    other = engine.stream(prompt, greedy(60))

    async def leave() -> None:
        loop = asyncio.get_running_loop()
        streams = [engine.stream_async(random_ids(40, seed), greedy(LONG)) for seed in range(4)]
        for stream in streams:
            await anext(stream)
        engine.left = streams, loop  # kept: nothing closes them

    loop = asyncio.new_event_loop()
    loop.run_until_complete(leave())
    loop.close()
    assert [piece.token_id for piece in other] == alone(engine, prompt, 60)
    assert_freed_soon(engine)
    assert engine.complete(prompt, greedy(5)).token_ids == tuple(alone(engine, prompt, 5))
    assert_nothing_left(engine)


def test_errors_arrive_in_the_loop(engine) -> None:
    async def refused() -> None:
        with pytest.raises(UserError, match="context of 512"):
            await read(engine, random_ids(500, 0), 100)
        stream = engine.stream_async(random_ids(40, 0), greedy(LONG))
        await anext(stream)
        await asyncio.to_thread(engine.close)
        with pytest.raises(Closed):
            async for _ in stream:
                pass
        with pytest.raises(Closed):
            await read(engine, [1, 2], 3)

    run(refused())
    with engine_on(open_tiny("mixtral"), max_running=1, max_waiting=1) as small:

        async def too_many() -> list[Any]:
            tasks = (read(small, random_ids(9, seed), 200) for seed in range(12))
            return await asyncio.gather(*tasks, return_exceptions=True)

        results = run(too_many())
        assert {type(result) for result in results} == {Busy, list}
        assert_nothing_left(small)


def test_the_loop_is_not_held_up(engine) -> None:
    """While the engine is in a long step, and the line is full, the loop goes on."""
    hold = threading.Event()
    engine.runner.before = lambda batch: hold.wait(60)

    async def count() -> int:
        task = asyncio.create_task(read(engine, random_ids(40, 0), 3))
        turns = 0
        while turns < 20:
            await asyncio.sleep(0.001)
            turns += 1
        assert not task.done()
        hold.set()
        await task
        return turns

    assert run(count()) == 20


# ---- the same for threads


def test_a_stream_that_is_closed_ends_its_request(engine) -> None:
    for pieces in (0, 1, 3):  # also one that was never read from
        stream = engine.stream(random_ids(40, pieces), greedy(LONG))
        ids = [next(stream).token_id for _ in range(pieces)]
        assert ids == alone(engine, random_ids(40, pieces), max(pieces, 1))[:pieces]
        stream.close()
        assert_freed_soon(engine)
    engine.stream(random_ids(40, 7), greedy(LONG))  # dropped
    assert_freed_soon(engine)


def test_a_stream_of_several_answers(engine) -> None:
    params = greedy(12, n=3, temperature=1.0, seed=2)
    pieces = list(engine.stream(random_ids(30, 0), params))
    expected = oracle(open_tiny(engine.name), random_ids(30, 0), params)
    for index, answer in enumerate(expected):
        assert tuple(piece.token_id for piece in pieces if piece.index == index) == answer.token_ids
    assert len({answer.token_ids for answer in expected}) == 3 and len(pieces) == 36


def test_threads_that_hand_in_and_cancel_at_once(engine) -> None:
    found: dict[int, list[int]] = {}

    def work(number: int) -> None:
        for seed in range(number * 10, number * 10 + 10):
            prompt = random_ids(10 + seed % 30, seed % 7)
            if seed % 3:
                found[seed] = [piece.token_id for piece in engine.stream(prompt, greedy(8))]
            else:
                stream = engine.stream(prompt, greedy(LONG))
                next(stream)
                stream.close()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(found) == sum(seed % 3 > 0 for seed in range(60))
    for seed, ids in found.items():
        assert ids == alone(engine, random_ids(10 + seed % 30, seed % 7), 8)
    assert_nothing_left(engine)
    assert engine.statistics().tokens < 20 * LONG * 2 / 3  # as many as the long ones alone would be


def test_an_interrupted_generate_leaves_nothing_running(engine) -> None:
    """As Ctrl-C does, in the middle of it."""

    def interrupt(task: str, done: int, of: int) -> None:
        raise KeyboardInterrupt

    params = [greedy(3), *[greedy(LONG)] * 9]
    with pytest.raises(KeyboardInterrupt):
        engine.generate([random_ids(20, seed) for seed in range(10)], params, interrupt)
    assert_freed_soon(engine)
