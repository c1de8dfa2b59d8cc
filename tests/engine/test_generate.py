"""Generation: greedy equals feeding everything back, stops, limits, threads, memory given back."""

import threading

import numpy as np
import pytest
import torch

import octavo
from octavo.config import SamplingParams
from octavo.data.tokenizer import Tokenizer
from octavo.engine import generate as module
from octavo.engine.generate import STATE_SLOTS, Generator
from octavo.engine.runner import StepBatch, StepResult
from octavo.engine.torch_runner import TorchRunner
from octavo.errors import UserError
from octavo.models import Decoder
from tests.compare import assert_rms
from tests.tiny import tiny_config, tiny_tokenizer_files

PROMPT = "def f(x):\n    return"


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_files(tiny_tokenizer_files(), "tiny")


@pytest.fixture(scope="module", params=["mixtral", "minimax_text_01"])
def decoder(request) -> Decoder:
    return Decoder(tiny_config(request.param)).initialise(4).eval()


@pytest.fixture
def generator(decoder, tokenizer) -> Generator:
    return Generator.for_decoder(decoder, tokenizer, 256)


def greedy(**changes) -> SamplingParams:
    return SamplingParams(**{"max_new_tokens": 24, "ignore_eos": True, **changes})


def test_greedy_tokens_are_the_argmax_of_one_forward_pass(decoder, generator, tokenizer) -> None:
    done = generator.complete(PROMPT, greedy())
    ids = tokenizer.encode(PROMPT) + list(done.token_ids)
    with torch.no_grad():
        choices = decoder.logits(decoder(torch.tensor(ids)).hidden).argmax(-1).tolist()
    assert len(done.token_ids) == 24 and done.finish_reason == "length"
    assert list(done.token_ids) == choices[-25:-1]
    assert done.text == tokenizer.decode(done.token_ids)
    assert done.prompt_tokens == len(tokenizer.encode(PROMPT))


def test_prompt_chunks_do_not_change_the_answer(generator, monkeypatch) -> None:
    whole = generator.complete(PROMPT * 4, greedy())
    monkeypatch.setattr(module, "PREFILL_CHUNK", 5)
    assert generator.complete(PROMPT * 4, greedy()) == whole


def test_stream_is_the_completion_in_pieces(generator) -> None:
    params = greedy(temperature=1.0, seed=5)
    pieces = list(generator.stream(PROMPT, params))
    done = generator.complete(PROMPT, params)
    assert "".join(piece.text for piece in pieces) == done.text
    assert [piece.finish_reason for piece in pieces] == [None] * 23 + ["length"]
    assert done != generator.complete(PROMPT, greedy(temperature=1.0, seed=6))


def test_an_end_token_ends_and_is_counted_but_not_shown(decoder, generator, tokenizer) -> None:
    free = generator.complete(PROMPT, greedy())
    end = free.token_ids[5]
    files = {**tiny_tokenizer_files(), "generation_config.json": f'{{"eos_token_id": [{end}]}}'.encode()}
    ending = Generator.for_decoder(decoder, Tokenizer.from_files(files, "tiny"), 256)
    first = free.token_ids.index(end)
    done = ending.complete(PROMPT, greedy(ignore_eos=False))
    assert done.finish_reason == "stop" and done.token_ids == free.token_ids[: first + 1]
    assert done.text == tokenizer.decode(free.token_ids[:first])
    assert ending.complete(PROMPT, greedy()).token_ids == free.token_ids


def test_a_stop_string_across_token_borders_is_cut_off(generator) -> None:
    free = generator.complete(PROMPT, greedy()).text
    for start, length in ((3, 1), (4, 5), (0, 2)):
        stop = free[start : start + length]
        done = generator.complete(PROMPT, greedy(stop=(stop, "never met")))
        assert (done.text, done.finish_reason) == (free[: free.index(stop)], "stop")
    assert generator.complete(PROMPT, greedy(stop=("never met",))).text == free


def test_pages_come_back_after_an_end_an_abandoned_stream_and_a_failure(generator, monkeypatch) -> None:
    def free() -> tuple[int, int]:
        return len(generator._free), len(generator._free_slots)

    everything, slots = free(), generator.runner.num_slots
    assert slots == (STATE_SLOTS if generator.runner.config.lightning_layers else 0)
    stream = generator.stream(PROMPT, greedy())
    assert free() == everything
    next(stream)
    assert free() == (everything[0] - 1, max(slots - 1, 0))
    stream.close()
    assert free() == everything
    generator.complete(PROMPT, greedy())
    monkeypatch.setattr(generator.runner, "step", lambda batch: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        generator.complete(PROMPT, greedy())
    assert free() == everything


def test_a_long_prompt_can_be_cancelled_between_its_steps(generator, monkeypatch) -> None:
    monkeypatch.setattr(module, "PREFILL_CHUNK", 5)
    steps = []
    step = generator.runner.step
    monkeypatch.setattr(generator.runner, "step", lambda b: steps.append(len(b.ids)) or step(b))
    assert list(generator.stream(list(range(3, 43)), greedy(), cancelled=lambda: len(steps) == 3)) == []
    assert steps == [5, 5, 5] and len(generator._free) == generator.runner.num_pages


@pytest.mark.parametrize("memory", ["pages", "slots"])
def test_threads_take_turns_and_get_the_answers_they_get_alone(decoder, tokenizer, memory) -> None:
    """More requests than memory: some wait for pages or slots, none is disturbed by another's keys, values, states."""
    generator = Generator.for_decoder(decoder, tokenizer, 128 if memory == "pages" else 512)
    prompts = [PROMPT[i:] + str(i) for i in range(8)]
    alone = [generator.complete(prompt, greedy()).text for prompt in prompts]
    answers: dict[int, str] = {}

    def ask(i: int) -> None:
        answers[i] = generator.complete(prompts[i], greedy()).text

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert [answers[i] for i in range(8)] == alone and len(set(alone)) > 1


@pytest.mark.parametrize(
    ("prompt", "new", "message"),
    [("", 5, "prompt is empty"), ("x" * 600, 5, "do not fit the context"), ("x", 512, "do not fit the context of 512")],
)
def test_what_cannot_fit_is_refused_at_once(decoder, tokenizer, prompt, new, message) -> None:
    generator = Generator.for_decoder(decoder, tokenizer, 10_000)  # the model itself ends at 512
    for ask in (generator.stream, generator.complete):
        with pytest.raises(UserError, match=message):
            ask(prompt, greedy(max_new_tokens=new))


def test_prompts_that_are_neither_text_nor_chat_nor_ids(generator) -> None:
    assert generator.encode(np.array([3, 4])) == [3, 4]
    for prompt in ([{"role": "user", "content": "x"}, 5], [1.5], [[1, 2]]):
        with pytest.raises(UserError, match="text, a list of messages"):
            generator.encode(prompt)
    for ids in ([331], [-1], [3, 10**9]):
        with pytest.raises(UserError, match="outside the model's vocabulary of 331"):
            generator.complete(ids, greedy())


def test_only_the_end_of_a_prompt_pays_for_logits(generator, monkeypatch) -> None:
    monkeypatch.setattr(module, "PREFILL_CHUNK", 5)
    wanted = []
    step = generator.runner.step
    monkeypatch.setattr(generator.runner, "step", lambda b: wanted.append(len(b.logit_rows)) or step(b))
    generator.complete(list(range(3, 20)), greedy(max_new_tokens=2))
    assert wanted == [0, 0, 0, 1, 1]


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

    class Scripted(TorchRunner):
        """Predicts `answer`, whatever the prompt."""

        def step(self, batch: StepBatch) -> StepResult:
            logits = np.zeros((1, tokenizer.vocab_size), np.float32)
            logits[0, answer[batch.positions[-1] + 1 - len(prompt)]] = 1
            return StepResult(logits, np.zeros((0, 48), np.float32), np.zeros((2, 5), np.int64))

    generator = Generator(Scripted(Decoder(tiny_config("mixtral")).initialise(), 8), tokenizer)
    params = greedy(max_new_tokens=len(answer))
    assert generator.complete("Hello world,", params).text == " hello world"
    assert generator.complete(prompt, params).text == "hello world"  # as after a chat template


def test_bf16_runs_and_stays_near(tokenizer) -> None:
    """What a GPU computes in, on the CPU at toy size."""
    half = Decoder(tiny_config("mixtral")).initialise(4).to(torch.bfloat16).eval()
    done = Generator.for_decoder(half, tokenizer, 64).complete(PROMPT, greedy(max_new_tokens=4))
    assert len(done.token_ids) == 4
    ids = torch.arange(20) * 7
    wide = Decoder(tiny_config("mixtral", initializer_range=0.1)).initialise(4)
    narrow = Decoder(tiny_config("mixtral", initializer_range=0.1)).initialise(4).to(torch.bfloat16)
    assert_rms(narrow.logits(narrow(ids).hidden), wide.logits(wide(ids).hidden), 0.05)
