"""Quantised folders: what is written and proven, read back everywhere, copied bit for bit, and every kind of damage."""

import json
import logging
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from octavo.checkpoint import quantize as quantize_module
from octavo.checkpoint.checksums import check_sums
from octavo.checkpoint.convert import convert
from octavo.checkpoint.figures import model_figures
from octavo.checkpoint.inspect import inspect
from octavo.checkpoint.load import load_decoder
from octavo.checkpoint.names import is_quantized_name, tensor_table
from octavo.checkpoint.proof import compare
from octavo.checkpoint.quantize import quantize_model
from octavo.checkpoint.quantized import QuantizedFolder, read_quantized
from octavo.checkpoint.source import open_source
from octavo.errors import UserError
from octavo.models import Decoder
from octavo.ops.quantize import dequantize, quantize
from tests.checkpoint.test_folder import edit_config, refused
from tests.compare import assert_same
from tests.tiny import tiny_config, write_tiny_model

SHARD = "quantized-00001-of-00001.safetensors"
FAMILIES = ("llama", "mistral", "mixtral", "minimax", "minimax_text_01")
FIELDS = {"quant_method": "octavo", "embedding_bits": 8, "group_size": 32, "version": 2}
OUTSIDE = ("model.embed_tokens.weight", "lm_head.weight")  # of the layers: in 8 bits, always


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A tiny Mixtral, and the same in 4 and in 8 bits."""
    folder = tmp_path_factory.mktemp("quantised")
    write_tiny_model(folder / "float", "mixtral")
    for bits in (4, 8):
        quantize_model(open_source(folder / "float"), folder / f"int{bits}", bits)
    return folder


@pytest.fixture
def copy(made, tmp_path) -> Callable[[int], Path]:
    """A quantised folder that may be spoilt."""

    def copied(bits: int) -> Path:
        out = tmp_path / f"int{bits}"
        out.mkdir()
        for path in (made / f"int{bits}").iterdir():
            (out / path.name).write_bytes(path.read_bytes())
        return out

    return copied


# ---- what is written


@pytest.mark.parametrize("family", FAMILIES)
def test_every_matrix_but_routers_is_quantised(family) -> None:
    shared = 24 if family.startswith("minimax_") else 0
    for name, entry in tensor_table(tiny_config(family, shared_intermediate_size=shared)).items():
        kept = len(entry.shape) < 2 or name.endswith((".gate.weight", ".coefficient.weight"))
        assert is_quantized_name(name) is not kept, name


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tied", [False, True])
def test_written_and_read_back(family, bits, tied, tmp_path) -> None:
    shared = {"shared_intermediate_size": 24} if family == "minimax_text_01" else {}
    decoder = write_tiny_model(tmp_path / "float", family, tie_embeddings=tied, intermediate_size=45, **shared)
    source = open_source(tmp_path / "float")
    proof = quantize_model(source, tmp_path / "out", bits)
    assert proof.holds and proof.max_difference == 0
    stored = load_file(tmp_path / "out" / SHARD)
    written = open_source(tmp_path / "out")
    assert isinstance(written, QuantizedFolder) and written.bits == bits and written.config == decoder.config
    for name, entry in tensor_table(decoder.config).items():
        weight = source.tensor(name)
        if is_quantized_name(name):
            expected = quantize(weight, 8 if name in OUTSIDE else bits)
            stem = name.removesuffix("weight")
            assert torch.equal(stored.pop(f"{stem}qweight"), expected.qweight)
            assert torch.equal(stored.pop(f"{stem}scales"), expected.scales)
            weight = dequantize(expected, entry.shape[-1])
        else:
            assert torch.equal(stored.pop(name), weight)
        assert_same(written.tensor(name), weight, rtol=0, atol=0)
        assert written.tensor(name).dtype == torch.float32
    assert not stored


def test_config_record_card_and_checksums(made) -> None:
    for bits in (4, 8):
        folder = made / f"int{bits}"
        config = json.loads((folder / "config.json").read_text())
        assert config["quantization_config"] == FIELDS | {"bits": bits} and config["torch_dtype"] == "float32"
        record = json.loads((folder / "octavo.json").read_text())
        proof = record["proof"]
        assert (record["dtype"], record["made_by"]) == (f"int{bits}", f"octavo convert --quant int{bits}")
        assert record["parent"] == "float" and proof["holds"] and proof["bits"] == bits
        card = (folder / "README.md").read_text()
        assert f"stored as int{bits}" in card and "does not compute quite what its parent does" in card
        assert "Only octavo reads" in card and "library_name: octavo" in card and "It loads in transformers" not in card
        assert f"up to {proof['unrounded_max_difference']:.2g}" in card
        assert check_sums(folder) == len(list(folder.iterdir())) - 1
    assert "It loads in transformers" in (made / "float/README.md").read_text()


def test_how_far_it_is_from_the_float_model_is_measured(made) -> None:
    rms = {}
    for bits in (4, 8):
        proof = json.loads((made / f"int{bits}/octavo.json").read_text())["proof"]
        plain = compare(open_source(made / "float"), open_source(made / f"int{bits}"))
        assert proof["unrounded_max_difference"] == pytest.approx(plain.max_difference, rel=1e-6)
        assert proof["unrounded_rms_difference"] == pytest.approx(plain.rms_difference, rel=1e-6)
        rms[bits] = plain.rms_difference / plain.largest_logit
    assert 0 < rms[8] < 0.3 * rms[4]


def test_a_wrong_tensor_fails_the_proof(made, tmp_path, monkeypatch) -> None:
    original = quantize_module._Quantiser.half

    def wrong(self, name: str, half: int) -> torch.Tensor:
        return original(self, name, half) * (2 if half and name.endswith("experts.1.w2.weight") else 1)

    monkeypatch.setattr(quantize_module._Quantiser, "half", wrong)
    with pytest.raises(UserError, match="does not compute what its parent does"):
        quantize_model(open_source(made / "float"), tmp_path / "out", 8)
    assert not (tmp_path / "out").exists()


def test_weights_that_cannot_be_quantised(tmp_path) -> None:
    for number, bad in enumerate((float("nan"), 1e9)):
        write_tiny_model(tmp_path / f"float{number}", "llama")
        shard = tmp_path / f"float{number}/model-00001-of-00001.safetensors"
        tensors = load_file(shard)
        tensors["model.layers.1.mlp.up_proj.weight"][3, 3] = bad
        save_file(tensors, shard)
        (shard.parent / "SHA256SUMS").unlink()
        with pytest.raises(UserError, match=r"float.: model\.layers\.1\.mlp\.up_proj\.weight cannot be quantised"):
            quantize_model(open_source(shard.parent), tmp_path / "out", 4)
        assert not (tmp_path / "out").exists()


# ---- from one form to another


def test_back_to_fp32_and_again(made, tmp_path) -> None:
    source = open_source(made / "int4")
    assert convert(source, tmp_path / "float").max_difference == 0
    back = open_source(tmp_path / "float")
    assert not isinstance(back, QuantizedFolder) and back.dtype == torch.float32
    quantize_model(back, tmp_path / "again", 4)
    again = open_source(tmp_path / "again")
    for name in tensor_table(source.config):
        assert torch.equal(again.tensor(name), source.tensor(name))
    convert(source, tmp_path / "half", torch.bfloat16)
    assert open_source(tmp_path / "half").dtype == torch.bfloat16


@pytest.mark.parametrize("bits", [4, 8])
def test_to_the_same_bits_is_a_copy(copy, bits, tmp_path, caplog) -> None:
    """Also of what our quantiser would not have chosen."""
    folder = copy(bits)
    tensors = load_file(folder / SHARD)
    tensors["lm_head.scales"] *= -1.5
    save_file(tensors, folder / SHARD)
    (folder / "SHA256SUMS").unlink()
    with caplog.at_level(logging.WARNING):
        quantize_model(open_source(folder), tmp_path / "out", bits)
    assert not caplog.records
    assert load_file(tmp_path / "out" / SHARD).keys() == tensors.keys()
    for name, tensor in load_file(tmp_path / "out" / SHARD).items():
        assert torch.equal(tensor, tensors[name]), name


def test_to_other_bits_gives_notice(made, tmp_path, caplog) -> None:
    with caplog.at_level(logging.WARNING):
        quantize_model(open_source(made / "int8"), tmp_path / "out", 4)
    assert len(caplog.records) == 1 and "quantised to int8 already" in caplog.records[0].getMessage()
    assert open_source(tmp_path / "out").bits == 4


def test_read_quantized_for_the_pack(made) -> None:
    name = "model.layers.1.block_sparse_moe.experts.2.w1.weight"
    plain, int8 = open_source(made / "float"), open_source(made / "int8")
    for source, bits, weight in ((plain, 4, plain.tensor(name)), (int8, 4, int8.tensor(name))):
        expected, found = quantize(weight, bits), read_quantized(source, name, bits)
        assert torch.equal(found.qweight, expected.qweight) and torch.equal(found.scales, expected.scales)
    stored, found = load_file(made / "int8" / SHARD), read_quantized(int8, name, 8)
    assert torch.equal(found.qweight, stored[name.replace("weight", "qweight")]) and found.bits == 8


def test_the_decoder_that_is_loaded(made) -> None:
    decoder = load_decoder(open_source(made / "int4"))
    assert isinstance(decoder, Decoder) and decoder.embed.weight.dtype == torch.float32
    expert = open_source(made / "int4").tensor("model.layers.0.block_sparse_moe.experts.3.w2.weight")
    assert_same(decoder.layers[0].mlp.experts.down[3], expert, rtol=0, atol=0)


# ---- figures


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("bits", [4, 8])
def test_stored_bytes_are_counted(family, bits, tmp_path) -> None:
    shared = {"shared_intermediate_size": 24} if family == "minimax_text_01" else {}
    write_tiny_model(tmp_path / "float", family, intermediate_size=45, **shared)
    quantize_model(open_source(tmp_path / "float"), tmp_path / "out", bits)
    found = inspect(str(tmp_path / "out"))
    assert (found.kind, found.weights_checked, found.bits) == ("folder", True, bits)
    figures, plain = model_figures(found.config, found.bits), model_figures(found.config)
    assert figures.weight_bytes == sum(tensor.nbytes for tensor in load_file(tmp_path / "out" / SHARD).values())
    assert figures.total_parameters == plain.total_parameters
    assert figures.as_dict()["quantization"] == f"int{bits}" and plain.as_dict()["quantization"] is None
    (tmp_path / "out" / SHARD).unlink()
    (tmp_path / "out/quantized.safetensors.index.json").unlink()
    alone = inspect(str(tmp_path / "out"))
    assert (alone.kind, alone.bits) == ("folder without weights", bits)


# ---- what others make of it


def test_transformers_refuses_it_and_says_why(made) -> None:
    transformers = pytest.importorskip("transformers")
    with pytest.raises(ValueError, match="quant_method is octavo, which only octavo reads"):
        transformers.AutoModelForCausalLM.from_pretrained(made / "int4")
    config = transformers.AutoConfig.from_pretrained(made / "int4")
    del config.transformers_weights  # a version that does not know the field finds no weights, rather than half of them
    with pytest.raises(OSError, match=r"no file named model\.safetensors"):
        transformers.AutoModelForCausalLM.from_pretrained(made / "int4", config=config)


# ---- damage


@pytest.mark.parametrize(
    ("told", "words"),
    [
        ({"quant_method": "gptq", "bits": 4}, ("quant_method is 'gptq'", "octavo convert --quant")),
        ({"quant_method": "awq"}, ("quant_method is 'awq'",)),
        ({"quant_method": "fp8"}, ("quant_method is 'fp8'",)),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, ("quant_method is 'bitsandbytes'",)),
        ({"load_in_8bit": True}, ("quant_method is None",)),
        ("int4", ("quantization_config is 'int4'",)),
        (FIELDS | {"bits": 3}, ("quantization_config.bits is 3", "4 or 8")),
        (FIELDS | {"bits": True}, ("quantization_config.bits is True",)),
        (FIELDS | {"bits": "4"}, ("quantization_config.bits is '4'",)),
        (FIELDS, ("quantization_config.bits is None",)),
        (FIELDS | {"bits": 4, "group_size": 64}, ("quantization_config.group_size is 64", "reads 32")),
        (FIELDS | {"bits": 4, "version": 1}, ("quantization_config.version is 1", "update it")),
        (FIELDS | {"bits": 4, "version": 3}, ("quantization_config.version is 3", "update it")),
        (FIELDS | {"bits": 4, "embedding_bits": 4}, ("quantization_config.embedding_bits is 4", "reads 8")),
    ],
)
def test_other_methods_and_fields(copy, told, words) -> None:
    folder = copy(4)
    edit_config(folder, quantization_config=told)
    refused(folder, "config.json", *words)
    with pytest.raises(UserError, match="config.json"):
        inspect(str(folder))


def spoil(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> Path:
    tensors = load_file(folder / SHARD)
    change(tensors)
    (folder / "quantized.safetensors.index.json").unlink()
    save_file(tensors, folder / SHARD)
    return folder


UP = "model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(
    ("bits", "change", "words"),
    [
        (4, lambda t: t.pop(f"{UP}.scales"), (f"tensor {UP}.scales is missing",)),
        (4, lambda t: t.pop(f"{UP}.qweight"), (f"tensor {UP}.qweight is missing",)),
        (4, lambda t: t.update({f"{UP}.weight": torch.ones(96, 48)}), ("belong to nothing", f"{UP}.weight")),
        (4, lambda t: t.update({f"{UP}.scales": torch.ones(96, 3).half()}), (f"{UP}.scales has shape [96, 3]",)),
        (4, lambda t: t.update({f"{UP}.qweight": torch.ones(96, 48, dtype=torch.uint8)}), (f"{UP}.qweight has shape",)),
        (8, lambda t: t.update({f"{UP}.scales": torch.ones(96, 2)}), (f"{UP}.scales is stored as F32", "float16")),
        (8, lambda t: t.update({f"{UP}.qweight": torch.ones(96, 48)}), (f"{UP}.qweight is stored as F32", "int8")),
        (8, lambda t: t.update({"model.norm.weight": torch.ones(48).half()}), ("model.norm.weight is stored as F16",)),
        (8, lambda t: t.update({UP: torch.ones(3, dtype=torch.int64)}), (SHARD, "stored as I64")),
    ],
)  # fmt: skip
def test_tensors_that_are_missing_misshapen_or_of_another_type(copy, bits, change, words) -> None:
    refused(spoil(copy(bits), change), *words)


@pytest.mark.parametrize("part", ["weight", "qweight"])
def test_a_head_beside_tied_embeddings_is_one_too_many(copy, part) -> None:
    folder = copy(8)
    edit_config(folder, tie_word_embeddings=True)
    refused(folder, "belong to nothing", "lm_head.qweight")
    head = {f"lm_head.{part}": torch.ones(331, 48, dtype=torch.int8 if part == "qweight" else torch.float32)}
    spoil(folder, lambda t: (t.pop("lm_head.qweight"), t.pop("lm_head.scales"), t.update(head)))
    refused(folder, "belong to nothing", f"lm_head.{part}")


def test_bits_of_the_config_and_of_the_weights_disagree(copy) -> None:
    folder = copy(8)
    edit_config(folder, quantization_config=FIELDS | {"bits": 4})
    refused(folder, SHARD, ".qweight is stored as I8, uint8 is needed")


def test_config_and_weights_of_different_models(copy, made) -> None:
    folder = copy(8)
    edit_config(folder, quantization_config="ABSENT")
    refused(folder, SHARD, "stored as I8")
    edit_config(folder, quantization_config=FIELDS | {"bits": 8})
    for name in (SHARD, "quantized.safetensors.index.json"):
        (folder / name).unlink()
    refused(folder, "no quantized*.safetensors files")
    shard = "model-00001-of-00001.safetensors"
    (folder / shard).write_bytes((made / "float" / shard).read_bytes())
    refused(folder, "no quantized*.safetensors files")
    with pytest.raises(UserError, match="has no quantization_config"):
        QuantizedFolder(made / "float")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_scales_that_are_not_finite_are_found_when_read(copy, value, tmp_path) -> None:
    folder = copy(4)
    spoil(folder, lambda tensors: tensors[f"{UP}.scales"].__setitem__((5, 1), value))
    source = open_source(folder)
    for read in (source.tensor, lambda name: read_quantized(source, name, 4)):
        with pytest.raises(UserError, match=r"q_proj\.scales holds numbers that are not finite"):
            read(f"{UP}.weight")
    with pytest.raises(UserError):
        convert(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_int8_below_the_limit_is_found_when_read(copy) -> None:
    source = open_source(spoil(copy(8), lambda tensors: tensors[f"{UP}.qweight"].__setitem__((5, 1), -128)))
    with pytest.raises(UserError, match=r"q_proj\.qweight holds -128"):
        source.tensor(f"{UP}.weight")


# ---- memory

SCRIPT = """
import sys
from pathlib import Path
from octavo.checkpoint.quantize import quantize_model
from octavo.checkpoint.source import open_source

quantize_model(open_source(sys.argv[1]), Path(sys.argv[2]), 4)
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


@pytest.mark.slow
def test_peak_memory_does_not_grow_with_depth(tmp_path) -> None:
    peaks = []
    for depth in (2, 20):
        layers = tiny_config("llama").layers[:1] * depth
        shape = {"hidden_size": 512, "intermediate_size": 1024, "num_heads": 8, "num_kv_heads": 8, "head_dim": 64}
        write_tiny_model(tmp_path / f"{depth}", "llama", layers=layers, initializer_range=0.02, **shape)
        command = [sys.executable, "-c", SCRIPT, str(tmp_path / f"{depth}"), str(tmp_path / f"out{depth}")]
        root = Path(__file__).resolve().parents[2]
        done = subprocess.run(command, capture_output=True, text=True, timeout=280, cwd=root)
        assert done.returncode == 0, done.stderr
        peaks.append(int(done.stdout) / 1024)
    size = sum(path.stat().st_size for path in (tmp_path / "20").glob("*.safetensors")) / 2**20
    print(f"peak {peaks[0]:.0f} MiB at 2 layers, {peaks[1]:.0f} MiB at 20 (file of {size:.0f} MiB)")
    assert size > 200 and peaks[1] - peaks[0] < 50
