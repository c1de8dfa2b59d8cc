"""The sampler's draws against exact probabilities, each parameter by itself and together, by chi-square.

Each case also shows that the test sees: the same counts are refused for a distribution that lacks one of the settings.
"""

import numpy as np
import pytest

from octavo.config import SamplingParams
from octavo.engine.sampler import Sampler
from tests.engine.sampling import exact, unlikely

LOGITS = np.array([2.0, -1.0, 0.5, 3.0, 3.0, -9.0, 1.5, 2.5, -0.5, 1.0, 0.0, 2.2], np.float32)
PROMPT, ANSWER = [3, 1, 1, 7], [4, 4, 7, 2, 4]
ALLOWED = [token not in (3, 6, 11) for token in range(12)]
DRAWS = 3000

CASES = [
    {"temperature": 0.6},
    {"temperature": 3.0},
    {"top_k": 5},
    {"top_p": 0.7},
    {"min_p": 0.3},
    {"repetition_penalty": 1.8},
    {"repetition_penalty": 0.5},
    {"presence_penalty": 1.5},
    {"presence_penalty": -1.0},
    {"frequency_penalty": 0.7},
    {"logit_bias": {5: 11.0, 3: -2.0, 9: 0.8}},
    {"allowed": ALLOWED},
    {"top_k": 4, "top_p": 0.6},
    {"top_k": 5, "top_p": 0.6, "temperature": 0.8},
    {"top_p": 0.9, "min_p": 0.5, "temperature": 2.0},
    {"top_p": 0.5, "min_p": 0.05, "temperature": 2.0},
    {"top_k": 7, "min_p": 0.1, "temperature": 2.0},
    {"repetition_penalty": 1.5, "frequency_penalty": 0.5, "presence_penalty": -1.2, "temperature": 1.3},
    {"repetition_penalty": 0.5, "logit_bias": {3: -2.5, 5: 12.0}, "allowed": ALLOWED, "temperature": 3.0, "top_k": 4},
]  # fmt: skip


def params_of(case: dict, **more: object) -> SamplingParams:
    settings = {"temperature": 1.0} | {name: value for name, value in case.items() if name != "allowed"}
    return SamplingParams(**settings, **more)


def draw(case: dict, seed: int) -> int:
    """The token after ANSWER, of a request of its own."""
    sampler = Sampler(params_of(case, seed=seed), PROMPT)
    for token in ANSWER:
        sampler.note(token)
    return sampler.choose(LOGITS, np.array(case["allowed"]) if "allowed" in case else None)


@pytest.mark.usefixtures("draws_by")
@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(case))
def test_draws_follow_the_exact_probabilities(case) -> None:
    counts = np.bincount([draw(case, seed) for seed in range(DRAWS)], minlength=12).tolist()
    context = {"prompt": PROMPT, "answer": ANSWER}
    expected = exact(LOGITS, **context, **case)
    assert not unlikely(counts, expected)
    seen = 0
    for name in case:
        changed = exact(LOGITS, **context, **{other: value for other, value in case.items() if other != name})
        if changed != expected:  # of top_p and min_p, the one that leaves less decides
            seen += 1
            assert unlikely(counts, changed), f"the test does not see {name}"
    assert seen >= min(2, len(case))


@pytest.mark.usefixtures("draws_by")
@pytest.mark.parametrize(
    "case", [CASES[-2], CASES[-2] | {"allowed": ALLOWED, "top_k": 6}, {"frequency_penalty": 0.4, "min_p": 0.1}]
)
def test_a_whole_answer_is_that_of_the_definition(case) -> None:
    """Token by token: penalties grow with the answer, and the draws are PCG64's of the seed, by inversion."""
    sampler, draws = Sampler(params_of(case, seed=5), PROMPT), np.random.Generator(np.random.PCG64(5))
    allowed = np.array(case["allowed"]) if "allowed" in case else None
    answer: list[int] = []
    for step in range(80):
        logits = np.roll(LOGITS, step % 3)
        values = exact(logits, prompt=PROMPT, answer=answer, **case)
        # likeliest first; equally likely ones by id
        order = sorted(range(12), key=lambda token: (-round(values[token], 12), token))
        at = np.searchsorted(np.cumsum([values[token] for token in order]), draws.random(), side="right")
        answer.append(sampler.choose(logits, allowed))
        assert answer[-1] == order[at]
    assert len(set(answer)) > 3


def test_choices_of_a_request_are_independent() -> None:
    params = SamplingParams(temperature=2.0, seed=11, n=8)
    answers = [[Sampler(params, choice=choice) for choice in range(8)] for _ in range(2)]
    drawn = np.array([[[sampler.choose(LOGITS) for _ in range(400)] for sampler in each] for each in answers])
    assert (drawn[0] == drawn[1]).all(), "the same seed and choice, the same answer"
    by_seed = np.random.Generator(np.random.PCG64(11)).random(400)
    order = np.argsort(-LOGITS, kind="stable")
    at = np.searchsorted(np.cumsum(np.sort(exact(LOGITS, temperature=2.0))[::-1]), by_seed, side="right")
    assert drawn[0, 0].tolist() == order[at].tolist(), "choice 0 is that of the seed itself"
    likely = sum(p * p for p in exact(LOGITS, temperature=2.0))
    for one in range(8):
        assert not unlikely(np.bincount(drawn[0, one], minlength=12).tolist(), exact(LOGITS, temperature=2.0))
        for other in range(one):
            # two independent answers agree by chance alone
            agree = int((drawn[0, one] == drawn[0, other]).sum())
            assert not unlikely([agree, 400 - agree], [likely, 1 - likely])
    following = Sampler(SamplingParams(temperature=2.0, seed=12))
    assert drawn[0, 1].tolist() != [following.choose(LOGITS) for _ in range(400)], "not the choice 0 of another seed"


def test_no_seed_is_another_answer_each_time() -> None:
    params = SamplingParams(temperature=100.0)
    samplers = [Sampler(params), Sampler(params)]
    one, other = ([sampler.choose(LOGITS) for _ in range(60)] for sampler in samplers)
    assert one != other


def test_the_bound_is_one_that_a_wrong_distribution_fails() -> None:
    fair, random = [1 / 12] * 12, np.random.default_rng(0)
    for seed in range(200):
        assert not unlikely(np.random.default_rng(seed).multinomial(DRAWS, fair).tolist(), fair)
    skewed = np.array(fair) + np.resize([0.025, -0.025], 12)
    assert unlikely(random.multinomial(DRAWS, skewed).tolist(), fair)
    assert unlikely([10, 0, 1], [0.5, 0.5, 0.0])
