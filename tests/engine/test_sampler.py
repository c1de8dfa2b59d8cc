"""The sampler against the definitions: frequencies, top-k and top-p sets, seeds, and odd logits."""

import numpy as np
import pytest

from octavo.config import SamplingParams
from octavo.engine.draw import candidates, draw
from octavo.engine.sampler import Sampler
from octavo.errors import UsageError

pytestmark = pytest.mark.usefixtures("draws_by")
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
        ({"min_p": 1.0}, [3, 4]),
        ({"min_p": 0.36}, [3, 4, 0]),  # e^-1 is 0.368
        ({"min_p": 0.37}, [3, 4]),
        ({"min_p": 1e-9}, [3, 4, 0, 2, 1, 5]),
        ({"min_p": 0.01, "top_k": 4}, [3, 4, 0, 2]),
        ({"min_p": 0.2, "top_p": 0.5}, [3, 4]),
        ({"min_p": 0.2, "top_p": 0.999}, [3, 4, 0]),
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
    # a mask, or a penalty, hides none of it
    for params in (SamplingParams(), SamplingParams(frequency_penalty=1.0), SamplingParams(temperature=1.0)):
        with pytest.raises(ValueError, match="not numbers"):
            Sampler(params).choose(np.array([1.0, np.nan], np.float32), np.array([True, False]))


SETTINGS = [{}, {"temperature": 1.0, "seed": 0}, {"temperature": 1e-30, "seed": 0, "top_p": 0.5},
            {"temperature": 2.0, "seed": 0, "top_k": 2, "min_p": 0.1, "presence_penalty": 1.0}]  # fmt: skip


@pytest.mark.parametrize("changes", SETTINGS)
def test_only_what_is_allowed_is_chosen(changes) -> None:
    for only in range(6):
        allowed = np.arange(6) == only
        assert Sampler(SamplingParams(**changes)).choose(LOGITS, allowed) == only
    sampler = Sampler(SamplingParams(**changes))
    assert {sampler.choose(LOGITS, np.isin(np.arange(6), (1, 5))) for _ in range(40)} <= {1, 5}
    everything = Sampler(SamplingParams(**changes)), Sampler(SamplingParams(**changes))
    for _ in range(20):
        assert everything[0].choose(LOGITS) == everything[1].choose(LOGITS, np.ones(6, np.bool_))


@pytest.mark.parametrize("changes", SETTINGS)
def test_no_token_left_is_another_error_than_logits_that_are_not_numbers(changes) -> None:
    for logits, allowed in (
        (LOGITS, np.zeros(6, bool)),
        (np.array([1.0, -np.inf], np.float32), np.array([False, True])),
    ):
        with pytest.raises(ValueError, match="no token is left"):
            Sampler(SamplingParams(**changes)).choose(logits, allowed)
    for allowed in (np.ones(5, bool), np.ones((1, 6), bool), np.ones(6, np.int64)):
        with pytest.raises(ValueError, match="allowed is .* for 6 logits"):
            Sampler(SamplingParams(**changes)).choose(LOGITS, allowed)


def test_a_huge_bias_decides_alone() -> None:
    for changes in SETTINGS:
        bias = {5: 1e6, 3: -1e6, 4: -1e6}
        assert Sampler(SamplingParams(**changes | {"logit_bias": bias})).choose(LOGITS) == 5
        forbidden = np.array([-np.inf, 1.0, 2.0], np.float32)
        assert Sampler(SamplingParams(**changes | {"logit_bias": {0: 1e6}})).choose(forbidden) in (1, 2)


@pytest.mark.parametrize("changes", [*SETTINGS, {"logit_bias": {0: 1.0}, "repetition_penalty": 1.5}])
def test_logits_and_masks_are_left_as_they_are(changes) -> None:
    logits, allowed = LOGITS.copy(), np.ones(6, np.bool_)
    logits.flags.writeable = allowed.flags.writeable = False
    sampler = Sampler(SamplingParams(**changes), [0, 3])
    for mask in (None, allowed, None, allowed):
        sampler.choose(logits, mask)
    assert (logits == LOGITS).all() and allowed.all()


def test_a_row_of_a_batch_gives_what_it_gives_alone() -> None:
    """Odd rows of a matrix start anywhere; one of its columns is not contiguous."""
    batch = (np.random.default_rng(0).standard_normal((9, 1501)) * 3).astype(np.float32)
    for layout in (batch, np.asfortranarray(batch)):
        for row in range(9):
            together, alone = (Sampler(SamplingParams(temperature=0.9, top_p=0.9, seed=row)) for _ in range(2))
            assert [together.choose(layout[row]) for _ in range(9)] == [
                alone.choose(batch[row].copy()) for _ in range(9)
            ]


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
