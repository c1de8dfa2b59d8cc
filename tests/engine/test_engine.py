"""The engine from outside: greedy equals feeding everything back, stops, limits, threads, memory given back."""

import asyncio
import queue
import threading
from collections.abc import Iterator

import numpy as np
import pytest
import torch

import octavo
from octavo.config import EngineOptions, SamplingParams
from octavo.data.tokenizer import Tokenizer
from octavo.engine.answer import Piece
from octavo.engine.core import Closed
from octavo.engine.engine import Engine
from octavo.engine.open import OpenModel
from octavo.engine.prompts import Encoded, Prompt
from octavo.engine.runner import StepBatch, StepResult
from octavo.engine.torch_runner import TorchRunner
from octavo.errors import UserError
from octavo.models import Decoder
from tests.compare import assert_rms
from tests.engine.engines import engine_threads, pages_free, stepped, wait_until
from tests.tiny import tiny_config, tiny_tokenizer_files

PROMPT = "def f(x):\n    return"


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    yield
    assert not engine_threads()


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_files(tiny_tokenizer_files(), "tiny")


@pytest.fixture(scope="module", params=["mixtral", "minimax_text_01"])
def decoder(request) -> Decoder:
    return Decoder(tiny_config(request.param)).initialise(4).eval()


@pytest.fixture
def engine(decoder, tokenizer) -> Iterator[Engine]:
    with Engine.for_decoder(decoder, tokenizer, EngineOptions(context=256)) as opened:
        yield opened


@pytest.fixture
def chunked(decoder, tokenizer) -> Iterator[Engine]:
    """An engine that takes prompts five tokens a step."""
    with Engine.for_decoder(decoder, tokenizer, EngineOptions(context=256, step_tokens=5)) as opened:
        yield opened


def greedy(**changes) -> SamplingParams:
    return SamplingParams(**{"max_new_tokens": 24, "ignore_eos": True, **changes})


def test_greedy_tokens_are_the_argmax_of_one_forward_pass(decoder, engine, tokenizer) -> None:
    done = engine.complete(PROMPT, greedy())
    ids = tokenizer.encode(PROMPT) + list(done.token_ids)
    with torch.no_grad():
        choices = decoder.logits(decoder(torch.tensor(ids)).hidden).argmax(-1).tolist()
    assert len(done.token_ids) == 24 and done.finish_reason == "length"
    assert list(done.token_ids) == choices[-25:-1]
    assert done.text == tokenizer.decode(done.token_ids)
    assert done.prompt_tokens == len(tokenizer.encode(PROMPT)) and done.cached_tokens == 0


def test_prompt_chunks_do_not_change_the_answer(engine, chunked) -> None:
    whole = engine.complete(PROMPT * 4, greedy())
    assert chunked.complete(PROMPT * 4, greedy()) == whole
    assert chunked.statistics().steps > engine.statistics().steps + 5


def test_stream_is_the_completion_in_pieces(engine) -> None:
    params = greedy(temperature=1.0, seed=5)
    pieces = list(engine.stream(PROMPT, params))
    done = engine.complete(PROMPT, params)
    assert "".join(piece.text for piece in pieces) == done.text
    assert tuple(piece.token_id for piece in pieces) == done.token_ids
    assert [piece.finish_reason for piece in pieces] == [None] * 23 + ["length"]
    assert done.token_ids != engine.complete(PROMPT, greedy(temperature=1.0, seed=6)).token_ids


def test_an_end_token_ends_and_is_counted_but_not_shown(decoder, engine, tokenizer) -> None:
    free = engine.complete(PROMPT, greedy())
    end = free.token_ids[5]
    files = {**tiny_tokenizer_files(), "generation_config.json": f'{{"eos_token_id": [{end}]}}'.encode()}
    first = free.token_ids.index(end)
    with Engine.for_decoder(decoder, Tokenizer.from_files(files, "tiny"), EngineOptions(context=256)) as ending:
        done = ending.complete(PROMPT, greedy(ignore_eos=False))
        assert done.finish_reason == "stop" and done.token_ids == free.token_ids[: first + 1]
        assert done.text == tokenizer.decode(free.token_ids[:first])
        assert ending.complete(PROMPT, greedy()).token_ids == free.token_ids


def test_a_stop_string_across_token_borders_is_cut_off(engine) -> None:
    free = engine.complete(PROMPT, greedy()).text
    for start, length in ((3, 1), (4, 5), (0, 2)):
        stop = free[start : start + length]
        done = engine.complete(PROMPT, greedy(stop=(stop, "never met")))
        assert (done.text, done.finish_reason) == (free[: free.index(stop)], "stop")
    assert engine.complete(PROMPT, greedy(stop=("never met",))).text == free


def test_memory_comes_back_after_an_end_an_abandoned_stream_and_a_failure(engine, monkeypatch) -> None:
    def free() -> tuple[int, int]:
        return pages_free(engine), len(engine.core.scheduler._free_slots)

    everything, slots = free(), engine.runner.num_slots
    assert everything == (engine.runner.num_pages, slots) and bool(slots) == bool(engine.config.lightning_layers)
    with stepped(engine) as stepper:
        stream = engine.stream(PROMPT, greedy())
        stepper.let(1)
        next(stream)
        assert free() == (everything[0] - 1, max(slots - 1, 0))
        stream.close()
    wait_until(lambda: free() == everything)
    assert engine.statistics().tokens < 24
    engine.complete(PROMPT, greedy())
    wait_until(lambda: free() == everything)
    with monkeypatch.context() as patch:
        patch.setattr(engine.runner, "step", lambda batch: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            engine.complete(PROMPT, greedy())
    assert free() == everything
    assert len(engine.complete(PROMPT, greedy()).token_ids) == 24  # it went on


def test_a_stream_that_was_never_read_ends_with_its_iterator(engine) -> None:
    with stepped(engine) as stepper:
        stream = engine.stream(PROMPT, greedy(max_new_tokens=200))
        stepper.let(1)
        stream.close()
    wait_until(lambda: engine.statistics().running == 0)
    assert engine.statistics().steps <= 3  # of 200


@pytest.mark.parametrize("when", ["while it is handed in", "in the middle"])
def test_leaving_an_event_loop_ends_the_request_and_disturbs_no_other(engine, monkeypatch, caplog, when) -> None:
    handing_in, may_hand_in = threading.Event(), threading.Event()
    encode = engine.encode

    def slow_encode(prompt: Prompt) -> Encoded:
        handing_in.set()
        assert may_hand_in.wait(10)
        return encode(prompt)

    async def read_one() -> None:
        async for _ in engine.stream_async(PROMPT, greedy(max_new_tokens=200)):
            break

    async def leave() -> None:
        reading = asyncio.create_task(read_one())
        if when == "while it is handed in":
            await asyncio.to_thread(handing_in.wait)
            reading.cancel()
            await asyncio.wait([reading])
        may_hand_in.set()
        await asyncio.wait([reading])

    with stepped(engine) as stepper:
        other = queue.SimpleQueue[Piece | Exception]()
        engine.submit("x", greedy(max_new_tokens=40), other.put)
        monkeypatch.setattr(engine, "encode", slow_encode)

        def let_it_begin() -> None:
            wait_until(lambda: engine.statistics().waiting == 1)
            stepper.let(2)

        stepping = threading.Thread(target=let_it_begin if when == "in the middle" else lambda: None)
        wait_until(lambda: stepper.at_the_door == 1)
        stepping.start()
        asyncio.run(leave())
        stepping.join()
    wait_until(lambda: other.qsize() == 40)
    wait_until(lambda: pages_free(engine) == engine.runner.num_pages)
    assert engine.statistics().tokens < 100 and not caplog.records


def test_who_cannot_be_told_ends_alone(engine, caplog) -> None:
    def broken(piece: Piece | Exception) -> None:
        raise RuntimeError("Event loop is closed")

    other = queue.SimpleQueue[Piece | Exception]()
    with stepped(engine) as stepper:
        for emit in (other.put, broken, other.put):
            engine.submit(PROMPT, greedy(), emit)
        wait_until(lambda: stepper.at_the_door > 0)
    wait_until(lambda: other.qsize() == 48)
    assert "Event loop is closed" in caplog.text
    assert pages_free(engine) == engine.runner.num_pages


def test_a_long_prompt_can_be_cancelled_between_its_steps(chunked, monkeypatch) -> None:
    steps, got, ready = [], [], threading.Event()
    step = chunked.runner.step

    def third_time_cancels(batch: StepBatch) -> StepResult:
        assert ready.wait(10)
        steps.append(len(batch.ids))
        if len(steps) == 3:
            ticket.cancel()
        return step(batch)

    monkeypatch.setattr(chunked.runner, "step", third_time_cancels)
    ticket = chunked.submit(list(range(3, 43)), greedy(), got.append)
    ready.set()
    wait_until(lambda: len(steps) == 3 and chunked.statistics().running == 0)
    chunked.close()
    assert steps == [5, 5, 5] and got == [] and pages_free(chunked) == chunked.runner.num_pages


SCARCE = {
    "pages": EngineOptions(context=64, memory_tokens=96),  # three pages, and each comes to need two
    "slots": EngineOptions(context=512, state_bytes=2 * 18_432),  # of 3 layers x 6 heads x 16 x 16 numbers
    "places": EngineOptions(context=512, max_running=2),
}


@pytest.mark.parametrize("memory", SCARCE)
def test_threads_take_turns_and_get_the_answers_they_get_alone(decoder, tokenizer, memory, monkeypatch) -> None:
    """More requests than memory: some wait for pages or slots, none is disturbed by another's keys, values, states."""
    prompts = [PROMPT[i:] + str(i) for i in range(8)]
    answers: dict[int, str] = {}
    widths = []
    with Engine.for_decoder(decoder, tokenizer, SCARCE[memory]) as engine:
        alone = [engine.complete(prompt, greedy(max_new_tokens=40)).text for prompt in prompts]
        step = engine.runner.step
        monkeypatch.setattr(engine.runner, "step", lambda b: widths.append(len(b.cu_seqlens) - 1) or step(b))

        def ask(i: int) -> None:
            answers[i] = engine.complete(prompts[i], greedy(max_new_tokens=40)).text

        threads = [threading.Thread(target=ask, args=(i,)) for i in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        wait_until(lambda: pages_free(engine) == engine.runner.num_pages)
    assert [answers[i] for i in range(8)] == alone and len(set(alone)) > 1
    limited = memory != "slots" or engine.config.lightning_layers
    assert not limited or 1 < max(widths) <= 3


@pytest.mark.parametrize(
    ("prompt", "new", "message"),
    [("", 5, "prompt is empty"), ("x" * 600, 5, "do not fit the context"), ("x", 512, "do not fit the context of 512")],
)
def test_what_cannot_fit_is_refused_at_once(decoder, tokenizer, prompt, new, message) -> None:
    # the model itself ends at 512
    with Engine.for_decoder(decoder, tokenizer, EngineOptions(context=10_000)) as engine:
        for ask in (engine.stream, engine.complete):
            with pytest.raises(UserError, match=message):
                ask(prompt, greedy(max_new_tokens=new))


def test_prompts_that_are_neither_text_nor_chat_nor_ids(engine) -> None:
    assert engine.encode(np.array([3, 4])).ids == (3, 4)
    for prompt in ([{"role": "user", "content": "x"}, 5], [1.5], [[1, 2]]):
        with pytest.raises(UserError, match="text, a list of messages"):
            engine.encode(prompt)
    for ids in ([331], [-1], [3, 10**9]):
        with pytest.raises(UserError, match="outside the model's vocabulary of 331"):
            engine.complete(ids, greedy())


def test_only_the_end_of_a_prompt_pays_for_logits(chunked, monkeypatch) -> None:
    wanted = []
    step = chunked.runner.step
    monkeypatch.setattr(chunked.runner, "step", lambda b: wanted.append(len(b.logit_rows)) or step(b))
    chunked.complete(list(range(3, 20)), greedy(max_new_tokens=2))
    assert wanted == [0, 0, 0, 1, 1]


def test_closing_tells_those_under_way_and_refuses_others(engine) -> None:
    got: queue.SimpleQueue = queue.SimpleQueue()
    with stepped(engine) as stepper:
        for _ in range(2):
            engine.submit(PROMPT, greedy(), got.put)
        wait_until(lambda: stepper.at_the_door > 0)
        closing = threading.Thread(target=engine.close)
        closing.start()
        wait_until(lambda: engine.core._closed)
    closing.join(10)
    ends = [item for item in (got.get(timeout=10) for _ in range(got.qsize())) if isinstance(item, Exception)]
    assert [type(end) for end in ends] == [Closed, Closed]
    engine.close()
    for ask in (engine.stream, engine.complete):
        with pytest.raises(UserError, match="closed"):
            ask(PROMPT, greedy())


def test_python_api_takes_text_and_messages(decoder, tokenizer) -> None:
    text = octavo.generate(decoder, tokenizer, "The", max_new_tokens=5)
    messages = [{"role": "user", "content": "The"}]
    chat = octavo.generate(decoder, tokenizer, messages, max_new_tokens=5)
    raw = octavo.generate(decoder, tokenizer, tokenizer.apply_chat(messages), max_new_tokens=5)
    assert chat == raw != text


def test_a_completion_keeps_the_space_a_sentencepiece_tokenizer_drops_at_a_beginning() -> None:
    from tests.data.tiny_tokenizers import sentencepiece

    tokenizer = Tokenizer.from_files({"tokenizer.json": sentencepiece().encode()}, "tiny")
    prompt, answer = tokenizer.encode("Hello world,"), tokenizer.encode("hello world", add_special_tokens=False)
    decoder = Decoder(tiny_config("mixtral")).initialise()

    class Scripted(TorchRunner):
        """Predicts `answer`, whatever the prompt."""

        def step(self, batch: StepBatch) -> StepResult:
            logits = np.zeros((1, tokenizer.vocab_size), np.float32)
            logits[0, answer[batch.positions[-1] + 1 - len(prompt)]] = 1
            return StepResult(logits, np.zeros((0, 48), np.float32), np.zeros((2, 5), np.int64))

    opened = OpenModel(decoder.config, tokenizer, lambda pages, slots: Scripted(decoder, pages, slots), "scripted")
    with Engine(opened) as engine:
        params = greedy(max_new_tokens=len(answer))
        assert engine.complete("Hello world,", params).text == " hello world"
        assert engine.complete(prompt, params).text == "hello world"  # as after a chat template


def test_bf16_runs_and_stays_near(tokenizer) -> None:
    """What a GPU computes in, on the CPU at toy size."""
    half = Decoder(tiny_config("mixtral")).initialise(4).to(torch.bfloat16).eval()
    with Engine.for_decoder(half, tokenizer, EngineOptions(context=64)) as engine:
        assert len(engine.complete(PROMPT, greedy(max_new_tokens=4)).token_ids) == 4
    ids = torch.arange(20) * 7
    wide = Decoder(tiny_config("mixtral", initializer_range=0.1)).initialise(4)
    narrow = Decoder(tiny_config("mixtral", initializer_range=0.1)).initialise(4).to(torch.bfloat16)
    assert_rms(narrow.logits(narrow(ids).hidden), wide.logits(wide(ids).hidden), 0.05)
