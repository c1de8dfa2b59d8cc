"""params.json: what its fields mean, what they mean when left out, and what is refused."""

from pathlib import Path

import pytest

from octavo.checkpoint.source import open_source
from octavo.config import from_params
from tests.checkpoint.consolidated_files import edit_params, tiny_decoder, write
from tests.checkpoint.test_folder import refused


@pytest.fixture
def folder(tmp_path) -> Path:
    return write(tmp_path / "model", tiny_decoder())


MISTRAL = {"dim": 4096, "n_layers": 32, "head_dim": 128, "hidden_dim": 14336, "n_heads": 32, "n_kv_heads": 8,
           "norm_eps": 1e-05, "vocab_size": 32000}  # fmt: skip
MOE = {"num_experts_per_tok": 2, "num_experts": 8}


@pytest.mark.parametrize(
    ("changes", "family", "theta", "window", "length"),
    [
        ({"sliding_window": 4096}, "mistral", 1e4, 4096, 32768),  # 7B v0.1
        ({"sliding_window": "4096"}, "mistral", 1e4, 4096, 32768),
        ({"moe": MOE}, "mixtral", 1e6, None, 32768),  # 8x7B: a file without rope_theta
        ({"sliding_window": None, "rope_theta": None}, "mistral", 1e6, None, 32768),
        ({"rope_theta": 5e5, "sliding_window": 64, "max_seq_len": 8192}, "mistral", 5e5, 64, 8192),
        ({"max_position_embeddings": 65536, "max_seq_len": 8192, "moe": None}, "mistral", 1e6, None, 65536),
    ],
)
def test_what_params_mean(changes, family, theta, window, length) -> None:
    config = from_params(MISTRAL | changes)
    assert (config.family, config.rope.theta, config.sliding_window, config.max_positions) == (
        family, theta, window, length,
    )  # fmt: skip
    assert (config.hidden_size, config.num_layers, config.head_dim, config.intermediate_size) == (4096, 32, 128, 14336)
    assert (config.num_heads, config.num_kv_heads, config.norm_eps, config.vocab_size) == (32, 8, 1e-5, 32000)
    assert (config.num_experts, config.top_k) == ((8, 2) if "moe" in changes and changes["moe"] else (0, 0))
    assert config.rope.dim == 128 and (config.bos_token_id, config.eos_token_id) == (1, 2)
    assert not config.tie_embeddings and from_params(MISTRAL | {"tied_embeddings": True}).tie_embeddings


def test_fields_without_effect_are_passed_over(folder) -> None:
    config = open_source(folder).config
    edit_params(folder, max_batch_size=8, dtype="bfloat16", model_type="transformer", activation="silu", lora=None)
    assert open_source(folder).config == config


@pytest.mark.parametrize(
    "field", ["dim", "n_layers", "head_dim", "hidden_dim", "n_heads", "n_kv_heads", "norm_eps", "vocab_size"]
)
def test_missing_field(folder, field) -> None:
    edit_params(folder, **{field: "ABSENT"})
    refused(folder, "params.json", f"the field {field!r} is missing")
    edit_params(folder, **{field: None})
    refused(folder, "params.json", f"the field {field!r} is missing")


@pytest.mark.parametrize(
    ("field", "value"),
    [("dim", "48"), ("dim", -1), ("dim", 48.0), ("n_layers", 0), ("n_layers", 10**9), ("head_dim", 15),
     ("n_kv_heads", 4), ("n_heads", True), ("vocab_size", -1), ("norm_eps", 0), ("norm_eps", "x"),
     ("norm_eps", float("nan")), ("rope_theta", 0), ("rope_theta", float("inf")), ("sliding_window", 0),
     ("sliding_window", "wide"), ("sliding_window", [7, None]), ("tied_embeddings", 1), ("max_seq_len", -8),
     ("max_position_embeddings", "32k"), ("moe", 8), ("activation", "gelu"), ("model_type", "mamba")],
)  # fmt: skip
def test_impossible_value(folder, field, value) -> None:
    edit_params(folder, **{field: value})
    refused(folder, "params.json", f"{field} is {value!r}")


@pytest.mark.parametrize(
    ("moe", "words"),
    [({"num_experts": 5}, "moe.num_experts_per_tok"), ({}, "moe.num_experts"),
     ({"num_experts": 5, "num_experts_per_tok": 6}, "moe.num_experts_per_tok is 6"),
     ({"num_experts": 5, "num_experts_per_tok": 0}, "moe.num_experts_per_tok is 0"),
     ({"num_experts": "5", "num_experts_per_tok": 3}, "moe.num_experts is '5'"),
     ({"num_experts": 5, "num_experts_per_tok": 3, "num_shared_experts": 1}, "moe.num_shared_experts is 1")],
)  # fmt: skip
def test_impossible_mixture(folder, moe, words) -> None:
    edit_params(folder, moe=moe)
    refused(folder, "params.json", words)


@pytest.mark.parametrize(
    ("field", "value"),
    [("lora", {"rank": 64, "scaling": 2.0}), ("vision_encoder", {"hidden_size": 1024}), ("yarn", {"factor": 16}),
     ("quantization", {"qformat_weight": "fp8_e4m3"}), ("multiple_of", 256), ("_sliding_window", 4096),
     ("hidden_size", 4096), ("rope_scaling", {"type": "linear"}), ("use_biases", False)],
)  # fmt: skip
def test_unknown_fields_are_refused(folder, field, value) -> None:
    edit_params(folder, **{field: value})
    refused(folder, "params.json", f"{field} is {value}", "does not know", "take a checkpoint without it")


@pytest.mark.parametrize("text", ["", "{", "[1]", '"x"', "\x00", "null"])
def test_damaged_params(folder, text) -> None:
    (folder / "params.json").write_text(text)
    refused(folder, "params.json")
