"""The core's draw of a token, and its kernels, for each instruction set, against the plain form and the definition."""

import numpy as np
import pytest
import torch

from octavo.config import SamplingParams
from octavo.engine.draw import Draw, candidates, draw, draw_row
from octavo.engine.native_runner import NativeRunner
from octavo.native.library import library
from tests.native import kernels
from tests.quantised import packed, random_decoder
from tests.tiny import tiny_config

pytestmark = pytest.mark.usefixtures("isa")
LENGTHS = [*range(1, 20), 31, 32, 33, 63, 64, 65, 127, 128, 129, 257, 1000]


def logits_of(vocab: int, spread: float, seed: int) -> np.ndarray:
    """fp32 [vocab], rounded so that there are ties; a seventh of them ruled out."""
    random = np.random.default_rng(seed)
    logits = (random.standard_normal(vocab) * spread).astype(np.float32).round(2)
    logits[random.integers(0, vocab, vocab // 7)] = -np.inf
    logits[vocab // 2] = 0.0
    return logits


def native(logits: np.ndarray, params: SamplingParams, drawn: float) -> int:
    settings = (params.temperature, params.top_k, params.top_p, params.min_p)
    return library().draw(logits, float(logits.max()), *settings, drawn)


@pytest.mark.parametrize("inverse", [0.01, 1.0, 1.25, 1e30])
def test_weights_and_their_sum(inverse) -> None:
    for length in LENGTHS:
        x = torch.randn(length, generator=torch.Generator().manual_seed(length)) * 5
        x[length // 3] = -torch.inf
        x[length // 2] = 16.0
        weights, total = kernels.weights(x, 16.0, inverse)
        # the product of an fp32 difference and an fp32 number: as exact as fp32 has it
        exact = ((x - 16.0) * torch.tensor(inverse)).double().exp()
        torch.testing.assert_close(weights.double(), exact, rtol=3e-7, atol=1e-37)
        assert total == pytest.approx(exact.sum().item(), rel=3e-7)
        assert inverse != 1.0 or library().weight_sum(x.numpy(), 16.0) == total


def test_within() -> None:
    for length in LENGTHS:
        x = torch.from_numpy(logits_of(length, 3.0, length))
        top = x.max()
        for nearest, farthest in ((-1.0, 0.0), (-1.0, 2.0), (2.0, 5.0), (5.0, 3e38), (-1.0, 3e38), (1.0, 1.0)):
            expected = ((top - x > nearest) & (top - x <= farthest)).nonzero()[:, 0].tolist()
            assert kernels.within(x, top.item(), nearest, farthest) == expected


@pytest.mark.parametrize(
    "changes",
    [{}, {"top_p": 0.9}, {"top_p": 0.999}, {"top_p": 1e-9}, {"top_k": 1}, {"top_k": 40}, {"top_k": 4000},
     {"min_p": 0.02}, {"min_p": 1.0}, {"min_p": 1e-12}, {"top_k": 700, "top_p": 0.97}, {"top_p": 0.9, "min_p": 1e-4},
     {"top_p": 0.99, "min_p": 0.3}, {"top_k": 30, "top_p": 0.9, "min_p": 0.1}],
)  # fmt: skip
@pytest.mark.parametrize("spread", [0.02, 0.1, 3.0, 40.0])
@pytest.mark.parametrize("temperature", [0.8, 5.0])
def test_a_draw_is_the_plain_forms_and_that_of_the_definition(changes, spread, temperature) -> None:
    params = SamplingParams(temperature=temperature, **changes)
    random = np.random.default_rng(0)
    for seed, vocab in enumerate((1, 2, 30, 128, 1025, 3000, 5001)):
        logits = logits_of(vocab, spread, seed)
        ids, probabilities = candidates(logits, params)
        cumulative = probabilities.cumsum()
        for drawn in (0.0, *random.random(3)):
            at = np.searchsorted(cumulative, drawn * cumulative[-1], side="right")
            assert native(logits, params, drawn) == draw(logits, params, drawn) == ids[at]
        # at the very end the last digits of a sum tell one unlikely token from the next: but never what is ruled out
        assert native(logits, params, 1 - 2**-53) in ids and draw(logits, params, 1 - 2**-53) in ids


def test_where_a_row_lies_does_not_matter() -> None:
    logits = logits_of(1003, 3.0, 0)
    params = SamplingParams(temperature=0.9, top_p=0.95)
    for start in range(20):
        room = np.full(1100, 77.0, np.float32)
        room[start : start + 1003] = logits
        for drawn in (0.1, 0.77, 0.97):
            assert native(room[start : start + 1003], params, drawn) == native(logits, params, drawn)


def test_extremes() -> None:
    far = np.array([-3e38, 3e38, 0.0], np.float32)
    params = {temperature: SamplingParams(temperature=temperature) for temperature in (1e-310, 1e-30, 100.0)}
    for each in params.values():
        assert native(far, each, 1 - 2**-53) == 1
    assert native(np.array([-3.0, 1e-38, 0.0], np.float32), params[1e-310], 0.99) in (1, 2)


def test_what_cannot_be_drawn_from_is_refused() -> None:
    core, good = library(), np.zeros(40, np.float32)
    assert core.draw(good, 0.0, 1.0, 0, 1.0, 0.0, 0.5) == 20
    for logits in (good.astype(np.float64), good[None], good[:0], good[::2]):
        with pytest.raises(ValueError, match="logits are|contiguous"):
            core.draw(logits, 0.0, 1.0, 0, 1.0, 0.0, 0.5)
        with pytest.raises(ValueError, match="logits are|contiguous"):
            core.weight_sum(logits, 0.0)
    usual = {"largest": 0.0, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "drawn": 0.5}
    for change in ({"largest": np.nan}, {"largest": np.inf}, {"temperature": 0.0}, {"temperature": np.nan},
                   {"top_k": -1}, {"drawn": 1.0}, {"drawn": -0.1}):  # fmt: skip
        with pytest.raises(ValueError, match="drawn"):
            core.draw(good, **usual | change)
    for row, largest in ((np.full(40, np.nan, np.float32), 0.0), (np.full(40, -np.inf, np.float32), 0.0), (good, -1.0)):
        with pytest.raises(ValueError, match="no logit is"):
            core.draw(row, largest, 1.0, 0, 0.9, 0.0, 0.5)


@pytest.mark.parametrize("length", [1, 15, 16, 63, 64, 65, 127, 1003])
def test_the_largest_logit(length) -> None:
    for seed in range(10):
        logits = torch.from_numpy(logits_of(length, 3.0, seed) - 50)
        assert kernels.most_of(logits) == logits.max()
        for wrong in (np.nan, np.inf):
            logits[seed * 7919 % length] = wrong
            assert np.isnan(kernels.most_of(logits))
        logits[:] = -np.inf
        assert kernels.most_of(logits) == -np.inf


def test_many_rows_are_drawn_as_each_alone(tmp_path) -> None:
    """On the threads of a runner; rows that are no numbers are told by -1."""
    pack = packed(random_decoder(tiny_config("mixtral")), tmp_path / "pack", 4)
    logits = np.stack([logits_of(331, 3.0, seed) for seed in range(12)])
    settings = [SamplingParams(temperature=0.9, top_p=0.95), SamplingParams(temperature=2.0, top_k=7),
                SamplingParams(temperature=0.5, min_p=0.1), SamplingParams(temperature=0.0)]  # fmt: skip
    draws = [Draw(row, each.top_k, each.temperature, each.top_p, each.min_p, (row + 0.5) / 12)
             for row in (*range(12), 3, 3) for each in settings]  # fmt: skip
    expected = [draw_row(logits[how.row], how) for how in draws]
    assert len(set(expected)) > 5
    for threads in (1, 2):
        runner = NativeRunner(pack, 2, threads=threads)
        assert runner.draw(logits, draws) == expected
        broken = logits.copy()
        broken[5, 77], broken[6] = np.nan, -np.inf
        wrong = [-1 if how.row in (5, 6) else token for how, token in zip(draws, expected, strict=True)]
        assert runner.draw(broken, draws) == wrong
        for given, many in ((logits.astype(np.float64), draws), (logits[0], draws), (logits[:3], draws)):
            with pytest.raises(ValueError, match="logits are|draws ask for rows"):
                runner.draw(given, many)
