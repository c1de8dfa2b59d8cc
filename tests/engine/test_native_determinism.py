"""The CPU runner's promise, bit for bit: a request's logits depend on nothing but the request."""

import numpy as np
import pytest

from octavo.checkpoint.pack import Pack
from octavo.config import LayerSpec
from octavo.engine.native_runner import NativeRunner
from tests.engine.native import poisoned, same_bits, variant
from tests.engine.steps import batch, cut_up, tokens
from tests.native.kernels import isas, using
from tests.quantised import packed, random_decoder

KINDS = ["mistral", "all experts", "many heads", "shared expert"]


@pytest.fixture(params=isas())
def isa(request):
    with using(request.param):
        yield request.param


def alone(runner: NativeRunner, ids: np.ndarray) -> np.ndarray:
    """All rows of a request in one step, by itself, on the first pages."""
    pages = list(range(-(-len(ids) // 32)))
    return runner.step(batch([(ids, 0, pages)], logit_rows=np.arange(len(ids)))).logits


def assert_cut_up_equals_alone(pack: Pack, kv: str, lengths: tuple[int, ...], longest: dict[int, int]) -> None:
    """longest: by number of threads, how many tokens of a request a step takes at most."""
    requests = [tokens(length, seed) for seed, length in enumerate(lengths)]
    expected = [alone(poisoned(pack, kv, pages=80), ids) for ids in requests]
    for threads, most in longest.items():
        found = cut_up(poisoned(pack, kv, threads, 80), requests, threads, most)
        assert all(same_bits(*pair) for pair in zip(found, expected, strict=True)), (threads, most)


@pytest.mark.parametrize("kv", ["float32", "int8"])
@pytest.mark.parametrize("name", KINDS)
def test_alone_in_any_batch_and_in_any_chunks(isa, name, kv, tmp_path) -> None:
    pack = packed(random_decoder(variant(name)), tmp_path / "pack", 4 if kv == "float32" else 8)
    assert_cut_up_equals_alone(pack, kv, (75, 33, 9, 1), {1: 3, 2: 40, 3: 20})


@pytest.mark.parametrize("kv", ["float32", "int8"])
@pytest.mark.parametrize("window", [None, 40, 600])
def test_long_contexts(isa, window, kv, tmp_path) -> None:
    """Where one sequence has several segments of 512 keys, threads share them in some of these steps, not in others."""
    decoder = random_decoder(variant("mistral", sliding_window=window))
    assert_cut_up_equals_alone(packed(decoder, tmp_path / "pack", 4), kv, (1100, 540, 515, 3), {1: 300, 2: 600, 3: 100})


def test_long_hybrids(isa, tmp_path) -> None:
    layers = (LayerSpec(attention="lightning", mlp="experts"), LayerSpec(mlp="experts"))
    pack = packed(random_decoder(variant("minimax", layers=layers)), tmp_path / "pack", 8)
    assert_cut_up_equals_alone(pack, "float32", (1100, 540, 3), {1: 500, 2: 150})


@pytest.mark.parametrize("name", ["mistral", "shared expert"])
def test_resuming_on_kept_pages_and_states(isa, name, tmp_path) -> None:
    """Token by token, each in a step with strangers that come and go, after a prompt that was computed in one piece."""
    pack, ids = packed(random_decoder(variant(name)), tmp_path / "pack", 4), tokens(75)
    expected = alone(poisoned(pack), ids)
    runner = poisoned(pack, threads=2)
    runner.step(batch([(ids[:60], 0, [9, 4, 7])]))
    for position in range(60, 75):
        strangers = [(tokens(position % 7 + 1, position), 0, [20]), (tokens(1, position), 0, [21])][: position % 3]
        step = batch([*strangers, (ids[position : position + 1], position, [9, 4, 7])])
        last = np.array([len(step.ids) - 1])
        logits = runner.step(type(step)(**{**step.__dict__, "logit_rows": last})).logits
        assert same_bits(logits, expected[[position]]), position


@pytest.mark.parametrize("name", ["all experts", "shared expert"])
def test_bf16_too(isa, name, tmp_path) -> None:
    pack = packed(random_decoder(variant(name)), tmp_path / "pack", 16)
    assert_cut_up_equals_alone(pack, "int8", (75, 33, 9, 1), {1: 3, 2: 40, 3: 20})


def test_memory_is_the_same_too(isa, tmp_path) -> None:
    """Keys, values and states after a request are those bits, however it was cut."""
    pack, ids = packed(random_decoder(variant("shared expert")), tmp_path / "pack", 8), tokens(75)
    held = []
    for chunks in ([75], [1] * 10 + [65], [31, 33, 11]):
        runner, start = poisoned(pack, "int8", threads=2), 0
        for size in chunks:
            runner.step(batch([(ids[start : start + size], start, [2, 1, 0])]))
            start += size
        held.append({name: array.tobytes() for name, array in runner._arrays.items()})
    assert held[0] == held[1] == held[2] and len(held[0]["states"])


def test_runners_side_by_side_do_not_meet(isa, tmp_path) -> None:
    """Two runners on one pack, stepped from two Python threads at once."""
    from concurrent.futures import ThreadPoolExecutor

    pack = packed(random_decoder(variant("all experts")), tmp_path / "pack", 4)
    requests = [tokens(60, seed) for seed in range(2)]
    expected = [alone(poisoned(pack), ids) for ids in requests]
    with ThreadPoolExecutor(2) as workers:
        found = list(workers.map(lambda ids: [alone(poisoned(pack, threads=2), ids) for _ in range(5)], requests))
    for logits, wanted in zip(found, expected, strict=True):
        assert all(same_bits(each, wanted) for each in logits)
