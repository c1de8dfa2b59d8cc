"""How experts are made out of a parent: permuted, split and partly re-drawn, each against an own construction."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from octavo.checkpoint import expert_inits
from octavo.checkpoint import upcycle as upcycle_module
from octavo.checkpoint.drop_proof import DropProof
from octavo.checkpoint.folder import FolderSource
from octavo.checkpoint.load import load_decoder
from octavo.checkpoint.proof import compare
from octavo.checkpoint.save import save
from octavo.checkpoint.upcycle import UpcycleOptions, upcycle
from octavo.errors import UsageError, UserError
from octavo.models import Decoder
from tests.compare import assert_same
from tests.tiny import tiny_config, tiny_tokenizer_files, write_tiny_model

IDS = torch.randint(331, (30,), generator=torch.Generator().manual_seed(1))
DENSE = {"w1": "gate_proj", "w3": "up_proj", "w2": "down_proj"}
EXACT = [
    {"method": "permute"},
    {"method": "permute", "experts": 5, "top_k": 3, "seed": 4},
    {"method": "split"},
    {"method": "split", "experts": 6, "top_k": 4, "router_init": "orthogonal"},
    {"method": "split", "granularity": 4, "experts": 8, "top_k": 4},
    {"method": "split", "granularity": 5, "experts": 10, "top_k": 10},
    {"method": "split", "granularity": 1, "experts": 3, "top_k": 2},
]


def parent(tmp_path: Path, family: str = "llama", **changes: object) -> FolderSource:
    write_tiny_model(tmp_path / "parent", family, **changes)
    return FolderSource(tmp_path / "parent")


def made(source: FolderSource, out: Path, **options: object) -> FolderSource:
    upcycle(source, out, UpcycleOptions(**options))
    return FolderSource(out)


def expert(source: FolderSource, layer: int, number: int, part: str) -> Tensor:
    """One expert's matrix with its hidden units as rows, whichever axis they lie on."""
    matrix = source.tensor(f"model.layers.{layer}.block_sparse_moe.experts.{number}.{part}.weight")
    return matrix.T if part == "w2" else matrix


def dense(source: FolderSource, layer: int, part: str) -> Tensor:
    matrix = source.tensor(f"model.layers.{layer}.mlp.{DENSE[part]}.weight")
    return matrix.T if part == "w2" else matrix


def logits(folder: Path) -> Tensor:
    decoder = load_decoder(FolderSource(folder))
    with torch.no_grad():
        return decoder.logits(decoder(IDS).hidden)


# ---- exact methods


@pytest.mark.parametrize("options", EXACT, ids=str)
def test_child_computes_its_parents_function_here_and_in_transformers(options, tmp_path) -> None:
    transformers = pytest.importorskip("transformers")
    family = "llama" if options["method"] == "permute" else "mistral"
    source = parent(tmp_path, family)
    proof = upcycle(source, tmp_path / "child", UpcycleOptions(**options))
    assert proof.holds and proof.tokens == 512 and "Logits equal the parent's" in proof.summary()
    assert_same(logits(tmp_path / "child"), logits(tmp_path / "parent"), rtol=1e-4, atol=1e-4)
    theirs = {}
    for name in ("parent", "child"):
        model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / name, dtype=torch.float32).eval()
        if name == "child":
            assert type(model) is transformers.MixtralForCausalLM
            model.set_experts_implementation("eager")
        with torch.no_grad():
            theirs[name] = model(IDS[None]).logits[0]
    assert_same(theirs["child"], theirs["parent"], rtol=1e-4, atol=1e-4)
    record = json.loads((tmp_path / "child/octavo.json").read_text())
    granularity = options.get("granularity", 2 if options["method"] == "split" else 1)
    asked = {"method": options["method"], "seed": options.get("seed", 0), "granularity": granularity}
    assert record | asked | {"drop_share": 0.0, "exact": True} == record
    hf = json.loads((tmp_path / "child/config.json").read_text())
    assert (hf["num_local_experts"], hf["num_experts_per_tok"], hf["intermediate_size"]) == (
        options.get("experts", 8), options.get("top_k", 2), 40 // granularity)  # fmt: skip


def test_permuted_experts_hold_the_parents_units_each_in_its_own_order(tmp_path) -> None:
    source = parent(tmp_path)
    child = made(source, tmp_path / "child", method="permute", experts=4)
    orders = set()
    for layer in range(2):
        for number in range(4):
            rows = dense(source, layer, "w1").tolist()
            order = [rows.index(row) for row in expert(child, layer, number, "w1").tolist()]
            assert sorted(order) == list(range(40)) and order != sorted(order)
            for part in ("w3", "w2"):
                assert torch.equal(expert(child, layer, number, part), dense(source, layer, part)[order])
            orders.add(tuple(order))
    assert len(orders) == 8


def test_an_experts_choices_depend_on_the_seed_and_on_nothing_else(tmp_path) -> None:
    source = parent(tmp_path)
    for method in ("permute", "drop"):
        first = made(source, tmp_path / f"{method}1", method=method, experts=8, seed=1)
        fewer = made(source, tmp_path / f"{method}2", method=method, experts=4, seed=1)
        other = made(source, tmp_path / f"{method}3", method=method, experts=4, seed=2)
        for part in DENSE:
            assert torch.equal(expert(first, 1, 3, part), expert(fewer, 1, 3, part))
            assert not torch.equal(expert(other, 1, 3, part), expert(fewer, 1, 3, part))
        files = [tmp_path / f"{method}{n}/model-00001-of-00001.safetensors" for n in (2, 4)]
        made(source, tmp_path / f"{method}4", method=method, experts=4, seed=1)
        assert files[0].read_bytes() == files[1].read_bytes()


def test_split_experts_are_shards_in_groups_that_share_a_router_row(tmp_path) -> None:
    source = parent(tmp_path)
    child = made(source, tmp_path / "child", method="split", granularity=4, experts=12, top_k=8)
    for layer in range(2):
        for number in range(12):
            units = slice(number % 4 * 10, number % 4 * 10 + 10)
            for part, scale in (("w1", 1), ("w3", 1), ("w2", 4)):
                expected = dense(source, layer, part)[units] * scale
                assert torch.equal(expert(child, layer, number, part), expected)
        router = child.tensor(f"model.layers.{layer}.block_sparse_moe.gate.weight")
        assert torch.equal(router[::4], router[3::4]) and len(router.unique(dim=0)) == 3
        assert [row.tolist() for row in router] == [router[number // 4 * 4].tolist() for number in range(12)]
    # whole groups are chosen: 8 experts are two groups of four
    decoder = load_decoder(child)
    with torch.no_grad():
        routing = decoder.layers[0].mlp.router(torch.randn(500, 48, generator=torch.Generator().manual_seed(0)))
    groups = (routing.experts.sort().values // 4).unflatten(1, (2, 4))
    assert (groups == groups[..., :1]).all() and (groups[:, 0] != groups[:, 1]).all()


def test_splitting_for_narrow_storage(tmp_path) -> None:
    """Powers of two are exact in any type; 3 times a weight is not, and 2 times may be too large for fp16."""
    source = parent(tmp_path, intermediate_size=42)
    split = {"method": "split", "experts": 6, "top_k": 6}
    for dtype in (torch.bfloat16, torch.float16):
        child = made(source, tmp_path / str(dtype), **split, dtype=dtype)
        expected = 2 * dense(source, 1, "w2")[21:].to(dtype)
        assert torch.equal(expert(child, 1, 3, "w2"), expected)
        with pytest.raises(UsageError, match="granularity is 3 and .* power of two, or --dtype float32"):
            upcycle(source, tmp_path / "x", UpcycleOptions(**split, granularity=3, dtype=dtype))
    decoder = Decoder(tiny_config("llama", intermediate_size=42)).initialise()
    save(decoder, tmp_path / "narrow", tiny_tokenizer_files(), dtype=torch.bfloat16)
    narrow = FolderSource(tmp_path / "narrow")
    child = made(narrow, tmp_path / "three", **split, granularity=3, dtype=torch.float32)
    exact = 3 * dense(narrow, 0, "w2").double()[14:28]
    assert torch.equal(expert(child, 0, 1, "w2").double(), exact) and not torch.equal(exact.bfloat16().double(), exact)
    with torch.no_grad():
        decoder.layers[0].mlp.down_proj.weight[3, 4] = -40000.0
    save(decoder, tmp_path / "large", tiny_tokenizer_files(), dtype=torch.float16)
    with pytest.raises(UserError, match="weight of 4e.04: 2 times that does not fit float16; use --dtype float32"):
        upcycle(FolderSource(tmp_path / "large"), tmp_path / "x", UpcycleOptions(**split))
    assert not (tmp_path / "x").exists()


def unpermuted_w2(part: str, matrix: Tensor, *choice: int) -> Tensor:
    return matrix if part == "w2" else expert_inits.permuted(part, matrix, *choice)


def own_order_each(part: str, matrix: Tensor, seed: int, layer: int, number: int) -> Tensor:
    return expert_inits.permuted(part, matrix, seed + ord(part[1]), layer, number)


def unscaled(part: str, matrix: Tensor, granularity: int, number: int, dtype: torch.dtype) -> Tensor:
    return expert_inits.shard(part, matrix, granularity, number, dtype) / (granularity if part == "w2" else 1)


def cube_root(part: str, matrix: Tensor, *rest: object) -> Tensor:
    """As Megatron spreads the scale, which silu does not allow."""
    return unscaled(part, matrix, *rest) * 2 ** (1 / 3)


def same_shard(part: str, matrix: Tensor, granularity: int, number: int, dtype: torch.dtype) -> Tensor:
    return expert_inits.shard(part, matrix, granularity, 0, dtype)


def zeros(part: str, matrix: Tensor, granularity: int, number: int, dtype: torch.dtype) -> Tensor:
    return torch.zeros_like(expert_inits.shard(part, matrix, granularity, number, dtype))


def rows_apart(rows: int, hidden: int, granularity: int, *rest: object) -> Tensor:
    return expert_inits.router(rows, hidden, 1, *rest)


def one_kept_unit(part: str, matrix: Tensor, share: float, seed: int, layer: int, number: int) -> Tensor:
    """One unit more than was said, in one expert of one layer."""
    value = expert_inits.dropped(part, matrix, share, seed, layer, number)
    kept = sorted(set(range(40)) - set(expert_inits.dropped_units(40, share, seed, layer, number).tolist()))
    if (layer, number, part) == (1, 2, "w2"):
        value[:, kept[0]] = 0.1
    return value


def three_sets(part: str, matrix: Tensor, share: float, seed: int, *where: int) -> Tensor:
    """As the released script does."""
    return expert_inits.dropped(part, matrix, share, seed + ord(part[1]), *where)


@pytest.mark.parametrize(
    ("method", "function", "fault"),
    [
        ("permute", "permuted", unpermuted_w2),
        ("permute", "permuted", own_order_each),
        ("split", "shard", unscaled),
        ("split", "shard", cube_root),
        ("split", "shard", same_shard),
        ("split", "shard", zeros),
        ("split", "router", rows_apart),
        ("drop", "dropped", one_kept_unit),
        ("drop", "dropped", three_sets),
    ],
)
def test_a_wrong_construction_does_not_survive_the_proof(method, function, fault, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(upcycle_module, function, fault)
    with pytest.raises(UserError, match="does not compute what its parent does"):
        upcycle(parent(tmp_path), tmp_path / "child", UpcycleOptions(method=method))
    assert [path.name for path in tmp_path.iterdir()] == ["parent"]


# ---- drop


def test_drop_keeps_the_other_units_and_all_other_tensors_bit_for_bit(tmp_path) -> None:
    source = parent(tmp_path)
    child = made(source, tmp_path / "child", method="drop", drop_share=0.29, experts=4)
    seen = set()
    for layer in range(2):
        for number in range(4):
            new = {part: (expert(child, layer, number, part) != dense(source, layer, part)) for part in DENSE}
            rows = {tuple(changed.any(1).tolist()) for changed in new.values()}
            assert len(rows) == 1, "the three matrices drop different units"
            assert sum(rows.copy().pop()) == 11  # floor(0.29 * 40)
            assert all(changed[changed.any(1)].all() for changed in new.values())
            seen |= rows
    assert len(seen) == 8
    for name in ("model.embed_tokens.weight", "model.layers.1.self_attn.k_proj.weight", "model.norm.weight"):
        assert torch.equal(child.tensor(name), source.tensor(name))


@pytest.mark.parametrize("part", DENSE)
def test_new_units_have_the_mean_and_spread_of_those_that_they_replace(part) -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(600, 96, generator=generator) * torch.linspace(0.1, 2, 600)[:, None] + 0.7
    matrix = rows.T.contiguous() if part == "w2" else rows
    value = expert_inits.dropped(part, matrix, 0.5, 3, 1, 2)
    new_rows = value.T if part == "w2" else value
    units = (new_rows != rows).any(1)
    assert units.sum() == 300
    old, new = rows[units], new_rows[units]
    assert abs(new.mean() - old.mean()) < 0.03 and abs(new.std() / old.std() - 1) < 0.02
    assert new.std(1).max() / new.std(1).min() < 1.6  # one spread for all, though the old ones' differ 20 times
    assert abs(torch.corrcoef(torch.stack((new.flatten(), old.flatten())))[0, 1]) < 0.02
    assert not torch.equal(value, expert_inits.dropped(part, matrix, 0.5, 3, 1, 3))


def test_new_units_of_the_three_matrices_are_drawn_apart() -> None:
    matrix = torch.randn(40, 40, generator=torch.Generator().manual_seed(0))
    values = [expert_inits.dropped(part, matrix, 1.0, 0, 0, 0) for part in ("w1", "w3")]
    values.append(expert_inits.dropped("w2", matrix, 1.0, 0, 0, 0))
    correlations = torch.corrcoef(torch.stack([value.flatten() for value in values])).fill_diagonal_(0)
    assert correlations.abs().max() < 0.1


def test_the_number_of_new_units_is_the_floor_of_the_decimal_share() -> None:
    shares = {
        0.29: 29,
        0.5: 50,
        0.57: 57,
        0.999: 99,
        1.0: 100,
        0.009: 0,
    }  # 0.29 and 0.57 times 100 fall short in binary
    assert {share: expert_inits.dropped_count(100, share) for share in shares} == shares


def test_drop_claims_no_equality_and_says_how_far_off_it_is(tmp_path) -> None:
    source = parent(tmp_path)
    proof = upcycle(source, tmp_path / "child", UpcycleOptions(method="drop"))
    stored = compare(source, FolderSource(tmp_path / "child"))
    assert isinstance(proof, DropProof) and proof.holds and not stored.holds
    assert (proof.stored_max_difference, proof.stored_rms_difference) == (stored.max_difference, stored.rms_difference)
    assert stored.rms_difference > 0.1 and proof.max_difference < 1e-3
    record = json.loads((tmp_path / "child/octavo.json").read_text())
    assert (record["exact"], record["drop_share"], record["method"]) == (False, 0.5, "drop")
    assert record["proof"] == proof.as_dict() and record["proof"]["stored_max_difference"] == stored.max_difference
    card = (tmp_path / "child/README.md").read_text()
    assert "does not compute what its parent does" in card and f"{stored.max_difference:.2g}" in card
    assert "its logits equal" not in card and "Logits equal" not in proof.summary()
    assert proof.summary().startswith("NOT the parent's function: 50% of each expert's hidden units are new")


def test_drop_in_bf16_and_of_everything(tmp_path) -> None:
    source = parent(tmp_path)
    proof = upcycle(source, tmp_path / "a", UpcycleOptions(method="drop", drop_share=1.0, dtype=torch.bfloat16))
    assert proof.holds and proof.rounded_to == "bfloat16" and proof.stored_rms_difference > 0.1
    assert not (expert(FolderSource(tmp_path / "a"), 0, 0, "w1") == dense(source, 0, "w1").bfloat16()).all(1).any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "split", "granularity": 3, "experts": 6, "top_k": 3}, "granularity is 3: .* divide the 40 hidden"),
        ({"method": "drop", "drop_share": 0.02}, "drop-share is 0.02: draws none of the 40 .* at least 0.025"),
        ({"method": "drop", "drop_share": 0.0}, "drop-share is 0.0: draws none"),
    ],
)
def test_options_that_do_not_suit_the_parent(options, message, tmp_path) -> None:
    with pytest.raises(UsageError, match=message):
        upcycle(parent(tmp_path), tmp_path / "x", UpcycleOptions(**options))


@pytest.mark.parametrize("method", ["copy", "permute", "split", "drop"])
def test_each_tensor_is_read_once_for_all_experts(method, tmp_path) -> None:
    source = parent(tmp_path)
    reads: list[str] = []
    proving = []

    def tensor(name: str, original=source.tensor) -> Tensor:
        reads.extend([] if proving else [name])
        return original(name)

    def progress(task: str, done: int, total: int) -> None:
        proving.extend([task] if task == "writing weights" and done == total else [])

    source.tensor = tensor
    upcycle(source, tmp_path / "child", UpcycleOptions(method=method, experts=16, top_k=4), progress)
    assert proving and len(reads) == len(set(reads)) == 21  # 9 in each of 2 layers, embeddings, norm and head
