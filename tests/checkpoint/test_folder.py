"""Model folders: round trips through shards, and every kind of damage as one clear line."""

import hashlib
import json
import logging
import os
import shutil
import signal
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from octavo.checkpoint import convert as convert_module
from octavo.checkpoint.checksums import CHECKSUMS, check_sums
from octavo.checkpoint.convert import convert
from octavo.checkpoint.folder import FolderSource
from octavo.checkpoint.load import load, load_decoder
from octavo.checkpoint.names import tensor_table
from octavo.checkpoint.save import DecoderSource, save
from octavo.checkpoint.source import open_source
from octavo.checkpoint.writer import PlannedTensor, staged_folder, write_file, write_weights
from octavo.config import LayerSpec, RopeConfig, from_hf, to_hf
from octavo.errors import UsageError, UserError
from octavo.models import Decoder
from tests.tiny import tiny_config, write_tiny_model

SHARD = "model-00001-of-00001.safetensors"


@pytest.fixture
def folder(tmp_path) -> Path:
    write_tiny_model(tmp_path / "model")
    return tmp_path / "model"


def edit_config(folder: Path, **changes: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    config.update(changes)
    (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v != "ABSENT"}))


def refused(folder: Path | str, *words: str) -> None:
    """Opening it fails with one line that holds all the words, and leaves every file as it was."""
    before = digests(Path(folder)) if Path(folder).is_dir() else {}
    with pytest.raises(UserError) as error:
        open_source(folder)
    assert "\n" not in str(error.value)
    for word in words:
        assert word in str(error.value), f"{word!r} is not in: {error.value}"
    assert before == (digests(Path(folder)) if before else {})


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


# ---- round trips


@pytest.mark.parametrize("family", ["llama", "mistral", "mixtral", "minimax", "minimax_text_01"])
@pytest.mark.parametrize("tied", [False, True])
def test_saved_in_shards_and_loaded_again_every_bit_is_the_same(family, tied, tmp_path) -> None:
    decoder = Decoder(tiny_config(family, tie_embeddings=tied)).initialise()
    source = DecoderSource(decoder, {})
    tensors = [PlannedTensor(n, e.shape, lambda n=n: source.tensor(n)) for n, e in tensor_table(decoder.config).items()]
    (tmp_path / "model").mkdir()
    write_weights(tmp_path / "model", tensors, torch.float32, max_shard_bytes=20_000)
    write_file(tmp_path / "model", "config.json", json.dumps(to_hf(decoder.config)).encode())
    shards = sorted((tmp_path / "model").glob("*.safetensors"))
    assert len(shards) > 5
    stored = {name: tensor for shard in shards for name, tensor in load_file(shard).items()}
    index = json.loads((tmp_path / "model/model.safetensors.index.json").read_text())
    assert set(index["weight_map"]) == set(stored) == set(tensor_table(decoder.config))
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in stored.values())
    assert ("lm_head.weight" in stored) is not tied
    loaded = load_decoder(FolderSource(tmp_path / "model"))
    assert loaded.config == decoder.config
    for name, parameter in decoder.named_parameters():
        assert torch.equal(loaded.get_parameter(name), parameter), name
    assert check_sums(tmp_path / "model") == len(shards) + 2


def test_dtypes_on_the_way_in_and_out(tmp_path) -> None:
    decoder = Decoder(tiny_config()).initialise()
    proof = save(decoder, tmp_path / "half", dtype=torch.bfloat16)
    assert proof.rounded_to == "bfloat16" and proof.max_difference < 1e-3
    source = FolderSource(tmp_path / "half")
    assert source.dtype == torch.bfloat16
    loaded = load_decoder(source)
    assert loaded.embed.weight.dtype == torch.float32
    assert torch.equal(loaded.embed.weight, decoder.embed.weight.bfloat16().float())
    assert json.loads((tmp_path / "half/config.json").read_text())["torch_dtype"] == "bfloat16"
    assert load_decoder(source, dtype=torch.bfloat16).layers[0].mlp.experts.down.dtype == torch.bfloat16


def test_one_file_without_an_index_is_read(folder) -> None:
    (folder / "model.safetensors.index.json").unlink()
    (folder / SHARD).rename(folder / "model.safetensors")
    FolderSource(folder)


def test_old_buffers_and_a_tied_head_are_passed_over(tmp_path) -> None:
    write_tiny_model(tmp_path / "model", "llama", tie_embeddings=True)
    tensors = load_file(tmp_path / "model" / SHARD)
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    (tmp_path / "model/model.safetensors.index.json").unlink()
    save_file(tensors, tmp_path / "model" / SHARD)
    FolderSource(tmp_path / "model")


@pytest.mark.parametrize("family", ["llama", "mistral", "mixtral"])
def test_config_round_trip(family) -> None:
    scaling = {"rope_type": "linear", "factor": 2.0}
    config = tiny_config(family, eos_token_id=(2, 5), rope=RopeConfig(theta=5e5, dim=8, scaling=scaling), head_dim=8)
    assert from_hf(json.loads(json.dumps(to_hf(config)))) == config


@pytest.mark.parametrize(
    "changes",
    [{"shared_intermediate_size": 8}, {"layers": (LayerSpec(), LayerSpec(mlp="experts"))},
     {"rope": RopeConfig(theta=1e4, dim=8)}],
)  # fmt: skip
def test_what_no_family_expresses_is_not_written(changes, tmp_path) -> None:
    with pytest.raises(UserError, match="cannot express"):
        save(Decoder(tiny_config("mixtral", **changes)).initialise(), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


# ---- bad input


def test_no_config(folder) -> None:
    (folder / "config.json").unlink()
    refused(folder, "config.json is missing", "model folder")


def test_nothing_there(tmp_path) -> None:
    refused(tmp_path / "absent", "no such folder or file", "absent")


@pytest.mark.parametrize("text", ["", "{", "[1]", '"x"', "\x00"])
def test_damaged_config(folder, text) -> None:
    (folder / "config.json").write_text(text)
    refused(folder, "config.json")


@pytest.mark.parametrize("field", ["hidden_size", "num_hidden_layers", "vocab_size", "num_attention_heads"])
def test_missing_field(folder, field) -> None:
    edit_config(folder, **{field: "ABSENT"})
    refused(folder, "config.json", field, "missing")


@pytest.mark.parametrize(
    ("field", "value"),
    [("tie_word_embeddings", "false"), ("num_hidden_layers", 10**9), ("rope_theta", True), ("rope_theta", float("nan")),
     ("hidden_size", "48"), ("hidden_size", -1), ("num_hidden_layers", 0), ("num_hidden_layers", 2.5),
     ("num_key_value_heads", 4), ("num_experts_per_tok", 6), ("num_experts_per_tok", 0), ("rms_norm_eps", "x"),
     ("rms_norm_eps", 0), ("rope_theta", 0), ("rope_theta", "big"), ("head_dim", 15), ("sliding_window", -3),
     ("eos_token_id", "</s>"), ("num_local_experts", True)],
)  # fmt: skip
def test_impossible_value(folder, field, value) -> None:
    edit_config(folder, **{field: value})
    name = {"num_experts_per_tok": "top-k", "head_dim": "rotary dim"}.get(field, field)
    refused(folder, "config.json", name, str(value))


def test_unknown_model_type_with_and_without_code(folder) -> None:
    edit_config(folder, model_type="gpt_neox")
    refused(folder, "gpt_neox", "not supported", "mixtral")
    (folder / "evil.py").write_text("raise SystemExit('code from a checkpoint ran')")
    edit_config(folder, model_type="my_model", auto_map={"AutoModelForCausalLM": "evil.Model"})
    refused(folder, "my_model", "auto_map", "never runs")


def test_auto_map_of_a_known_type_is_ignored_with_a_notice(folder, caplog) -> None:
    (folder / "evil.py").write_text("raise SystemExit('code from a checkpoint ran')")
    edit_config(folder, auto_map={"AutoModelForCausalLM": "evil.Model"})
    with caplog.at_level(logging.WARNING):
        load_decoder(FolderSource(folder))
    notices = [record.getMessage() for record in caplog.records]
    assert len(notices) == 1 and "auto_map is ignored" in notices[0]


@pytest.mark.parametrize(
    ("field", "value"),
    [("rope_scaling", "linear"), ("rope_scaling", {"type": ["a"]}), ("is_causal", False),
     ("rope_scaling", {"rope_type": "yarn", "factor": 4.0}), ("rope_scaling", {"type": "dynamic", "factor": 2.0}),
     ("rope_scaling", {"rope_type": "linear"}), ("rope_parameters", {"rope_type": "longrope"}),
     ("rope_parameters", {"rope_type": "default", "partial_rotary_factor": 0.5}), ("attention_bias", True),
     ("mlp_bias", True), ("hidden_act", "gelu"), ("quantization_config", {"quant_method": "gptq"}),
     ("partial_rotary_factor", 0.5), ("final_logit_softcapping", 30.0)],
)  # fmt: skip
def test_maths_we_do_not_compute(folder, field, value) -> None:
    edit_config(folder, **{field: value})
    told = {
        "partial": "partial_rotary_factor is 0.5",
        "{'rope_type': 'linear'}": "factor",
        "longrope": "type 'longrope'",
    }
    words = [word for key, word in told.items() if key in str(value)] or [field]
    refused(folder, "config.json", *words)


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"rope_scaling": {"rope_type": "linear", "factor": 0}}, "factor is 0"),
        ({"rope_scaling": {"rope_type": "linear", "factor": -2.0}}, "factor is -2.0"),
        (
            {
                "rope_scaling": {"type": "linear", "factor": 2.0},
                "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
            },
            "contradict",
        ),
        (
            {
                "original_max_position_embeddings": 64,
                "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                                 "original_max_position_embeddings": 128},
            },
            "outside rope_scaling",
        ),
        ({"layer_types": ["sliding_attention", "full_attention"]}, "layer_types"),
        ({"layer_types": ["full_attention"] * 2, "sliding_window": 4}, "layer_types"),
    ],
)  # fmt: skip
def test_fields_that_contradict_each_other(folder, changes, word) -> None:
    edit_config(folder, **changes)
    refused(folder, "config.json", word)


def test_minus_one_stands_for_no_token(folder, tmp_path) -> None:
    edit_config(folder, pad_token_id=-1, bos_token_id=-1, eos_token_id=[2, -1])
    (folder / "generation_config.json").write_text('{"pad_token_id": -1, "eos_token_id": 2}')
    (folder / CHECKSUMS).unlink()
    source = FolderSource(folder)
    assert (source.config.pad_token_id, source.config.bos_token_id, source.config.eos_token_id) == (None, None, (2,))
    convert(source, tmp_path / "out")
    assert load(tmp_path / "out")[1].eos_ids == {2}


def test_a_tied_config_with_a_head_of_its_own(tmp_path) -> None:
    write_tiny_model(tmp_path / "model", "llama", tie_embeddings=True)
    tensors = load_file(tmp_path / "model" / SHARD)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"] + 1
    (tmp_path / "model/model.safetensors.index.json").unlink()
    save_file(tensors, tmp_path / "model" / SHARD)
    refused(tmp_path / "model", "lm_head.weight", "tie_word_embeddings")


def test_which_of_several_weight_files_counts(folder) -> None:
    """transformers' order: model.safetensors, then the index; Mistral's consolidated copy is not looked at."""
    whole = load_file(folder / SHARD)
    save_file({"tok_embeddings.weight": torch.ones(1)}, folder / "consolidated.safetensors")
    (folder / "model.safetensors.index.json").rename(folder / "index.json")
    FolderSource(folder)
    (folder / "index.json").rename(folder / "model.safetensors.index.json")
    changed = {name: tensor + 1 for name, tensor in whole.items()}
    save_file(changed, folder / "model.safetensors")
    assert torch.equal(FolderSource(folder).tensor("model.norm.weight"), whole["model.norm.weight"] + 1)


def test_mixed_dtypes_are_stored_in_the_widest(folder, tmp_path) -> None:
    tensors = {n: t.bfloat16() if t.ndim == 2 else t + 0.001 for n, t in load_file(folder / SHARD).items()}
    save_file(tensors, folder / SHARD)
    (folder / CHECKSUMS).unlink()
    source = FolderSource(folder)
    assert source.dtype == torch.float32
    assert convert(source, tmp_path / "out").max_difference == 0.0


def test_shapes_that_disagree(folder) -> None:
    edit_config(folder, intermediate_size=44)
    refused(folder, "w1.weight", "[40, 48]", "[44, 48]")


def test_missing_and_left_over_tensors(folder) -> None:
    edit_config(folder, num_hidden_layers=3)
    refused(folder, "model.layers.2", "missing")
    edit_config(folder, num_hidden_layers=1)
    refused(folder, "22 tensors belong to nothing", "model.layers.1")


def test_truncated_anywhere(folder) -> None:
    data = (folder / SHARD).read_bytes()
    for size in (0, 4, 8, 100, 1000, len(data) // 2, len(data) - 1):
        (folder / SHARD).write_bytes(data[:size])
        refused(folder, SHARD, "truncated or damaged")


def test_damaged_header(folder) -> None:
    data = bytearray((folder / SHARD).read_bytes())
    for damage in (b"\xff" * 8, struct.pack("<Q", 2**40), struct.pack("<Q", 9)):
        (folder / SHARD).write_bytes(damage + data[8:])
        refused(folder, SHARD, "truncated or damaged")
    data[20] ^= 0xFF
    (folder / SHARD).write_bytes(data)
    refused(folder, SHARD)


def test_flipped_data_bytes_are_found_by_the_checksums(folder, tmp_path) -> None:
    data = bytearray((folder / SHARD).read_bytes())
    data[-5] ^= 0x10
    (folder / SHARD).write_bytes(data)
    source = FolderSource(folder)  # the headers are fine
    with pytest.raises(UserError, match=f"{SHARD}.*SHA-256"):
        source.check()
    with pytest.raises(UserError, match="SHA-256"):
        convert(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_checksums_missing_damaged_or_short_of_a_file(folder) -> None:
    (folder / "octavo.json").unlink()
    with pytest.raises(UserError, match=r"octavo\.json.*is missing"):
        check_sums(folder)
    for text in ("nonsense\n", "", "\xff\xfe"):
        (folder / CHECKSUMS).write_text(text)
        with pytest.raises(UserError, match="damaged or empty"):
            check_sums(folder)
    (folder / CHECKSUMS).unlink()
    with pytest.raises(UserError, match="nothing to check"):
        check_sums(folder)


def test_checksums_that_leave_out_a_weight_file(folder) -> None:
    lines = (folder / CHECKSUMS).read_text().splitlines(keepends=True)
    (folder / CHECKSUMS).write_text("".join(line for line in lines if SHARD not in line))
    with pytest.raises(UserError, match=f"{SHARD}: is not listed"):
        check_sums(folder)
    (folder / CHECKSUMS).write_text("".join(lines))
    (folder / "notes.txt").write_text("files no model reads may be added")
    assert check_sums(folder) == len(lines)


def test_what_was_written_is_read_back_and_checked(tmp_path, monkeypatch) -> None:
    """A disk that loses a bit between writing and reading."""
    written = DecoderSource(Decoder(tiny_config()).initialise(), {})
    original = convert_module.compare

    def flip(*arguments, **options):
        proof = original(*arguments, **options)
        shard = next(tmp_path.glob(f".out.partial-*/{SHARD}"))
        data = bytearray(shard.read_bytes())
        data[-1] ^= 1
        shard.write_bytes(data)
        return proof

    monkeypatch.setattr(convert_module, "compare", flip)
    with pytest.raises(UserError, match="SHA-256"):
        convert_module.copy_model(written, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_checksums_are_what_sha256sum_reads(folder) -> None:
    if shutil.which("sha256sum") is None:
        pytest.skip("no sha256sum here")
    done = subprocess.run(["sha256sum", "-c", CHECKSUMS], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.count(": OK") == len(list(folder.iterdir())) - 1


def test_missing_shard(folder) -> None:
    (folder / SHARD).unlink()
    refused(folder, SHARD, "missing", "index.json names it")


def test_index_that_names_other_places(folder) -> None:
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    for shard in ("../../etc/passwd", "/etc/passwd", 7, "model.bin"):
        index["weight_map"]["lm_head.weight"] = shard
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        refused(folder, "index.json", "not the name of a safetensors file")
    index["weight_map"]["lm_head.weight"] = SHARD
    index["weight_map"]["extra"] = SHARD
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    refused(folder, "extra")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "consolidated.00.pth"])
def test_pickles_only(folder, name) -> None:
    (folder / SHARD).unlink()
    (folder / "model.safetensors.index.json").unlink()
    refused(folder, "no *.safetensors")
    (folder / name).write_bytes(b"cos\nsystem\n(S'echo code from a pickle ran'\ntR.")
    refused(folder, name, "never opened", "safetensors")


def test_quantised_tensors(folder) -> None:
    tensors = load_file(folder / SHARD)
    tensors["lm_head.weight"] = tensors["lm_head.weight"].to(torch.int8)
    save_file(tensors, folder / SHARD)
    refused(folder, "lm_head.weight", "I8")


# ---- writing


def test_an_existing_folder_is_not_touched(folder) -> None:
    before = digests(folder)
    with pytest.raises(UsageError, match="exists already"):
        save(Decoder(tiny_config()).initialise(1), folder)
    assert digests(folder) == before


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_nothing_stays_of_an_interrupted_write(tmp_path, error) -> None:
    with pytest.raises(error), staged_folder(tmp_path / "out") as folder:
        (folder / "half").write_text("written")
        raise error
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_run_left_is_cleared_and_a_living_one_is_not(tmp_path) -> None:
    (tmp_path / ".out.partial-dead").mkdir()
    with staged_folder(tmp_path / "out") as first:
        assert [path.name for path in tmp_path.iterdir()] == [first.name]
        with pytest.raises(UsageError, match="made by someone else meanwhile"):
            with staged_folder(tmp_path / "out") as second:
                (second / "x").write_text("second")
                assert first.exists() and second != first
                (tmp_path / "out").mkdir()
                (tmp_path / "out/x").write_text("a third was faster")
        (tmp_path / "out/x").unlink()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o777 & ~os.umask(os.umask(0o022))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_signals_leave_nothing_behind(tmp_path, number) -> None:
    write_tiny_model(tmp_path / "parent", "llama")
    code = (
        "import os, sys\n"
        "from octavo.checkpoint import writer\n"
        "from octavo.cli import main\n"
        "original = writer._bytes\n"
        f"def late(planned, dtype): os.kill(os.getpid(), {int(number)}); return original(planned, dtype)\n"
        "writer._bytes = late\n"
        f"main(['upcycle', {str(tmp_path / 'parent')!r}, {str(tmp_path / 'out')!r}])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 128 + number
    assert [path.name for path in tmp_path.iterdir()] == ["parent"]


def test_a_full_disk_is_said_before_writing(tmp_path, monkeypatch) -> None:
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("octavo.checkpoint.writer.shutil.disk_usage", lambda _: usage)
    with pytest.raises(UserError, match="0.0 GB free"):
        save(Decoder(tiny_config()).initialise(), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("limit", [100, 10_000, 200_000])
def test_a_disk_that_fills_leaves_nothing(tmp_path, limit) -> None:
    """A file-size limit stands in for the full disk, at three places: config, first and last bytes of the weights."""
    write_tiny_model(tmp_path / "parent", "llama")
    before = digests(tmp_path / "parent")
    code = (
        "import resource, sys\n"
        "from octavo.cli import main\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))\n"
        f"main(['upcycle', {str(tmp_path / 'parent')!r}, {str(tmp_path / 'out')!r}])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert "the disk is full or a size limit was hit" in done.stderr.splitlines()[-1], done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["parent"]
    assert digests(tmp_path / "parent") == before


def test_writing_streams(tmp_path) -> None:
    """Each tensor is let go before the next is read: never more than one is alive."""
    import gc
    import weakref

    alive: list[weakref.ref] = []

    def read() -> torch.Tensor:
        gc.collect()
        assert sum(ref() is not None for ref in alive) == 0
        tensor = torch.ones(64)
        alive.append(weakref.ref(tensor))
        return tensor

    write_weights(tmp_path, [PlannedTensor(str(i), (64,), read) for i in range(5)], torch.float32)
    assert len(alive) == 5
