"""octavo inspect: every kind of MODEL, the table, the JSON, the mistakes, and that it stays quick and small."""

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from octavo.checkpoint.figures import model_figures
from octavo.checkpoint.inspect import inspect
from octavo.cli.figures_table import amount, figures_table, memory, ranges
from octavo.config import PRESETS, LayerSpec, preset, to_hf
from octavo.errors import UserError
from tests.checkpoint import consolidated_files
from tests.checkpoint import test_gguf as toy_gguf
from tests.cli.test_cli import octavo, refused
from tests.tiny import tiny_config, write_tiny_model

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def folder(tmp_path) -> Path:
    write_tiny_model(tmp_path / "tiny", "mixtral")
    return tmp_path / "tiny"


def write_config(folder: Path, **changes: object) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(to_hf(tiny_config("mixtral")) | changes))
    return folder


# ---- kinds of MODEL


def test_a_folder_with_weights_and_its_config_alone(folder, tmp_path) -> None:
    whole = inspect(str(folder))
    assert (whole.config, whole.kind, whole.weights_checked) == (tiny_config("mixtral"), "folder", True)
    alone = inspect(str(write_config(tmp_path / "alone")))
    assert (alone.config, alone.kind, alone.weights_checked) == (whole.config, "folder without weights", False)


@pytest.mark.parametrize("layout", ["dense", "per-expert", "stacked"])
def test_mistrals_layout_with_weights_and_without(tmp_path, layout) -> None:
    decoder = consolidated_files.tiny_decoder(layout)
    path = consolidated_files.write(tmp_path / "mistral", decoder, layout)
    found = inspect(str(path))
    assert (found.kind, found.weights_checked) == ("folder", True) and found.config.layers == decoder.config.layers
    (path / consolidated_files.WHOLE).unlink()
    assert inspect(str(path)) == replace(found, kind="folder without weights", weights_checked=False)


def test_an_index_without_its_shards_is_no_weights(tmp_path) -> None:
    path = write_config(tmp_path / "index")
    (path / "model.safetensors.index.json").write_text('{"weight_map": {"a": "model-00001-of-00001.safetensors"}}')
    (path / "consolidated.safetensors").write_bytes(b"Mistral's second copy")
    assert inspect(str(path)).kind == "folder without weights"


@pytest.mark.parametrize("experts", [0, toy_gguf.EXPERTS])
def test_a_gguf(tmp_path, experts) -> None:
    tensors = toy_gguf.model(experts)
    path = toy_gguf.write(tmp_path / "toy.gguf", toy_gguf.metadata(experts), toy_gguf.stored_form(tensors, experts > 0))
    found = inspect(str(path))
    assert (found.kind, found.weights_checked) == ("GGUF file", True)
    assert model_figures(found.config).total_parameters == sum(values.size for values in tensors.values())


def test_an_existing_path_wins_over_a_preset(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert inspect("mixtral-8x7b").config == preset("mixtral-8x7b")
    write_config(tmp_path / "mixtral-8x7b")
    assert inspect("mixtral-8x7b").config == tiny_config("mixtral")


# ---- what is printed


def test_json(capsys) -> None:
    status, out, _ = octavo(capsys, "inspect", "minimax-text-01", "--json")
    found = json.loads(out)
    expected = {
        "model": "minimax-text-01", "kind": "preset", "weights_checked": False, "family": "minimax_text_01",
        "total_parameters": 456_089_655_296, "active_parameters": 48_403_306_496,
        "active_parameters_without_embeddings": 45_944_920_064, "embedding_parameters": 2_458_386_432,
        "kv_bytes_per_token": 40_960, "state_bytes_per_sequence": 280 * 2**20, "context": 10_240_000,
        "vocab_size": 200_064, "num_layers": 80, "num_experts": 32, "top_k": 2, "rotary_dim": 64,
        "sliding_window": None, "tied_embeddings": False, "rope_theta": 1e7, "num_heads": 64, "num_kv_heads": 8,
        "head_dim": 128, "hidden_size": 6144, "intermediate_size": 9216, "shared_intermediate_size": 0,
    }  # fmt: skip
    assert status == 0 and {name: found[name] for name in expected} == expected
    layers = found["layers"]
    assert [layer["layer"] for layer in layers] == list(range(80))
    assert [layer["layer"] for layer in layers if layer["attention"] == "softmax"] == list(range(7, 80, 8))
    assert {layer["mlp"] for layer in layers} == {"experts"}
    outside = found["embedding_parameters"] + 6144  # and the final norm
    assert sum(layer["parameters"] for layer in layers) + outside == found["total_parameters"]
    assert sum(layer["active_parameters"] for layer in layers) + outside == found["active_parameters"]
    for figure in ("kv_bytes_per_token", "state_bytes_per_sequence"):
        assert sum(layer[figure] for layer in layers) == found[figure]


def test_the_table(capsys) -> None:
    status, out, _ = octavo(capsys, "inspect", "minimax-text-01")
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert status == 0
    for line in (
        "minimax-text-01 (preset)",
        "family minimax_text_01",
        "parameters 456.09 B",
        "active per token 48.40 B (10.6%); 45.94 B without embedding and head",
        "embedding and head 2.46 B",
        "keys and values 40,960 bytes per token held (bf16)",
        "recurrent state 280 MiB per sequence of any length (fp32)",
        "context 10,240,000 tokens",
        "vocabulary 200,064 tokens",
        "70 lightning, 32 experts (2 chosen) 5.69 B 591.61 M 398.14 B 41.41 B",
        "0-6, 8-14, 16-22, 24-30, 32-38, 40-46, 48-54, 56-62, 64-70, 72-78",
        "10 softmax, 32 experts (2 chosen) 5.55 B 453.19 M 55.49 B 4.53 B",
        "7, 15, 23, 31, 39, 47, 55, 63, 71, 79",
        "model 456.09 B 48.40 B",
    ):
        assert line in lines, line


def test_the_page_shows_what_is_printed(capsys) -> None:
    page = (ROOT / "docs/inspect.md").read_text()
    assert octavo(capsys, "inspect", "minimax-text-01")[1] in page
    layers = json.loads(octavo(capsys, "inspect", "minimax-text-01", "--json")[1])["layers"]
    assert json.dumps(layers[7]) in page
    assert all(f"`{name}`" in page for name in PRESETS)


def test_the_table_of_a_dense_model_with_a_window(capsys) -> None:
    out = octavo(capsys, "inspect", "mistral-7b")[1]
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert "attention window the last 4,096 tokens" in lines and "in the window 512 MiB per sequence" in lines
    assert "32 softmax, dense 218.11 M 218.11 M 6.98 B 6.98 B" in lines
    assert "recurrent state" not in out and "experts" not in out.split("Every tensor")[0]
    assert "embedding, also the head" in octavo(capsys, "inspect", "smollm2-135m")[1]


def test_checked_weights_are_said_to_be(folder, capsys) -> None:
    agree = "stored names and shapes agree"
    assert agree in octavo(capsys, "inspect", folder)[1]
    assert agree not in octavo(capsys, "inspect", "mixtral-8x7b")[1]


def widest() -> list:
    spec = LayerSpec(attention="lightning", mlp="experts")
    many = replace(preset("minimax-text-01"), layers=(spec, LayerSpec()) * 5000, num_experts=512, top_k=64,
                   shared_intermediate_size=9216, sliding_window=4096)  # fmt: skip
    return [*map(preset, PRESETS), many]


@pytest.mark.parametrize("config", widest(), ids=[*PRESETS, "widest"])
def test_the_table_is_plain_and_fits(config) -> None:
    text = figures_table(model_figures(config), "name", "preset", True)
    assert text.isascii() and text.replace("\n", "").isprintable()
    assert max(map(len, text.splitlines())) <= 80


def test_numbers_for_people() -> None:
    assert [amount(n) for n in (999, 6144, 134_515_008, 456_089_655_296)] == ["999", "6.14 K", "134.52 M", "456.09 B"]
    assert [memory(n) for n in (5, 2**10, 280 * 2**20, 419_430_400_000)] == ["5 bytes", "1 KiB", "280 MiB", "390.6 GiB"]
    assert [ranges(n) for n in ([0], [0, 1, 2], [0, 1, 3, 5, 6])] == ["0", "0-2", "0-1, 3, 5-6"]


def test_help_names_every_preset(capsys) -> None:
    text = " ".join(octavo(capsys, "inspect", "--help")[1].split())
    assert all(name in text for name in PRESETS)


# ---- mistakes


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("mixtral-9x9b", ("mixtral-9x9b: no such folder or file", "no preset", "mixtral-8x7b", "owner/name")),
        ("{}/absent", ("absent: no such folder or file",)),
        ("{}/empty", ("empty: config.json is missing",)),
        ("{}/damaged", ("config.json: damaged JSON",)),
        ("{}/odd", ("config.json: num_attention_heads is 'six': expected an integer",)),
        ("{}/unknown", ("model_type 'gpt2' is not supported",)),
        ("{}/tiny/config.json", ("not a GGUF file",)),
        ("{}/wrong", ("has shape [331, 48], config.json implies [332, 48]",)),
    ],
)
def test_mistakes(folder, tmp_path, capsys, model, words) -> None:
    (tmp_path / "empty").mkdir()
    (write_config(tmp_path / "damaged") / "config.json").write_text('{"model_type": "llama"')
    write_config(tmp_path / "odd", num_attention_heads="six")
    write_config(tmp_path / "unknown", model_type="gpt2")
    wrong = write_config(tmp_path / "wrong", vocab_size=332)
    for file in folder.glob("*.safetensors"):
        (wrong / file.name).write_bytes(file.read_bytes())
    refused(octavo(capsys, "inspect", model.format(tmp_path)), 1, *words)


def test_a_damaged_shard_is_refused(folder) -> None:
    for file in folder.glob("*.safetensors"):
        file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(UserError, match="truncated or damaged"):
        inspect(str(folder))


# ---- weight

SCRIPT = """
import sys
from octavo.cli import main
try:
    main(sys.argv[1:])
finally:
    # not ru_maxrss: that one starts at the resident size of the process that forked this one
    print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")), file=sys.stderr)
    print("torch" in sys.modules, file=sys.stderr)
"""


def test_456_billion_parameters_take_seconds_and_little_memory() -> None:
    environment = {**os.environ, "FORCE_COLOR": "1"}
    began = time.perf_counter()
    command = [sys.executable, "-c", SCRIPT, "inspect", "minimax-text-01"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment,
                          cwd=ROOT)  # fmt: skip
    seconds = time.perf_counter() - began
    assert done.returncode == 0 and "456.09 B" in done.stdout, done.stderr
    peak, torch = done.stderr.split()
    print(f"{seconds:.2f} s, peak {int(peak) / 1024:.0f} MiB")
    assert seconds < 5 and int(peak) < 2**20
    assert torch == "False"  # a preset needs none
    assert "\x1b" not in done.stdout
