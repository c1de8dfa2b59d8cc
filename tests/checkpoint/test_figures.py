"""Figures against independent counts: decoders on the meta device, transformers, and formulas written out by hand."""

import time
from dataclasses import replace
from math import prod

import pytest
import torch

from octavo.checkpoint.figures import model_figures
from octavo.checkpoint.names import tensor_table
from octavo.config import PRESETS, LayerSpec, ModelConfig, from_hf, preset
from octavo.models import Decoder
from tests.tiny import tiny_config

DENSE, EXPERTS = LayerSpec(mlp="dense"), LayerSpec(mlp="experts")
LIGHTNING = LayerSpec(attention="lightning", mlp="experts")


def parameters(decoder: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in decoder.parameters())


def in_the_decoder(config: ModelConfig) -> int:
    with torch.device("meta"):
        return parameters(Decoder(config))


@pytest.mark.parametrize("name", PRESETS)
def test_presets_count_as_the_decoder_does(name) -> None:
    assert model_figures(preset(name)).total_parameters == in_the_decoder(preset(name))


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("llama", {}),
        ("llama", {"tie_embeddings": True}),
        ("mistral", {"num_kv_heads": 1}),
        ("mixtral", {}),
        ("mixtral", {"tie_embeddings": True, "num_experts": 7, "top_k": 1}),
        ("mixtral", {"shared_intermediate_size": 24}),
        ("mixtral", {"layers": (DENSE, EXPERTS, EXPERTS, DENSE, DENSE)}),
        ("minimax", {}),
        ("minimax_text_01", {"shared_intermediate_size": 24, "tie_embeddings": True}),
    ],
)
def test_toy_models_count_as_the_decoder_does(family, changes) -> None:
    config = tiny_config(family, **changes)
    figures = model_figures(config)
    assert figures.total_parameters == in_the_decoder(config)
    # a token uses what a decoder with only its top-k experts would hold, and the router's rows of the others
    chosen = replace(config, num_experts=config.top_k)
    routers = sum(layer.mlp == "experts" for layer in config.layers)
    other_rows = routers * (config.num_experts - config.top_k) * config.hidden_size
    assert figures.active_parameters == in_the_decoder(chosen) + other_rows


def test_layers_are_counted_one_by_one() -> None:
    config = tiny_config("mixtral", layers=(DENSE, EXPERTS, EXPERTS))
    with torch.device("meta"):
        layers = Decoder(config).layers
    figures = model_figures(config)
    assert [layer.parameters for layer in figures.layers] == [parameters(layer) for layer in layers]
    unchosen = 2 * 3 * 40 * 48  # experts not chosen, matrices, widths
    assert [layer.parameters - layer.active_parameters for layer in figures.layers] == [0, unchosen, unchosen]


@pytest.mark.parametrize(
    ("name", "hidden", "inner", "layers", "vocabulary", "total", "active"),
    [
        ("mixtral-8x7b", 4096, 14336, 32, 32000, "46.70", "12.88"),
        ("mixtral-8x22b", 6144, 16384, 56, 32768, "140.63", "39.16"),
        ("eurux-8x22b", 6144, 16384, 56, 32000, "140.62", "39.15"),
    ],
)
def test_mixtrals_by_hand(name, hidden, inner, layers, vocabulary, total, active) -> None:
    figures = model_figures(preset(name))
    attention = 2 * hidden * hidden + 2 * hidden * 8 * 128
    outside = 2 * vocabulary * hidden + hidden

    def count(experts: int) -> int:
        return outside + layers * (attention + 2 * hidden + 8 * hidden + experts * 3 * hidden * inner)

    assert (figures.total_parameters, figures.active_parameters) == (count(8), count(2))
    assert (f"{count(8) / 1e9:.2f}", f"{count(2) / 1e9:.2f}") == (total, active)


def test_minimax_text_01_by_hand() -> None:
    figures = model_figures(preset("minimax-text-01"))
    hidden, heads, expert = 6144, 64 * 128, 3 * 6144 * 9216
    lightning = 3 * heads * hidden + heads * hidden + hidden * heads + heads  # qkv, gate, out, norm
    softmax = 2 * heads * hidden + 2 * 8 * 128 * hidden
    every_layer = 2 * hidden + 32 * hidden  # norms and router
    embeddings = 2 * 200064 * hidden

    def count(experts: int) -> int:
        return 70 * lightning + 10 * softmax + 80 * (every_layer + experts * expert) + embeddings + hidden

    assert (figures.total_parameters, figures.active_parameters) == (count(32), count(2))
    assert figures.embedding_parameters == embeddings
    published = (f"{count(32) / 1e9:.2f}", f"{count(2) / 1e9:.1f}", f"{(count(2) - embeddings) / 1e9:.2f}")
    assert published == ("456.09", "48.4", "45.94")


@pytest.mark.parametrize("tied", [False, True])
def test_toy_minimax_counts_as_transformers_does(tied) -> None:
    transformers = pytest.importorskip("transformers")
    kinds = ["linear_attention", "linear_attention", "full_attention", "linear_attention"]
    theirs = transformers.MiniMaxConfig(
        vocab_size=331, hidden_size=48, intermediate_size=40, num_hidden_layers=4, num_attention_heads=6, head_dim=16,
        num_key_value_heads=3, num_local_experts=5, num_experts_per_tok=3, layer_types=kinds, block_size=8,
        tie_word_embeddings=tied,
    )  # fmt: skip
    with torch.device("meta"):
        model = transformers.MiniMaxForCausalLM(theirs)
    model.tie_weights()
    figures = model_figures(from_hf(theirs.to_dict()))
    assert figures.total_parameters == parameters(model)
    assert figures.total_parameters - figures.active_parameters == 4 * 2 * 3 * 40 * 48
    assert [layer.parameters for layer in figures.layers] == [parameters(layer) for layer in model.model.layers]


def test_shared_expert_of_a_hybrid() -> None:
    config = tiny_config("minimax_text_01", layers=(LIGHTNING, EXPERTS), num_experts=5, top_k=3,
                         shared_intermediate_size=24)  # fmt: skip
    figures, without = model_figures(config), model_figures(replace(config, shared_intermediate_size=0))
    assert figures.total_parameters == sum(prod(entry.shape) for entry in tensor_table(config).values())
    shared = 2 * (3 * 24 * 48 + 48)  # layers, matrices and coefficient
    assert figures.total_parameters - without.total_parameters == shared
    assert figures.active_parameters - without.active_parameters == shared


@pytest.mark.parametrize(
    ("name", "kv", "state"),
    [
        ("mixtral-8x7b", 131_072, 0),
        ("mixtral-8x22b", 229_376, 0),
        ("minimax-text-01", 40_960, 280 * 2**20),
        ("smollm2-135m", 30 * 2 * 3 * 64 * 2, 0),
    ],
)
def test_memory_of_tokens_and_sequences(name, kv, state) -> None:
    figures = model_figures(preset(name))
    assert (figures.kv_bytes_per_token, figures.state_bytes_per_sequence) == (kv, state)
    assert figures.kv_bytes_at_full_context == kv * preset(name).max_positions


def test_a_window_bounds_what_a_sequence_reads() -> None:
    figures = model_figures(preset("mistral-7b"))
    assert (figures.kv_bytes_per_token, figures.kv_bytes_at_full_context) == (131_072, 512 * 2**20)
    narrow = replace(preset("mistral-7b"), max_positions=1000)
    assert model_figures(narrow).kv_bytes_at_full_context == 131_072_000


def test_a_damaged_number_of_experts_costs_nothing() -> None:
    began = time.perf_counter()
    figures = model_figures(tiny_config("mixtral", num_experts=10**6))
    assert figures.total_parameters > 10**9
    assert time.perf_counter() - began < 0.5  # a table of every expert takes many seconds
