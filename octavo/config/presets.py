"""Well-known models by name: what their released config.json says, so that their shape can be had without a download.

Fields that change nothing here (dropout, dtype, auto_map, ...) are left out.
"""

from collections.abc import Mapping
from typing import Any

from octavo.config.hf import from_hf
from octavo.config.model import ModelConfig
from octavo.errors import UserError

_MISTRAL_7B = {
    "model_type": "mistral",
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1e4,
    "sliding_window": 4096,  # v0.1 only; later versions have none
    "tie_word_embeddings": False,
    "initializer_range": 0.02,
    "bos_token_id": 1,
    "eos_token_id": 2,
}

_MIXTRAL_8X7B = {
    "model_type": "mixtral",
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1e6,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "router_aux_loss_coef": 0.02,
    "initializer_range": 0.02,
    "bos_token_id": 1,
    "eos_token_id": 2,
}

# v0.1-Instruct, and the base called v0.3; the base v0.1 has the vocabulary of 8x7B
_MIXTRAL_8X22B = _MIXTRAL_8X7B | {
    "vocab_size": 32768,
    "hidden_size": 6144,
    "intermediate_size": 16384,
    "num_hidden_layers": 56,
    "num_attention_heads": 48,
    "max_position_embeddings": 65536,
    "router_aux_loss_coef": 0.001,
}

_MINIMAX_TEXT_01 = {
    "model_type": "minimax_text_01",
    "vocab_size": 200064,
    "hidden_size": 6144,
    "intermediate_size": 9216,
    "num_hidden_layers": 80,
    "attn_type_list": [int(layer % 8 == 7) for layer in range(80)],  # 1 is softmax, 0 is lightning
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "num_local_experts": 32,
    "num_experts_per_tok": 2,
    "shared_intermediate_size": 0,
    "shared_moe_mode": "sigmoid",
    "max_position_embeddings": 10240000,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1e7,
    "rotary_dim": 64,
    "sliding_window": None,
    "postnorm": True,
    "layernorm_full_attention_alpha": 3.5565588200778455,
    "layernorm_full_attention_beta": 1.0,
    "layernorm_linear_attention_alpha": 3.5565588200778455,
    "layernorm_linear_attention_beta": 1.0,
    "layernorm_mlp_alpha": 3.5565588200778455,
    "layernorm_mlp_beta": 1.0,
    "tie_word_embeddings": False,
    "router_aux_loss_coef": 0.001,
    "initializer_range": 0.02,
    "bos_token_id": None,
    "eos_token_id": 200020,  # null in its config.json; the model card says to generate with this one
}

_SMOLLM2_135M = {
    "model_type": "llama",
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1e5,
    "tie_word_embeddings": True,
    "initializer_range": 0.041666666666666664,
    "bos_token_id": 0,  # of the base model; the Instruct one ends its turns with 2
    "eos_token_id": 0,
}

PRESETS: dict[str, Mapping[str, Any]] = {
    "mixtral-8x7b": _MIXTRAL_8X7B,
    "mixtral-8x22b": _MIXTRAL_8X22B,
    "eurux-8x22b": _MIXTRAL_8X22B | {"vocab_size": 32000},  # tuned from the base v0.1
    "minimax-text-01": _MINIMAX_TEXT_01,
    "mistral-7b": _MISTRAL_7B,
    "smollm2-135m": _SMOLLM2_135M,
}


def preset(name: str) -> ModelConfig:
    """The shape of a well-known model. Raises UserError, with the names there are, for another."""
    if name not in PRESETS:
        raise UserError(f"{name!r} is not a preset: choose one of {', '.join(PRESETS)}")
    return from_hf(PRESETS[name], f"preset {name}")
