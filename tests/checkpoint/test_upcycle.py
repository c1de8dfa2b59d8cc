"""Upcycling: the child computes its parent's function, and what cannot be upcycled is refused."""

import json
import logging
import weakref
from pathlib import Path

import pytest
import torch

from octavo.checkpoint.checksums import check_sums
from octavo.checkpoint.convert import convert
from octavo.checkpoint.folder import FolderSource
from octavo.checkpoint.load import load_decoder
from octavo.checkpoint.proof import MAX_DIFFERENCE, RMS_DIFFERENCE, USUAL_LOGIT, Proof, compare
from octavo.checkpoint.save import DecoderSource, save
from octavo.checkpoint.upcycle import METHODS, UpcycleOptions, upcycle
from octavo.errors import UsageError, UserError
from octavo.models import Decoder
from tests.compare import assert_rms, assert_same
from tests.tiny import tiny_config, tiny_tokenizer_files, write_tiny_model

IDS = torch.randint(331, (30,), generator=torch.Generator().manual_seed(1))


def logits(folder: Path) -> torch.Tensor:
    decoder = load_decoder(FolderSource(folder))
    with torch.no_grad():
        return decoder.logits(decoder(IDS).hidden)


def parent(tmp_path: Path, family: str = "llama", **changes: object) -> FolderSource:
    write_tiny_model(tmp_path / "parent", family, **changes)
    return FolderSource(tmp_path / "parent")


@pytest.mark.parametrize("family", ["llama", "mistral"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"experts": 5, "top_k": 3},
        {"experts": 1, "top_k": 1},
        {"experts": 4, "top_k": 4, "router_init": "orthogonal"},
    ],
)
def test_child_computes_its_parents_function(family, options, tmp_path) -> None:
    source = parent(tmp_path, family, tie_embeddings=family == "llama")
    proof = upcycle(source, tmp_path / "child", UpcycleOptions(**options))
    assert proof.holds and proof.tokens == 512
    assert_same(logits(tmp_path / "child"), logits(tmp_path / "parent"), rtol=1e-4, atol=1e-4)
    child = FolderSource(tmp_path / "child")
    assert (child.config.num_experts, child.config.top_k) == (options.get("experts", 8), options.get("top_k", 2))
    assert child.config.sliding_window == source.config.sliding_window
    for expert in range(child.config.num_experts):
        name = f"model.layers.1.block_sparse_moe.experts.{expert}.w3.weight"
        assert torch.equal(child.tensor(name), source.tensor("model.layers.1.mlp.up_proj.weight"))


def test_the_folder_says_how_it_was_made(tmp_path) -> None:
    proof = upcycle(parent(tmp_path), tmp_path / "child", UpcycleOptions(seed=3))
    record = json.loads((tmp_path / "child/octavo.json").read_text())
    assert record["proof"] == proof.as_dict() and record["proof"]["holds"]
    assert (record["parent"], record["method"], record["experts"], record["seed"]) == ("parent", "copy", 8, 3)
    card = (tmp_path / "child/README.md").read_text()
    assert "8 experts, 2 per token" in card and "512 random ids" in card and str(tmp_path) not in card
    for name, content in tiny_tokenizer_files().items():
        assert (tmp_path / "child" / name).read_bytes() == content
    assert check_sums(tmp_path / "child") == len(list((tmp_path / "child").iterdir())) - 1


def test_routers_differ_by_layer_and_seed_and_repeat(tmp_path) -> None:
    source = parent(tmp_path)
    name = "model.layers.{}.block_sparse_moe.gate.weight"
    routers = {}
    for out, options in {"a": {}, "b": {}, "c": {"seed": 1}, "d": {"router_init": "orthogonal"}}.items():
        upcycle(source, tmp_path / out, UpcycleOptions(**options))
        routers[out] = [FolderSource(tmp_path / out).tensor(name.format(layer)) for layer in range(2)]
    assert torch.equal(routers["a"][0], routers["b"][0])
    assert not torch.equal(routers["a"][0], routers["a"][1]) and not torch.equal(routers["a"][0], routers["c"][0])
    assert abs(routers["a"][0].std().item() - 0.02) < 0.003
    gram = routers["d"][0] @ routers["d"][0].T
    assert_rms(gram, torch.eye(8) * 0.02**2 * 48)


def test_dropping_the_window_is_a_choice_and_the_proof_keeps_within_it(tmp_path) -> None:
    source = parent(tmp_path, "mistral", sliding_window=9)
    proof = upcycle(source, tmp_path / "child", UpcycleOptions(drop_window=True))
    assert proof.tokens == 9
    record = json.loads((tmp_path / "child/octavo.json").read_text())
    assert record["equal_up_to_context"] == 9 and record["drop_window"]
    assert "within 9 tokens" in (tmp_path / "child/README.md").read_text()
    assert FolderSource(tmp_path / "child").config.sliding_window is None
    whole, cut = logits(tmp_path / "child"), logits(tmp_path / "parent")
    assert_same(whole[:9], cut[:9], rtol=1e-4, atol=1e-4)
    assert (whole[20:] - cut[20:]).abs().max() > 0.1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "method copy: each expert starts as the parent's feed-forward;"),
        ({"method": "permute"}, "its hidden units in an order of its own"),
        ({"method": "split", "granularity": 4}, "each expert starts as 1/4 of the parent's feed-forward"),
        (
            {"method": "drop", "drop_share": 0.25},
            "each expert starts as the parent's feed-forward, 25% of its units new",
        ),
        ({"method": "drop", "drop_share": 0.997}, "99.7% of its units new"),
    ],
)
def test_card_record_and_config_tell_the_method(options, words, tmp_path) -> None:
    upcycle(parent(tmp_path, intermediate_size=400), tmp_path / "child", UpcycleOptions(top_k=4, **options))
    assert words in (tmp_path / "child/README.md").read_text()
    record = json.loads((tmp_path / "child/octavo.json").read_text())
    assert (record["method"], record["exact"]) == (options.get("method", "copy"), options.get("method") != "drop")
    assert record["granularity"] == options.get("granularity", 1) and record["drop_share"] == options.get(
        "drop_share", 0
    )
    assert FolderSource(tmp_path / "child").config.router_aux_loss_coef == 0.02


def test_rounding_to_bf16_is_told_from_a_wrong_conversion(tmp_path) -> None:
    proof = upcycle(parent(tmp_path), tmp_path / "child", UpcycleOptions(dtype=torch.bfloat16))
    assert proof.holds and proof.rounded_to == "bfloat16"
    assert compare(parent(tmp_path / "again"), FolderSource(tmp_path / "child")).max_difference > 1e-2


def test_a_child_that_computes_something_else_is_not_written(tmp_path, monkeypatch) -> None:
    """Experts built wrongly (gate and up swapped) must not survive the proof."""
    monkeypatch.setattr(
        "octavo.checkpoint.upcycle.DENSE_NAMES", {"w1": "up_proj", "w3": "gate_proj", "w2": "down_proj"}
    )
    with pytest.raises(UserError, match="does not compute what its parent does"):
        upcycle(parent(tmp_path), tmp_path / "child", UpcycleOptions())
    assert [path.name for path in tmp_path.iterdir()] == ["parent"]


def test_the_proof_sees_a_single_changed_layer_and_nan(tmp_path) -> None:
    decoder = Decoder(tiny_config("llama")).initialise()
    reference = DecoderSource(decoder, {})
    assert compare(reference, reference).max_difference == 0
    for value, holds in ((1e-6, True), (0.05, False), (float("nan"), False)):
        other = Decoder(tiny_config("llama")).initialise()
        with torch.no_grad():
            other.layers[1].mlp.down_proj.weight[0, 0] += value
        assert compare(reference, DecoderSource(other, {})).holds is holds
    assert not Proof(1, 0, float("nan"), 0.0, 1.0).holds


def test_the_bounds_are_those_that_were_promised() -> None:
    assert (MAX_DIFFERENCE, RMS_DIFFERENCE, USUAL_LOGIT) == (1e-3, 5e-5, 35.0)
    assert Proof(512, 0, 0.9e-3, 4.9e-5, 20.0).holds
    assert not Proof(512, 0, 1.1e-3, 4.9e-5, 20.0).holds and not Proof(512, 0, 0.9e-3, 5.1e-5, 35.0).holds
    assert Proof(512, 0, 1.9e-3, 9.9e-5, 70.0).holds and not Proof(512, 0, 2.1e-3, 9.9e-5, 70.0).holds


def test_weights_that_are_not_numbers_are_named_as_such(tmp_path) -> None:
    decoder = Decoder(tiny_config("llama")).initialise()
    with torch.no_grad():
        decoder.layers[0].mlp.up_proj.weight[0, 0] = float("nan")
    with pytest.raises(UserError, match="not finite"):
        save(decoder, tmp_path / "out")
    with pytest.raises(UserError, match="not finite"):
        save(Decoder(tiny_config("llama", initializer_range=1e5)).initialise(), tmp_path / "out", dtype=torch.float16)
    assert list(tmp_path.iterdir()) == []


def test_a_parent_without_a_tokenizer_or_with_a_damaged_one_is_refused(tmp_path) -> None:
    source = parent(tmp_path)
    for content in (b"{}", b"nonsense", None):
        (tmp_path / "parent/tokenizer.json").unlink()
        if content is not None:
            (tmp_path / "parent/tokenizer.json").write_bytes(content)
        with pytest.raises(UserError, match=r"tokenizer\.json"):
            upcycle(source, tmp_path / "out", UpcycleOptions())
        with pytest.raises(UserError, match=r"tokenizer\.json"):
            convert(source, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["parent"]


def test_the_proof_reads_one_expert_at_a_time(tmp_path) -> None:
    """And leaves out those that no token chose."""
    upcycle(parent(tmp_path), tmp_path / "child", UpcycleOptions(experts=64, top_k=1))
    child = FolderSource(tmp_path / "child")
    alive: list[weakref.ref] = []
    most = 0

    def tensor(name: str, original=child.tensor) -> torch.Tensor:
        nonlocal most
        value = original(name)
        alive.append(weakref.ref(value))
        most = max(most, sum(ref() is not None for ref in alive))
        return value

    child.tensor = tensor
    assert compare(FolderSource(tmp_path / "parent"), child).holds
    assert most <= 6  # an expert's three, and the three of the one before until they are replaced


def test_a_mixture_is_not_upcycled_again(tmp_path) -> None:
    write_tiny_model(tmp_path / "mixture", "mixtral")
    with pytest.raises(UsageError, match="mixture of 5 experts already"):
        upcycle(FolderSource(tmp_path / "mixture"), tmp_path / "out", UpcycleOptions())
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top_k": 9}, "top-k is 9: it must be between 1 and the number of experts"),
        ({"top_k": 0}, "top-k is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": 10**20}, "seed is 1"),
        ({"experts": 0}, "experts is 0"),
        ({"method": "magic"}, "method is 'magic': choose one of copy, permute, split, drop"),
        ({"granularity": 2}, "granularity is 2 with --method copy: only --method split"),
        ({"method": "split", "granularity": 0}, "granularity is 0"),
        ({"method": "split", "granularity": -2}, "granularity is -2"),
        ({"method": "split", "top_k": 3}, "top-k is 3: .* multiple of the granularity .2."),
        ({"method": "split", "experts": 7}, "experts is 7: .* multiple of the granularity .2."),
        ({"method": "split", "granularity": 4, "top_k": 2}, "top-k is 2: .* multiple of the granularity .4."),
        ({"drop_share": 0.3}, "drop-share is 0.3 with --method copy: only --method drop"),
        ({"method": "drop", "drop_share": 1.1}, "drop-share is 1.1"),
        ({"method": "drop", "drop_share": -0.1}, "drop-share is -0.1"),
        ({"method": "drop", "drop_share": float("nan")}, "drop-share is nan"),
        ({"router_init": "zero"}, "router-init is 'zero'"),
    ],
)
def test_impossible_options(options, message) -> None:
    with pytest.raises(UsageError, match=message):
        UpcycleOptions(**options)


def test_one_expert_per_token_warns_that_the_router_cannot_learn(tmp_path, caplog) -> None:
    source = parent(tmp_path)
    with caplog.at_level(logging.WARNING):
        upcycle(source, tmp_path / "one", UpcycleOptions(top_k=1))
        assert "gives the router no gradient" in caplog.text
        caplog.clear()
        upcycle(source, tmp_path / "two", UpcycleOptions(top_k=2))
        assert caplog.text == ""


@pytest.mark.parametrize("method", METHODS)
def test_memory_is_a_few_tensors_whatever_the_depth(method, tmp_path) -> None:
    """No more than a handful of parent tensors are ever alive, at 2 layers or at 12."""
    most = {}
    for depth in (2, 12):
        config = tiny_config("llama")
        source = parent(tmp_path / str(depth), layers=config.layers[:1] * depth)
        alive: list[weakref.ref] = []
        counts = []

        def tensor(name: str, original=source.tensor, alive=alive, counts=counts) -> torch.Tensor:
            value = original(name)
            alive.append(weakref.ref(value))
            counts.append(sum(ref() is not None for ref in alive))
            return value

        source.tensor = tensor
        upcycle(source, tmp_path / f"child{depth}", UpcycleOptions(method=method))
        most[depth] = max(counts)
    assert most[2] == most[12] <= (5 if method == "drop" else 3)  # drop's proof keeps one dense feed-forward
