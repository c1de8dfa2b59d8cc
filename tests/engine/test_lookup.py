"""Guesses by prompt look-up: what is guessed, and that no answer changes by it while steps are saved."""

from typing import Any

import pytest

from octavo.config import EngineOptions, Grammar, SamplingParams
from octavo.engine.engine import Engine
from octavo.engine.lookup import Lookup
from octavo.progress import silent
from tests.engine.watched import HYBRID, open_tiny, tokenizer

# what it is given ends in a word that it has, so that there is something to guess, right or wrong
PROMPT = "The capital of France is Paris. def f(x): return x. " * 6 + "The capital of"
ASKED: dict[str, dict[str, Any]] = {
    "greedy": {},
    "temperature": {"temperature": 0.4, "seed": 3},
    "top-k": {"temperature": 0.9, "top_k": 2, "seed": 5},
    "penalties": {"repetition_penalty": 1.1, "frequency_penalty": 0.1},
    "several": {"n": 3, "temperature": 0.5, "seed": 1, "prompt_logprobs": 1},
    "stop": {"stop": ("a", "e", " of")},
    "grammar": {"grammar": Grammar("regex", "(ab ){5,40}")},
}


def test_what_followed_the_last_three_tokens_before() -> None:
    lookup = Lookup(8)
    assert lookup.guess([1, 2, 3, 4, 5, 6, 7, 8, 9], 0, 0) == []
    assert lookup.guess([1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 2, 3], 0, 0) == [4, 5, 6, 7]
    assert lookup.guess([1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 2, 3, 4, 5, 6, 7, 8], 4, 4) == [9, 1, 2, 3, 4, 5, 6, 7]  # longer
    assert Lookup(8).guess([1, 2, 3, 5, 1, 2, 3, 6, 1, 2, 3], 0, 0) == [6, 1, 2, 3]  # the latest place


def test_who_guesses_wrong_pauses() -> None:
    lookup, ids = Lookup(8), [1, 2, 3] * 9
    assert lookup.guess(ids, 0, 0)
    assert [bool(lookup.guess(ids, guessed, 0)) for guessed in (4, 0, 0, 0)] == [False, False, True, True]
    assert [bool(lookup.guess(ids, guessed, 0)) for guessed in (4, 0, 0, 0, 0)] == [False] * 4 + [True]


@pytest.mark.parametrize("asked", ASKED)
@pytest.mark.parametrize("name", ["mixtral", "mistral", HYBRID])
def test_answers_are_bit_for_bit_those_without_guesses(name: str, asked: str) -> None:
    params = SamplingParams(**{"max_new_tokens": 60, "ignore_eos": True, "logprobs": 2} | ASKED[asked])
    found = []
    for speculate in (0, 1, 8, 16):
        with Engine(open_tiny(name, poison=False), EngineOptions(context=512, speculate=speculate)) as engine:
            done = engine.generate([tokenizer().encode(prompt) for prompt in (PROMPT, PROMPT[5:])], params, silent)
            found.append([(each.token_ids, each.text, each.finish_reason, each.logprobs) for each in done])
    assert found[0] == found[1] == found[2] == found[3]


@pytest.mark.parametrize("name", ["mixtral", "mistral", HYBRID])
def test_right_guesses_save_steps(name: str) -> None:
    """An answer of one token again and again, of which all but the first few are guessed."""
    params, steps = SamplingParams(max_new_tokens=60, ignore_eos=True, logit_bias={100: 1e4}), []
    for speculate in (0, 8):
        with Engine(open_tiny(name, poison=False), EngineOptions(context=512, speculate=speculate)) as engine:
            assert set(engine.complete(tokenizer().encode(PROMPT), params).token_ids) == {100}
            steps.append(engine.statistics().steps)
    assert steps[0] >= 60 and steps[1] < 0.6 * steps[0]
