"""Penalties and logit bias against values worked out by hand, and that only tokens of the right kind are touched."""

import numpy as np
import pytest

from octavo.config import SamplingParams
from octavo.engine.penalties import Penalties, check_logit_bias
from octavo.engine.sampler import Sampler
from octavo.errors import UserError

LOGITS = np.array([2.0, -1.0, 0.5, 3.0, -4.0, 0.0], np.float32)


def applied(answer: list[int], logits: np.ndarray = LOGITS, prompt: tuple[int, ...] = (), **changes: object) -> list:
    penalties = Penalties(SamplingParams(**changes), prompt)
    for token in answer:
        penalties.note(token)
    adjusted = logits.copy()
    penalties.apply(adjusted)
    return adjusted.tolist()


def test_repetition_divides_what_is_positive_and_multiplies_what_is_negative() -> None:
    assert applied([], prompt=(0, 4, 0), repetition_penalty=2.0) == [1.0, -1.0, 0.5, 3.0, -8.0, 0.0]
    assert applied([1, 3, 3, 5], prompt=(0, 4), repetition_penalty=2.0) == [1.0, -2.0, 0.5, 1.5, -8.0, 0.0]
    assert applied([1, 3], repetition_penalty=0.5) == [2.0, -0.5, 0.5, 6.0, -4.0, 0.0]


def test_presence_once_and_frequency_for_each_occurrence_in_the_answer() -> None:
    assert applied([0, 3, 3, 3], prompt=(1, 2), presence_penalty=0.5) == [1.5, -1.0, 0.5, 2.5, -4.0, 0.0]
    assert applied([0, 3, 3, 3], prompt=(1, 2), frequency_penalty=0.5) == [1.5, -1.0, 0.5, 1.5, -4.0, 0.0]
    both = applied([0, 3, 3, 3], presence_penalty=-1.0, frequency_penalty=0.25)
    assert both == [2.75, -1.0, 0.5, 3.25, -4.0, 0.0]


def test_all_of_them_in_their_order() -> None:
    """(3 / 2 - (0.5 + 2 * 0.25)) + 4, and so on: any other order gives other numbers."""
    changes = {"repetition_penalty": 2.0, "presence_penalty": 0.5, "frequency_penalty": 0.25}
    out = applied([3, 3, 4], prompt=(0, 3), logit_bias={3: 4.0, 5: -1.0, 0: 0.5}, **changes)
    assert out == [1.5, -1.0, 0.5, 4.5, -8.75, -1.0]


def test_what_is_ruled_out_stays_so_and_nothing_else_becomes_infinite() -> None:
    logits = np.array([-np.inf, 3e38, -3e38, 1.0], np.float32)
    changes = {"repetition_penalty": 1e-300, "presence_penalty": -1e6, "logit_bias": {0: 1e6, 3: 1e6}}
    raised = applied([0, 1, 2, 3], logits, **changes)
    assert raised[0] == -np.inf and np.isfinite(raised[1:]).all() and raised[3] == np.float32(np.finfo(np.float32).max)
    lowered = applied([1, 2], np.array([0, -3e38, -3e38], np.float32), repetition_penalty=1e6, frequency_penalty=1e6)
    assert np.isfinite(lowered).all() and lowered[1] == lowered[2] < -3.4e38


@pytest.mark.filterwarnings("error")
def test_a_long_answer_counts_every_token() -> None:
    random = np.random.default_rng(0)
    answer = random.integers(0, 500, 3000)
    logits = random.standard_normal(600).astype(np.float32)
    out = applied(answer.tolist(), logits, prompt=(599, 3), frequency_penalty=0.01, repetition_penalty=1.25)
    counts = np.bincount(answer, minlength=600)
    seen = (counts > 0) | np.isin(np.arange(600), (599, 3))
    wide = logits.astype(np.float64)
    expected = np.where(seen, np.where(wide > 0, wide / 1.25, wide * 1.25), wide) - 0.01 * counts
    np.testing.assert_allclose(out, expected, rtol=1e-6, atol=1e-6)
    assert (counts == 0).any() and (counts > 1).any()


def test_a_sampler_notes_what_it_chooses() -> None:
    """Greedy, each token worth one less for each time it was chosen; the logits themselves are never changed."""
    logits = np.array([3.5, 3.25, 1.0], np.float32)
    logits.flags.writeable = False
    sampler = Sampler(SamplingParams(frequency_penalty=1.0))
    assert [sampler.choose(logits) for _ in range(7)] == [0, 1, 0, 1, 0, 1, 2] and logits[0] == 3.5
    sampler = Sampler(SamplingParams(presence_penalty=1.0))
    sampler.note(0)
    assert [sampler.choose(logits) for _ in range(3)] == [1, 0, 0]
    assert Sampler(SamplingParams(repetition_penalty=4.0), [0]).choose(logits) == 1


def test_a_bias_outside_the_vocabulary_is_refused_by_name() -> None:
    params = SamplingParams(logit_bias={5: 1.0, 6: 1.0, 70000: -1.0})
    for refusing in (
        lambda: check_logit_bias(params, 6),
        lambda: Sampler(params, [], vocab_size=6),
        lambda: Sampler(params).choose(LOGITS),
    ):
        with pytest.raises(UserError, match=r"logit_bias has token ids outside .* vocabulary of 6: 6, 70000; leave"):
            refusing()
    with pytest.raises(UserError, match=r"6, 7, .*, 15, \.\.\.; leave"):
        check_logit_bias(SamplingParams(logit_bias={token: 1.0 for token in range(30)}), 6)
    check_logit_bias(params, 70001)
    assert Sampler(SamplingParams(logit_bias={5: 9.0})).choose(LOGITS) == 5
