"""The sampler against the definitions: frequencies, top-k and top-p sets, seeds, and odd logits."""

import numpy as np
import pytest

from octavo.config import SamplingParams
from octavo.engine.draw import candidates, draw
from octavo.engine.sampler import Sampler
from octavo.errors import UsageError

LOGITS = np.array([2.0, -1.0, 0.5, 3.0, 3.0, -9.0], np.float32)


def test_greedy_takes_the_largest_and_the_lowest_id_of_a_tie() -> None:
    assert Sampler(SamplingParams()).choose(LOGITS) == 3


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_frequencies_follow_the_softmax(temperature) -> None:
    sampler = Sampler(SamplingParams(temperature=temperature, seed=1))
    drawn = np.bincount([sampler.choose(LOGITS) for _ in range(20_000)], minlength=6) / 20_000
    expected = np.exp(LOGITS / temperature) / np.exp(LOGITS / temperature).sum()
    assert np.abs(drawn - expected).max() < 0.015


@pytest.mark.parametrize(
    ("changes", "kept"),
    [
        ({"top_k": 1}, [3]),
        ({"top_k": 3}, [3, 4, 0]),
        ({"top_k": 99}, [3, 4, 0, 2, 1, 5]),
        ({"top_p": 0.01}, [3]),
        ({"top_p": 0.5}, [3, 4]),
        ({"top_p": 0.94}, [3, 4, 0]),
        ({"top_p": 1.0}, [3, 4, 0, 2, 1, 5]),
        ({"top_k": 2, "top_p": 0.6}, [3, 4]),
        ({"top_k": 2, "top_p": 0.4}, [3]),
    ],
)
def test_candidates(changes, kept) -> None:
    ids, probabilities = candidates(LOGITS, SamplingParams(temperature=1.0, **changes))
    assert ids.tolist() == kept
    weights = np.exp(LOGITS[kept].astype(float))
    assert np.allclose(probabilities, weights / weights.sum(), rtol=1e-12)


@pytest.mark.parametrize("temperature", [1e-310, 1e-30, 1e-6])
def test_a_tiny_temperature_is_greedy(temperature) -> None:
    sampler = Sampler(SamplingParams(temperature=temperature, seed=0, top_p=0.5))
    assert {sampler.choose(LOGITS[[0, 1, 2, 3]]) for _ in range(5)} == {3}


def test_same_seed_same_tokens_other_seed_others() -> None:
    def draw(seed):
        sampler = Sampler(SamplingParams(temperature=1.0, seed=seed))
        return [sampler.choose(LOGITS) for _ in range(50)]

    assert draw(7) == draw(7) != draw(8)


def test_logits_that_are_not_numbers_are_an_error_not_a_token() -> None:
    for bad in (np.array([1.0, np.nan]), np.array([-np.inf, -np.inf])):
        with pytest.raises(ValueError, match="not numbers"):
            Sampler(SamplingParams()).choose(bad.astype(np.float32))
    with pytest.raises(ValueError, match="not numbers"):
        Sampler(SamplingParams()).choose(np.array([1.0, np.inf], np.float32))
    masked = np.array([-np.inf, 1.0, -np.inf], np.float32)
    assert Sampler(SamplingParams(temperature=1.0, seed=0)).choose(masked) == 1


@pytest.mark.parametrize(
    "changes",
    [{"seed": -1}, {"temperature": -0.1}, {"temperature": float("nan")}, {"top_p": 0.0}, {"top_p": 1.1}, {"top_k": -1},
     {"max_new_tokens": 0}, {"stop": ("",)}],
)  # fmt: skip
def test_impossible_parameters_are_refused(changes) -> None:
    with pytest.raises(UsageError, match=next(iter(changes)) if "stop" not in changes else "stop"):
        SamplingParams(**changes)


@pytest.mark.parametrize(
    "changes", [{}, {"top_p": 0.9}, {"top_p": 0.999}, {"top_k": 40}, {"top_k": 4000, "top_p": 0.97}]
)
@pytest.mark.parametrize("spread", [0.1, 3.0, 40.0])
def test_drawing_from_the_likely_ones_is_drawing_from_all(changes, spread) -> None:
    """`choose` looks at a part of the vocabulary; by definition it inverts the distribution over all candidates."""
    random = np.random.default_rng(0)
    params = SamplingParams(temperature=0.8, seed=3, **changes)
    sampler, draws = Sampler(params), np.random.Generator(np.random.PCG64(3))
    for _ in range(30):
        logits = (random.standard_normal(5000) * spread).astype(np.float32).round(2)  # with ties
        ids, probabilities = candidates(logits, params)
        cumulative = probabilities.cumsum()
        at = np.searchsorted(cumulative, draws.random() * cumulative[-1], side="right")
        assert sampler.choose(logits) == ids[min(at, len(ids) - 1)]


@pytest.mark.parametrize("changes", [{}, {"top_p": 0.999}, {"top_k": 50}, {"top_k": 9000}])
def test_what_is_ruled_out_is_never_drawn(changes) -> None:
    """By the largest number that a generator gives either."""
    logits = (np.random.default_rng(0).standard_normal(3000) * 3).astype(np.float32)
    logits[5:] = -np.inf
    for temperature in (0.3, 0.7, 1.0, 5.0):
        params = SamplingParams(temperature=temperature, **changes)
        assert draw(logits, params, 1 - 2**-53) < 5


@pytest.mark.filterwarnings("error")
def test_logits_as_far_apart_as_fp32_goes() -> None:
    far = np.array([-3e38, 3e38, 0.0], np.float32)
    assert Sampler(SamplingParams(temperature=100.0, seed=0)).choose(far) == 1
