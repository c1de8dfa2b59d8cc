"""The CPU runner against the torch decoder that quantises as it does, and what it refuses.

Both compute the same but for fp32's last bits. Now and then those move an activation that lies on the border between
two int8 numbers to the other one; that row, and the later ones of its sequence, then differ by about as much as
rounding does anyway, some 1e-2. Hence many short sequences, most of whose rows must be equal to 1e-5; long ones in
models of one layer, where such a move rarely reaches another row; and no more than 0.1 for any row anywhere.
"""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from octavo.checkpoint.pack import Pack
from octavo.config import LayerSpec, ResidualConfig
from octavo.engine.native_runner import NativeRunner
from octavo.models import Decoder
from octavo.models.packing import Packing
from tests.engine.native import VARIANTS, poisoned, row_errors, same_bits, variant
from tests.engine.steps import CONTRADICTIONS, GOOD, PAGES, batch, contradicting, tokens
from tests.native.kernels import isas, using
from tests.quantised import altered, packed, quantised, random_decoder
from tests.tiny import tiny_config

LONG, SHORT = (75, 66, 70), tuple(range(1, 11)) * 2  # rows: more than two pages, and much less than one
LENGTH = 75
ROOT = Path(__file__).parents[2]


@pytest.fixture(params=isas())
def isa(request):
    with using(request.param):
        yield request.param


def compare(
    decoder: Decoder, tmp_path: Path, bits: int, kv: str, lengths: tuple[int, ...], pages: int = PAGES
) -> tuple[np.ndarray, torch.Tensor]:
    """One step of sequences of these lengths: expert counts, and the error of each row's logits in the order of rows.

    Hidden states are compared too, and no row may be far off.
    """
    exact, ids = quantised(decoder, bits, kv), tokens(sum(lengths))
    with torch.no_grad():
        out = exact(torch.from_numpy(ids), Packing.from_lengths(lengths))
        logits = exact.logits(out.hidden)
    runner = poisoned(packed(decoder, tmp_path / "pack", bits), kv, threads=2, pages=pages)
    tables = np.split(np.random.default_rng(0).permutation(pages), np.cumsum([-(-n // 32) for n in lengths]))
    parts = [(each, 0, t.tolist()) for each, t in zip(np.split(ids, np.cumsum(lengths)[:-1]), tables, strict=False)]
    result = runner.step(batch(parts, logit_rows=np.arange(len(ids)), hidden_rows=np.arange(len(ids))))
    errors = row_errors(result.logits, logits)
    assert errors.max() < 0.1 and row_errors(result.hidden, out.hidden).max() < 0.1
    counts = [np.zeros(decoder.config.num_experts, int) if r is None else r.counts.numpy() for r in out.routings]
    assert np.array_equal(result.expert_counts.sum(1), np.stack(counts).sum(1))
    # a row that is off by 1e-2 may choose another expert
    assert np.abs(result.expert_counts - counts).sum() <= 0.02 * np.sum(counts)
    return result.expert_counts, errors


def mostly_equal(errors: torch.Tensor) -> bool:
    return bool((errors <= 1e-5).double().mean() > 0.7)


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize(("bits", "kv"), [(4, "float32"), (8, "int8")])
def test_equals_the_exact_decoder(isa, name, bits, kv, tmp_path) -> None:
    _, errors = compare(random_decoder(variant(name)), tmp_path, bits, kv, LONG + SHORT)
    assert mostly_equal(errors[sum(LONG) :])


@pytest.mark.parametrize("name", VARIANTS)
def test_bf16_equals_the_decoder(isa, name, tmp_path) -> None:
    """Nothing is rounded but the weights, so every row agrees within what fp32 allows."""
    _, errors = compare(random_decoder(variant(name)), tmp_path, 16, "float32", LONG + SHORT)
    assert errors.max() <= 2e-5


@pytest.mark.parametrize(("bits", "kv"), [(4, "int8"), (8, "float32")])
@pytest.mark.parametrize("name", ["mixtral", "shared expert"])
@pytest.mark.parametrize("isa", isas()[:1], indirect=True)
def test_equals_the_exact_decoder_crosswise(isa, name, bits, kv, tmp_path) -> None:
    _, errors = compare(random_decoder(variant(name)), tmp_path, bits, kv, SHORT)
    assert mostly_equal(errors)


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("kv", ["float32", "int8"])
def test_one_layer_over_long_sequences(isa, name, kv, tmp_path) -> None:
    config = variant(name)
    for spec in dict.fromkeys(config.layers):  # each kind of layer
        decoder = random_decoder(replace(config, layers=(spec,)))
        _, errors = compare(decoder, tmp_path, 4, kv, LONG)
        assert errors.median() <= 1e-6, errors


@pytest.mark.parametrize("window", [None, 7, 100, 600])
@pytest.mark.parametrize("kv", ["float32", "int8"])
def test_one_layer_over_segments_and_windows(isa, window, kv, tmp_path) -> None:
    """Attention goes by segments of 512 tokens. A window may begin after one that the rows beside still see."""
    decoder = random_decoder(variant("mistral", sliding_window=window, layers=(LayerSpec(),)))
    _, errors = compare(decoder, tmp_path, 8, kv, (1100, 530, 3), pages=80)
    for rows in (errors[:490], errors[490:550], errors[550:1020], errors[1020:1100], errors[1100:]):
        assert rows.median() <= 1e-6, rows


def test_experts_without_and_with_all_tokens(isa, tmp_path) -> None:
    """Every token has a large first entry, so the router's first column decides: expert 3 first, never 0 and 1."""
    decoder = random_decoder(variant("mixtral"))
    with torch.no_grad():
        decoder.embed.weight[:, 0] = 20.0
        for layer in decoder.layers:
            layer.attention_norm.weight[0] = 0.05
            layer.mlp_norm.weight[0] = 1.0
            layer.attention.o_proj.weight[0] = 0.0
            layer.mlp.experts.down[:, 0] = 0.0
            layer.mlp.router.weight[:, 0] = torch.tensor([-2.0, -2.0, 1.0, 2.0, 1.0])
    counts, errors = compare(decoder, tmp_path, 4, "float32", SHORT)
    assert (counts[:, 2:] == sum(SHORT)).all() and mostly_equal(errors)
    decoder.config = variant("mixtral", top_k=1)
    runner = NativeRunner(packed(decoder, tmp_path / "pack", 4), PAGES)
    counts = runner.step(batch([(tokens(LENGTH), 0, [0, 1, 2])])).expert_counts
    assert (counts == [0, 0, 0, LENGTH, 0]).all()


def test_experts_that_score_the_same_are_taken_from_the_lowest_number_on(isa, tmp_path) -> None:
    decoder = random_decoder(variant("mixtral"))
    for layer in decoder.layers:
        layer.mlp.router.weight.data.zero_()
    counts = NativeRunner(packed(decoder, tmp_path / "pack", 4), 4).step(batch([(tokens(9), 0, [0])])).expert_counts
    assert (counts == [9, 9, 9, 0, 0]).all()


@pytest.mark.parametrize(("experts", "top_k"), [(130, 2), (5, 1)])
@pytest.mark.parametrize("isa", isas()[:1], indirect=True)
def test_many_experts_and_one_of_several(isa, experts, top_k, tmp_path) -> None:
    config = variant("mixtral", num_experts=experts, top_k=top_k, layers=(LayerSpec(mlp="experts"),))
    counts, errors = compare(random_decoder(config), tmp_path, 4, "float32", SHORT)
    assert mostly_equal(errors) and all(part.any() for part in np.array_split(counts[0], 5))


@pytest.mark.parametrize("isa", isas()[:1], indirect=True)
def test_small_values_are_not_taken_for_zeros(isa, tmp_path) -> None:
    """In int8: attention's input is 1e-20 of the usual, and what comes out of it counts 1e20 times."""
    decoder = random_decoder(variant("mixtral", residual=ResidualConfig(softmax=(1.0, 1e20))))
    for layer in decoder.layers:
        layer.attention_norm.weight.data *= 1e-20
    _, errors = compare(decoder, tmp_path, 8, "int8", SHORT)
    assert mostly_equal(errors)


def test_plain_fp32_is_further_away_than_the_bounds(tmp_path) -> None:
    """So the bounds above do tell quantised from unquantised, and 4 bits from 8, and bf16 from fp32."""
    decoder, ids = random_decoder(variant("mixtral")), torch.from_numpy(tokens(LENGTH))
    with torch.no_grad():
        plain = decoder.logits(decoder(ids).hidden)
        for bits, least in ((16, 1e-3), (8, 1e-3), (4, 2e-2)):
            exact = quantised(decoder, bits)
            assert row_errors(exact.logits(exact(ids).hidden).numpy(), plain).min() > least


@pytest.mark.parametrize("kv", ["float32", "int8"])
@pytest.mark.parametrize("isa", isas()[:1], indirect=True)
def test_pages_beyond_what_32_bits_can_number(isa, kv, tmp_path) -> None:
    """The last pages of a memory of 2^31 numbers, of which the system gives those that are written to."""
    config = variant("llama", layers=(LayerSpec(),), num_kv_heads=6, head_dim=16)
    pack, pages = packed(random_decoder(config), tmp_path / "pack", 8), 2**31 // (6 * 16 * 32) + 2
    try:
        large = NativeRunner(pack, pages, kv=kv)
    except MemoryError as error:
        pytest.skip(f"the system promises no such memory: {error}")
    ids, logits = tokens(40), []
    for runner, table in ((poisoned(pack, kv), [0, 1]), (large, [pages - 1, pages - 2])):
        logits.append(runner.step(batch([(ids, 0, table)], logit_rows=np.arange(40))).logits)
    assert same_bits(logits[1], logits[0])


# ---- what is not finite


@pytest.mark.parametrize("spoilt", ["attention_norm.weight", "mlp_norm.weight", "router.weight", "norm.weight"])
@pytest.mark.parametrize("name", ["mixtral", "shared expert"])
def test_weights_that_are_nan_give_nan_and_no_crash(isa, name, spoilt, tmp_path) -> None:
    decoder = random_decoder(variant(name))
    for parameter, values in decoder.named_parameters():
        if parameter.endswith(spoilt):
            values.data.fill_(torch.nan)
    runner = poisoned(packed(decoder, tmp_path / "pack", 8), threads=2)
    result = runner.step(batch([(tokens(9), 0, [0]), (tokens(1), 0, [1])], logit_rows=np.arange(10)))
    assert np.isnan(result.logits).all()
    assert (result.expert_counts.sum(1) == 30).all() and (result.expert_counts >= 0).all()


@pytest.mark.parametrize("kv", ["float32", "int8"])
def test_a_request_that_is_nan_does_not_touch_its_neighbours(isa, kv, tmp_path) -> None:
    """Its keys were spoilt, say; it and its experts' rows become NaN, and nobody else's."""
    pack = packed(random_decoder(variant("mixtral")), tmp_path / "pack", 4)
    both = batch([(tokens(5, 1), 40, [0, 1]), (tokens(5, 2), 40, [2, 3])], logit_rows=np.arange(10))
    results = []
    for spoil in (False, True):
        runner = poisoned(pack, kv)
        runner.step(batch([(tokens(40, 3), 0, [0, 1]), (tokens(40, 4), 0, [2, 3])]))
        if spoil:
            runner._arrays["keys" if kv == "float32" else "key_scales"][0, 0] = np.nan
        results.append(runner.step(both).logits)
    assert np.isnan(results[1][:5]).all()
    assert same_bits(results[1][5:], results[0][5:])


@pytest.mark.parametrize("kv", ["float32", "int8"])
@pytest.mark.parametrize("name", ["mixtral", "minimax"])
def test_a_token_that_is_nan_spoils_what_comes_after_it_and_nothing_else(isa, name, kv, tmp_path) -> None:
    """Token 2 has NaN scales in the pack, which no model has that was quantised."""
    pack = packed(random_decoder(variant(name, tie_embeddings=False)), tmp_path / "pack", 4)
    ids = np.concatenate((tokens(40) // 3 + 3, tokens(40, 1) // 3 + 3))
    expected = poisoned(pack, kv).step(batch([(ids[:40], 0, [0, 1]), (ids[40:], 0, [2, 3])], logit_rows=np.arange(80)))

    def spoil(header: dict[str, Any], tensors: np.ndarray) -> None:
        groups, at = -(-pack.config.hidden_size // 32), header["tensors"]["embed"]["offset"]
        scales = tensors[at : at + groups * pack.lanes * 2].view(np.float16)  # native/src/pack.h: of the first tile
        scales.reshape(groups, pack.lanes)[:, 2] = np.nan

    ids[33] = 2
    runner = poisoned(Pack(altered(tmp_path / "pack", tmp_path / "spoilt", spoil)), kv, threads=2)
    for chunk in (slice(0, 35), slice(35, 40)):
        part = (ids[:40][chunk], chunk.start, [0, 1]), (ids[40:][chunk], chunk.start, [2, 3])
        logits = np.split(runner.step(batch(list(part), logit_rows=np.arange(2 * len(part[0][0])))).logits, 2)
        whole = expected.logits[:40][chunk], expected.logits[40:][chunk]
        before = max(33 - chunk.start, 0)
        assert np.isnan(logits[0][before:]).all() and same_bits(logits[1], whole[1])
        assert not before or same_bits(logits[0][:before], whole[0][:before])


# ---- what comes back, slots, refusals


def test_only_wanted_rows_come_back(tmp_path) -> None:
    pack, ids = packed(random_decoder(variant("minimax")), tmp_path / "pack", 8), tokens(10)
    whole = poisoned(pack).step(batch([(ids, 0, [1])], logit_rows=np.arange(10), hidden_rows=np.arange(10)))
    wanted = batch([(ids, 0, [1])], logit_rows=np.array([9, 2, 2]), hidden_rows=np.array([4, 0]))
    result = poisoned(pack).step(wanted)
    assert same_bits(result.logits, whole.logits[[9, 2, 2]]) and same_bits(result.hidden, whole.hidden[[4, 0]])
    nothing = poisoned(pack).step(batch([(ids, 0, [1])]))
    assert nothing.logits.shape == (0, 331) and nothing.hidden.shape == (0, 50)
    assert np.array_equal(nothing.expert_counts, whole.expert_counts)


def test_a_used_slot_begins_anew_at_position_0(tmp_path) -> None:
    pack, ids = packed(random_decoder(variant("shared expert")), tmp_path / "pack", 8), tokens(40)
    expected = poisoned(pack).step(batch([(ids, 0, [7, 8])], logit_rows=np.arange(40))).logits
    runner = poisoned(pack)
    runner.step(batch([(tokens(33, seed=1), 0, [7, 8])]))
    states = runner._arrays["states"]
    assert np.isfinite(states[:, 7]).all() and np.abs(states[:, 7]).max() > 0
    assert same_bits(runner.step(batch([(ids, 0, [7, 8])], logit_rows=np.arange(40))).logits, expected)
    assert np.isnan(states[:, [6, 8]]).all()


def test_a_state_that_has_moved_on_is_not_taken_for_an_older_one(tmp_path) -> None:
    pack, ids = packed(random_decoder(variant("minimax")), tmp_path / "pack", 8), tokens(40)
    runner = NativeRunner(pack, PAGES, 2)
    runner.step(batch([(ids[:30], 0, [1])]))
    last = batch([(ids[30:], 30, [1, 2])], logit_rows=np.arange(10))
    expected = runner.step(last).logits
    with pytest.raises(ValueError, match="slot 1 should hold the state after 30 tokens, but holds one after 40"):
        runner.step(last)
    with pytest.raises(ValueError, match="slot 0 should hold .* but holds one that no whole step has left"):
        runner.step(batch([(ids[30:], 30, [0, 2])]))
    runner.step(batch([(ids[:30], 0, [1])]))
    assert same_bits(runner.step(last).logits, expected)


@pytest.mark.parametrize("kv", ["float32", "int8"])
@pytest.mark.parametrize("name", ["mixtral", "minimax"])
def test_synthetic_memory_can_be_continued_from(name, kv, tmp_path) -> None:
    """Only the named pages are written, with noise of deviation about 1, and the state has the age that was claimed."""
    runner = poisoned(packed(random_decoder(variant(name)), tmp_path / "pack", 8), kv)
    runner.fill_synthetic(np.array([17, 3, 29]), 40, state_slot=17)
    values = runner._arrays["values"].astype(np.float32)
    if kv == "int8":
        values *= runner._arrays["value_scales"][..., None]
    assert np.isnan(values[:, [29, 4]]).all() and 0.8 < values[:, [17, 3]].std() < 1.3
    step = batch([(tokens(1), 40, [17, 3, 29])], logit_rows=np.arange(1))
    assert np.isfinite(runner.step(step).logits).all()
    with pytest.raises(ValueError, match="2 pages cannot hold 65 tokens"):
        runner.fill_synthetic(np.array([1, 2]), 65, state_slot=1)


@pytest.mark.parametrize(("change", "message"), CONTRADICTIONS)
def test_a_batch_that_contradicts_itself_never_reaches_the_core(change, message, tmp_path, monkeypatch) -> None:
    runner = NativeRunner(packed(random_decoder(variant("minimax")), tmp_path / "pack", 8), PAGES, 2)
    expected = runner.step(GOOD).logits
    with monkeypatch.context() as patch:
        patch.setattr(runner._library, "step", lambda *_: pytest.fail("the core was called"))
        with pytest.raises(ValueError, match=message):
            runner.step(contradicting(change))
    assert same_bits(runner.step(GOOD).logits, expected)


def test_a_hybrid_needs_a_slot(tmp_path) -> None:
    with pytest.raises(ValueError, match="num_slots is 0"):
        NativeRunner(packed(random_decoder(variant("minimax")), tmp_path / "pack", 8), PAGES, 0)
    assert NativeRunner(packed(random_decoder(tiny_config()), tmp_path / "pack", 8), PAGES, 0).num_slots == 0


def test_runs_without_torch(tmp_path) -> None:
    """From a warm pack, a process that steps never imports torch, and gives the same bits as one that has it."""
    pack = packed(random_decoder(variant("shared expert")), tmp_path / "pack", 4)
    expected = NativeRunner(pack, 4).step(batch([(tokens(7), 0, [0])], logit_rows=np.arange(7))).logits
    code = f"""
import sys
from pathlib import Path
import numpy as np
from octavo.checkpoint.pack import Pack
from octavo.config import LayerSpec
from octavo.engine.native_runner import NativeRunner
from octavo.engine.runner import StepBatch
one = np.array([0])
ids = np.array({tokens(7).tolist()})
runner = NativeRunner(Pack(Path({str(tmp_path / "pack")!r})), 4)
batch = StepBatch(ids, np.array([0, 7]), np.arange(7), one[None], one, logit_rows=np.arange(7))
np.save({str(tmp_path / "logits.npy")!r}, runner.step(batch).logits)
assert "torch" not in sys.modules and "transformers" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=120)
    assert same_bits(np.load(tmp_path / "logits.npy"), expected)
