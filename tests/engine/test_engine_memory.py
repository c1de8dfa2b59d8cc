"""Memory that engines take and give back: thousands of random requests, sliding windows, who is let in and when."""

import contextlib
import ctypes
import gc
import sys
import threading
import time
from collections import Counter, deque
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from octavo.engine.answer import Answer
from octavo.engine.core import Busy
from octavo.engine.engine import Engine
from octavo.engine.open import OpenModel
from octavo.engine.radix import Node
from octavo.engine.runner import PAGE_TOKENS, StepBatch
from octavo.engine.scheduler import Sequence as Tokens
from octavo.errors import UsageError, UserError
from tests.engine.engines import wait_until
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

TEXT = random_ids(400, 0)
WINDOW = "many heads"  # a sliding window of 40 tokens


def resident_bytes() -> int:
    """What the process holds, without what malloc could give back: how much of that there is depends on luck."""
    gc.collect()
    with contextlib.suppress(AttributeError):  # a C library without it
        ctypes.CDLL(None).malloc_trim(0)
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def random_traffic(engine: Engine, count: int, seed: int) -> int:
    """Short and long requests that branch, of three tenants; some are cancelled at some moment, some are refused, some
    are scored; how many were cancelled or refused."""
    random, ended = np.random.default_rng(seed), 0
    under_way: list[Waiter] = []
    for number in range(count):
        prompt = TEXT[: random.integers(0, 90)] + random.integers(3, 331, random.integers(1, 40)).tolist()
        new = int(random.integers(1, 5) if random.random() < 0.75 else random.integers(40, 90))
        params = greedy(new, n=int(random.choice([1, 1, 1, 1, 2])), logprobs=None)
        kind, tenant = random.random(), str(random.integers(3))
        if kind < 0.03:
            with pytest.raises(UserError):
                engine.submit(prompt * 250, params, Waiter().put, tenant)
            ended += 1
        elif kind < 0.06:
            engine.log_likelihoods([(prompt, [5, 6])], tenant=tenant)
        else:
            cancel = int(random.integers(1, 4)) if kind < 0.2 else None
            under_way.append(submit(engine, prompt, params, tenant, cancel_after=cancel))
            if 0.2 < kind < 0.3:
                ticket = under_way.pop(random.integers(len(under_way))).ticket
                assert ticket is not None
                ticket.cancel()
                ended += 1
        if number % 30 == 29:
            until(lambda: idle(engine))
            under_way.clear()
    return ended


@pytest.mark.parametrize("name", ["mixtral", HYBRID, WINDOW])
def test_a_thousand_random_requests_leave_nothing(name: str) -> None:
    options = {"context": 224, "memory_tokens": 256, "max_running": 10, "snapshot_bytes": 60_000}
    with engine_on(open_tiny(name, poison=False), **options) as engine:
        assert random_traffic(engine, 330, 1) > 20
        assert engine.statistics().preemptions > 0 and engine.statistics().cached_tokens > 1000
        assert_nothing_left(engine)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mixtral", HYBRID, WINDOW])
def test_ten_thousand_random_requests_leave_nothing_and_memory_is_flat(name: str) -> None:
    """In the last quarter of 10,000 requests resident memory grows by less than a prompt's list of ids for each, and
    not even one small object is left of each. Before, the allocators reach their high-water mark (docs/log.md)."""
    options = {"context": 224, "memory_tokens": 256, "max_running": 10, "snapshot_bytes": 60_000}
    with engine_on(open_tiny(name, poison=False), **options) as engine:
        engine.runner.steps = deque(maxlen=1)  # type: ignore[attr-defined]
        ended = random_traffic(engine, 7500, 1)
        assert_nothing_left(engine, clear=False)
        resident, blocks = resident_bytes(), sys.getallocatedblocks()
        ended += random_traffic(engine, 2500, 2)
        assert_nothing_left(engine, clear=False)
        assert resident_bytes() - resident < 2**20
        assert sys.getallocatedblocks() - blocks < 1000
        assert ended > 800 and engine.statistics().preemptions > 20
        assert_nothing_left(engine)
        kinds = Counter(type(each) for each in gc.get_objects())
        assert kinds[Tokens] < 50 and kinds[Answer] < 50 and kinds[Node] < 200


def test_what_is_over_is_forgotten() -> None:
    """Nothing refers to the requests of the past but the last step's shares, to evicted nodes but two short heaps."""

    def alive() -> Counter[type]:
        gc.collect()
        return Counter(type(each) for each in gc.get_objects())

    before = alive()
    with engine_on(open_tiny(HYBRID), context=224, memory_tokens=224, snapshot_bytes=60_000) as engine:
        random_traffic(engine, 250, 3)
        assert_nothing_left(engine)
        after = alive()
        for kind, most in ((Tokens, 12), (Answer, 0), (Node, 130)):
            assert after[kind] - before[kind] <= most


# ---- sliding windows


def with_pages(opened: OpenModel, pages: int) -> OpenModel:
    """Memory of so many pages, whatever the options say."""
    return replace(opened, make_runner=lambda _, slots: opened.make_runner(pages, slots))


@pytest.mark.parametrize("step_tokens", [8, 33, 100])
def test_a_window_holds_no_more_pages_than_it_and_a_step_reach(step_tokens: int) -> None:
    """A prompt of 300 tokens and an answer of 200, in memory for far less; the answer is what it is in plenty."""
    prompt, held = random_ids(300, 1), []
    pages = -(-(40 + step_tokens + PAGE_TOKENS) // PAGE_TOKENS)
    with engine_on(with_pages(open_tiny(WINDOW), pages), step_tokens=step_tokens) as engine:

        def watch(batch: StepBatch) -> None:
            held.append(sum(page >= 0 for page in engine.core.scheduler.running[0].pages))

        engine.runner.before = watch  # type: ignore[attr-defined]
        waiter = submit(engine, prompt, greedy(200)).wait()
        assert max(held) <= pages and max(held[-150:]) <= 3 and len(held) > 200
        assert engine.statistics().preemptions == 0
        expected = oracle(open_tiny(WINDOW), prompt, greedy(200))[0]
        assert tuple(waiter.ids) == expected.token_ids
        assert_nothing_left(engine)
        with pytest.raises(UserError, match="do not fit the memory"):
            engine_on(with_pages(open_tiny("mixtral"), pages)).submit(prompt, greedy(200), Waiter().put)


def test_many_long_ones_with_a_window_share_a_small_memory() -> None:
    """Eight of 300 tokens in 32 pages: without letting go of pages three would fill them."""
    prompts = [random_ids(100, seed) for seed in range(8)]
    with engine_on(with_pages(open_tiny(WINDOW), 32), step_tokens=64, prefix_cache=False) as engine:
        waiters = [submit(engine, prompt, greedy(200)) for prompt in prompts]
        for waiter, prompt in zip(waiters, prompts, strict=True):
            assert tuple(waiter.wait().ids) == oracle(open_tiny(WINDOW), prompt, greedy(200))[0].token_ids
        watched: Any = engine.runner
        assert max(sequences for sequences, _ in watched.steps) == 8 and engine.statistics().preemptions == 0
        assert_nothing_left(engine)


# ---- who is let in, and when


@pytest.mark.parametrize("name", ["mixtral", HYBRID])
def test_what_can_never_fit_is_refused_at_once(name: str) -> None:
    with engine_on(open_tiny(name), context=100) as engine:
        with pytest.raises(UserError, match=r"90 prompt tokens and up to 11 new ones .* context of 100 tokens"):
            engine.submit(random_ids(90, 0), greedy(11), Waiter().put)
        with pytest.raises(UserError, match="the prompt is empty"):
            engine.submit([], greedy(11), Waiter().put)
        for ids in ([331], [-1], [2**40]):
            with pytest.raises(UserError, match="vocabulary of 331"):
                engine.submit(ids, greedy(11), Waiter().put)
        assert len(submit(engine, random_ids(90, 0), greedy(10)).wait().ids) == 10
    with engine_on(with_pages(open_tiny(name), 4)) as engine:
        with pytest.raises(UserError, match=r"129 tokens of prompt and answer .* memory for 128 tokens"):
            engine.submit(random_ids(100, 0), greedy(29), Waiter().put)
        assert engine.statistics().waiting == 0
        answers = engine.generate([random_ids(100, seed) for seed in range(5)], greedy(28))
        assert all(len(each.token_ids) == 28 for each in answers)  # just enough
        assert_nothing_left(engine)


@pytest.mark.parametrize("name", ["mixtral", HYBRID])
def test_the_line_is_bounded_and_who_is_in_it_is_answered(name: str) -> None:
    started, go = threading.Event(), threading.Event()

    def hold(batch: StepBatch) -> None:
        started.set()
        go.wait(60)

    with engine_on(open_tiny(name), max_running=2, max_waiting=3) as engine:
        engine.runner.before = hold  # type: ignore[attr-defined]
        first = submit(engine, random_ids(10, 0), greedy(5))
        assert started.wait(60)
        others = [submit(engine, random_ids(10, seed), greedy(5)) for seed in range(1, 4)]
        for params in (greedy(5), greedy(5, n=2)):
            with pytest.raises(Busy, match="3 requests wait already, of at most 3"):
                engine.submit(random_ids(10, 9), params, Waiter().put)
        patient: list[Waiter] = []
        thread = threading.Thread(target=lambda: patient.append(submit(engine, random_ids(10, 4), greedy(5))))
        thread.start()
        time.sleep(0.05)
        assert not patient and engine.statistics().waiting == 3
        go.set()
        thread.join(60)
        for seed, waiter in enumerate([first, *others, *patient]):
            expected = oracle(open_tiny(name), random_ids(10, seed), greedy(5))[0].token_ids
            assert tuple(waiter.wait().ids) == expected
        watched: Any = engine.runner
        assert max(sequences for sequences, _ in watched.steps) == 2
        # more answers than may wait, to one request: let in where nobody waits
        assert len(engine.generate([[1, 2, 3]], greedy(2, n=8, temperature=1.0, seed=1))) == 8
        assert_nothing_left(engine)


def test_a_short_prompt_beside_a_long_one_does_not_wait_for_it() -> None:
    """It has written half of its answer before the long one's first token, waiting for 16 tokens at most."""
    with engine_on(open_tiny("mixtral"), step_tokens=32, step_tokens_beside=16) as engine:
        watched: Any = engine.runner
        waiters: dict[str, Waiter] = {}

        def start_short(batch: StepBatch) -> None:
            if len(watched.steps) == 3:
                waiters["short"] = submit(engine, random_ids(12, 1), greedy(30))

        watched.before = start_short
        long = submit(engine, random_ids(400, 0), greedy(5))
        long.wait()
        waiters["short"].wait()
        # 300 tokens were left when the short one had its first: in shares of 16, with one of its own in each step
        rows = [rows for sequences, rows in watched.steps if sequences == 2]
        assert waiters["short"].times[15] < long.times[0] and max(rows[2:]) <= 17
        assert sum(sequences == 2 and count == 17 for sequences, count in watched.steps) >= 15


@pytest.mark.parametrize("name", ["mixtral", HYBRID])
def test_small_ones_that_keep_coming_do_not_starve_a_big_one(name: str) -> None:
    """One that needs all memory, in a line of others: it gets its turn after those before it."""
    with engine_on(open_tiny(name), context=224, memory_tokens=224, max_running=4, step_tokens=64) as engine:
        small: list[Waiter] = []
        at_first: list[int] = []  # how many small ones were over when the big one had its first token

        def keep_coming(batch: StepBatch | None = None) -> None:
            while sum(not waiter.over for waiter in small) < 8 and len(small) < 120:
                small.append(submit(engine, random_ids(20, len(small)), greedy(20)))

        keep_coming()
        big = Waiter()

        def put(piece: Any) -> None:
            at_first.append(sum(waiter.over for waiter in small))
            big.put(piece)

        engine.submit(random_ids(200, 99), greedy(24), put)
        engine.runner.before = keep_coming  # type: ignore[attr-defined]
        big.wait()
        assert at_first[0] < 20
        assert tuple(big.ids) == oracle(open_tiny(name), random_ids(200, 99), greedy(24))[0].token_ids
        until(lambda: len(small) == 120)
        for waiter in small:
            waiter.wait()
        assert_nothing_left(engine)


def test_params_for_each_prompt() -> None:
    with engine_on(open_tiny("mixtral")) as engine:
        prompts = [random_ids(9, seed) for seed in range(3)]
        params = [greedy(2), greedy(5, n=2, temperature=1.0, seed=1), greedy(3)]
        answers = engine.generate(prompts, params)
        assert [len(each.token_ids) for each in answers] == [2, 5, 5, 3]
        assert [each.index for each in answers] == [0, 0, 1, 0]
        for wrong in (params[:2], [*params, greedy(1)]):
            with pytest.raises(UsageError, match=f"params has {len(wrong)} entries for 3 prompts"):
                engine.generate(prompts, wrong)
        assert engine.generate([], greedy()) == []
        with pytest.raises(UsageError, match="n is 2"):
            engine.complete(prompts[0], params[1])


def both_are_there(engine: Engine) -> bool:
    return engine.statistics().running + engine.statistics().waiting == 2


def test_who_had_to_give_way_goes_on_from_what_was_computed() -> None:
    """Two that grow to 130 tokens in 8 pages: at 128 each the second gives way, for two tokens; it loses a page."""
    prompts = [random_ids(60, seed) for seed in range(2)]
    with engine_on(open_tiny("mixtral"), context=256, memory_tokens=256) as engine:
        watched: Any = engine.runner
        watched.before = lambda batch: watched.steps or wait_until(lambda: both_are_there(engine))
        answers = engine.generate(prompts, greedy(70))
        assert engine.statistics().preemptions == 1
        assert 2 * 129 < engine.statistics().tokens <= 2 * 129 + 33
    for prompt, answer in zip(prompts, answers, strict=True):
        assert answer.token_ids == oracle(open_tiny("mixtral"), prompt, greedy(70))[0].token_ids


def test_state_bytes_bound_how_many_run() -> None:
    """A hybrid's states take 10,368 bytes a sequence: three fit, the others wait."""
    with engine_on(open_tiny(HYBRID), state_bytes=3 * 10_368 + 5) as engine:
        prompts = [random_ids(20, seed) for seed in range(9)]
        answers = engine.generate(prompts, greedy(20))
        watched: Any = engine.runner
        assert engine.runner.num_slots == 3 and max(sequences for sequences, _ in watched.steps) == 3
        for prompt, answer in zip(prompts, answers, strict=True):
            assert answer.token_ids == oracle(open_tiny(HYBRID), prompt, greedy(20))[0].token_ids
        assert_nothing_left(engine)
