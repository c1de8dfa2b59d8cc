"""Random traffic on real engines: every answer is, bit for bit, what the same request is answered alone."""

from collections import deque
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from octavo.config import Grammar, SamplingParams
from octavo.engine.engine import Engine
from octavo.engine.open import OpenModel
from octavo.engine.prompts import Encoded
from octavo.engine.runner import StepBatch
from tests.engine.watched import (
    HYBRID,
    Waiter,
    assert_nothing_left,
    engine_on,
    idle,
    open_tiny,
    open_torch,
    oracle,
    random_ids,
    submit,
    until,
)

STEMS = [random_ids(110, seed) for seed in range(3)]
BORDERS = [1, 2, 31, 32, 33, 63, 64, 65, 95, 96, 97]  # lengths at which pages end, and beside them
CONTEXT = 224  # tokens of the longest request
BOUND = 1e-4  # nats that rounding in fp32 may move a log probability


@dataclass
class Request:
    """marks: where a hybrid should keep its states, as a chat's turns say; any places will do."""

    prompt: list[int]
    params: SamplingParams
    tenant: str
    marks: tuple[int, ...] = ()
    cancel_after: int | None = None  # pieces; 0: by the thread that submits, at some moment
    waiter: Waiter = field(default_factory=Waiter)


def random_params(random: np.random.Generator, exact: bool) -> SamplingParams:
    """Greedy, or drawn with a seed; short answers mostly. exact: with all that changes the choice."""
    own: dict[str, Any] = {"max_new_tokens": int(random.choice([1, 2, 5, 12, 30, 70, 70]))}
    own["logprobs"] = int(random.integers(0, 3)) if exact else 2
    own["ignore_eos"] = bool(random.random() < 0.7)
    if random.random() < 0.3:
        own["prompt_logprobs"] = int(random.integers(0, 2))
    if random.random() < 0.3:
        own["n"] = int(random.integers(2, 4))
    if random.random() < 0.1:
        own["stop"] = ("e", "xyz")
    elif random.random() < 0.1:
        own["grammar"] = Grammar("regex", "[a-z ]{3,20}")
    if exact and random.random() < 0.6:
        own |= {"temperature": float(random.choice([0.5, 1.0, 2.0])), "seed": int(random.integers(1000))}
        own |= {"top_k": int(random.choice([0, 20])), "top_p": float(random.choice([0.8, 1.0]))}
        own |= {"repetition_penalty": float(random.choice([1.0, 1.3])), "frequency_penalty": 0.2}
    return SamplingParams(**own)


def random_requests(count: int, seed: int, exact: bool = True) -> list[Request]:
    """Prompts that begin alike and part, in the middle of pages and at their ends."""
    random = np.random.default_rng(seed)
    requests: list[Request] = []
    for _ in range(count):
        common = int(random.choice(BORDERS)) if random.random() < 0.6 else int(random.integers(0, 110))
        own = random.integers(3, 331, random.integers(1, 41)).tolist()
        prompt = STEMS[random.integers(len(STEMS))][:common] + own
        if requests and random.random() < 0.35:  # another's prompt, whole, cut, or gone on with
            other = requests[random.integers(len(requests))].prompt
            prompt = (other + own)[: random.choice([len(other), max(1, len(other) - 1), len(other) + len(own)])]
        prompt = prompt[:150]
        tenant = str(random.choice(["", "", "a"]))
        cancel = int(random.choice([0, 1, 3, 10])) if random.random() < 0.2 else None
        marks = tuple(sorted(set(random.integers(1, len(prompt) + 1, random.integers(0, 4)).tolist()) - {len(prompt)}))
        requests.append(Request(prompt, random_params(random, exact), tenant, marks, cancel))
    return requests


@dataclass
class Traffic:
    """What happened: each is asserted to have happened at all."""

    evicted: int = 0
    forgotten: int = 0
    cached: int = 0


def count_calls(thing: Any, name: str, traffic: Traffic, counter: str) -> None:
    method = getattr(thing, name)

    def counting(*args: Any) -> Any:
        setattr(traffic, counter, getattr(traffic, counter) + 1)
        return method(*args)

    setattr(thing, name, counting)


def drive(engine: Engine, requests: list[Request], seed: int) -> Traffic:
    """Hand them in while others are under way and cancel some, both between steps and by lot: the same each time."""
    random, traffic = np.random.default_rng(seed), Traffic()
    upcoming, to_cancel = deque(requests), []
    count_calls(engine.core.scheduler.cache, "_shorten", traffic, "evicted")
    count_calls(engine.core.scheduler.cache, "_forget_snapshot", traffic, "forgotten")

    def hand_in() -> None:
        request = upcoming.popleft()
        prompt = Encoded(tuple(request.prompt), request.marks)
        cancel_after = request.cancel_after or None
        request.waiter = submit(engine, prompt, request.params, request.tenant, cancel_after=cancel_after)
        if request.cancel_after == 0:
            to_cancel.append(request.waiter)

    def between_steps(batch: StepBatch) -> None:
        while upcoming and random.random() < 0.3:
            hand_in()
        if to_cancel and random.random() < 0.1:
            ticket = to_cancel.pop(random.integers(len(to_cancel))).ticket
            assert ticket is not None
            ticket.cancel()

    engine.runner.before = between_steps  # type: ignore[attr-defined]
    while upcoming:
        until(lambda: idle(engine))
        if upcoming:
            hand_in()
    assert_nothing_left(engine, clear=False)
    for request in requests:
        if request.cancel_after is None:
            request.waiter.wait()
    tickets = [request.waiter.ticket for request in requests]
    traffic.cached = sum(ticket.cached_tokens for ticket in tickets if ticket)
    return traffic


def assert_as_alone(opened: OpenModel, requests: list[Request]) -> int:
    """Every answer, and as much as there is of those that were cancelled, equals the oracle's; how many tokens did."""
    compared = 0
    for request in requests:
        assert not request.waiter.errors
        alone = oracle(opened, request.prompt, request.params)
        for pieces, expected in zip(request.waiter.pieces, alone, strict=True):
            assert len(pieces) == len(expected.token_ids) or request.cancel_after is not None
            assert tuple(piece.token_id for piece in pieces) == expected.token_ids[: len(pieces)]
            if pieces and pieces[-1].finish_reason:
                assert "".join(piece.text for piece in pieces) == expected.text
                assert pieces[-1].finish_reason == expected.finish_reason
            if expected.logprobs is not None:  # equal floats
                assert tuple(piece.logprob for piece in pieces) == expected.logprobs[: len(pieces)]
            if pieces:
                assert pieces[0].prompt_logprobs == expected.prompt_logprobs
                if request.params.prompt_logprobs is not None and expected.index == 0:
                    assert len(expected.prompt_logprobs or ()) == len(request.prompt) - 1
            compared += len(pieces)
    return compared


SMALL = {"context": CONTEXT, "memory_tokens": CONTEXT, "max_running": 6}
# model, keys and values, threads, options; a snapshot of the hybrids takes 10,368 and 28,800 bytes
RUNS: list[tuple[str, str, int, dict[str, Any]]] = [
    ("mixtral", "float32", 1, {"step_tokens": 64, "step_tokens_beside": 16}),
    ("mixtral", "int8", 2, {"step_tokens": 7, "step_tokens_beside": 3, "max_running": 12}),
    ("mixtral", "int8", 1, {"step_tokens": 512, "step_tokens_beside": 512, "max_running": 12, "memory_tokens": 352}),
    ("mixtral", "float32", 2, {"step_tokens": 33, "step_tokens_beside": 1, "max_running": 5}),
    ("mistral", "float32", 1, {"step_tokens": 20, "step_tokens_beside": 9, "max_running": 16, "memory_tokens": 352}),
    ("many heads", "int8", 2, {"step_tokens": 50, "step_tokens_beside": 30, "max_running": 10, "memory_tokens": 288}),
    (
        HYBRID,
        "float32",
        1,
        {"step_tokens": 64, "step_tokens_beside": 16, "snapshot_bytes": 42_000, "memory_tokens": 416},
    ),
    (HYBRID, "int8", 2, {"step_tokens": 7, "step_tokens_beside": 3, "snapshot_bytes": 32_000}),
    (HYBRID, "float32", 2, {"step_tokens": 512, "step_tokens_beside": 100, "snapshot_bytes": 10_500}),
    (HYBRID, "float32", 1, {"step_tokens": 1, "step_tokens_beside": 1, "snapshot_bytes": 21_000}),
    ("all lightning", "float32", 1, {"step_tokens": 30, "step_tokens_beside": 10, "snapshot_bytes": 26_000}),
    (
        "minimax",
        "int8",
        1,
        {"step_tokens": 40, "step_tokens_beside": 40, "snapshot_bytes": 90_000, "max_running": 9, "memory_tokens": 352},
    ),
]


@pytest.mark.parametrize("run", range(len(RUNS)))
def test_every_answer_is_what_it_is_alone(run: int) -> None:
    name, kv, threads, options = RUNS[run]
    requests = random_requests(60, run)
    with engine_on(open_tiny(name, kv, threads), **SMALL | options) as engine:
        traffic = drive(engine, requests, run)
        statistics, watched = engine.statistics(), engine.runner
        assert_nothing_left(engine)
    assert assert_as_alone(open_tiny(name, kv), requests) > 500
    # else nothing was shown
    assert traffic.cached > 50 and traffic.evicted > 5 and watched.copied > 3
    assert max(sequences for sequences, _ in watched.steps) >= 3
    assert statistics.preemptions > 0 or engine.config.sliding_window == 7  # which never needs more than is promised
    if engine.runner.num_slots:
        assert watched.restored > 3 and traffic.forgotten > 5


@pytest.mark.parametrize(("name", "count"), [("mixtral", 40), ("mistral", 40), (HYBRID, 22)])
def test_in_torch_every_answer_is_within_rounding_of_what_it_is_alone(name: str, count: int) -> None:
    """Greedy tokens, as long as the likeliest two are further apart than rounding could move them."""
    requests = random_requests(count, 5, exact=False)
    options = SMALL | {"step_tokens": 30, "step_tokens_beside": 11, "max_running": 12, "snapshot_bytes": 32_000}
    with engine_on(open_torch(name), **options) as engine:
        traffic = drive(engine, requests, 5)
        statistics = engine.statistics()
        assert_nothing_left(engine)
    compared = sum(equal_within_rounding(open_torch(name), request) for request in requests)
    wrote = sum(len(pieces) for request in requests for pieces in request.waiter.pieces)
    assert compared > 0.98 * wrote > 10 * count
    assert traffic.cached > 50 and traffic.evicted > 5
    assert statistics.preemptions > 0 or engine.config.sliding_window == 7


def equal_within_rounding(opened: OpenModel, request: Request) -> int:
    """Assert it; how many tokens were compared before two were too close to call."""
    assert not request.waiter.errors
    compared = 0
    for pieces, alone in zip(request.waiter.pieces, oracle(opened, request.prompt, request.params), strict=True):
        assert len(pieces) == len(alone.token_ids) or request.cancel_after is not None or not request.params.ignore_eos
        for piece, token, expected in zip(pieces, alone.token_ids, alone.logprobs or (), strict=False):
            (_, best), (_, second) = expected.top
            if best - second < BOUND and piece.token_id != token:
                break
            assert piece.token_id == token and piece.logprob is not None
            assert abs(piece.logprob.logprob - expected.logprob) < BOUND
            compared += 1
        for given, expected in zip(
            (pieces and pieces[0].prompt_logprobs) or (), alone.prompt_logprobs or (), strict=bool(pieces)
        ):
            assert given.token == expected.token and abs(given.logprob - expected.logprob) < BOUND
    return compared
