"""What a review of the engine's deciding half found: each of these once went wrong."""

from collections.abc import Iterator

import numpy as np
import pytest

from octavo.config import EngineOptions, SamplingParams
from octavo.data.tokenizer import Tokenizer
from octavo.engine.engine import Engine
from octavo.models import Decoder
from tests.engine.engines import engine_threads
from tests.engine.symbols import request, run, run_step, scheduler
from tests.tiny import tiny_config, tiny_tokenizer_files

IDS = np.random.default_rng(0).integers(3, 331, 400).tolist()


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    yield
    assert not engine_threads()


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_files(tiny_tokenizer_files(), "tiny")


@pytest.fixture
def engine(tokenizer) -> Iterator[Engine]:
    decoder = Decoder(tiny_config("mixtral")).initialise(4).eval()
    with Engine.for_decoder(decoder, tokenizer, EngineOptions(context=256)) as opened:
        yield opened


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_prompt_logprobs_do_not_change_the_answer(engine, temperature) -> None:
    params = {"max_new_tokens": 6, "ignore_eos": True, "n": 5, "temperature": temperature, "seed": 1}
    plain = engine.generate([IDS[:20]], SamplingParams(**params))
    asked = engine.generate([IDS[:20]], SamplingParams(**params, prompt_logprobs=2))
    assert [done.token_ids for done in asked] == [done.token_ids for done in plain]
    assert [each.token for each in asked[0].prompt_logprobs or ()] == IDS[1:20]


def test_no_states_are_kept_that_have_seen_a_guess() -> None:
    """Another request begins with all that a sequence has, which goes back after a wrong guess and guesses again."""
    planner = scheduler(60, slots=2, step_tokens=400)
    first = request(IDS[:40], new=60)
    planner.add(first)
    for _ in range(31):
        run_step(planner)
    run_step(planner, guesses=[True, False])
    assert first.decodes and first.left == 3
    planner.add(request(first.ids + IDS[100:140]))
    run_step(planner, guesses=[True, False])
    run(planner)  # the memory fails where states are not those they should be


def test_the_longest_unused_goes_first_and_the_others_not_in_turns() -> None:
    planner = scheduler(60, step_tokens=400)
    tokens = np.random.default_rng(1).integers(0, 1000, 70 * 32)
    stale, used, fresh = tokens[:640], tokens[640:1280], tokens[1280:]
    for ids in (stale, used, fresh):
        planner.add(request(ids.tolist(), new=1))
        run(planner)
    assert planner.cache.reach(used, "") == len(used)
    assert planner.cache.reach(stale, "") == len(stale) - 10 * 32  # 10 pages more than there were
