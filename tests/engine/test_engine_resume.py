"""Taking up what the prefix cache kept: decoding goes on as in one forward pass; where hybrids keep their states."""

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from octavo.config import SamplingParams
from octavo.engine.answer import Piece
from octavo.engine.engine import Engine
from octavo.engine.logprobs import TokenLogprob, log_probabilities
from octavo.models.packing import Packing
from tests.engine.steps import batch
from tests.engine.watched import (
    HYBRID,
    Waiter,
    assert_nothing_left,
    decoder_of,
    engine_on,
    greedy,
    idle,
    open_tiny,
    open_torch,
    oracle,
    random_ids,
    submit,
    until,
)
from tests.quantised import quantised

NAMES = ["mixtral", "mistral", HYBRID, "minimax"]


def in_one_step(name: str, ids: Sequence[int], kv: str = "float32") -> np.ndarray:
    """Logits of every row [len(ids), vocab], from one step of a runner that has done nothing else."""
    runner = open_tiny(name, kv).make_runner(-(-len(ids) // 32), 1)
    part = (np.array(ids, np.int64), 0, list(range(runner.num_pages)))
    rows = np.arange(len(ids))
    return runner.step(batch([part], [0] if runner.num_slots else [-1], logit_rows=rows)).logits


def preempted_and_hit(engine: Engine, params: SamplingParams) -> list[tuple[list[int], list[Piece]]]:
    """Prompts and the pieces of their answers: together, so that some give way, and then each gone on with in turn."""
    prompts = [random_ids(60, 0)[: 10 + 5 * (seed % 4)] + random_ids(4 + seed, seed) for seed in range(8)]
    waiters = [submit(engine, prompt, params).wait for prompt in prompts]
    answers = [(prompt, wait().pieces[0]) for prompt, wait in zip(prompts, waiters, strict=True)]
    assert engine.statistics().preemptions > 0 or engine.config.sliding_window
    until(lambda: idle(engine))
    before = engine.statistics().cached_tokens
    for prompt, pieces in answers[:4]:
        longer = [*prompt, *(piece.token_id for piece in pieces)]
        for text in (longer, longer + random_ids(9, 1)):
            answers.append((text, submit(engine, text, params).wait().pieces[0]))
            until(lambda: idle(engine))
    assert engine.statistics().cached_tokens - before > 100 or params.prompt_logprobs is not None
    return answers


SMALL = {"context": 192, "memory_tokens": 192, "max_running": 10, "step_tokens": 48, "step_tokens_beside": 13}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kv", ["float32", "int8"])
def test_answers_after_any_resume_are_rows_of_one_step(name: str, kv: str) -> None:
    """The log probabilities of every token, its rank and the likeliest, and of the prompt's tokens: equal floats."""
    params = SamplingParams(max_new_tokens=60, temperature=1.0, seed=3, logprobs=3, prompt_logprobs=1, ignore_eos=True)
    with engine_on(open_tiny(name, kv, threads=2), **SMALL | {"snapshot_bytes": 60_000}) as engine:
        # those that want log probabilities of the prompt cannot take it from the cache, so half of them do not
        answers = preempted_and_hit(engine, params)
        answers += preempted_and_hit(engine, greedy(60, logprobs=3))
        assert_nothing_left(engine)
    for prompt, pieces in answers:
        ids = prompt + [piece.token_id for piece in pieces]
        rows = in_one_step(name, ids[:-1], kv)
        for piece, at in zip(pieces, range(len(prompt) - 1, len(ids)), strict=False):
            assert piece.logprob == log_probabilities(rows[at], ids[at + 1], 3)
        if pieces[0].prompt_logprobs is not None:
            expected = [log_probabilities(rows[at], ids[at + 1], 1) for at in range(len(prompt) - 1)]
            assert list(pieces[0].prompt_logprobs) == expected


@pytest.mark.parametrize("name", ["mixtral", HYBRID])
@pytest.mark.parametrize("core", ["native", "torch"])
def test_answers_after_any_resume_are_rows_of_the_decoders_one_pass(name: str, core: str) -> None:
    """Against the decoder itself, which knows neither pages nor slots; the core with bf16 weights, as it then."""
    opened = open_torch(name) if core == "torch" else open_tiny(name, bits=16)
    exact = decoder_of(name) if core == "torch" else quantised(decoder_of(name), 16)
    with engine_on(opened, **SMALL | {"snapshot_bytes": 60_000}) as engine:
        answers = preempted_and_hit(engine, greedy(50))
        assert_nothing_left(engine)
    for prompt, pieces in answers:
        ids = prompt + [piece.token_id for piece in pieces]
        with torch.no_grad():
            out = exact(torch.tensor(ids[:-1]), Packing.from_lengths([len(ids) - 1]))
            logits = exact.logits(out.hidden).double()
        expected = logits.log_softmax(-1)[range(len(prompt) - 1, len(ids) - 1), ids[len(prompt) :]]
        found = [piece.logprob.logprob for piece in pieces if piece.logprob]
        assert np.abs(np.array(found) - expected.numpy()).max() < 1e-4
        margins = logits[len(prompt) - 1 :].topk(2).values.diff().abs().flatten()
        greedy_ids = logits[len(prompt) - 1 :].argmax(-1)
        for token, best, margin in zip(ids[len(prompt) :], greedy_ids.tolist(), margins.tolist(), strict=True):
            assert token == best or margin < 1e-3


def test_prompt_logprobs_of_any_cut_and_after_a_preemption() -> None:
    """Longer than the rows of a step (128), beside others, and taken up in the middle."""
    prompt = random_ids(180, 1)
    rows = in_one_step("mixtral", prompt)
    expected: list[TokenLogprob] = [log_probabilities(rows[at], prompt[at + 1], 2) for at in range(179)]
    params = greedy(3, prompt_logprobs=2)
    with engine_on(open_tiny("mixtral"), **SMALL | {"context": 256, "memory_tokens": 256}) as engine:
        others = [submit(engine, random_ids(20, seed), greedy(80)) for seed in range(5)]
        waiters = [submit(engine, prompt, params) for _ in range(2)]
        for waiter in waiters:
            assert list(waiter.wait().pieces[0][0].prompt_logprobs or ()) == expected
        assert engine.statistics().preemptions > 0
        for waiter in others:
            waiter.wait()
        assert_nothing_left(engine)


# ---- hybrids: where states are kept


def cached_of(engine: Engine, prompt: Any, new: int = 4, **own: Any) -> tuple[int, int, list[int]]:
    """Tokens of a prompt, how many of them came from the cache, and the answer."""
    waiter = Waiter()
    waiter.ticket = engine.submit(prompt, greedy(new, **own), waiter.put)
    waiter.wait()
    until(lambda: idle(engine))
    return waiter.ticket.prompt_tokens, waiter.ticket.cached_tokens, waiter.ids


@pytest.mark.parametrize("name", ["mixtral", HYBRID])
def test_the_next_turn_takes_up_the_end_of_the_answer(name: str) -> None:
    """All of a prompt and its answer but the token that was never computed, at any length; no multiples of anything."""
    with engine_on(open_tiny(name)) as engine:
        conversation = random_ids(45, 0)
        for turn in range(6):
            prompt = list(conversation)
            length, cached, answer = cached_of(engine, prompt, 7 + turn)
            assert cached == (0 if turn == 0 else length - 13 - 1)
            conversation = prompt + answer + random_ids(13, turn + 1)
            alone = oracle(open_tiny(name), prompt, greedy(7 + turn))[0]
            assert tuple(answer) == alone.token_ids


def chat(*turns: str) -> list[dict[str, str]]:
    roles = ["system", *["user", "assistant"] * len(turns)]
    return [{"role": role, "content": text} for role, text in zip(roles, turns, strict=False)]


SYSTEM = "You are a patient assistant who explains everything twice, once in short words and once in longer ones."
QUESTION = "What is the capital of France, and how many people live there in winter, when nobody travels?"


def test_another_question_takes_up_the_system_prompt() -> None:
    """At its end, to the token: that is where a chat's template says that prompts part."""
    with engine_on(open_tiny(HYBRID)) as engine:
        first = engine.encode(chat(SYSTEM, QUESTION))
        end_of_system, end_of_question = first.marks
        assert cached_of(engine, chat(SYSTEM, QUESTION))[1] == 0
        assert cached_of(engine, chat(SYSTEM, "Why is the sky blue, in fact?"))[1] == end_of_system
        # another answer to the same question: what follows the question is the template's own
        other = chat(SYSTEM, QUESTION, "Paris, it is said; but nobody", "Really?")
        assert cached_of(engine, other)[1] == end_of_question


@pytest.mark.parametrize("length", [65, 100, 129, 200])
def test_the_same_prompt_again_takes_up_its_last_mark(length: int) -> None:
    """All but the last token, whose logits are wanted."""
    with engine_on(open_tiny(HYBRID)) as engine:
        prompt = random_ids(length, 0)
        first = cached_of(engine, prompt, 9)
        again = cached_of(engine, prompt, 9)
        assert first[1] == 0 and again[1] == length - 1 and first[2] == again[2]


def test_a_place_where_prompts_part_gets_a_snapshot() -> None:
    """The second prompt finds that the first began alike; the third goes on from there."""
    stem = random_ids(123, 0)
    with engine_on(open_tiny(HYBRID)) as engine:
        hits = [cached_of(engine, stem + random_ids(40, seed))[1] for seed in range(1, 5)]
    assert hits == [0, 0, 123, 123]
    with engine_on(open_tiny(HYBRID), step_tokens=16) as engine:  # together: the first keeps it for the others
        all_there = threading.Event()
        engine.runner.before = lambda batch: all_there.wait(60)  # type: ignore[attr-defined]
        waiters = [submit(engine, stem + random_ids(40, seed), greedy(4)) for seed in range(1, 5)]
        all_there.set()
        tickets = [waiter.wait().ticket for waiter in waiters]
        cached = [ticket.cached_tokens for ticket in tickets if ticket]
        assert cached[0] == 0 and min(cached[1:]) >= 123 - 32


def test_without_room_for_a_snapshot_nothing_is_kept() -> None:
    for budget in (0, 10_367):  # one takes 10,368 bytes
        with engine_on(open_tiny(HYBRID), snapshot_bytes=budget) as engine:
            prompt = random_ids(100, 0)
            assert cached_of(engine, prompt)[1] == cached_of(engine, prompt)[1] == 0
            assert engine.statistics().pages_cached == engine.statistics().snapshot_bytes == 0
    with engine_on(open_tiny(HYBRID), snapshot_bytes=10_368) as engine:
        cached_of(engine, prompt)
        assert engine.statistics().snapshot_bytes == 10_368


def test_the_budget_is_kept_and_what_is_used_stays() -> None:
    prompt = random_ids(150, 0)
    with engine_on(open_tiny(HYBRID), snapshot_bytes=4 * 10_368, memory_tokens=4096) as engine:
        cached_of(engine, prompt)
        for seed in range(1, 12):
            assert cached_of(engine, prompt)[1] == 149  # its use keeps it
            assert cached_of(engine, random_ids(40, seed), 1)[1] == 0
            assert engine.statistics().snapshot_bytes <= 4 * 10_368
        assert_nothing_left(engine)


def test_compressed_snapshots_are_close_and_small() -> None:
    """A quarter of the bytes, and a scale for each row; answers after a hit are near, but not the same bits."""
    prompt = random_ids(150, 0)

    def logprobs(compress: bool) -> tuple[np.ndarray, int, int]:
        with engine_on(open_tiny(HYBRID), compress_snapshots=compress) as engine:
            cached_of(engine, prompt)
            waiter = submit(engine, prompt + random_ids(5, 1), greedy(1, logprobs=20)).wait()
            until(lambda: idle(engine))
            assert waiter.ticket is not None and waiter.pieces[0][0].logprob is not None
            numbers = sorted(waiter.pieces[0][0].logprob.top)
            kept = engine.statistics().snapshot_bytes
            count = len(engine.core.scheduler.cache._snapshots)
            assert_nothing_left(engine)
            return np.array(numbers), waiter.ticket.cached_tokens, kept // count

    (exact, hit, size), (close, hit_too, small) = logprobs(False), logprobs(True)
    assert hit == hit_too >= 149 and size == 10_368 and small == 10_368 // 4 + 10_368 // 12  # head_dim 12
    common = {int(token): logprob for token, logprob in exact}
    differences = [abs(logprob - common[int(token)]) for token, logprob in close if int(token) in common]
    assert len(differences) > 15 and 0 < max(differences) < 0.2
