"""What the engine does with a runner's memory: copies of pages, bytes in and out, states kept and put back, pages freed
behind a sliding window. Bit for bit on the CPU core, within fp32's bounds on torch."""

import threading
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from octavo.config import LayerSpec
from octavo.engine.native_runner import NativeRunner
from octavo.engine.runner import Runner, StepBatch
from octavo.engine.torch_runner import TorchRunner
from octavo.models import Decoder
from tests.compare import assert_same
from tests.engine import native
from tests.engine.native import VARIANTS, same_bits, variant
from tests.engine.steps import PAGES, batch, cut_up, tokens
from tests.engine.test_torch_runner import poisoned
from tests.quantised import packed, random_decoder
from tests.tiny import tiny_config

LENGTH, CUT = 75, 45  # the cut is in the middle of the second page
FAMILIES = ["llama", "mistral", "mixtral", "minimax_text_01"]


@pytest.fixture(params=["native fp32", "native int8", "torch"])
def hybrid(request, tmp_path) -> Runner:
    decoder = random_decoder(tiny_config("minimax"))
    if request.param == "torch":
        return poisoned(decoder)
    pack = packed(decoder, tmp_path / "pack", 8)
    return native.poisoned(pack, "int8" if request.param == "native int8" else "float32")


def resumed(runner: Runner, other: Runner) -> list[np.ndarray]:
    """The logits after CUT of three sequences that go on from one's memory at CUT, while that one goes elsewhere: two
    in one step that share a full page and have copies of the second, and one on another runner, of bytes read."""
    ids, hybrid = tokens(LENGTH), runner.num_slots > 0
    runner.step(batch([(ids[:CUT], 0, [9, 4])], [3]))
    held = [runner.read_page(page) for page in (9, 4)]
    states = runner.read_states(3) if hybrid else None
    before = held[0].copy()
    runner.step(batch([(tokens(25, seed=1), CUT, [9, 4, 2])], [3]))
    runner.copy_page(4, 17)  # with rows of the other continuation behind CUT, which are written anew
    runner.copy_page(17, 5)
    assert np.array_equal(runner.read_page(9), before) and not np.array_equal(runner.read_page(4), held[1])
    if hybrid:
        for of, slot in ((runner, 6), (runner, 7), (other, 1)):
            of.write_states(slot, states, CUT)
    for page, data in zip((30, 31), held, strict=True):
        other.write_page(page, data)
    rows, rest = np.arange(LENGTH - CUT), ids[CUT:]
    both = batch([(rest, CUT, [9, 17, 20]), (rest, CUT, [9, 5, 21])], [6, 7], logit_rows=np.arange(2 * len(rest)))
    moved = other.step(batch([(rest, CUT, [30, 31, 0])], [1], logit_rows=rows)).logits
    return [*np.split(runner.step(both).logits, 2), moved]


@pytest.mark.parametrize("kv", ["float32", "int8"])
@pytest.mark.parametrize("name", VARIANTS)
def test_copies_continue_with_the_same_bits(name, kv, tmp_path) -> None:
    pack, ids = packed(random_decoder(variant(name)), tmp_path / "pack", 8), tokens(LENGTH)
    whole = batch([(ids, 0, [0, 1, 2])], logit_rows=np.arange(CUT, LENGTH))
    expected = native.poisoned(pack, kv).step(whole).logits
    found = resumed(native.poisoned(pack, kv), native.poisoned(pack, kv, threads=2))
    assert all(same_bits(logits, expected) for logits in found)


@pytest.mark.parametrize("family", FAMILIES)
def test_copies_continue_alike_on_torch(family) -> None:
    decoder = Decoder(tiny_config(family)).initialise().eval()
    with torch.no_grad():
        expected = decoder.logits(decoder(torch.from_numpy(tokens(LENGTH))).hidden)[CUT:]
    for logits in resumed(poisoned(decoder), poisoned(decoder)):
        assert_same(torch.from_numpy(logits), expected, rtol=1e-4, atol=1e-4)


def assert_freed_pages_are_not_read(
    make: Callable[[], Runner], fill: Callable[[Runner, int], None], length: int, longest: int,
    same: Callable[[np.ndarray, np.ndarray], object],
) -> None:  # fmt: skip
    """`fill` poisons a page of a runner that `make` made."""
    requests, freed, runner = [tokens(length), tokens(length - 37, seed=1)], [], make()

    def free(page: int) -> None:
        fill(runner, page)
        freed.append(page)

    kept = cut_up(make(), requests, longest, longest)
    for pair in zip(cut_up(runner, requests, longest, longest, free), kept, strict=True):
        assert same(*pair) is not False
    assert len(freed) >= 4


@pytest.mark.parametrize("kv", ["float32", "int8"])
@pytest.mark.parametrize(("window", "length"), [(1, 150), (7, 150), (33, 200), (40, 1100), (600, 1100)])
def test_pages_behind_the_window_are_not_read(window, length, kv, tmp_path) -> None:
    """Long ones have several segments of 512 keys, which threads share."""
    pack = packed(random_decoder(variant("mistral", sliding_window=window)), tmp_path / "pack", 8)

    def fill(runner: NativeRunner, page: int) -> None:
        for array in runner._paged:
            array[:, page] = np.nan if array.dtype == np.float32 else 111

    for longest in (length // 3, 40):
        make = partial(native.poisoned, pack, kv, threads=2, pages=80)
        assert_freed_pages_are_not_read(make, fill, length, longest, same_bits)


@pytest.mark.parametrize(("window", "longest"), [(1, 20), (7, 1), (7, 50), (33, 9), (40, 64)])
def test_pages_behind_the_window_are_not_read_by_torch(window, longest) -> None:
    decoder = Decoder(tiny_config("mistral", sliding_window=window)).initialise().eval()

    def fill(runner: TorchRunner, page: int) -> None:
        for memory in (runner._keys, runner._values):
            memory[:, page] = float("nan")

    def same(freed: np.ndarray, kept: np.ndarray) -> None:
        assert_same(torch.from_numpy(freed), torch.from_numpy(kept), rtol=1e-4, atol=1e-4)

    assert_freed_pages_are_not_read(partial(poisoned, decoder), fill, 200, longest, same)


def continued(start: int, table: list[int], rows: int = 2) -> StepBatch:
    return batch([(tokens(rows), start, table)], [0])


def test_only_pages_behind_the_window_of_the_first_new_row_may_be_missing() -> None:
    """A row at position p sees p - window + 1 .. p."""
    refused = [(70, [-1, 1, 2], 40), (71, [-1, -1, 2], 40), (71, [0, -1, 2], 40), (71, [-1, 1, -1], 40),
               (71, [-1, 1, 2], None), (64, [-1, -1, -1], 1), (63, [-1, -1, 2], 1), (5, [-1, 0, 0], 1)]  # fmt: skip
    for start, table, window in refused:
        with pytest.raises(ValueError, match=f"does not cover position {start + 1} in 3 pages"):
            continued(start, table).check(3, 331, 0, window)
    for start, table, window in [(71, [-1, 1, 2], 40), (64, [-1, -1, 2], 1), (63, [-1, 1, 2], 1), (70, [0, 1, 2], 40)]:
        continued(start, table).check(3, 331, 0, window)


def test_a_page_takes_new_rows_of_one_sequence_only() -> None:
    one, two = (tokens(2), 40, [0, 1]), (tokens(2), 33, [0, 2])
    batch([one, two], [0, 1]).check(3, 331)
    for parts in ([one, one], [one, (tokens(2), 31, [2, 1])], [(tokens(40), 0, [1, 1])]):
        with pytest.raises(ValueError, match=r"new rows of two places go to pages \[1\]"):
            batch(parts, list(range(len(parts)))).check(3, 331)


def test_sizes_of_pages_and_states(tmp_path) -> None:
    config = tiny_config("minimax")  # 2 softmax layers with 3 key heads, 3 lightning layers with 6 heads, width 16
    dense, lightning = tiny_config("llama"), replace(config, layers=(LayerSpec(attention="lightning", mlp="experts"),))
    numbers, width = 2 * 2 * 3 * 32, 16
    for kv, page_bytes in (("float32", numbers * 4 * width), ("int8", numbers * (width + 4))):
        runner = NativeRunner(packed(random_decoder(config), tmp_path / kv, 8), 3, 2, 1, kv)
        assert (runner.page_bytes, runner.state_bytes) == (page_bytes, 3 * 6 * width * width * 4)
    half = TorchRunner(Decoder(config).initialise().bfloat16(), 3)
    assert (half.page_bytes, half.state_bytes) == (numbers * 2 * width, runner.state_bytes)
    for own in (dense, lightning):
        both = [NativeRunner(packed(random_decoder(own), tmp_path / own.family, 8), 3), TorchRunner(Decoder(own), 3)]
        for runner in both:
            assert (runner.page_bytes == 0) == (own is lightning) and (runner.state_bytes == 0) == (own is dense)
            data = runner.read_page(1)
            runner.write_page(2, data)
            assert data.shape == (runner.page_bytes,) and np.array_equal(runner.read_page(2), data)


def test_half_precision_pages_keep_their_bytes() -> None:
    runner = TorchRunner(Decoder(tiny_config("mixtral")).initialise().bfloat16(), 4)
    data = np.random.default_rng(0).integers(0, 256, runner.page_bytes).astype(np.uint8)  # NaNs of all kinds, too
    runner.write_page(3, data)
    runner.copy_page(3, 0)
    assert np.array_equal(runner.read_page(0), data)
    assert np.array_equal(runner._keys[:, 0].flatten().view(torch.uint8).numpy(), data[: len(data) // 2])


def test_states_of_an_fp64_decoder_are_rounded_only_when_read() -> None:
    runner, ids = TorchRunner(Decoder(tiny_config("minimax")).initialise().double(), PAGES, 2), tokens(40)
    runner.step(batch([(ids, 0, [0, 1])], [0]))
    states = runner.read_states(0)
    assert states.dtype == np.float32 and np.array_equal(states, runner._states[:, 0].numpy().astype(np.float32))
    runner.write_states(1, states, 40)
    assert np.array_equal(runner._states[:, 1].numpy(), states.astype(np.float64))


def test_what_does_not_fit_is_refused_before_anything_is_written(hybrid) -> None:
    hybrid.step(batch([(tokens(40), 0, [0, 1])], [0]))
    page, states = hybrid.read_page(0), hybrid.read_states(0)
    for data in (page[:-1], np.append(page, page[:1]), page[None], page.view(np.int8), page.view(np.float32)):
        with pytest.raises(ValueError, match="data is .* it must be uint8"):
            hybrid.write_page(0, data)
    for wrong in (states[0], states[:, :1], states[..., :1], states.astype(np.float64), states[None]):
        with pytest.raises(ValueError, match="states is .* it must be float32"):
            hybrid.write_states(0, wrong, 40)
    with pytest.raises(ValueError, match="tokens is -1"):
        hybrid.write_states(0, states, -1)
    assert np.array_equal(hybrid.read_page(0), page) and np.array_equal(hybrid.read_states(0), states)
    hybrid.step(batch([(tokens(1), 40, [0, 1])], [0]))


def test_numbers_of_no_page_or_slot_are_refused(hybrid) -> None:
    page, states = np.zeros(hybrid.page_bytes, np.uint8), np.zeros((3, 6, 16, 16), np.float32)
    for number in (-1, PAGES):
        for call in (lambda n: hybrid.copy_page(0, n), lambda n: hybrid.copy_page(n, 0), hybrid.read_page,
                     lambda n: hybrid.write_page(n, page)):  # fmt: skip
            with pytest.raises(ValueError, match=f"page {number} must be a number from 0 to 39"):
                call(number)
        for call in (hybrid.read_states, lambda n: hybrid.write_states(n, states, 1)):
            with pytest.raises(ValueError, match=f"slot {number} must be a number from 0 to 39"):
                call(number)


def test_states_are_only_read_where_a_whole_step_left_them(hybrid) -> None:
    with pytest.raises(ValueError, match="slot 3 holds no states that a whole step has left"):
        hybrid.read_states(3)
    ids = tokens(41)
    hybrid.step(batch([(ids[:40], 0, [3, 4])]))
    states = hybrid.read_states(3)
    assert np.isfinite(states).all() and states.any()
    hybrid.write_states(5, states, 40)
    with pytest.raises(ValueError, match="slot 5 should hold the state after 39 tokens, but holds one after 40"):
        hybrid.step(batch([(ids[39:], 39, [3, 4])], [5]))
    hybrid.step(batch([(ids[40:], 40, [3, 4])], [5]))
    assert not np.array_equal(hybrid.read_states(5), states)  # what was read before was a copy
    with hybrid._ages.moving(batch([(ids[:1], 0, [3])])), pytest.raises(ValueError, match="slot 3 holds no states"):
        hybrid.read_states(3)


def test_memory_waits_for_a_step(hybrid) -> None:
    hybrid.step(batch([(tokens(1), 0, [0])]))
    page, states = hybrid.read_page(0), hybrid.read_states(0)
    calls = [lambda: hybrid.copy_page(0, 1), lambda: hybrid.read_page(0), lambda: hybrid.write_page(2, page),
             lambda: hybrid.read_states(0), lambda: hybrid.write_states(1, states, 1),
             lambda: hybrid.step(batch([(tokens(1), 0, [5])]))]  # fmt: skip
    done = []
    threads = [threading.Thread(target=lambda call=call: (call(), done.append(1))) for call in calls]
    with hybrid._stepping:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(0.02)
        assert not done
    for thread in threads:
        thread.join(10)
    assert len(done) == len(calls)
