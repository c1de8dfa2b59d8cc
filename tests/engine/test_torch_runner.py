"""Decoding with the cache equals one forward pass: in any chunking, any batch, any placement of pages."""

import numpy as np
import pytest
import torch

from octavo.engine.torch_runner import TorchRunner
from octavo.models import Decoder
from tests.compare import assert_same
from tests.engine.steps import CONTRADICTIONS, GOOD, PAGES, batch, contradicting, tokens
from tests.tiny import tiny_config

LENGTH = 75  # more than two pages


def whole(decoder: Decoder, ids: np.ndarray) -> torch.Tensor:
    with torch.no_grad():
        return decoder.logits(decoder(torch.from_numpy(ids)).hidden)


def poisoned(decoder: Decoder) -> TorchRunner:
    """Whatever the step does not write must not be read."""
    runner = TorchRunner(decoder, PAGES, PAGES)
    runner._states.fill_(float("nan"))
    runner._keys.fill_(float("nan"))
    runner._values.fill_(float("nan"))
    return runner


@pytest.fixture(params=["llama", "mistral", "mixtral", "minimax_text_01"])
def decoder(request) -> Decoder:
    return Decoder(tiny_config(request.param)).initialise().eval()


@pytest.mark.parametrize("chunks", [[75], [1] * 75, [32, 32, 11], [33, 1, 1, 40], [7, 68], [50] + [1] * 25])
def test_any_chunking_equals_one_pass(decoder, chunks) -> None:
    ids, runner, logits, start = tokens(LENGTH), poisoned(decoder), [], 0
    for size in chunks:
        part = (ids[start : start + size], start, [17, 3, 29])
        logits.append(runner.step(batch([part], logit_rows=np.arange(size))).logits)
        start += size
    assert_same(torch.from_numpy(np.concatenate(logits)), whole(decoder, ids), rtol=1e-4, atol=1e-4)


def test_sequences_share_steps_without_touching_each_other(decoder) -> None:
    """Three sequences of different ages in each step, one joining late, pages interleaved."""
    runner = poisoned(decoder)
    lengths, starts = (70, 33, 64), (0, 2, 5)  # length, and the step at which each joins
    pages = ([0, 3, 6], [1, 4], [2, 5])
    all_ids = [tokens(length, seed) for seed, length in enumerate(lengths)]
    done, logits = [0, 0, 0], [[], [], []]
    generator = np.random.default_rng(1)
    for step in range(200):
        parts, owners = [], []
        for s in range(3):
            size = min(int(generator.integers(1, 9)), lengths[s] - done[s])
            if step >= starts[s] and size:
                parts.append((all_ids[s][done[s] : done[s] + size], done[s], pages[s]))
                owners.append((s, size))
        if not parts:
            break
        result = runner.step(batch(parts, logit_rows=np.arange(sum(size for _, size in owners)))).logits
        for (s, size), rows in zip(owners, np.split(result, np.cumsum([size for _, size in owners])[:-1]), strict=True):
            logits[s].append(rows)
            done[s] += size
    assert done == list(lengths)
    for s in range(3):
        assert_same(torch.from_numpy(np.concatenate(logits[s])), whole(decoder, all_ids[s]), rtol=1e-4, atol=1e-4)


def test_a_used_slot_begins_anew_at_position_0() -> None:
    decoder = Decoder(tiny_config("minimax_text_01")).initialise().eval()
    runner, ids = poisoned(decoder), tokens(40)
    runner.step(batch([(tokens(33, seed=1), 0, [7, 8])]))
    left = runner._states[:, 7].clone()
    assert left.isfinite().all() and left.abs().max() > 0
    logits = runner.step(batch([(ids, 0, [7, 8])], logit_rows=np.arange(40))).logits
    assert_same(torch.from_numpy(logits), whole(decoder, ids), rtol=1e-4, atol=1e-4)
    assert runner._states[:, [6, 8]].isnan().all()


def test_states_stay_fp32_in_a_bf16_model() -> None:
    runner = TorchRunner(Decoder(tiny_config("minimax_text_01")).initialise().bfloat16(), PAGES)
    runner.step(batch([(tokens(40), 0, [0, 1])]))
    assert runner._states.dtype == torch.float32 and runner._keys.dtype == torch.bfloat16
    assert (runner._states != runner._states.bfloat16()).double().mean() > 0.9
    assert runner._states.shape == (3, 1, 6, 16, 16) and runner._keys.shape[0] == 2


def test_synthetic_memory_can_be_continued_from(decoder) -> None:
    """Only the named pages are written, with noise of deviation 1, and the state has the age that was claimed."""
    runner = poisoned(decoder)
    runner.fill_synthetic(np.array([17, 3, 29]), 40, state_slot=17)
    assert runner._keys[:, [17, 3]].isfinite().all() and runner._keys[:, [29, 4]].isnan().all()
    assert 0.8 < runner._values[:, [17, 3]].std().item() < 1.2
    step = batch([(tokens(1), 40, [17, 3, 29])], logit_rows=np.arange(1))
    assert np.isfinite(runner.step(step).logits).all()
    with pytest.raises(ValueError, match="2 pages cannot hold 65 tokens"):
        runner.fill_synthetic(np.array([1, 2]), 65, state_slot=1)


def test_only_wanted_rows_come_back(decoder) -> None:
    ids = tokens(10)
    with torch.no_grad():
        expected = decoder(torch.from_numpy(ids)).hidden
    wanted = batch([(ids, 0, [1])], logit_rows=np.array([9, 2]), hidden_rows=np.array([4]))
    result = poisoned(decoder).step(wanted)
    assert_same(torch.from_numpy(result.logits), whole(decoder, ids)[[9, 2]], rtol=1e-4, atol=1e-5)
    assert_same(torch.from_numpy(result.hidden), expected[[4]], rtol=1e-4, atol=1e-5)
    nothing = poisoned(decoder).step(batch([(ids, 0, [1])]))
    assert nothing.logits.shape == (0, 331) and nothing.hidden.shape == (0, 48)


def test_expert_counts_are_the_routers_choices() -> None:
    decoder = Decoder(tiny_config("mixtral")).initialise().eval()
    ids = tokens(10)
    counts = TorchRunner(decoder, PAGES).step(batch([(ids, 0, [0])])).expert_counts
    routings = decoder(torch.from_numpy(ids)).routings
    assert counts.shape == (2, 5) and (counts.sum(1) == 30).all()
    assert counts.tolist() == [torch.bincount(r.experts.flatten(), minlength=5).tolist() for r in routings]
    assert (
        TorchRunner(Decoder(tiny_config("llama")).initialise(), 4).step(batch([(ids, 0, [0])])).expert_counts.size == 0
    )


@pytest.mark.parametrize(("change", "message"), CONTRADICTIONS)
def test_a_batch_that_contradicts_itself_is_refused(change, message) -> None:
    runner = TorchRunner(Decoder(tiny_config("minimax_text_01")).initialise(), PAGES, 2)
    runner.step(GOOD)
    with pytest.raises(ValueError, match=message):
        runner.step(contradicting(change))


def test_a_state_that_has_moved_on_is_not_taken_for_an_older_one(monkeypatch) -> None:
    """Steps on keys and values can be repeated; on states they would count tokens twice."""
    decoder = Decoder(tiny_config("minimax_text_01")).initialise().eval()
    runner, ids = TorchRunner(decoder, PAGES, 2), tokens(40)
    runner.step(batch([(ids[:30], 0, [1])]))
    last = batch([(ids[30:], 30, [1, 2])], logit_rows=np.arange(10))
    expected = runner.step(last).logits
    with pytest.raises(ValueError, match="slot 1 should hold the state after 30 tokens, but holds one after 40"):
        runner.step(last)
    with pytest.raises(ValueError, match="slot 0 should hold .* but holds one that no whole step has left"):
        runner.step(batch([(ids[30:], 30, [0, 2])]))
    with monkeypatch.context() as patch:
        patch.setattr(decoder, "logits", lambda hidden: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            runner.step(batch([(ids[:1], 40, [1, 2])]))
    with pytest.raises(ValueError, match="no whole step has left"):
        runner.step(batch([(ids[:1], 41, [1, 2])]))
    runner.step(batch([(ids[:30], 0, [1])]))
    assert np.array_equal(runner.step(last).logits, expected)


def test_a_hybrid_needs_a_slot() -> None:
    with pytest.raises(ValueError, match="num_slots is 0"):
        TorchRunner(Decoder(tiny_config("minimax_text_01")), PAGES, 0)
    assert TorchRunner(Decoder(tiny_config("mixtral")), PAGES, 0).num_slots == 0
