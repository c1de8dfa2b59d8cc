"""Parameters of a request and options of an engine: what is no number, text or grammar is refused by name."""

import math

import numpy as np
import pytest

from octavo.config import EngineOptions, Grammar, SamplingParams
from octavo.errors import UsageError

WHOLE = ("max_new_tokens", "top_k", "seed", "n", "logprobs", "prompt_logprobs")
REAL = ("temperature", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty")
NO_NUMBERS = ("5", b"5", [1], {}, (), object(), 1 + 1j, np.array(1), np.array([1, 2]), math.nan)


@pytest.mark.parametrize("name", WHOLE + REAL)
def test_what_is_no_number_is_refused_by_name(name) -> None:
    fractions = (1.5, math.inf, np.float32(0.5)) if name in WHOLE else (math.inf, -math.inf)
    for value in (*NO_NUMBERS, *fractions, *(() if name in ("seed", "logprobs", "prompt_logprobs") else (None,))):
        with pytest.raises(UsageError, match=f"{name} is"):
            SamplingParams(**{name: value})
    SamplingParams(**{name: np.int64(1)})


@pytest.mark.parametrize(
    "name", ["context", "max_running", "max_waiting", "state_bytes", "snapshot_bytes", "step_tokens", "speculate"]
)
def test_what_is_no_whole_number_is_refused_by_the_engine(name) -> None:
    for value in ("5", 1.5, math.nan, math.inf, None, [1]):
        with pytest.raises(UsageError, match=f"{name} is"):
            EngineOptions(**{name: value})
    with pytest.raises(UsageError, match="memory_tokens is 'all'"):
        EngineOptions(memory_tokens="all")


@pytest.mark.parametrize("stop", ["a", b"a", None, 5, [5], ("a", 1), (None,), {"a": 1}])
def test_stop_is_a_sequence_of_strings(stop) -> None:
    with pytest.raises(UsageError, match="stop is"):
        SamplingParams(stop=stop)
    assert SamplingParams(stop=["a", "b"]).stop


@pytest.mark.parametrize(
    "bias", [None, 5, [1], {"1": 1.0}, {1.5: 1.0}, {1: "2"}, {1: None}, {1: math.nan}, {1: math.inf}, {-1: 1.0}]
)
def test_a_bias_maps_ids_to_numbers(bias) -> None:
    with pytest.raises(UsageError, match="logit_bias is"):
        SamplingParams(logit_bias=bias)
    assert SamplingParams(logit_bias={np.int64(5): np.float32(1)}).logit_bias == {5: 1}


def test_grammars_hold_strings() -> None:
    for grammar in ("a+", {"type": "integer"}, True, "", 0):
        with pytest.raises(UsageError, match="grammar is"):
            SamplingParams(grammar=grammar)
    for text in ({"type": "integer"}, b"a", 5, None):
        with pytest.raises(UsageError, match="the grammar's text is .* must be a string"):
            Grammar("json_schema", text)
    for choices in ("yes", (1, 2), None, [b"a"], {"a": 1}):
        with pytest.raises(UsageError, match="the grammar's choices are"):
            Grammar("choice", choices=choices)
    assert hash(Grammar("choice", choices=["yes", "no"])) == hash(Grammar("choice", choices=("yes", "no")))
