"""Lineage: every way of making experts is found in the weights, under noise too, and the figures are numpy's."""

import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from octavo.checkpoint import unit_match
from octavo.checkpoint.folder import FolderSource
from octavo.checkpoint.lineage import Lineage, compare_lineage
from octavo.checkpoint.save import DecoderSource, save
from octavo.checkpoint.source import open_source
from octavo.checkpoint.unit_match import FeedForward, least_cosine, match, pearson, row_sums
from octavo.checkpoint.upcycle import UpcycleOptions, upcycle
from octavo.config import LayerSpec
from octavo.errors import UsageError, UserError
from octavo.models import Decoder
from tests.tiny import tiny_config, write_tiny_model

KINDS = {"copy": "copy", "permute": "permuted", "split": "split", "drop": "drop"}
WIDE = {"hidden_size": 96, "intermediate_size": 80}


def decoder(family: str = "llama", seed: int = 0, **changes: object) -> Decoder:
    return Decoder(tiny_config(family, **changes)).initialise(seed)


def source(model: Decoder) -> DecoderSource:
    return DecoderSource(model, {})


def upcycled(tmp_path: Path, **options: object) -> tuple[FolderSource, FolderSource]:
    write_tiny_model(tmp_path / "parent", "llama", **WIDE)
    parent = FolderSource(tmp_path / "parent")
    upcycle(parent, tmp_path / "child", UpcycleOptions(**options))
    return parent, FolderSource(tmp_path / "child")


class Trained:
    """A source with noise on its experts: `ratio` times the spread of each tensor, which leaves a correlation of
    1 / sqrt(1 + ratio^2)."""

    def __init__(self, child: FolderSource, ratio: float) -> None:
        self._child, self._ratio = child, ratio
        self.config, self.label = child.config, child.label

    def tensor(self, name: str) -> Tensor:
        value = self._child.tensor(name)
        if ".experts." not in name:
            return value
        noise = torch.randn(value.shape, generator=torch.Generator().manual_seed(len(name) + sum(map(ord, name))))
        return value + noise * value.std() * self._ratio


def corrcoef(a: Tensor, b: Tensor) -> float:
    return float(np.corrcoef(a.double().numpy().ravel(), b.double().numpy().ravel())[0, 1])


def feed_forward(generator: torch.Generator, units: int = 80, hidden: int = 96) -> FeedForward:
    return FeedForward({part: torch.randn(units, hidden, generator=generator) for part in unit_match.PARTS})


# ---- what the methods of upcycle leave behind


@pytest.mark.parametrize("method", KINDS)
def test_each_method_is_recognised(method, tmp_path) -> None:
    parent, child = upcycled(tmp_path, method=method)
    found = compare_lineage(parent, child)
    assert found.kinds == {KINDS[method]: 16} and len(found.layers) == 2
    for expert in found.experts:
        assert expert.matched == (0.5 if method == "drop" else 1.0)
        assert expert.likeness == pytest.approx(1, abs=1e-6)
        assert expert.scale == pytest.approx({"w1": 1.0, "w3": 1.0, "w2": 2.0 if method == "split" else 1.0})
        assert (expert.units, expert.parent_units) == (40 if method == "split" else 80, 80)
    words = {
        "copy": "every expert is a copy of the parent's feed-forward",
        "permute": "every expert is a copy of the parent's feed-forward with its hidden units permuted",
        "split": "every expert is 1/2 of the parent's feed-forward, with w2 times 2",
        "drop": "every expert has 50% of the parent's hidden units, the others are new",
    }
    assert found.verdict == words[method]
    shared = [value for layer in found.layers for value in layer.shared.values()]
    assert len(shared) == 12 and set(shared) == set(found.shared.values()) == {1.0}
    assert set(found.shared) == {"embed_tokens", "norm", "lm_head"}
    assert found.not_compared == tuple(f"model.layers.{layer}.block_sparse_moe.gate.weight" for layer in range(2))


@pytest.mark.parametrize("method", ["copy", "permute", "drop"])
def test_correlations_are_numpys(method, tmp_path) -> None:
    parent, child = upcycled(tmp_path, method=method)
    found = compare_lineage(parent, Trained(child, 0.5))
    name = "model.layers.1.block_sparse_moe.experts.3.{}.weight"
    for part, dense in (("w1", "gate_proj"), ("w3", "up_proj"), ("w2", "down_proj")):
        ours, theirs = (
            Trained(child, 0.5).tensor(name.format(part)),
            parent.tensor(f"model.layers.1.mlp.{dense}.weight"),
        )
        expert = found.layers[1].experts[3]
        assert expert.aligned[part] == pytest.approx(corrcoef(ours, theirs), abs=1e-6)
        if method == "permute":
            axis = 1 if part == "w2" else 0
            clean = child.tensor(name.format(part))
            rows = theirs.movedim(axis, 0).tolist()
            theirs = theirs.index_select(axis, torch.tensor([rows.index(r) for r in clean.movedim(axis, 0).tolist()]))
            assert abs(expert.aligned[part]) < 0.1 < 0.8 < expert.correlation[part]
        assert expert.correlation[part] == pytest.approx(corrcoef(ours, theirs), abs=1e-6)


def test_a_planted_permutation_is_found_unit_by_unit() -> None:
    generator = torch.Generator().manual_seed(0)
    parent = feed_forward(generator, units=500)
    order = torch.randperm(500, generator=generator)
    child = FeedForward({part: matrix[order] for part, matrix in parent.parts.items()})
    assert torch.equal(unit_match._search(child, parent, None, 0.25)[0], order)
    found = match(child, parent)
    assert (found.kind, found.matched, found.first_unit) == ("permuted", 1.0, None)
    assert all(abs(value) < 0.03 for value in found.aligned.values())
    assert found.correlation == {"w1": 1.0, "w3": 1.0, "w2": 1.0}


def test_split_says_which_units_and_what_scale_also_when_it_is_spread() -> None:
    parent = feed_forward(torch.Generator().manual_seed(0), units=90)
    for first, scales in ((30, (1.0, 1.0, 3.0)), (60, (3 ** (1 / 3),) * 3)):
        pairs = zip(unit_match.PARTS, scales, strict=True)
        child = FeedForward({part: parent.parts[part][first : first + 30] * scale for part, scale in pairs})
        found = match(child, parent)
        assert (found.kind, found.matched, found.first_unit, found.aligned) == ("split", 1.0, first, None)
        assert [found.scale[part] for part in unit_match.PARTS] == pytest.approx(scales, rel=1e-5)
    scattered = torch.randperm(90, generator=torch.Generator().manual_seed(1))[:30]
    found = match(FeedForward({part: matrix[scattered] for part, matrix in parent.parts.items()}), parent)
    assert (found.kind, found.matched, found.first_unit) == ("split", 1.0, None)


def test_a_matrix_of_large_entries_does_not_drown_the_other_two() -> None:
    """w2 is 50 times as large and much trained on: units are still found by their w1 and w3."""
    generator = torch.Generator().manual_seed(0)
    parent = feed_forward(generator)
    parent.parts["w2"].mul_(50)
    child = {part: matrix.flip(0) for part, matrix in parent.parts.items()}
    child["w2"] = child["w2"] + 50 * torch.randn(80, 96, generator=generator)
    found = match(FeedForward(child), parent)
    assert (found.kind, found.matched) == ("permuted", 1.0)
    assert found.likeness == pytest.approx((2 + 0.5**0.5) / 3, abs=0.02)


def test_a_unit_is_the_parents_only_if_all_three_parts_are() -> None:
    """One matrix kept, or a half of each at different units, as Drop-Upcycling's released script leaves them."""
    generator = torch.Generator().manual_seed(0)
    parent, other = feed_forward(generator, 400, 200), feed_forward(generator, 400, 200)
    found = match(FeedForward({**other.parts, "w1": parent.parts["w1"]}), parent)
    assert (found.kind, found.matched, found.correlation["w1"]) == ("unrelated", 0.0, 1.0)
    kept = {part: torch.rand(400, 1, generator=generator) < 0.5 for part in unit_match.PARTS}
    child = {part: torch.where(kept[part], parent.parts[part], other.parts[part]) for part in unit_match.PARTS}
    found = match(FeedForward(child), parent)
    whole = torch.cat(list(kept.values()), 1).all(1).double().mean().item()
    assert (found.kind, found.matched) == ("drop", whole) and found.likeness == pytest.approx(1)
    assert all(value == pytest.approx(0.5, abs=0.06) for value in found.correlation.values())


def test_units_that_share_a_direction_are_not_taken_for_one_another() -> None:
    """As in real layers: about every other pair of units agrees a little, in its own place too."""
    generator = torch.Generator().manual_seed(0)
    common = torch.randn(3, 1, 200, generator=generator) * 0.6
    noise = feed_forward(generator, 400, 200).parts
    parent = FeedForward({part: noise[part] + common[i] for i, part in enumerate(unit_match.PARTS)})
    order = torch.randperm(400, generator=generator)
    child = FeedForward({part: matrix[order] for part, matrix in parent.parts.items()})
    in_place = unit_match._agree(unit_match._sums(child, parent, None), least_cosine(200))
    assert 0.2 < in_place.double().mean() < 0.9
    found = match(child, parent)
    assert (found.kind, found.matched) == ("permuted", 1.0) and found.likeness == pytest.approx(1)
    assert found.correlation == pytest.approx({"w1": 1.0, "w3": 1.0, "w2": 1.0})


@pytest.mark.parametrize("moved", [0.1, 0.6, 0.9])
def test_units_of_which_some_are_in_place_and_some_are_not(moved) -> None:
    generator = torch.Generator().manual_seed(0)
    parent, order = feed_forward(generator, 400, 200), torch.arange(400)
    some = torch.randperm(400, generator=generator)[: int(moved * 400)]
    order[some] = some[torch.randperm(len(some), generator=generator)]
    found = match(FeedForward({part: matrix[order] for part, matrix in parent.parts.items()}), parent)
    assert (found.kind, found.matched) == ("permuted", 1.0) and found.aligned["w1"] < 1 - 0.9 * moved


@pytest.mark.parametrize(
    ("share", "kind", "words"),
    [
        (0.02, "copy", "every expert is a copy of the parent's feed-forward; 2% of its units are not found there"),
        (0.97, "drop", "every expert has 3% of the parent's hidden units, the others are new"),
        (1.0, "unrelated", "no expert is related to the parent's feed-forward"),
    ],
)
def test_a_little_dropped_or_nearly_all(share, kind, words) -> None:
    parent, child = decoder(intermediate_size=400), decoder("mixtral", head_dim=8, intermediate_size=400, seed=1)
    with torch.no_grad():
        for layer in range(2):
            dense, experts = parent.layers[layer].mlp, child.layers[layer].mlp.experts
            kept = torch.arange(400) >= 400 * share
            experts.gate_up[:, :400][:, kept] = dense.gate_proj.weight[kept]
            experts.gate_up[:, 400:][:, kept] = dense.up_proj.weight[kept]
            experts.down[:, :, kept] = dense.down_proj.weight[:, kept]
    found = compare_lineage(source(parent), source(child))
    assert found.kinds == {kind: 10} and found.verdict == words


def test_unrelated_experts_with_a_related_matrix_are_told_as_such() -> None:
    parent, child = decoder(**WIDE), decoder(seed=1, **WIDE)
    with torch.no_grad():
        for layer in range(2):
            child.layers[layer].mlp.up_proj.weight.copy_(parent.layers[layer].mlp.up_proj.weight)
    verdict = compare_lineage(source(parent), source(child)).verdict
    assert verdict == "no expert is related to the parent's feed-forward, though some matrices are (w3 1.00)"


def test_nearly_constant_norms_are_correlated_as_numpy_does() -> None:
    generator = torch.Generator().manual_seed(0)
    parent = 1 + 5e-4 * torch.randn(576, generator=generator)
    child = parent + 1e-5 * torch.randn(576, generator=generator)
    assert pearson(row_sums(child[:, None], parent[:, None])) == pytest.approx(corrcoef(child, parent), abs=1e-6)


def test_shared_tensors_of_other_shapes_are_not_compared() -> None:
    one, other = (decoder("minimax_text_01", shared_intermediate_size=width) for width in (24, 32))
    found = compare_lineage(source(one), source(other))
    assert {name.rpartition("shared_mlp.")[2] for name in found.not_compared} == {
        "gate_proj.weight", "up_proj.weight", "down_proj.weight"}  # fmt: skip
    assert found.layers[0].shared["coefficient"] != 0 and "self_attn.qkv_proj" in found.layers[0].shared


def test_blocks_do_not_change_the_answer(monkeypatch) -> None:
    generator = torch.Generator().manual_seed(0)
    parent = feed_forward(generator)
    child = FeedForward({part: matrix.flip(0) + 0.3 * torch.randn(80, 96, generator=generator)
                         for part, matrix in parent.parts.items()})  # fmt: skip
    whole = match(child, parent)
    monkeypatch.setattr(unit_match, "_BLOCK", 7)
    parts = match(FeedForward(child.parts), FeedForward(parent.parts))
    assert whole.kind == parts.kind == "permuted"
    assert parts.correlation == pytest.approx(whole.correlation, abs=1e-6)


# ---- trained on


@pytest.mark.parametrize("method", KINDS)
def test_recognised_after_training_with_a_likeness_that_falls_smoothly(method, tmp_path) -> None:
    """Down to a correlation of 0.7 at this width; docs/lineage.md has the levels of a real one."""
    parent, child = upcycled(tmp_path, method=method, experts=4)
    likenesses = []
    for ratio in (0.1, 0.4, 0.7, 1.0):
        found = compare_lineage(parent, Trained(child, ratio))
        assert found.kinds == {KINDS[method]: 8}, (ratio, found.kinds)
        expected = 1 / (1 + ratio**2) ** 0.5
        # drop's noise is in proportion to a spread that new units share, so the same holds
        likenesses.append(np.mean([expert.likeness for expert in found.experts]))
        assert likenesses[-1] == pytest.approx(expected, abs=0.02)
        assert f"trained on since (likeness of units {likenesses[-1]:.2f})" in found.verdict
        if method == "split":
            scales = [expert.scale["w2"] for expert in found.experts]
            assert min(scales) > 1.9 and max(scales) < 2.1
            assert [expert.first_unit for expert in found.experts] == [0, 40] * 4
    assert likenesses == sorted(likenesses, reverse=True)


def test_noise_that_leaves_nothing_is_unrelated(tmp_path) -> None:
    parent, child = upcycled(tmp_path, method="permute", experts=4)
    assert compare_lineage(parent, Trained(child, 20.0)).kinds == {"unrelated": 8}


# ---- other pairs


def test_an_unrelated_model_is_unrelated() -> None:
    found = compare_lineage(source(decoder(seed=0)), source(decoder("mixtral", seed=1, head_dim=8)))
    assert found.kinds == {"unrelated": 10} and found.verdict == "no expert is related to the parent's feed-forward"
    assert all(expert.scale is None and expert.likeness == 0 for expert in found.experts)
    assert all(abs(value) < 0.12 for expert in found.experts for value in expert.correlation.values())
    assert abs(found.shared["embed_tokens"]) < 0.05


def test_some_experts_of_another_kind_are_counted() -> None:
    parent = decoder(seed=0, **WIDE)
    child = decoder("mixtral", seed=1, head_dim=8, **WIDE)
    with torch.no_grad():
        for layer in range(2):
            dense, experts = parent.layers[layer].mlp, child.layers[layer].mlp.experts
            for expert in range(3):
                experts.gate_up[expert] = torch.cat((dense.gate_proj.weight, dense.up_proj.weight))
                experts.down[expert] = dense.down_proj.weight
    found = compare_lineage(source(parent), source(child))
    assert [[expert.kind for expert in layer.experts] for layer in found.layers] == [
        ["copy"] * 3 + ["unrelated"] * 2
    ] * 2
    assert found.verdict == "the 10 experts differ in kind: 6 copy, 4 unrelated"


def test_mixture_and_mixture_expert_against_expert() -> None:
    parent, child = decoder("mixtral", seed=0, **WIDE), decoder("mixtral", seed=0, **WIDE)
    with torch.no_grad():
        experts = child.layers[1].mlp.experts
        experts.gate_up[[0, 1]], experts.down[[0, 1]] = experts.gate_up[[1, 0]], experts.down[[1, 0]]
    found = compare_lineage(source(parent), source(child))
    kinds = [[expert.kind for expert in layer.experts] for layer in found.layers]
    assert kinds == [["copy"] * 5, ["unrelated"] * 2 + ["copy"] * 3]
    assert found.layers[0].shared["block_sparse_moe.gate"] == 1.0 and found.not_compared == ()


def test_dense_and_dense_and_a_dense_child_of_a_mixture() -> None:
    parent, child = decoder(**WIDE), decoder(**WIDE)
    with torch.no_grad():
        child.layers[0].attention.q_proj.weight.mul_(-1)
    found = compare_lineage(source(parent), source(child))
    assert found.kinds == {"copy": 2} and found.layers[0].shared["self_attn.q_proj"] == pytest.approx(-1)
    mixture = decoder("mixtral", head_dim=8, **WIDE)
    with torch.no_grad():
        experts, dense = mixture.layers[1].mlp.experts, child.layers[1].mlp
        dense.gate_proj.weight.copy_(experts.gate_up[3, :80])
        dense.up_proj.weight.copy_(experts.gate_up[3, 80:])
        dense.down_proj.weight.copy_(experts.down[3])
    found = compare_lineage(source(mixture), source(child))
    assert [expert.kind for expert in found.layers[1].experts] == ["unrelated"] * 3 + ["copy", "unrelated"]


def test_zeros_and_constants_have_a_defined_answer() -> None:
    parent, child = decoder(**WIDE), decoder("mixtral", head_dim=8, **WIDE)
    with torch.no_grad():
        child.layers[0].mlp.experts.gate_up.zero_()
        child.layers[0].mlp.experts.down.zero_()
        child.norm.weight.fill_(0)
    found = compare_lineage(source(parent), source(child))
    for expert in found.layers[0].experts:
        assert expert.kind == "unrelated" and expert.correlation == {"w1": 0.0, "w3": 0.0, "w2": 0.0}
    assert found.shared["norm"] == 0.0  # zeros against ones
    assert set(found.layers[0].shared[f"{name}_layernorm"] for name in ("input", "post_attention")) == {1.0}  # all ones
    zeros = FeedForward({part: torch.zeros(80, 96) for part in unit_match.PARTS})
    assert match(zeros, zeros).kind == "copy"
    assert pearson(row_sums(torch.full((3, 5), 0.1), torch.full((3, 5), 0.2))) == 0.0


def test_weights_that_are_not_numbers_are_named() -> None:
    parent, child = decoder(), decoder()
    with torch.no_grad():
        child.layers[1].mlp.up_proj.weight[0, 0] = float("nan")
    with pytest.raises(UserError, match="layer 1, expert 0 of .* not finite"):
        compare_lineage(source(parent), source(child))
    with pytest.raises(UserError, match="layer 1, expert 0 of .* not finite"):
        compare_lineage(source(child), source(parent))
    with torch.no_grad():
        child.embed.weight[0, 0] = float("inf")
    with pytest.raises(UserError, match=r"model.embed_tokens.weight of .* not finite"):
        compare_lineage(source(parent), source(child))


@pytest.mark.parametrize(
    ("parent", "child", "words"),
    [
        ({}, {"vocab_size": 300}, r"differ in vocabulary \(331 and 300\)"),
        ({}, {"layers": (LayerSpec(),) * 3}, r"differ in number of layers \(2 and 3\)"),
        ({}, {"hidden_size": 64}, r"differ in width \(48 and 64\)"),
        ({}, {"num_heads": 3}, r"differ in number of heads \(6 and 3\)"),
        ({}, {"num_kv_heads": 2}, r"differ in number of key heads \(3 and 2\)"),
        ({}, {"head_dim": 16}, r"differ in head width \(8 and 16\)"),
        ({}, {"intermediate_size": 60}, "feed-forwards are 60 wide and .* 40"),
        ({"family": "mixtral"}, {"family": "mixtral", "num_experts": 4}, "has 5 experts and .* 4"),
    ],
)
def test_shapes_that_do_not_fit(parent, child, words) -> None:
    with pytest.raises(UsageError, match=words):
        compare_lineage(source(decoder(**parent)), source(decoder(**child)))


def test_the_threshold_is_well_above_chance() -> None:
    assert least_cosine(36) == 0.5 and least_cosine(4096) == 0.25
    generator = torch.Generator().manual_seed(0)
    found = match(feed_forward(generator, 2000, 48), feed_forward(generator, 2000, 48))
    assert (found.kind, found.matched) == ("unrelated", 0.0)


def test_memory_is_two_feed_forwards_whatever_the_depth_and_the_experts(tmp_path) -> None:
    most = {}
    for depth, experts in ((2, 4), (6, 16)):
        write_tiny_model(tmp_path / f"parent{depth}", "llama", layers=(LayerSpec(),) * depth)
        parent = FolderSource(tmp_path / f"parent{depth}")
        upcycle(parent, tmp_path / f"child{depth}", UpcycleOptions(method="permute", experts=experts))
        child = FolderSource(tmp_path / f"child{depth}")
        alive: list[weakref.ref] = []
        counts, reads = [], []
        for side in (parent, child):

            def tensor(name: str, original=side.tensor, alive=alive, counts=counts, reads=reads) -> Tensor:
                reads.append(name)
                value = original(name)
                alive.append(weakref.ref(value))
                counts.append(sum(ref() is not None for ref in alive))
                return value

            side.tensor = tensor
        compare_lineage(parent, child)
        assert len([name for name in reads if ".mlp." in name]) == 3 * depth  # once for all experts
        most[depth] = max(counts)
    assert most[2] == most[6] <= 6


def test_the_record_is_json_and_says_everything(tmp_path) -> None:
    import json

    parent, child = upcycled(tmp_path, method="split", experts=2)
    found = compare_lineage(parent, child)
    record = json.loads(json.dumps(found.as_dict()))
    assert (record["parent"], record["child"], record["kinds"]) == ("parent", "child", {"split": 4})
    assert record["layers"][1]["experts"][1]["first_unit"] == 40
    assert isinstance(found, Lineage) and record["verdict"] == found.verdict


def test_progress_reaches_the_end(tmp_path) -> None:
    calls = []
    compare_lineage(source(decoder()), source(decoder()), lambda *call: calls.append(call))
    assert calls[-1] == ("comparing experts", 2, 2) and ("shared tensors", 15, 15) in calls


@pytest.mark.slow
@pytest.mark.parametrize("method", KINDS)
def test_the_methods_are_recognised_on_smollm2(method, smollm2_gguf, tmp_path) -> None:
    """In bf16, which rounds: the child of a quantised parent, whose units are like each other as real ones are."""
    parent = open_source(smollm2_gguf)
    options = UpcycleOptions(method=method, experts=2, top_k=2, dtype=torch.bfloat16)
    upcycle(parent, tmp_path / "child", options)
    found = compare_lineage(parent, FolderSource(tmp_path / "child"))
    assert found.kinds == {KINDS[method]: 60} and "trained on" not in found.verdict
    matched = {expert.matched for expert in found.experts}
    assert matched == {0.5 if method == "drop" else 1.0}
    assert min(expert.likeness for expert in found.experts) > 0.9999
    save_as = tmp_path / "shuffled"
    child = Decoder(parent.config).initialise(seed=0)
    save(child, save_as)
    assert compare_lineage(parent, FolderSource(save_as)).kinds == {"unrelated": 30}
