"""Log probabilities against torch's log-softmax in double precision; ranks and alternatives against a sort."""

import numpy as np
import pytest
import torch

from octavo.engine.draw import likeliest
from octavo.engine.logprobs import TokenLogprob, continuation_logprobs, log_probabilities

pytestmark = pytest.mark.usefixtures("draws_by")


def rows(vocab: int, spread: float, count: int = 4) -> np.ndarray:
    random = np.random.default_rng(vocab)
    return (random.standard_normal((count, vocab)) * spread + random.uniform(-50, 50)).astype(np.float32)


def expected(logits: np.ndarray) -> np.ndarray:
    return torch.from_numpy(logits).double().log_softmax(-1).numpy()


@pytest.mark.parametrize("vocab", [1, 2, 63, 1024, 1025, 5000, 49152, 151_936])
@pytest.mark.parametrize("spread", [0.0, 0.01, 3.0, 100.0])
def test_they_are_within_a_millionth_of_fp64(vocab, spread) -> None:
    logits = rows(vocab, spread)
    exact = expected(logits)
    tokens = np.array([0, vocab - 1, vocab // 2, int(logits[3].argmax())])
    logprobs, greedy = continuation_logprobs(logits, tokens)
    assert logprobs.dtype == np.float64 and np.abs(logprobs - exact[np.arange(4), tokens]).max() < 1e-6
    assert greedy.tolist() == (logits.argmax(1) == tokens).tolist() and greedy[3]
    for row, token in enumerate(tokens.tolist()):
        found = log_probabilities(logits[row], token, 20)
        order = np.argsort(-logits[row], kind="stable")
        assert found.token == token and abs(found.logprob - exact[row, token]) < 1e-6
        assert found.rank == order.tolist().index(token)
        assert [each for each, _ in found.top] == order[:20].tolist()
        assert all(abs(value - exact[row, each]) < 1e-6 for each, value in found.top)


def test_a_single_likely_token_above_many_that_are_equally_far_below() -> None:
    """Where the difference to the largest loses most digits, and the tail is most of the sum."""
    for far in (8.1, 11.3, 12.7, 15.9, 17.0):
        logits = np.full(200_000, 0.1, np.float32)
        logits[7] = np.float32(0.1) + np.float32(far)
        assert abs(log_probabilities(logits, 7, 0).logprob - expected(logits)[7]) < 1e-6


def test_ranks_and_ties() -> None:
    logits = np.array([1.0, 2.0, 2.0, -np.inf, 1.0], np.float32)
    assert [log_probabilities(logits, token, 0).rank for token in range(5)] == [2, 0, 1, 4, 3]
    found = log_probabilities(logits, 3, 3)
    assert found.logprob == -np.inf and [token for token, _ in found.top] == [1, 2, 0]
    assert log_probabilities(logits, 1, 0).top == ()
    assert [token for token, _ in log_probabilities(logits, 1, 20).top] == [1, 2, 0, 4, 3]
    assert log_probabilities(np.array([5.0], np.float32), 0, 1) == TokenLogprob(0, 0.0, 0, ((0, 0.0),))


@pytest.mark.filterwarnings("error")
def test_logits_as_far_apart_as_fp32_goes() -> None:
    logits = np.array([-3e38, 3e38, -np.inf, 3e38], np.float32)
    found = log_probabilities(logits, 0, 2)
    assert found.logprob < -5e38 and found.top == ((1, pytest.approx(-np.log(2))), (3, pytest.approx(-np.log(2))))


@pytest.mark.parametrize("count", [1, 2, 20, 1000, 1024, 1025, 4999, 5000, 9000])
def test_the_likeliest_are_those_of_a_sort(count) -> None:
    for logits in (*rows(5000, 3.0), *rows(5000, 3.0).round(0), np.zeros(5000, np.float32), -np.arange(5000.0)):
        logits = np.where(np.arange(len(logits)) % 9 == 4, -np.inf, logits).astype(np.float32)
        assert likeliest(logits, count).tolist() == np.argsort(-logits, kind="stable")[:count].tolist()


def test_what_is_not_a_number_or_not_there_is_refused() -> None:
    good = np.zeros(5, np.float32)
    for bad in (np.nan, np.inf):
        logits = np.array([0.0, bad, 1.0], np.float32)
        with pytest.raises(ValueError, match="not numbers"):
            log_probabilities(logits, 0, 1)
        with pytest.raises(ValueError, match="not numbers"):
            continuation_logprobs(logits[None], np.array([0]))
    with pytest.raises(ValueError, match="not numbers"):
        log_probabilities(np.full(3, -np.inf, np.float32), 0, 1)
    for token in (-1, 5):
        with pytest.raises(ValueError, match=f"token {token} is not in a vocabulary of 5"):
            log_probabilities(good, token, 1)
        with pytest.raises(ValueError, match=f"token {token} is not in a vocabulary of 5"):
            continuation_logprobs(good[None], np.array([token]))
    with pytest.raises(ValueError, match="2 rows of logits for 1 tokens"):
        continuation_logprobs(np.zeros((2, 5), np.float32), np.array([0]))
    none = continuation_logprobs(np.zeros((0, 5), np.float32), np.zeros(0, np.int64))
    assert [len(part) for part in none] == [0, 0]
