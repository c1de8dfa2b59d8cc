"""Presets against what others say of the same models: transformers' defaults, a released GGUF, published counts."""

from dataclasses import replace

import pytest

from octavo.checkpoint.gguf_source import GGUFSource
from octavo.config import PRESETS, LayerSpec, from_hf, preset, to_hf
from octavo.errors import UserError


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_survives_its_config_json(name) -> None:
    assert from_hf(to_hf(preset(name))) == preset(name)


def test_transformers_defaults_are_the_two_models_they_were_named_after() -> None:
    transformers = pytest.importorskip("transformers")
    mistral = from_hf(transformers.MistralConfig().to_dict())
    # newer defaults than the v0.1 release: its file says 32768 and 1e-5
    assert replace(mistral, max_positions=32768, norm_eps=1e-5) == preset("mistral-7b")
    mixtral = from_hf(transformers.MixtralConfig().to_dict())
    assert replace(mixtral, max_positions=32768, router_aux_loss_coef=0.02) == preset("mixtral-8x7b")


def test_smollm2_is_the_released_one(smollm2_gguf) -> None:
    # the GGUF is the Instruct model: other special tokens, and no room for initializer_range
    special = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": None, "initializer_range": 1 / 24}
    assert replace(GGUFSource(smollm2_gguf).config, **special) == preset("smollm2-135m")


def test_the_larger_mixtrals() -> None:
    large, tuned = preset("mixtral-8x22b"), preset("eurux-8x22b")
    assert (large.hidden_size, large.intermediate_size, large.num_layers, large.num_heads) == (6144, 16384, 56, 48)
    assert (large.num_kv_heads, large.head_dim, large.max_positions, large.rope.theta) == (8, 128, 65536, 1e6)
    assert (large.vocab_size, large.router_aux_loss_coef, large.sliding_window) == (32768, 0.001, None)
    assert tuned == replace(large, vocab_size=32000)


def test_minimax_text_01() -> None:
    config = preset("minimax-text-01")
    assert config.softmax_layers == (7, 15, 23, 31, 39, 47, 55, 63, 71, 79)
    assert set(config.layers) == {LayerSpec(attention="softmax", mlp="experts"), LayerSpec(attention="lightning",
                                                                                          mlp="experts")}  # fmt: skip
    deepnorm = ((2 * 80) ** 0.25, 1.0)  # (2N)^(1/4) of arXiv 2501.08313, section 4.2
    residual = config.residual
    assert (residual.softmax, residual.lightning, residual.mlp, residual.post_norm) == (deepnorm,) * 3 + (True,)
    assert (config.rope.dim, config.head_dim, config.rope.theta) == (64, 128, 1e7)
    assert (config.max_positions, config.vocab_size, config.eos_token_ids) == (10_240_000, 200_064, (200020,))
    assert (config.num_experts, config.top_k, config.shared_intermediate_size) == (32, 2, 0)


def test_an_unknown_name_lists_the_presets() -> None:
    with pytest.raises(UserError, match="'gpt-5' is not a preset.*mixtral-8x7b.*minimax-text-01.*smollm2-135m"):
        preset("gpt-5")
