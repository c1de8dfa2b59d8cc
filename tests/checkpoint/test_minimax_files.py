"""MiniMax-Text-01's files in both layouts: round trips, what is ignored, and every contradiction as one clear line."""

import json
import logging
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from octavo.checkpoint.folder import FolderSource
from octavo.checkpoint.load import load, load_decoder
from octavo.checkpoint.save import save
from octavo.checkpoint.source import open_source
from octavo.config import ResidualConfig, RopeConfig, from_hf, preset, to_hf
from octavo.errors import UserError
from octavo.models import Decoder
from tests.checkpoint.test_folder import SHARD, digests, edit_config, refused
from tests.tiny import HYBRIDS, tiny_config, tiny_tokenizer_files, write_tiny_model

IDS = torch.randint(331, (40,), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def folder(tmp_path) -> Path:
    """The official layout."""
    write_tiny_model(tmp_path / "model", "minimax_text_01")
    return tmp_path / "model"


def logits(folder: Path) -> torch.Tensor:
    decoder = load_decoder(FolderSource(folder))
    with torch.no_grad():
        return decoder.logits(decoder(IDS).hidden)


def edit_tensors(folder: Path, **changes: torch.Tensor | None) -> None:
    """Add or replace tensors by name (two underscores stand for a dot), or take them away (None)."""
    tensors = load_file(folder / SHARD)
    for name, tensor in changes.items():
        tensors.pop(name.replace("__", "."), None)
        if tensor is not None:
            tensors[name.replace("__", ".")] = tensor
    (folder / "model.safetensors.index.json").unlink(missing_ok=True)
    save_file(tensors, folder / SHARD)


# ---- round trips


@pytest.mark.parametrize("family", HYBRIDS)
@pytest.mark.parametrize("changes", [{}, {"tie_embeddings": True}, {"num_experts": 12, "top_k": 1}], ids=str)
def test_saved_loaded_and_saved_again_bit_for_bit(family, changes, tmp_path) -> None:
    decoder = write_tiny_model(tmp_path / "first/model", family, **changes)
    loaded, tokenizer = load(tmp_path / "first/model")
    assert loaded.config == decoder.config and tokenizer.eos_ids == {2}
    save(loaded, tmp_path / "second/model", tiny_tokenizer_files())
    first, second = (digests(tmp_path / name / "model") for name in ("first", "second"))
    assert first == second and SHARD in first and "config.json" in first


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"residual": ResidualConfig(lightning=(1.5, 1.0))},  # pre-norm
        {"shared_intermediate_size": 24},
        {"rope": RopeConfig(theta=1e7, dim=16)},
        {"sliding_window": 9, "eos_token_id": (2, 5), "bos_token_id": None},
    ],
    ids=str,
)
def test_config_round_trip_of_the_official_layout(changes) -> None:
    config = tiny_config("minimax_text_01", **changes)
    hf = json.loads(json.dumps(to_hf(config)))
    assert from_hf(hf) == config
    assert hf["architectures"] == ["MiniMaxText01ForCausalLM"] and hf["attn_type_list"] == [0, 0, 1, 0, 1]
    assert to_hf(from_hf(hf)) == hf


def test_config_round_trip_of_transformers_layout() -> None:
    config = tiny_config("minimax", rope=RopeConfig(theta=1e6, dim=16))
    hf = json.loads(json.dumps(to_hf(config)))
    assert from_hf(hf) == config and hf["layer_types"][2] == "full_attention" and hf["mlp_alpha_factor"] == 1.9
    hf["rope_parameters"] = {"rope_type": "default", "rope_theta": hf.pop("rope_theta")}
    assert from_hf(hf) == config


def test_the_two_layouts_describe_one_model(tmp_path) -> None:
    """Eight heads, for which both have the same slopes; half of each head is rotated."""
    shape = {"num_heads": 8, "num_kv_heads": 2}
    for family in HYBRIDS:
        write_tiny_model(tmp_path / family, family, seed=3, **shape)
    assert torch.equal(*(logits(tmp_path / family) for family in HYBRIDS))
    official, theirs = (FolderSource(tmp_path / family).config for family in reversed(HYBRIDS))
    assert official.layers == theirs.layers and official.residual == theirs.residual and official.rope == theirs.rope


def test_the_released_config_as_its_copy_has_it() -> None:
    """Fields of the official config.json, from the model of the same base whose copy is public."""
    hf = {
        "architectures": ["MiniMaxText01ForCausalLM"], "model_type": "MiniMaxText01", "hidden_act": "silu",
        "attn_type_list": [0, 0, 0, 0, 0, 0, 0, 1] * 10, "bos_token_id": None, "eos_token_id": None, "head_dim": 128,
        "hidden_size": 6144, "initializer_range": 0.02, "intermediate_size": 9216, "attention_dropout": 0.0,
        "layernorm_full_attention_alpha": 3.5565588200778455, "layernorm_full_attention_beta": 1.0,
        "layernorm_linear_attention_alpha": 3.5565588200778455, "layernorm_linear_attention_beta": 1.0,
        "layernorm_mlp_alpha": 3.5565588200778455, "layernorm_mlp_beta": 1.0, "max_position_embeddings": 10240000,
        "num_attention_heads": 64, "num_experts_per_tok": 2, "num_hidden_layers": 80, "num_key_value_heads": 8,
        "num_local_experts": 32, "output_router_logits": False, "postnorm": True, "rms_norm_eps": 1e-05,
        "rope_theta": 10000000, "rotary_dim": 64, "router_aux_loss_coef": 0.001, "router_jitter_noise": 0.0,
        "shared_intermediate_size": 0, "shared_moe_mode": "sigmoid", "sliding_window": None,
        "tie_word_embeddings": False, "transformers_version": "4.45.2", "use_cache": True, "vocab_size": 200064,
        "auto_map": {"AutoModelForCausalLM": "modeling_minimax_text_01.MiniMaxText01ForCausalLM"},
    }  # fmt: skip
    config, released = from_hf(hf), preset("minimax-text-01")
    assert config.lightning_layers == tuple(layer for layer in range(80) if layer % 8 != 7)
    for field in ("layers", "residual", "rope", "num_experts", "top_k", "head_dim", "norm_eps", "max_positions"):
        assert getattr(config, field) == getattr(released, field), field


# ---- what is passed over


def test_what_a_config_means_that_leaves_fields_out() -> None:
    """The defaults of MiniMax's configuration class, and of `getattr` in its model."""
    hf = {"model_type": "minimax_text_01", "vocab_size": 331, "hidden_size": 64, "intermediate_size": 40,
          "num_hidden_layers": 2, "num_attention_heads": 16, "attn_type_list": [0, 1]}  # fmt: skip
    config = from_hf(hf)
    assert config.residual == ResidualConfig() and config.rope == RopeConfig(theta=1e6, dim=4)
    assert (config.num_kv_heads, config.norm_eps, config.max_positions) == (8, 1e-5, 131072)
    assert (config.num_experts, config.top_k, config.shared_intermediate_size) == (8, 2, 0)
    assert from_hf({**hf, "shared_intermediate_size": 4}).shared_intermediate_size == 4
    theirs = {**hf, "model_type": "minimax", "layer_types": ["linear_attention", "full_attention"]}
    assert from_hf(theirs) == replace(config, family="minimax", residual=ResidualConfig(post_norm=True))


def test_fields_of_both_layouts_may_stand_together_if_they_agree(folder) -> None:
    expected = FolderSource(folder).config
    edit_config(folder, layer_types=[{0: "linear_attention", 1: "full_attention"}[kind] for kind in (0, 0, 1, 0, 1)],
                mlp_alpha_factor=1.9, rope_parameters={"rotary_dim": 8, "partial_rotary_factor": None})  # fmt: skip
    assert FolderSource(folder).config == expected
    edit_config(folder, rotary_dim="ABSENT", partial_rotary_factor=0.5)
    assert FolderSource(folder).config == expected
    edit_config(folder, partial_rotary_factor="ABSENT", rope_parameters={"partial_rotary_factor": 0.5})
    assert FolderSource(folder).config == expected


def test_auto_map_is_ignored_with_a_notice(folder, caplog) -> None:
    expected = logits(folder)
    (folder / "evil.py").write_text("raise SystemExit('code from a checkpoint ran')")
    edit_config(folder, auto_map={"AutoModelForCausalLM": "evil.MiniMaxText01ForCausalLM"}, model_type="MiniMaxText01")
    with caplog.at_level(logging.WARNING):
        assert torch.equal(logits(folder), expected)
    assert [record.getMessage().count("auto_map is ignored") for record in caplog.records] == [1]


def test_decay_buffers_are_ignored_even_where_they_are_wrong(folder) -> None:
    expected = logits(folder)
    wrong = {"slope_rate": (6, 1, 1), "query_decay": (6, 256, 1), "key_decay": (6, 256, 1),
             "diagonal_decay": (1, 6, 256, 256)}  # fmt: skip
    edit_tensors(folder, **{f"model__layers__0__self_attn__{name}": torch.ones(shape) for name, shape in wrong.items()})
    assert torch.equal(logits(folder), expected)


def test_writing_a_partial_rotary_for_transformers_warns(tmp_path, caplog) -> None:
    with caplog.at_level(logging.WARNING):
        write_tiny_model(tmp_path / "whole", "minimax", rope=RopeConfig(theta=1e4, dim=16))
        assert not caplog.records
        write_tiny_model(tmp_path / "half", "minimax")
    assert any("ignores rotary_dim (8 of 16)" in record.getMessage() for record in caplog.records)


def test_rotary_dim_is_the_switch_for_whole_heads(folder) -> None:
    half = logits(folder)
    edit_config(folder, rotary_dim=16)
    whole = logits(folder)
    edit_config(folder, rotary_dim="ABSENT")
    assert torch.equal(whole, logits(folder)) and (whole - half).abs().max() > 0.01
    edit_config(folder, rotary_dim="ABSENT", partial_rotary_factor=0.5)
    assert torch.equal(half, logits(folder))


# ---- bad input


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"attn_type_list": "ABSENT"}, ["attn_type_list is None", "0 (lightning) or 1 (softmax)"]),
        ({"attn_type_list": "0,0,1"}, ["attn_type_list is '0,0,1'", "a list"]),
        ({"attn_type_list": [0, 1]}, ["length of attn_type_list is 2", "num_hidden_layers is 5"]),
        ({"attn_type_list": []}, ["length of attn_type_list is 0"]),
        ({"attn_type_list": [0, 0, 2, 0, 1]}, ["attn_type_list[2] is 2", "0 (lightning) or 1 (softmax)"]),
        ({"attn_type_list": [0, 0, True, 0, 1]}, ["attn_type_list[2] is True"]),
        ({"attn_type_list": [0, 0, [1], 0, 1]}, ["attn_type_list[2] is [1]"]),
        ({"attn_type_list": [0, 0, "full_attention", 0, 1]}, ["attn_type_list[2] is 'full_attention'"]),
        ({"rotary_dim": 7}, ["rotary dim is 7", "even"]),
        ({"rotary_dim": 18}, ["rotary dim is 18", "at most head_dim (16)"]),
        ({"rotary_dim": "8"}, ["rotary_dim is '8'", "integer"]),
        ({"partial_rotary_factor": 0.25}, ["rotary_dim is 8", "0.25", "is 4"]),
        ({"rope_parameters": {"rotary_dim": 6}}, ["rotary_dim is 8 and rotary_dim is 6"]),
        ({"rope_parameters": {"partial_rotary_factor": 0.25}}, ["rotary_dim is 8", "0.25", "is 4"]),
        ({"partial_rotary_factor": 0.3, "rotary_dim": "ABSENT"}, ["0.3 of head_dim 16 is 4.8", "whole number"]),
        ({"partial_rotary_factor": -1}, ["partial_rotary_factor is -1"]),
        ({"layernorm_mlp_alpha": "big"}, ["layernorm_mlp_alpha is 'big'", "number"]),
        ({"layernorm_mlp_beta": float("inf")}, ["layernorm_mlp_beta is inf", "finite"]),
        ({"layernorm_mlp_alpha": "ABSENT", "mlp_alpha_factor": 3.5},
         ["mlp_alpha_factor is 3.5", "layernorm_mlp_alpha, which is 1.0"]),
        ({"model_type": "minimax"}, ["layer_types is None", "linear_attention"]),
        ({"full_attn_beta_factor": 7}, ["full_attn_beta_factor is 7", "layernorm_full_attention_beta, which is 1.1"]),
        ({"layer_types": ["linear_attention"] * 5}, ["layer_types contradicts attn_type_list", "remove it"]),
        ({"layer_types": ["linear"] * 5}, ["layer_types[0] is 'linear'"]),
        ({"shared_intermediate_size": -4}, ["shared_intermediate_size is -4"]),
        ({"postnorm": 1}, ["postnorm is 1", "true or false"]),
        ({"shared_intermediate_size": 8, "shared_moe_mode": "softmax"}, ["shared_moe_mode is 'softmax'", "sigmoid"]),
        ({"shared_intermediate_size": [8]}, ["shared_intermediate_size is [8]"]),
        ({"router_jitter_noise": 0.1}, ["router_jitter_noise is 0.1"]),
    ],
)  # fmt: skip
def test_impossible_configs(folder, changes, words) -> None:
    edit_config(folder, **changes)
    refused(folder, "config.json", *words)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"layer_types": "ABSENT"}, ["layer_types is None", "'linear_attention' (lightning)"]),
        ({"layer_types": ["linear_attention"] * 4 + ["sliding_attention"]},
         ["layer_types[4] is 'sliding_attention'", "full_attention"]),
        ({"attn_type_list": [1] * 5}, ["attn_type_list contradicts layer_types", "model_type minimax"]),
        ({"layernorm_mlp_alpha": 3.5}, ["layernorm_mlp_alpha is 3.5", "mlp_alpha_factor, which is 1.9"]),
        ({"postnorm": False}, ["postnorm is False", "always post-norm"]),
        ({"shared_intermediate_size": 4}, ["shared_intermediate_size is 4", "has none"]),
    ],
)  # fmt: skip
def test_impossible_configs_of_transformers_layout(tmp_path, changes, words) -> None:
    write_tiny_model(tmp_path / "model", "minimax")
    edit_config(tmp_path / "model", **changes)
    refused(tmp_path / "model", "config.json", *words)


def test_a_wrong_number_of_slopes(folder) -> None:
    edit_tensors(folder, model__layers__0__self_attn__slope_rate=torch.ones(8, 1, 1))
    refused(folder, "slope_rate", "[8, 1, 1]", "num_attention_heads in config.json is 6")


@pytest.mark.parametrize("name", ["qkv_proj", "output_gate", "out_proj", "norm"])
def test_missing_lightning_tensors(folder, name) -> None:
    edit_tensors(folder, **{f"model__layers__1__self_attn__{name}__weight": None})
    refused(folder, f"model.layers.1.self_attn.{name}.weight is missing")


def test_left_over_tensors(folder) -> None:
    edit_tensors(folder, model__layers__0__coefficient__weight=torch.ones(1, 48))
    refused(folder, "1 tensors belong to nothing", "model.layers.0.coefficient.weight")


def test_a_pattern_that_belongs_to_other_weights(folder) -> None:
    edit_config(folder, attn_type_list=[0, 1, 0, 0, 1])
    refused(folder, "model.layers.1.self_attn.q_proj.weight is missing")


def test_a_tensor_of_another_shape(folder) -> None:
    edit_tensors(folder, model__layers__0__self_attn__qkv_proj__weight=torch.ones(96, 48))
    refused(folder, "qkv_proj", "[96, 48]", "[288, 48]")


def test_transformers_layout_cannot_hold_everything(tmp_path) -> None:
    for changes in ({"shared_intermediate_size": 8}, {"residual": ResidualConfig()}):
        with pytest.raises(UserError, match="neither a shared expert nor a pre-norm residual"):
            save(Decoder(tiny_config("minimax", **changes)).initialise(), tmp_path / "out")
    for changes in ({"layers": tiny_config("minimax").layers}, {"residual": ResidualConfig(post_norm=True)}):
        with pytest.raises(UserError, match="mixtral config.json cannot express"):
            save(Decoder(tiny_config("mixtral", **changes)).initialise(), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_open_source_takes_the_folder(folder) -> None:
    assert open_source(folder).config.family == "minimax_text_01"
