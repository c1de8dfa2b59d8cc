"""Packs: what is written is read back, every kind of damage is noticed, and nothing is left half-written."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from octavo.checkpoint import pack as pack_module
from octavo.checkpoint.names import is_quantized_name, tensor_table
from octavo.checkpoint.pack import DamagedPack, Pack, Part, plan, write_pack
from octavo.checkpoint.quantize import quantize_model
from octavo.checkpoint.source import open_source
from octavo.config import ModelConfig, RopeConfig
from octavo.engine.native_runner import NativeRunner
from octavo.errors import UserError
from octavo.native.library import UNIT, library
from octavo.ops.quantize import Quantized, dequantize, quantize
from octavo.ops.rotary import inverse_frequencies
from tests.engine.native import VARIANTS, same_bits, variant
from tests.engine.steps import batch, tokens
from tests.native.kernels import isas, unpacked, using
from tests.quantised import MemorySource, altered, packed, random_decoder
from tests.tiny import tiny_config, write_tiny_model

TRAILER = 24
ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.usefixtures("isa")


@pytest.fixture(params=isas()[:1])
def isa(request):
    with using(request.param):
        yield request.param


@pytest.fixture
def whole(tmp_path) -> Path:
    """A good pack."""
    packed(random_decoder(tiny_config("mixtral")), tmp_path / "whole", 4)
    return tmp_path / "whole"


def spoilt(whole: Path, change: Callable[[bytearray], bytes | bytearray | None]) -> Path:
    """A copy with its bytes changed."""
    data = bytearray(whole.read_bytes())
    changed = change(data)
    out = whole.parent / "spoilt"
    out.write_bytes(data if changed is None else changed)
    return out


def header_of(data: bytes) -> tuple[int, int]:
    """Where the header of a pack begins and ends."""
    end = len(data) - TRAILER
    return end - int.from_bytes(data[end : end + 8], "little"), end


def bits_of(name: str, model: int) -> int:
    """Embedding and head of a model in 4 bits have 8."""
    return 8 if model == 4 and name in ("model.embed_tokens.weight", "lm_head.weight") else model


def matrix_rows(pack: Pack, name: str, part: Part, rows: int, columns: int) -> np.ndarray:
    """A canonical matrix's rows in the pack, still packed: [units, bytes of a unit]."""
    planned = dict(plan(pack.config))[name]
    assert planned.cols == columns
    units = pack.tensor(name).reshape(-1, library().packed_bytes(UNIT, columns, bits_of(part.name, pack.bits)))
    return units[part.first :: part.step][: -(-rows // UNIT)]


def plain_units(weight: torch.Tensor, bits: int) -> np.ndarray:
    """A matrix [N, K] packed by itself: [units, bytes of a unit]."""
    if bits == 16:
        out = np.empty(library().packed_bytes(*weight.shape, bits), np.uint8)
        library().pack(out, weight.bfloat16().view(torch.int16).numpy().view(np.uint16), None, weight.shape[1])
        return out.reshape(-(-len(weight) // UNIT), -1)
    return quantised_units(quantize(weight, bits), weight.shape[1])


def quantised_units(quantized: Quantized, columns: int) -> np.ndarray:
    rows = len(quantized.scales)
    out = np.empty(library().packed_bytes(rows, columns, quantized.bits), np.uint8)
    library().pack(out, quantized.qweight.numpy(), quantized.scales.numpy(), columns)
    return out.reshape(-(-rows // UNIT), -1)


# ---- what is written


@pytest.mark.parametrize("bits", [4, 8, 16])
@pytest.mark.parametrize("name", VARIANTS)
def test_every_tensor_comes_back(name, bits, tmp_path) -> None:
    decoder = random_decoder(variant(name))
    source = MemorySource(decoder)
    pack = packed(decoder, tmp_path / "pack", bits)
    assert (pack.config, pack.bits, pack.label) == (decoder.config, bits, "memory")
    assert pack.side_files == source.side_files()
    table, seen = tensor_table(decoder.config), set()
    for matrix, planned in plan(decoder.config):
        for part in planned.parts:
            rows, columns = table[part.name].shape
            expected = plain_units(source.tensor(part.name), bits_of(part.name, bits))
            assert np.array_equal(matrix_rows(pack, matrix, part, rows, columns), expected), part.name
            assert part.name not in seen
            seen.add(part.name)
    assert seen == {name for name in table if is_quantized_name(name)}
    for parameter, value in decoder.named_parameters():
        layer, _, rest = parameter.removeprefix("layers.").partition(".")
        small = {"norm.weight": "final_norm", **{f"layers.{layer}.{theirs}": f"{layer}.{ours}" for theirs, ours in (
            ("attention_norm.weight", "attention_norm"), ("mlp_norm.weight", "mlp_norm"),
            ("attention.norm.weight", "inner_norm"), ("mlp.router.weight", "router"),
            ("mlp.shared.coefficient.weight", "shared_gate"))}}  # fmt: skip
        if parameter in small:
            assert same_bits(pack.tensor(small[parameter]), value.detach().numpy()), rest
    assert same_bits(pack.tensor("frequencies"), inverse_frequencies(decoder.config.rope).numpy())
    for layer in decoder.config.lightning_layers:
        slopes = decoder.layers[layer].attention.slopes()
        assert same_bits(pack.tensor(f"{layer}.decays"), (-slopes).exp().numpy())
    assert pack.nbytes < pack.path.stat().st_size


def test_tensors_lie_on_borders_and_cannot_be_written_to(whole) -> None:
    pack = Pack(whole)
    for name in (*dict(plan(pack.config)), "0.router", "final_norm"):
        array = pack.tensor(name)
        assert array.ctypes.data % 64 == 0 and not array.flags.writeable
    assert "0.router" in pack and "0.nothing" not in pack


def test_the_same_source_gives_the_same_bytes(whole, tmp_path) -> None:
    packed(random_decoder(tiny_config("mixtral")), tmp_path / "again", 4)
    assert (tmp_path / "again").read_bytes() == whole.read_bytes()


def test_configs_come_back(tmp_path) -> None:
    """Tuples, nested dataclasses, rotary scaling, whatever JSON makes of them."""
    scaling = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
               "original_max_position_embeddings": 64}  # fmt: skip
    config = tiny_config("minimax_text_01", eos_token_id=(2, 5), pad_token_id=None, sliding_window=None,
                         rope=RopeConfig(theta=1e6, dim=8, scaling=scaling), norm_eps=1.2345678e-7)  # fmt: skip
    for each in (config, replace(config, eos_token_id=None, sliding_window=9)):
        assert packed(random_decoder(each), tmp_path / "pack", 4).config == each


@pytest.mark.parametrize("bits", [4, 8])
def test_a_quantised_folder_is_taken_bit_for_bit(bits, tmp_path) -> None:
    """Also what our quantiser would not have chosen: negative scales, small integers."""
    write_tiny_model(tmp_path / "float", "mixtral", intermediate_size=45)
    folder = tmp_path / "quantised"
    quantize_model(open_source(tmp_path / "float"), folder, bits)
    shard = next(folder.glob("*.safetensors"))
    tensors = load_file(shard)
    for name in tensors:
        if name.endswith("scales"):
            tensors[name] *= -0.5
        elif name.endswith("qweight") and tensors[name].dtype == torch.int8:
            tensors[name] //= 3
    save_file(tensors, shard)
    (folder / "SHA256SUMS").unlink()
    source = open_source(folder)
    write_pack(source, bits, tmp_path / "pack")
    pack, table = Pack(tmp_path / "pack"), tensor_table(source.config)
    for matrix, planned in plan(source.config):
        for part in planned.parts:
            stem, (rows, columns) = part.name.removesuffix("weight"), table[part.name].shape
            stored = Quantized(tensors[f"{stem}qweight"], tensors[f"{stem}scales"], bits_of(part.name, bits))
            assert np.array_equal(matrix_rows(pack, matrix, part, rows, columns), quantised_units(stored, columns))
            assert torch.equal(unpacked(stored, columns), dequantize(stored, columns))
    assert pack.side_files.keys() >= {"tokenizer.json"}


def test_progress_is_told(tmp_path) -> None:
    told: list[tuple[str, int, int]] = []
    write_pack(
        MemorySource(random_decoder(tiny_config("llama"))), 8, tmp_path / "pack", lambda *said: told.append(said)
    )
    assert [done for _, done, _ in told] == list(range(1, told[-1][2] + 1)) and told[0][0] == "packing int8"


# ---- damage


def test_cut_short_anywhere(whole) -> None:
    data = whole.read_bytes()
    first, end = header_of(data)
    for length in (0, 1, 7, 8, 23, 24, 25, 1000, first - 1, first, first + 10, end - 1, end, end + 8, len(data) - 1):
        with pytest.raises(DamagedPack, match="spoilt"):
            Pack(spoilt(whole, lambda _, length=length: data[:length]))
        with pytest.raises(DamagedPack, match="spoilt"):  # cut out of its middle: the end is that of a whole pack
            Pack(spoilt(whole, lambda _, length=length: data[:length] + data[length + 5 :]))
    with pytest.raises(DamagedPack):
        Pack(whole.parent / "nothing")
    with pytest.raises(DamagedPack):
        Pack(whole.parent)


def test_a_flipped_bit_anywhere(whole) -> None:
    data, pack = whole.read_bytes(), Pack(whole)
    first, end = header_of(data)
    entries = json.loads(data[first:end])["tensors"]
    places = [entry["offset"] + at for entry in entries.values() for at in (0, entry["bytes"] // 2, entry["bytes"] - 1)]
    places += [*range(first, end, 97), *range(end, len(data))]
    for place in places:
        for bit in (1, 128):

            def flip(changed: bytearray, place: int = place, bit: int = bit) -> None:
                changed[place] ^= bit

            with pytest.raises(DamagedPack, match="spoilt"):
                Pack(spoilt(whole, flip))
    assert len(places) > 100 and pack.config == tiny_config("mixtral")


def test_another_version_or_other_kernels(whole, monkeypatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(pack_module, "VERSION", pack_module.VERSION + 1)
        with pytest.raises(DamagedPack, match="another version or for other kernels"):
            Pack(whole)
    lanes = {}
    for name in library().isas:
        with using(name):
            lanes[name] = library().lanes
    for name, count in lanes.items():
        with using(name):
            if count == lanes[library().isas[0]]:
                assert Pack(whole).bits == 4
            else:
                with pytest.raises(DamagedPack, match="another version or for other kernels"):
                    Pack(whole)


@pytest.mark.parametrize("header", [[], {}, None, {"version": 1}, {"version": None, "lanes": "x"}, "text", 3])
def test_a_header_that_is_something_else(whole, header) -> None:
    """With the right checksum: written by another program, or by nobody honest."""
    text = json.dumps(header).encode()
    crc = library().crc32c(np.frombuffer(text, np.uint8))
    trailer = text + len(text).to_bytes(8, "little") + crc.to_bytes(8, "little") + b"octavo-p"
    with pytest.raises(DamagedPack):
        Pack(spoilt(whole, lambda _: trailer))


@pytest.mark.parametrize("change", [{"num_kv_heads": 4}, {"top_k": 6}, {"rope": {"base": 1e4, "dim": 16}}, {"more": 1}])
def test_a_config_that_is_refused_by_now(whole, change) -> None:
    """Of an earlier octavo, with the right checksums: a pack to be made again, and no mistake of the user's."""
    assert Pack(altered(whole, whole.parent / "same", lambda header, _: None)).config == tiny_config("mixtral")
    with pytest.raises(DamagedPack, match="spoilt"):
        Pack(altered(whole, whole.parent / "spoilt", lambda header, _: header["config"].update(change)))


# ---- whole or not at all


class _Failing(MemorySource):
    def tensor(self, name: str) -> torch.Tensor:
        if name == "model.layers.1.self_attn.o_proj.weight":
            raise UserError("the source is damaged")
        return super().tensor(name)


def test_a_failing_source_leaves_nothing(tmp_path) -> None:
    with pytest.raises(UserError, match="the source is damaged"):
        write_pack(_Failing(random_decoder(tiny_config("llama"))), 4, tmp_path / "packs" / "pack")
    assert list((tmp_path / "packs").iterdir()) == []


def test_weights_that_cannot_be_quantised_leave_the_old_pack(whole) -> None:
    before = whole.read_bytes()
    decoder = random_decoder(tiny_config("mixtral"))
    decoder.lm_head.weight.data[5, 5] = torch.nan
    with pytest.raises(UserError, match="memory: lm_head.weight cannot be quantised"):
        write_pack(MemorySource(decoder), 4, whole)
    with pytest.raises(UserError, match="memory: lm_head.weight is not finite in bf16"):
        write_pack(MemorySource(decoder), 16, whole)
    assert whole.read_bytes() == before and [path.name for path in whole.parent.iterdir()] == ["whole"]


def test_a_pack_in_use_may_be_replaced(tmp_path) -> None:
    """Its file lives on until it is let go."""
    ids = batch([(tokens(9), 0, [0])], logit_rows=np.arange(9))
    pack = packed(random_decoder(tiny_config("llama")), tmp_path / "pack", 8)
    runner = NativeRunner(pack, 2)
    expected = runner.step(ids).logits
    packed(random_decoder(tiny_config("llama"), seed=1), tmp_path / "pack", 8)
    assert same_bits(runner.step(ids).logits, expected)
    assert not same_bits(NativeRunner(Pack(tmp_path / "pack"), 2).step(ids).logits, expected)


def run_python(code: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stderr=subprocess.PIPE, text=True)


WRITE = """
from pathlib import Path
from octavo.checkpoint.pack import Pack, write_pack
from octavo.checkpoint.source import open_source
write_pack(open_source({folder!r}), 4, Path({out!r}))
"""


def test_processes_that_write_the_same_pack_do_not_harm_each_other(tmp_path) -> None:
    write_tiny_model(tmp_path / "model", "mixtral")
    out = tmp_path / "packs" / "pack"
    code = WRITE.format(folder=str(tmp_path / "model"), out=str(out))
    running = [run_python(f"{code}\nPack(Path({str(out)!r}))") for _ in range(4)]
    for process in running:
        assert process.communicate(timeout=200)[1] == "" and process.returncode == 0
    assert Pack(out).bits == 4 and [path.name for path in out.parent.iterdir()] == ["pack"]


@pytest.mark.parametrize("limit", [100, 20_000, 60_000])
def test_a_disk_that_fills_leaves_nothing(tmp_path, limit) -> None:
    """A file-size limit stands in for the full disk: at the first tensor, among them, near the end."""
    write_tiny_model(tmp_path / "model", "mixtral")
    out = tmp_path / "packs" / "pack"
    code = WRITE.format(folder=str(tmp_path / "model"), out=str(out))
    limited = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))\n{code}"
    error = run_python(limited).communicate(timeout=200)[1]
    last = error.splitlines()[-1]
    assert "UserError" in last and f"{out}: cannot be written (File too large)" in last and "OCTAVO_HOME" in last
    assert list(out.parent.iterdir()) == []


def test_a_folder_that_cannot_be_written_to(tmp_path) -> None:
    (tmp_path / "file").touch()
    source = MemorySource(random_decoder(tiny_config("llama")))
    with pytest.raises(UserError, match=r"pack: cannot be written \(.*\); free space, or set OCTAVO_HOME"):
        write_pack(source, 4, tmp_path / "file" / "pack")


def test_reading_needs_no_torch(whole) -> None:
    code = f"""
import sys
from pathlib import Path
from octavo.checkpoint.pack import Pack
assert Pack(Path({str(whole)!r})).bits == 4
assert "torch" not in sys.modules and "safetensors" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=120, env=dict(os.environ))


def test_model_configs_are_compared(tmp_path) -> None:
    """The comparison above is one of values."""
    pack = packed(random_decoder(tiny_config("llama")), tmp_path / "pack", 8)
    assert isinstance(pack.config, ModelConfig) and pack.config != tiny_config("llama", norm_eps=2e-5)
