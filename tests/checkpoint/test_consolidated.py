"""Mistral's consolidated layout and the first Mixtral files' stacked one, written here by other means than ours."""

import hashlib
import json
import re
import shutil
import struct
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import octavo
from octavo.checkpoint import consolidated
from octavo.checkpoint.consolidated import ConsolidatedSource
from octavo.checkpoint.convert import convert
from octavo.checkpoint.folder import FolderSource
from octavo.checkpoint.load import load_decoder
from octavo.checkpoint.names import tensor_table
from octavo.checkpoint.save import DecoderSource
from octavo.checkpoint.source import open_source
from octavo.cli import main
from octavo.errors import UserError
from octavo.models import Decoder
from octavo.models.packing import Packing
from octavo.ops.rotary import inverse_frequencies, rotary_table
from tests.checkpoint.consolidated_files import (
    WHOLE,
    edit_params,
    edit_tensors,
    params_of,
    stored_tensors,
    tiny_decoder,
    write,
)
from tests.checkpoint.test_folder import digests, refused
from tests.compare import assert_rms, assert_same
from tests.tiny import tiny_config, tiny_tokenizer_files, write_tiny_model

TOKENS = torch.randint(331, (40,), generator=torch.Generator().manual_seed(3))
LAYOUTS = ("per-expert", "stacked", "dense")


@pytest.fixture
def folder(tmp_path) -> Path:
    return write(tmp_path / "model", tiny_decoder())


def logits(decoder: Decoder) -> torch.Tensor:
    with torch.no_grad():
        return decoder.logits(decoder(TOKENS).hidden)


def assert_equal(source: ConsolidatedSource, decoder: Decoder) -> None:
    """Every canonical tensor and the logits, bit for bit."""
    expected = DecoderSource(decoder, {})
    for name in tensor_table(decoder.config):
        tensor = source.tensor(name)
        assert_same(tensor, expected.tensor(name), rtol=0, atol=0)
        assert tensor.is_contiguous() and tensor.untyped_storage().nbytes() == tensor.nbytes, name
    assert_same(logits(load_decoder(source)), logits(decoder), rtol=0, atol=0)


# ---- what is read


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("parts", [1, 3])
def test_every_bit_and_the_logits_are_the_decoders(layout, parts, tmp_path) -> None:
    decoder = tiny_decoder(layout)
    source = open_source(write(tmp_path / "model", decoder, layout, parts))
    assert isinstance(source, ConsolidatedSource)
    assert source.config == replace(decoder.config, initializer_range=0.02)  # which no params.json tells
    assert_equal(source, decoder)


def test_experts_are_in_the_order_of_their_numbers(tmp_path) -> None:
    for layout in ("per-expert", "stacked"):
        decoder = tiny_decoder(layout, num_experts=12)
        assert_equal(open_source(write(tmp_path / layout, decoder, layout)), decoder)


def test_an_index_says_which_files_count_and_the_whole_file_goes_before_it(tmp_path) -> None:
    decoder = tiny_decoder()
    folder = write(tmp_path / "model", decoder, parts=3, index=True)
    (folder / "consolidated.old.safetensors").write_bytes(b"not in the index")
    assert_equal(open_source(folder), decoder)
    save_file({**stored_tensors(decoder), "norm.weight": torch.full((48,), 7.0)}, folder / WHOLE)
    assert_same(open_source(folder).tensor("model.norm.weight"), torch.full((48,), 7.0))


def test_names_of_newer_shards(tmp_path) -> None:
    folder = write(tmp_path / "model", tiny_decoder(), parts=2)
    for part in (0, 1):
        old, new = f"consolidated.{part:02d}.safetensors", f"consolidated-{part + 1:05d}-of-00002.safetensors"
        (folder / old).rename(folder / new)
    assert_equal(open_source(folder), tiny_decoder())


def test_tied_embeddings(tmp_path) -> None:
    decoder = tiny_decoder(tie_embeddings=True)
    folder = write(tmp_path / "model", decoder)
    assert_equal(open_source(folder), decoder)
    edit_tensors(folder, output__weight=decoder.embed.weight.detach().clone())
    assert_equal(open_source(folder), decoder)
    edit_tensors(folder, output__weight=decoder.embed.weight.detach() + 1)
    refused(folder, "params.json ties", "output.weight", "tok_embeddings.weight", "tied_embeddings to false")


def test_both_layouts_side_by_side_is_hugging_faces(tmp_path) -> None:
    write_tiny_model(tmp_path / "model")
    for name in ("params.json", WHOLE):
        shutil.copy(write(tmp_path / name, tiny_decoder()) / name, tmp_path / "model" / name)
    assert isinstance(open_source(tmp_path / "model"), FolderSource)


def test_dtype_licence_and_side_files(folder) -> None:
    tensors = load_file(folder / WHOLE)
    save_file({name: tensor.bfloat16() for name, tensor in tensors.items()}, folder / WHOLE)
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    source = open_source(folder)
    assert source.dtype == torch.bfloat16 and source.licence == "apache-2.0"
    assert dict(source.side_files()) == tiny_tokenizer_files()
    expected = DecoderSource(tiny_decoder(), {}).tensor("model.layers.1.self_attn.q_proj.weight").bfloat16()
    assert_same(source.tensor("model.layers.1.self_attn.q_proj.weight"), expected, rtol=0, atol=0)


# ---- the rotary: the layout's own maths on the file's own rows


def attention_of_the_layout(tensors: dict[str, torch.Tensor], x: torch.Tensor, decoder: Decoder) -> torch.Tensor:
    """Layer 0's attention on x [N, H] with complex rotary over pairs (2i, 2i+1), in float64; returns [N, H]."""
    config, count = decoder.config, len(x)
    weights = {n: tensors[f"layers.0.attention.{n}.weight"].double() for n in ("wq", "wk", "wv", "wo")}
    speeds = config.rope.theta ** (-torch.arange(0, config.head_dim, 2, dtype=torch.float64) / config.head_dim)
    angles = torch.arange(count, dtype=torch.float64)[:, None] * speeds
    turns = torch.polar(torch.ones_like(angles), angles)[:, None]  # [N, 1, D/2]

    def rotated(weight: torch.Tensor) -> torch.Tensor:
        pairs = (x @ weight.T).reshape(count, -1, config.head_dim // 2, 2)
        return torch.view_as_complex(pairs.contiguous()) * turns  # [N, heads, D/2]

    group = config.num_heads // config.num_kv_heads
    q, k = rotated(weights["wq"]), rotated(weights["wk"]).repeat_interleave(group, dim=1)
    v = (x @ weights["wv"].T).reshape(count, -1, config.head_dim).repeat_interleave(group, dim=1)
    scores = torch.einsum("qhd,khd->hqk", q, k.conj()).real / config.head_dim**0.5
    scores = scores.masked_fill(torch.ones(count, count).triu(1).bool(), float("-inf"))
    return torch.einsum("hqk,khd->qhd", scores.softmax(-1), v).flatten(1) @ weights["wo"].T


def test_beside_a_config_json_whose_weights_are_elsewhere(tmp_path) -> None:
    """Mistral's repositories have both; a download may hold this half of the weights only."""
    folder = write(tmp_path / "model", tiny_decoder())
    (folder / "config.json").write_text("{}")
    assert isinstance(open_source(folder), ConsolidatedSource)
    (folder / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(UserError, match="weight_map|model_type"):
        open_source(folder)


def test_verify_takes_this_layout(tmp_path, capsys) -> None:
    folder = write(tmp_path / "model", tiny_decoder())
    sums = [f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.name}" for file in sorted(folder.iterdir())]
    (folder / "SHA256SUMS").write_text("\n".join(sums) + "\n")
    main_status(["verify", str(folder)], 0)
    assert "4 files unchanged" in capsys.readouterr().out
    (folder / "params.json").write_text((folder / "params.json").read_text() + " ")
    main_status(["verify", str(folder)], 1)


def main_status(arguments: list[str], status: int) -> None:
    with pytest.raises(SystemExit) as left:
        main(arguments)
    assert (left.value.code or 0) == status


def attention_of_the_decoder(decoder: Decoder, x: torch.Tensor) -> torch.Tensor:
    packing = Packing.from_lengths([len(x)])
    rotary = rotary_table(packing.positions, inverse_frequencies(decoder.config.rope))
    with torch.no_grad():
        return decoder.layers[0].attention(x, rotary, packing, None)


def compare_attention(folder: Path, source: ConsolidatedSource) -> None:
    x = torch.randn(40, 48, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    decoder = load_decoder(source, dtype=torch.float64)
    expected = attention_of_the_layout(load_file(folder / WHOLE), x, decoder)
    assert_rms(attention_of_the_decoder(decoder, x), expected, 1e-5)


@pytest.mark.parametrize("layout", ["per-expert", "stacked"])
def test_the_rotary_equals_complex_rotation_of_the_files_rows(layout, tmp_path) -> None:
    """Written from random numbers, so that no writer's idea of the permutation is in it."""
    folder = write(tmp_path / "model", tiny_decoder(layout), layout)
    generator = torch.Generator().manual_seed(2)
    shapes = {"wq": (96, 48), "wk": (48, 48), "wv": (48, 48), "wo": (48, 96)}
    edit_tensors(
        folder,
        **{f"layers__0__attention__{n}__weight": torch.randn(s, generator=generator) for n, s in shapes.items()},
    )
    compare_attention(folder, open_source(folder))


# ---- the tests above can fail


def planted(source: ConsolidatedSource, pattern: str, change) -> ConsolidatedSource:
    """`source` with `change(place)` in place of every place whose canonical name fits the pattern."""
    found = {name: change(place) for name, place in source._places.items() if re.search(pattern, name)}
    assert found
    source._places = {**source._places, **found}
    return source


@pytest.mark.parametrize(
    ("pattern", "heads"),
    [("q_proj|k_proj", None), ("q_proj", None), ("k_proj", None), ("k_proj", 6), ("v_proj", 3)],
    ids=["no permutation", "k only", "q only", "k over the query heads", "v too"],
)
def test_a_wrong_permutation_is_seen(folder, pattern, heads) -> None:
    compare_attention(folder, open_source(folder))
    wrong = planted(open_source(folder), pattern, lambda place: replace(place, heads=heads))
    with pytest.raises(AssertionError, match="relative RMS"):
        compare_attention(folder, wrong)
    with pytest.raises(AssertionError, match="Mismatched elements|not close"):
        assert_same(logits(load_decoder(wrong)), logits(tiny_decoder()))


def test_w2_left_as_it_lies_is_seen(tmp_path) -> None:
    """Experts as wide as the model, or the shapes would tell."""
    decoder = tiny_decoder("stacked", intermediate_size=48)
    source = open_source(write(tmp_path / "model", decoder, "stacked"))
    assert_equal(source, decoder)
    wrong = planted(source, r"experts\.\d+\.w2", lambda place: replace(place, transposed=False))
    with pytest.raises(AssertionError, match="Mismatched elements|not close"):
        assert_same(logits(load_decoder(wrong)), logits(decoder))


@pytest.mark.parametrize("layout", ["per-expert", "stacked"])
def test_experts_in_the_order_of_strings_are_seen(layout, tmp_path) -> None:
    decoder = tiny_decoder(layout, num_experts=12)
    wrong = open_source(write(tmp_path / "model", decoder, layout))
    order = sorted(range(12), key=str)
    places = dict(wrong._places)
    for name in places:
        if found := re.fullmatch(r"(.*experts\.)(\d+)(\.w\d\.weight)", name):
            wrong._places[name] = places[f"{found[1]}{order[int(found[2])]}{found[3]}"]
    with pytest.raises(AssertionError, match="Mismatched elements|not close"):
        assert_same(logits(load_decoder(wrong)), logits(decoder))


# ---- one expert costs one expert


MEMORY = """
import sys
from pathlib import Path
from octavo.checkpoint.shards import read_part
from octavo.checkpoint.source import open_source
from octavo.cli import main

def peak() -> int:
    return int(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM"))) // 1024

source = open_source(sys.argv[1])
source.tensor("model.norm.weight")
start = peak()
for name in ("w1", "w2", "w3"):
    source.tensor(f"model.layers.0.block_sparse_moe.experts.3.{name}.weight")
one = peak()
read_part(Path(sys.argv[1]) / "consolidated.safetensors", "layers.0.block_sparse_moe.w1")
print(one - start, peak() - one)
"""


def test_one_expert_of_a_stack_costs_one_expert(tmp_path) -> None:
    """64 experts of 4 MiB a matrix, of zeros that take no disk; reading a whole stack shows that the peak tells."""
    changes = {"hidden_size": 1024, "intermediate_size": 1024, "num_experts": 64, "layers": tiny_config().layers[:1]}
    config = tiny_config(**changes)
    with torch.device("meta"):
        decoder = Decoder(config)
    header, offset = {}, 0
    for name, tensor in stored_tensors(decoder, "stacked").items():
        size = 4 * tensor.numel()
        header[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    with (tmp_path / WHOLE).open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + offset)
    (tmp_path / "params.json").write_text(json.dumps(params_of(decoder)))
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, tmp_path], capture_output=True, text=True, timeout=120, cwd=root
    )
    assert done.returncode == 0, done.stderr
    one, stack = map(int, done.stdout.split())
    print(f"peak grew by {one} MiB for one expert's three matrices, by {stack} MiB for one stack")
    assert one < 64 and stack > 256


# ---- converting


@pytest.mark.parametrize("layout", LAYOUTS)
def test_converted_it_is_the_same_model(layout, tmp_path) -> None:
    decoder = tiny_decoder(layout)
    source = open_source(write(tmp_path / "model", decoder, layout))
    proof = convert(source, tmp_path / "out")
    assert proof.max_difference == 0.0 and proof.largest_logit > 1
    child = FolderSource(tmp_path / "out")
    assert child.config == source.config
    for name in tensor_table(source.config):
        assert_same(child.tensor(name), source.tensor(name), rtol=0, atol=0)
    ours, tokenizer = octavo.load(tmp_path / "model")
    theirs, _ = octavo.load(tmp_path / "out")
    assert_same(logits(ours), logits(theirs), rtol=0, atol=0)
    assert tokenizer.decode(tokenizer.encode("naïve café")) == "naïve café"


def test_without_a_tokenizer_it_is_not_converted(tmp_path) -> None:
    folder = write(tmp_path / "model", tiny_decoder(), tokenizer=False)
    with pytest.raises(UserError, match=r"tokenizer\.json is missing"):
        convert(open_source(folder), tmp_path / "out")
    (folder / "tokenizer.model").write_bytes(b"sentencepiece")
    with pytest.raises(UserError, match=r"only tokenizer\.model.*transformers"):
        convert(open_source(folder), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_checksums_are_checked_where_there_are_any(folder, tmp_path) -> None:
    open_source(folder).check()
    sums = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in folder.iterdir()]
    (folder / "SHA256SUMS").write_text("".join(sums))
    open_source(folder).check()
    data = bytearray((folder / WHOLE).read_bytes())
    data[-5] ^= 0x10
    (folder / WHOLE).write_bytes(data)
    with pytest.raises(UserError, match=f"{WHOLE}.*SHA-256"):
        convert(open_source(folder), tmp_path / "out")
    assert not (tmp_path / "out").exists()


# ---- damaged weights


def test_missing_tensors(folder) -> None:
    edit_params(folder, n_layers=3)
    refused(folder, "layers.2.attention_norm.weight is missing", "params.json and weights")
    edit_params(folder, n_layers=2)
    edit_tensors(folder, layers__1__feed_forward__experts__4__w2__weight=None)
    refused(folder, "layers.1.feed_forward.experts.4.w2.weight is missing")


def test_left_over_tensors(folder) -> None:
    edit_params(folder, n_layers=1)
    refused(folder, "22 tensors belong to nothing in params.json", "layers.1")
    edit_params(folder, n_layers=2)
    edit_tensors(folder, layers__0__attention__wq__lora_A__weight=torch.ones(4, 48))
    refused(folder, "1 tensors belong to nothing", "layers.0.attention.wq.lora_A.weight")


def test_a_dense_file_is_no_mixture_and_the_other_way_round(folder, tmp_path) -> None:
    edit_params(folder, moe=None)
    refused(folder, "layers.0.feed_forward.w1.weight is missing")
    dense = write(tmp_path / "dense", tiny_decoder("dense"), "dense")
    edit_params(dense, moe={"num_experts": 8, "num_experts_per_tok": 2})
    refused(dense, "layers.0.feed_forward.gate.weight is missing")
    stacked = write(tmp_path / "stacked", tiny_decoder("stacked"), "stacked")
    edit_params(stacked, moe=None)
    refused(stacked, "layers.0.feed_forward.w1.weight is missing")


def test_misshapen_tensors(folder) -> None:
    edit_params(folder, hidden_dim=44)
    refused(folder, WHOLE, "layers.0.feed_forward.experts.0.w1.weight has shape [40, 48]", "implies [44, 48]")
    edit_params(folder, hidden_dim=40, head_dim=8)
    refused(folder, "layers.0.attention.wq.weight has shape [96, 48]", "[48, 48]")


@pytest.mark.parametrize("shape", [(201, 48), (220, 48), (160, 48), (48, 200), (5, 40, 48), (9600,)])
@pytest.mark.parametrize("matrix", ["w1", "w2", "w3"])
def test_misshapen_stacks(shape, matrix, tmp_path) -> None:
    """Also those in which the rows of every expert can be found: of wider experts, or more of them."""
    folder = write(tmp_path / "model", tiny_decoder("stacked"), "stacked")
    edit_tensors(folder, **{f"layers__1__block_sparse_moe__{matrix}": torch.ones(shape)})
    refused(folder, f"layers.1.block_sparse_moe.{matrix} has shape {list(shape)}", "params.json implies [200, 48]")


def test_a_tensor_in_two_shards(tmp_path) -> None:
    """Merged as one dictionary, as the conversion scripts do; only where that changes nothing."""
    decoder = tiny_decoder()
    folder = write(tmp_path / "model", decoder, parts=2)
    first, second = (folder / f"consolidated.0{part}.safetensors" for part in (0, 1))
    tensors, gate = load_file(second), "layers.0.feed_forward.gate.weight"
    name, value = next((n, t) for n, t in load_file(first).items() if n in (gate, "tok_embeddings.weight"))
    save_file({**tensors, name: value}, second)
    assert_equal(open_source(folder), decoder)
    for other in (value + 1, value[: len(value) // 2].clone(), value.bfloat16()):
        save_file({**tensors, name: other}, second)
        refused(folder, name, first.name, second.name, "join a split matrix")


def test_truncated_or_quantised(folder) -> None:
    data = (folder / WHOLE).read_bytes()
    for size in (0, 8, 100, len(data) // 2, len(data) - 1):
        (folder / WHOLE).write_bytes(data[:size])
        refused(folder, WHOLE, "truncated or damaged")
    (folder / WHOLE).write_bytes(data)
    edit_tensors(folder, output__weight=torch.ones(331, 48).to(torch.float8_e4m3fn))
    refused(folder, "output.weight is stored as F8_E4M3")


def test_damaged_index_and_missing_shard(tmp_path) -> None:
    folder = write(tmp_path / "model", tiny_decoder(), parts=2, index=True)
    (folder / "consolidated.01.safetensors").rename(folder / "away")
    refused(folder, "consolidated.01.safetensors is missing", f"{WHOLE}.index.json names it")
    (folder / f"{WHOLE}.index.json").unlink()
    refused(folder, "is missing; params.json and weights")
    (folder / f"{WHOLE}.index.json").write_text('{"weight_map": {"norm.weight": "../../etc/passwd"}}')
    refused(folder, "index.json", "not the name of a safetensors file")


@pytest.mark.parametrize("name", ["consolidated.00.pt", "consolidated.00.pth"])
def test_pickles_are_never_opened(folder, name) -> None:
    (folder / WHOLE).unlink()
    (folder / name).write_bytes(b"cos\nsystem\n(S'echo code from a pickle ran'\ntR.")
    refused(folder, name, "never opened", "convert each file elsewhere", "consolidated.00.safetensors")


def test_a_folder_that_is_neither(folder) -> None:
    (folder / WHOLE).rename(folder / "consolidated.txt")
    refused(folder, "no consolidated*.safetensors")
    (folder / "consolidated.txt").unlink()
    assert not consolidated.is_consolidated(folder)
    refused(folder, "config.json is missing")
    assert set(digests(folder)) == {"params.json", "tokenizer.json", "tokenizer_config.json"}
