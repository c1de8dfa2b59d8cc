"""Models converted to GGUF and back: the same tensors, config and ids; nothing wrong or half-written is left."""

import errno
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Kind

from octavo.checkpoint import gguf_convert, gguf_names, gguf_writer
from octavo.checkpoint.convert import convert
from octavo.checkpoint.gguf import GGUFFile
from octavo.checkpoint.gguf_convert import TYPES, convert_to_gguf
from octavo.checkpoint.load import load_tokenizer
from octavo.checkpoint.names import tensor_table
from octavo.checkpoint.save import DecoderSource, save
from octavo.checkpoint.source import open_source
from octavo.cli import main
from octavo.config import RopeConfig
from octavo.errors import UsageError, UserError
from octavo.models import Decoder
from tests.checkpoint.test_gguf_tokenizer import TEXTS
from tests.tiny import HYBRIDS, tiny_config, write_tiny_model

LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 8192}  # fmt: skip
SHAPES: list[tuple[str, dict[str, Any]]] = [
    ("llama", {}),
    ("llama", {"tie_embeddings": True, "num_kv_heads": 6, "head_dim": 10, "norm_eps": 1e-6}),
    ("llama", {"num_kv_heads": 1, "rope": RopeConfig(theta=5e5, dim=8, scaling=LLAMA3)}),
    ("llama", {"rope": RopeConfig(theta=1e4, dim=8, scaling={"rope_type": "linear", "factor": 2.5})}),
    ("llama", {"eos_token_id": (2, 0, 1)}),
    ("mistral", {}),
    ("mistral", {"sliding_window": None, "head_dim": 14}),
    ("mixtral", {}),
    ("mixtral", {"tie_embeddings": True, "sliding_window": 9, "vocab_size": 340, "num_experts": 1, "top_k": 1}),
]


def quantised(values: np.ndarray, kind: str) -> np.ndarray:
    """ggml's reference quantisation and back, number by number (quantize_row_q4_0_ref, quantize_row_q8_0_ref)."""
    blocks, f32 = values.reshape(-1, 32), np.float32
    out = np.empty_like(blocks)
    for row, block in enumerate(blocks):
        best = f32(0)
        for value in block:
            if abs(value) > abs(best):
                best = value
        scale = best / f32(-8) if kind == "q4_0" else abs(best) / f32(127)
        inverse = f32(1) / scale if scale else f32(0)
        stored = f32(np.float16(scale))
        for column, value in enumerate(block):
            scaled = value * inverse
            if kind == "q4_0":
                level = min(15, int(scaled + f32(8.5))) - 8
            else:
                level = int(np.copysign(np.floor(abs(scaled) + f32(0.5)), scaled))
            out[row, column] = stored * f32(level)
    return out.reshape(values.shape)


@pytest.mark.parametrize(("family", "changes"), SHAPES)
def test_round_trip(tmp_path: Path, family: str, changes: dict[str, Any]) -> None:
    """folder -> gguf -> folder: every tensor bit for bit, the config field by field, the ids of every text."""
    write_tiny_model(tmp_path / "first", family, **changes)
    first = open_source(tmp_path / "first")
    proof = convert_to_gguf(first, tmp_path / "m.gguf", "f32")
    assert proof.holds and proof.rounded_to is None and proof.largest_logit > 1
    convert(open_source(tmp_path / "m.gguf"), tmp_path / "second")
    second = open_source(tmp_path / "second")
    theirs = vars(second.config) | {"router_aux_loss_coef": first.config.router_aux_loss_coef,
                                    "initializer_range": first.config.initializer_range}  # fmt: skip
    ends = (theirs.pop("eos_token_id"), first.config.eos_token_id)
    assert theirs == {name: value for name, value in vars(first.config).items() if name != "eos_token_id"}
    assert set(np.atleast_1d(ends[0])) == set(np.atleast_1d(ends[1]))
    table = tensor_table(first.config)
    assert len(table) > 10
    for name in table:
        assert torch.equal(first.tensor(name), second.tensor(name)), name
    ours, other = load_tokenizer(first), load_tokenizer(second)
    texts = [*TEXTS, ours.apply_chat([{"role": "user", "content": "Hello"}])]
    assert [ours.encode(text) for text in texts] == [other.encode(text) for text in texts]
    assert other.apply_chat([{"role": "user", "content": "Hello"}]) == texts[-1]


@pytest.mark.parametrize("kind", ["f16", "q8_0", "q4_0"])
@pytest.mark.parametrize("family", ["llama", "mixtral"])
def test_types(tmp_path: Path, family: str, kind: str) -> None:
    """Each matrix is the reference's rounding of the original, norms and routers are the originals."""
    write_tiny_model(tmp_path / "first", family, hidden_size=64, intermediate_size=96, head_dim=16)
    first = open_source(tmp_path / "first")
    proof = convert_to_gguf(first, tmp_path / "m.gguf", kind)
    assert proof.holds and proof.rounded_to == kind
    file, rounded = GGUFFile(tmp_path / "m.gguf"), 0
    for name in tensor_table(first.config):
        expected = first.tensor(name)
        if expected.dim() == 2 and not name.endswith("block_sparse_moe.gate.weight"):
            if kind == "f16":
                expected = expected.half().float()
            elif expected.numel() < 8192 or "q_proj" in name:  # the plain loop is slow
                outside = name in ("model.embed_tokens.weight", "lm_head.weight")  # q4_0 has them as q8_0
                expected = torch.from_numpy(quantised(expected.numpy(), "q8_0" if outside else kind))
            else:
                continue
            assert not torch.equal(expected, first.tensor(name))
            rounded += 1
        assert torch.equal(file.tensor(name), expected), name
    assert rounded > 5
    kinds = {tensor.name: tensor.tensor_type for tensor in gguf.GGUFReader(tmp_path / "m.gguf").tensors}
    one_dimensional = {name for name in kinds if "norm" in name or "ffn_gate_inp" in name}
    others = {name: found for name, found in kinds.items() if found != Kind[kind.upper()]}
    wide = {"token_embd.weight", "output.weight"} & kinds.keys() if kind == "q4_0" else set()
    assert others.keys() == one_dimensional | wide and all(others[name] == Kind.Q8_0 for name in wide)
    assert file.fields["general.file_type"] == TYPES[kind]


@pytest.mark.parametrize("kind", ["q8_0", "q4_0"])
def test_blocks_are_the_references(kind: str) -> None:
    """Ties of magnitude, zeros, one-sided blocks, halves, subnormal and large scales."""
    draw = np.random.default_rng(3)
    rows = draw.standard_normal((64, 32)).astype(np.float32) * (10.0 ** draw.integers(-8, 4, (64, 1))).astype(
        np.float32
    )
    rows[0] = 0
    rows[1, :2] = 9, -9
    rows[2, :2] = -9, 9
    rows[3] = np.arange(32) / 2 - 8
    rows[4] = abs(rows[4])
    rows[5] = np.arange(32) * 127 / 31 + 0.5
    got = gguf_writer.rounded(torch.from_numpy(rows), Kind[kind.upper()])
    np.testing.assert_array_equal(got.numpy(), quantised(rows, kind))


def test_narrow_rows_are_f16(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_tiny_model(tmp_path / "first", "mixtral", hidden_size=64)  # 40 wide: w2 and nothing else
    convert_to_gguf(open_source(tmp_path / "first"), tmp_path / "m.gguf", "q4_0")
    tensors = gguf.GGUFReader(tmp_path / "m.gguf").tensors
    assert {tensor.name.split(".", 2)[2] for tensor in tensors if tensor.tensor_type == Kind.F16} == {
        "ffn_down_exps.weight"
    }
    assert "2 tensors (blk.0.ffn_down_exps.weight" in caplog.text and "f16, not q4_0" in caplog.text


def test_sliding_window_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_tiny_model(tmp_path / "first", "mistral")
    convert_to_gguf(open_source(tmp_path / "first"), tmp_path / "m.gguf")
    assert "ignores the sliding window of 7" in caplog.text


def test_metadata_holds_the_proof(tmp_path: Path) -> None:
    write_tiny_model(tmp_path / "first", "mixtral")
    proof = convert_to_gguf(open_source(tmp_path / "first"), tmp_path / "m.gguf", "q8_0")
    fields = GGUFFile(tmp_path / "m.gguf").fields
    assert fields["octavo.parent"] == "first" and fields["octavo.proof.holds"] is True
    for name in ("tokens", "max_difference", "largest_logit", "max_bound", "rms_bound"):
        assert fields[f"octavo.proof.{name}"] == pytest.approx(getattr(proof, name))
    assert fields["octavo.proof.rounded_to"] == "q8_0" and fields["octavo.proof.largest_logit"] > 1


def test_gguf_library_reads_the_same(tmp_path: Path) -> None:
    """Another reader of the format finds the same table and data, names of every tensor included."""
    write_tiny_model(tmp_path / "first", "mixtral")
    convert_to_gguf(open_source(tmp_path / "first"), tmp_path / "m.gguf", "f32")
    reader, source = gguf.GGUFReader(tmp_path / "m.gguf"), open_source(tmp_path / "first")
    found = {tensor.name: tensor.data for tensor in reader.tensors}
    known = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 2)
    for name in ("model.layers.1.self_attn.v_proj", "model.layers.0.block_sparse_moe.gate", "lm_head", "model.norm"):
        stored = known.get_name(name)
        np.testing.assert_array_equal(found[f"{stored}.weight"], source.tensor(f"{name}.weight"))
    experts = [source.tensor(f"model.layers.1.block_sparse_moe.experts.{e}.w2.weight") for e in range(5)]
    np.testing.assert_array_equal(found["blk.1.ffn_down_exps.weight"], torch.stack(experts))
    assert reader.get_field("llama.expert_used_count").contents() == 3


# ---- planted faults: each would give a file that llama.cpp reads and answers nonsense from


def test_a_lost_permutation_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tiny_model(tmp_path / "first", "llama")
    monkeypatch.setattr(gguf_writer, "stored_rows", lambda rows, heads: np.arange(rows))
    with pytest.raises(UserError, match="does not compute what its parent does"):
        convert_to_gguf(open_source(tmp_path / "first"), tmp_path / "m.gguf", "f32")
    assert [path.name for path in tmp_path.iterdir()] == ["first"]


def test_swapped_experts_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tiny_model(tmp_path / "first", "mixtral")
    planned = gguf_convert._plan

    def swapped(*arguments: Any) -> list[gguf_writer.StoredTensor]:
        tensors = planned(*arguments)
        place = next(i for i, tensor in enumerate(tensors) if tensor.name == "blk.1.ffn_up_exps.weight")
        one = tensors[place]
        tensors[place] = gguf_writer.StoredTensor(one.name, one.shape, one.kind, one.parts[::-1], one.heads)
        return tensors

    monkeypatch.setattr(gguf_convert, "_plan", swapped)
    with pytest.raises(UserError, match="does not compute what its parent does"):
        convert_to_gguf(open_source(tmp_path / "first"), tmp_path / "m.gguf", "f32")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("llama.rope.freq_base", 2e4, "rope is"),
        ("llama.expert_used_count", 2, "top_k is 3, but 2"),
        ("llama.context_length", 256, "max_positions is 512, but 256"),
        ("tokenizer.ggml.pre", "smollm", "its tokenizer cannot be written as GGUF"),
        ("tokenizer.ggml.add_bos_token", True, "its tokenizer cannot be written as GGUF"),
        ("tokenizer.ggml.eos_token_id", 1, "eos_ids"),
        ("tokenizer.ggml.token_type", [1] * 331, "special_ids"),
    ],
)
def test_wrong_metadata_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str, value: object, message: str
) -> None:
    write_tiny_model(tmp_path / "first", "mixtral")
    written = gguf_convert.write_gguf

    def changed(path: Path, fields: dict[str, Any], *rest: Any) -> None:
        assert fields[key] != value
        written(path, fields | {key: value}, *rest)

    monkeypatch.setattr(gguf_convert, "write_gguf", changed)
    with pytest.raises(UserError, match=message):
        convert_to_gguf(open_source(tmp_path / "first"), tmp_path / "m.gguf", "f32")
    assert [path.name for path in tmp_path.iterdir()] == ["first"]


def test_a_disk_that_loses_a_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tiny_model(tmp_path / "first", "llama")
    original = gguf_writer.hashlib.file_digest

    def flipped(file: Any, name: str) -> Any:
        place = file.tell()
        with open(file.name, "r+b") as other:
            other.seek(-100, os.SEEK_END)
            byte = other.read(1)[0]
            other.seek(-100, os.SEEK_END)
            other.write(bytes([byte ^ 1]))
        file.seek(place)
        return original(file, name)

    monkeypatch.setattr(gguf_writer.hashlib, "file_digest", flipped)
    with pytest.raises(UserError, match="other bytes than were written"):
        convert_to_gguf(open_source(tmp_path / "first"), tmp_path / "m.gguf", "f32")
    assert [path.name for path in tmp_path.iterdir()] == ["first"]


# ---- what cannot be expressed


@pytest.mark.parametrize("family", HYBRIDS)
def test_minimax_is_refused(tmp_path: Path, family: str) -> None:
    write_tiny_model(tmp_path / "first", family)
    with pytest.raises(UserError, match=f"is a {family} model"):
        convert_to_gguf(open_source(tmp_path / "first"), tmp_path / "m.gguf")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"rope": RopeConfig(theta=1e4, dim=8, scaling=LLAMA3 | {"low_freq_factor": 2.0})},
            "only the factor may differ",
        ),
        ({"norm_eps": 1.23456789012e-5}, "norm_eps is 1.23456789012e-05, but"),
        ({"eos_token_id": (0, 1, 2, 3)}, "name 4 end tokens"),
        ({"vocab_size": 300}, "its vocab_size is 300"),
    ],
)
def test_unwritable(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    write_tiny_model(tmp_path / "first", "llama", **changes)
    with pytest.raises(UserError, match=message):
        convert_to_gguf(open_source(tmp_path / "first"), tmp_path / "m.gguf", "f32")
    assert [path.name for path in tmp_path.iterdir()] == ["first"]


@pytest.mark.parametrize(("value", "kind"), [(1e30, "f16"), (float("nan"), "q8_0"), (1e30, "q4_0")])
def test_values_beyond_the_type(tmp_path: Path, value: float, kind: str) -> None:
    decoder = write_tiny_model(tmp_path / "first", "llama", hidden_size=64)
    decoder.get_parameter("layers.0.mlp.up_proj.weight").data[3, 3] = value
    source = DecoderSource(decoder, open_source(tmp_path / "first").side_files())
    with pytest.raises(UserError, match=f"not finite, here or stored as {kind}.*wider --type"):
        convert_to_gguf(source, tmp_path / "m.gguf", kind)
    assert [path.name for path in tmp_path.iterdir()] == ["first"]


def test_without_a_tokenizer(tmp_path: Path) -> None:
    save(Decoder(tiny_config("llama")).initialise(), tmp_path / "first")
    with pytest.raises(UserError, match="tokenizer"):
        convert_to_gguf(open_source(tmp_path / "first"), tmp_path / "m.gguf")
    assert [path.name for path in tmp_path.iterdir()] == ["first"]


# ---- the command, and what it leaves behind


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_tiny_model(tmp_path / "first", "llama", hidden_size=64, intermediate_size=96)
    cases: list[tuple[list[str], str]] = [([], "F16"), (["--type", "q8_0"], "Q8_0")]
    for number, (options, kind) in enumerate(cases):
        out = tmp_path / f"{number}.gguf"
        with pytest.raises(SystemExit) as done:
            main(["convert", str(tmp_path / "first"), str(out), *options])
        assert done.value.code == 0 and f"rounded to {kind.lower()}" in capsys.readouterr().out
        assert Kind[kind] in {tensor.tensor_type for tensor in gguf.GGUFReader(out).tensors}


@pytest.mark.parametrize(
    ("out", "options", "message"),
    [
        ("m.gguf", ["--dtype", "float16"], "--dtype is for folders"),
        ("m", ["--type", "f16"], "--type is for GGUF files"),
        ("m.gguf", ["--type", "q5_k"], "--type is 'q5_k': choose one of f32, f16, q4_0, q8_0"),
        ("there.gguf", [], "exists already"),
    ],
)
def test_misuse(
    tmp_path: Path,
    tiny_dense_folder: Path,
    capsys: pytest.CaptureFixture[str],
    out: str,
    options: list[str],
    message: str,
) -> None:
    (tmp_path / "there.gguf").write_text("mine")
    with pytest.raises(SystemExit) as done:
        main(["convert", str(tiny_dense_folder), str(tmp_path / out), *options])
    assert done.value.code == 2 and message in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["there.gguf"]
    assert (tmp_path / "there.gguf").read_text() == "mine"


@pytest.mark.parametrize("links", [True, False])
def test_a_file_that_came_meanwhile(tmp_path: Path, tiny_dense_folder: Path, monkeypatch: Any, links: bool) -> None:
    """It is never replaced where the file system has hard links; elsewhere the result still takes its place."""
    if not links:
        monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError(errno.EPERM, "no links")))
        convert_to_gguf(open_source(tiny_dense_folder), tmp_path / "m.gguf")
        assert [path.name for path in tmp_path.iterdir()] == ["m.gguf"] and GGUFFile(tmp_path / "m.gguf").shapes()
        return
    monkeypatch.setattr(gguf_convert, "rewrite_fields", lambda *_: (tmp_path / "m.gguf").write_text("mine"))
    with pytest.raises(UsageError, match="made by someone else"):
        convert_to_gguf(open_source(tiny_dense_folder), tmp_path / "m.gguf")
    assert (tmp_path / "m.gguf").read_text() == "mine" and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    ("before", "code", "message"),
    [
        (
            "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))",
            1,
            "the disk is full or a size limit",
        ),
        (
            "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (90000, 90000))",
            1,
            "the disk is full or a size limit",
        ),
        ("import os, octavo.checkpoint.gguf_writer as w; w.stored_rows = lambda *_: os.kill(os.getpid(), 15)", 143, ""),
    ],
)
def test_an_end_halfway_leaves_nothing(
    tmp_path: Path, tiny_dense_folder: Path, before: str, code: int, message: str
) -> None:
    arguments = ["convert", str(tiny_dense_folder), str(tmp_path / "m.gguf")]
    script = f"{before}\nfrom octavo.cli import main\nmain({arguments!r})"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.returncode == code and message in done.stderr, done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_said_before_writing(tmp_path: Path, tiny_dense_folder: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("octavo.checkpoint.writer.shutil.disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    with pytest.raises(UserError, match="0.0 GB free"):
        convert_to_gguf(open_source(tiny_dense_folder), tmp_path / "m.gguf")
    assert list(tmp_path.iterdir()) == []


def test_stored_rows_are_a_permutation_within_heads() -> None:
    """Row 2i of a head is its row i, row 2i + 1 its row i + half: neighbours are what rotary turns together."""
    assert gguf_names.stored_rows(12, 2).tolist() == [0, 3, 1, 4, 2, 5, 6, 9, 7, 10, 8, 11]
    assert gguf_names.stored_rows(4, None).tolist() == [0, 1, 2, 3]
