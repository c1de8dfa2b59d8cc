"""What a sampler should do: the exact distribution of the next token in plain Python, and a chi-square."""

import math
from collections.abc import Sequence
from typing import Any


def exact(
    logits: Sequence[float],
    *,
    prompt: Sequence[int] = (),
    answer: Sequence[int] = (),
    allowed: Sequence[bool] | None = None,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    repetition_penalty: float = 1.0,
    presence_penalty: float = 0.0,
    frequency_penalty: float = 0.0,
    logit_bias: dict[int, float] | None = None,
) -> list[float]:
    """Each token's probability, one step of SamplingParams' docstring after the other, in double precision."""
    values = [float(value) for value in logits]
    for token in {*prompt, *answer}:
        values[token] *= repetition_penalty if values[token] < 0 else 1 / repetition_penalty
    for token in set(answer):
        values[token] -= presence_penalty + frequency_penalty * list(answer).count(token)
    for token, bias in (logit_bias or {}).items():
        values[token] += bias
    if allowed is not None:
        values = [value if good else -math.inf for value, good in zip(values, allowed, strict=True)]
    weights = [math.exp((value - max(values)) / temperature) for value in values]
    order = sorted(range(len(values)), key=lambda token: (-values[token], token))
    kept = _nucleus(order[: top_k or None], weights, top_p)
    kept = [token for token in kept if weights[token] >= min_p * weights[order[0]]]
    total = math.fsum(weights[token] for token in kept)
    return [weights[token] / total if token in kept else 0.0 for token in range(len(values))]


def _nucleus(order: list[int], weights: list[float], top_p: float) -> list[int]:
    total = math.fsum(weights[token] for token in order)
    for count in range(1, len(order)):
        if math.fsum(weights[token] for token in order[:count]) >= top_p * total:
            return order[:count]
    return order


def unlikely(counts: Sequence[int], probabilities: Sequence[float]) -> bool:
    """Would draws from these probabilities give counts as far off in less than one of a million cases?

    Pearson's chi-square, cells that expect fewer than 5 put together; its quantile after Wilson and Hilferty (1931).
    """
    draws = sum(counts)
    cells: list[Any] = [(n, p * draws) for n, p in zip(counts, probabilities, strict=True) if p * draws >= 5]
    rest = [(n, p * draws) for n, p in zip(counts, probabilities, strict=True) if p * draws < 5]
    if any(n and not p for n, p in rest):
        return True  # it cannot happen, and did
    if sum(p for _, p in rest) >= 5:
        cells.append((sum(n for n, _ in rest), sum(p for _, p in rest)))
    elif sum(n for n, _ in rest) > 25:
        return True
    statistic, freedom = sum((n - p) ** 2 / p for n, p in cells), len(cells) - 1
    if freedom == 0:
        return False
    bound = freedom * (1 - 2 / (9 * freedom) + 4.753 * math.sqrt(2 / (9 * freedom))) ** 3
    return bool(statistic > bound)
