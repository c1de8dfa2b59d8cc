"""What goes wrong in one request ends that request; what goes wrong in the engine is told to everybody; tenants share
nothing."""

import threading
import time
from typing import Any

import numpy as np
import pytest

from octavo.engine.core import Closed
from octavo.engine.engine import Engine
from octavo.engine.runner import StepBatch, StepResult
from octavo.errors import UserError
from tests.engine.watched import (
    HYBRID,
    Waiter,
    assert_nothing_left,
    engine_on,
    greedy,
    idle,
    open_tiny,
    oracle,
    random_ids,
    submit,
    until,
)

NAMES = ["mixtral", HYBRID]
LONG = 400  # tokens that no test waits for


@pytest.fixture(params=NAMES)
def engine(request) -> Any:
    with engine_on(open_tiny(request.param)) as engine:
        yield engine


def alone(engine: Engine, prompt: list[int], new: int = 12) -> list[int]:
    name = NAMES[engine.runner.num_slots > 0]
    return list(oracle(open_tiny(name), prompt, greedy(new))[0].token_ids)


def gate(engine: Engine) -> threading.Event:
    """No step is run before this is set: all that is handed in till then is handed in together."""
    event = threading.Event()
    engine.runner.before = lambda batch: event.wait(60)  # type: ignore[attr-defined]
    return event


def poison_rows(engine: Engine, victim: Waiter, value: float, after: int, choice: int = 0) -> None:
    """From its step number `after` with logits on, the victim's logits have one number that is none."""
    seen = 0

    def change(batch: StepBatch, result: StepResult) -> None:
        nonlocal seen
        assert victim.ticket is not None
        pages = victim.ticket._jobs[choice].sequence.pages
        for row, wanted in enumerate(batch.logit_rows.tolist()):
            sequence = int(np.searchsorted(batch.cu_seqlens, wanted, side="right")) - 1
            if pages and batch.page_table[sequence, 0] == pages[0]:
                seen += 1
                if seen > after:
                    result.logits[row, 77] = value

    engine.runner.after = change  # type: ignore[attr-defined]


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("after", [0, 5])
def test_logits_that_are_no_numbers_end_one_request(engine, value, after) -> None:
    prompts = [random_ids(length, length) for length in (20, 40, 70, 33)]
    start = gate(engine)
    waiters = [submit(engine, prompt, greedy(12)) for prompt in prompts]
    poison_rows(engine, waiters[1], value, after)
    start.set()
    for waiter in waiters:
        waiter.wait()
    (error,) = waiters[1].errors
    assert isinstance(error, ValueError) and "not numbers" in str(error)
    assert waiters[1].ids == alone(engine, prompts[1])[:after]
    for waiter, prompt in zip(waiters, prompts, strict=True):
        if waiter is not waiters[1]:
            assert not waiter.errors and waiter.ids == alone(engine, prompt)
    assert_nothing_left(engine)


def test_one_of_several_answers_fails_and_generate_leaves_none_running(engine) -> None:
    waiter = Waiter(3)
    submitted = engine.submit

    def remembering(*args: Any, **kwargs: Any) -> Any:
        waiter.ticket = submitted(*args, **kwargs)
        return waiter.ticket

    engine.submit = remembering
    start = gate(engine)
    threading.Timer(0.2, start.set).start()
    engine.runner.after = (
        lambda batch, result: (  # the second answer's row of every step with three
            result.logits[1:2].fill(np.nan) if len(batch.logit_rows) == 3 else None
        )
    )
    with pytest.raises(ValueError, match="not numbers"):
        engine.generate([random_ids(40, 1)], greedy(LONG, n=3, temperature=1.0, seed=1))
    before = engine.statistics().steps
    until(lambda: idle(engine))
    assert engine.statistics().steps < before + 50, "the other answers went on for nobody"
    assert_nothing_left(engine)


def test_a_step_that_fails_fails_those_who_took_part(engine) -> None:
    broken, prompts = threading.Event(), [random_ids(length, length) for length in (20, 40, 70)]

    def fail(batch: StepBatch) -> None:
        if broken.is_set():
            broken.clear()
            raise RuntimeError("the device fell off")

    engine.runner.before = fail
    waiters = [submit(engine, prompt, greedy(LONG)) for prompt in prompts]
    until(lambda: all(len(waiter.ids) > 2 for waiter in waiters))
    broken.set()
    for waiter in waiters:
        (error,) = waiter.wait().errors
        assert str(error) == "the device fell off"
    assert_nothing_left(engine, clear=False)
    for prompt in prompts:  # what was kept before is right, and what was not is computed anew
        assert submit(engine, prompt, greedy(12)).wait().ids == alone(engine, prompt)
    assert_nothing_left(engine)


def test_a_step_that_fails_leaves_those_who_wait(engine) -> None:
    engine.close()
    name = NAMES[engine.runner.num_slots > 0]
    with engine_on(open_tiny(name), max_running=2) as small:
        start, failed = gate(small), []

        def fail_first(batch: StepBatch) -> None:
            start.wait(60)
            if not failed:
                failed.append(len(batch.cu_seqlens) - 1)
                raise RuntimeError("once")

        small.runner.before = fail_first  # type: ignore[attr-defined]
        first = submit(small, random_ids(30, 0), greedy(12))
        until(lambda: small.core.scheduler.running)  # its step is under way before the others come
        others = [submit(small, random_ids(30, seed), greedy(12)) for seed in range(1, 5)]
        start.set()
        assert [str(error) for error in first.wait().errors] == ["once"] and failed == [1]
        for seed, waiter in enumerate(others, 1):
            assert waiter.wait().ids == alone(small, random_ids(30, seed)) and not waiter.errors
        assert_nothing_left(small)


@pytest.mark.parametrize("at", [1, 4, 12])
def test_a_listener_that_raises_ends_its_own_request(engine, at) -> None:
    """Also when it raises at the news of its own error, or at its last piece."""
    heard: list[Any] = []

    def raising(piece: Any) -> None:
        heard.append(piece)
        if len(heard) >= at:
            raise RuntimeError("the event loop is closed")

    start = gate(engine)
    engine.submit(random_ids(50, 1), greedy(12), raising)
    other = submit(engine, random_ids(40, 2), greedy(12))
    start.set()
    assert other.wait().ids == alone(engine, random_ids(40, 2)) and not other.errors
    assert submit(engine, random_ids(41, 3), greedy(12)).wait().ids == alone(engine, random_ids(41, 3))
    assert at <= len(heard) <= at + 1
    assert_nothing_left(engine)


def test_listeners_that_raise_at_the_end_keep_no_news_from_others(engine) -> None:
    def raising(piece: Any) -> None:
        if isinstance(piece, Exception):
            raise RuntimeError("the event loop is closed")

    engine.submit(random_ids(50, 1), greedy(LONG), raising)
    others = [submit(engine, random_ids(40, seed), greedy(LONG)) for seed in range(3)]
    until(lambda: all(waiter.ids for waiter in others))
    engine.close()
    for waiter in others:
        assert [type(error) for error in waiter.wait().errors] == [Closed]
    assert not engine.core._thread.is_alive()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("listener_raises", [False, True])
def test_a_thread_that_breaks_tells_everybody(engine, monkeypatch, listener_raises) -> None:
    def raising(piece: Any) -> None:
        if isinstance(piece, Exception):
            raise RuntimeError("the event loop is closed")

    if listener_raises:
        engine.submit(random_ids(50, 1), greedy(LONG), raising)
    running = [submit(engine, random_ids(40, seed), greedy(LONG)) for seed in range(3)]
    until(lambda: all(waiter.ids for waiter in running))
    results: list[Exception] = []

    def generate() -> None:
        try:
            engine.generate([random_ids(30, seed) for seed in range(5)], greedy(LONG))
        except Exception as error:  # noqa: BLE001 - it is looked at below
            results.append(error)

    def break_down() -> Any:
        raise ZeroDivisionError("a bug of ours")

    thread = threading.Thread(target=generate)
    thread.start()
    monkeypatch.setattr(engine.core.scheduler, "plan", break_down)
    thread.join(60)
    assert not thread.is_alive(), "generate hangs"
    assert [type(error) for error in results] in ([ZeroDivisionError], [Closed])
    for waiter in running:
        assert [type(error) for error in waiter.wait().errors] == [ZeroDivisionError]
    for may_wait in (False, True):
        with pytest.raises(UserError, match="closed"):
            engine.submit(random_ids(3, 0), greedy(), Waiter().put, may_wait=may_wait)
    with pytest.raises(UserError):
        next(engine.stream(random_ids(3, 0), greedy()))
    engine.close()
    engine.statistics()


def test_close_tells_those_under_way_and_those_that_wait() -> None:
    engine = engine_on(open_tiny("mixtral"), max_running=2, max_waiting=3)
    waiters = [submit(engine, random_ids(20, seed), greedy(LONG)) for seed in range(5)]
    blocked: list[Exception] = []

    def one_more() -> None:
        try:
            submit(engine, random_ids(20, 9), greedy(LONG))
        except UserError as error:
            blocked.append(error)

    thread = threading.Thread(target=one_more)
    thread.start()
    time.sleep(0.02)
    stream = engine.stream([5, 6], greedy()) if engine.statistics().waiting < 3 else None
    engine.close()
    thread.join(60)
    for waiter in waiters:
        assert [type(error) for error in waiter.wait().errors] == [Closed]
    assert [type(error) for error in blocked] == [Closed]
    if stream:
        with pytest.raises(Closed):
            list(stream)
    with pytest.raises(Closed):
        engine.submit([1, 2], greedy(), Waiter().put)
    engine.close()
    assert_nothing_left(engine)


def test_close_before_anything_and_from_the_engines_own_thread() -> None:
    engine = engine_on(open_tiny("mixtral"))
    engine.close()
    with pytest.raises(Closed):
        engine.complete([1, 2], greedy())
    engine = engine_on(open_tiny("mixtral"))
    closed = threading.Event()

    def close(piece: Any) -> None:
        engine.close()
        closed.set()

    engine.submit([1, 2, 3], greedy(LONG), close)
    assert closed.wait(60)
    engine.close()
    assert not engine.core._thread.is_alive()  # type: ignore[union-attr]


def cached(engine: Engine, prompt: list[int], tenant: str = "") -> int:
    waiter = submit(engine, prompt, greedy(3), tenant).wait()
    until(lambda: idle(engine))
    assert waiter.ticket is not None
    return waiter.ticket.cached_tokens


def test_tenants_share_nothing(engine) -> None:
    prompt = random_ids(150, 0)
    assert cached(engine, prompt, "a") == 0
    assert cached(engine, prompt, "b") == 0
    assert cached(engine, prompt, "") == 0
    assert cached(engine, prompt, "ab") == 0
    assert cached(engine, prompt, "a") >= 140
    assert cached(engine, prompt, "b") >= 140
    assert cached(engine, prompt + [5], "c") == 0
    assert engine.log_likelihoods([(prompt, [5])], tenant="d") and engine.statistics().cached_tokens < 310
    pages = [node.pages for node in engine.core.scheduler.cache._tree.nodes()]
    roots = engine.core.scheduler.cache._tree._roots
    assert set(roots) == {"a", "b", "", "ab", "c", "d"}
    assert len(pages) >= 6


def test_tenants_side_by_side_do_not_wait_for_each_other(engine) -> None:
    """Those of one tenant do, up to the last page."""
    start = gate(engine)
    prompt = random_ids(150, 0)
    waiters = [submit(engine, prompt, greedy(3), tenant) for tenant in "abab"]
    start.set()
    hits = [waiter.wait().ticket.cached_tokens for waiter in waiters]  # type: ignore[union-attr]
    assert hits[:2] == [0, 0] and min(hits[2:]) >= 118
    assert len({tuple(waiter.ids) for waiter in waiters}) == 1


def test_without_tenants_all_share(engine) -> None:
    prompt = random_ids(150, 0)
    first, second = engine.generate([prompt, prompt], greedy(3))
    assert first.cached_tokens == 0 and second.cached_tokens >= 140
    assert first.logprobs == second.logprobs
