"""How large a model is, from its config alone: parameters, what a token uses of them, memory per token and sequence.

Counted is every tensor of the checkpoint, routers and norms included, a tied head once. Active is all of that but the
experts that a token is not sent to; embedding and head count in full, as the field does, though a token reads one row.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from math import prod
from typing import Any

from octavo.checkpoint.names import TensorEntry, tensor_table
from octavo.config import LayerSpec, ModelConfig

BF16_BYTES = 2  # a weight, key or value
FP32_BYTES = 4  # an entry of a recurrent state, whatever the model's dtype


@dataclass(frozen=True)
class LayerFigures:
    """One layer: its parameters, and the bytes it keeps for each token (bf16) and for each sequence (fp32)."""

    spec: LayerSpec
    parameters: int
    active_parameters: int
    kv_bytes_per_token: int
    state_bytes_per_sequence: int


@dataclass(frozen=True)
class ModelFigures:
    """A whole model. `embedding_parameters` are the input embedding and the head, once if they are tied."""

    config: ModelConfig
    layers: tuple[LayerFigures, ...]
    embedding_parameters: int
    final_norm_parameters: int

    @property
    def total_parameters(self) -> int:
        """Every parameter."""
        return self._outside + sum(layer.parameters for layer in self.layers)

    @property
    def active_parameters(self) -> int:
        """What one token uses, embedding and head included."""
        return self._outside + sum(layer.active_parameters for layer in self.layers)

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes of keys and values in all softmax layers for each token held, in bf16."""
        return sum(layer.kv_bytes_per_token for layer in self.layers)

    @property
    def kv_bytes_at_full_context(self) -> int:
        """Bytes of keys and values that the last token of a sequence as long as the context reads, in bf16."""
        context, window = self.config.max_positions, self.config.sliding_window
        return min(context, window or context) * self.kv_bytes_per_token

    @property
    def state_bytes_per_sequence(self) -> int:
        """Bytes of recurrent state in all lightning layers, in fp32, whatever the sequence's length."""
        return sum(layer.state_bytes_per_sequence for layer in self.layers)

    @property
    def weight_bytes(self) -> int:
        """Bytes of all weights in bf16."""
        return self.total_parameters * BF16_BYTES

    @property
    def _outside(self) -> int:
        return self.embedding_parameters + self.final_norm_parameters

    def as_dict(self) -> dict[str, Any]:
        """Figures and shape for JSON, the layers one by one."""
        config = self.config
        return {
            "family": config.family,
            "total_parameters": self.total_parameters,
            "active_parameters": self.active_parameters,
            "active_parameters_without_embeddings": self.active_parameters - self.embedding_parameters,
            "embedding_parameters": self.embedding_parameters,
            "weight_bytes": self.weight_bytes,
            "kv_bytes_per_token": self.kv_bytes_per_token,
            "kv_bytes_at_full_context": self.kv_bytes_at_full_context,
            "state_bytes_per_sequence": self.state_bytes_per_sequence,
            "context": config.max_positions,
            "sliding_window": config.sliding_window,
            "vocab_size": config.vocab_size,
            "hidden_size": config.hidden_size,
            "intermediate_size": config.intermediate_size,
            "shared_intermediate_size": config.shared_intermediate_size,
            "num_layers": config.num_layers,
            "num_heads": config.num_heads,
            "num_kv_heads": config.num_kv_heads,
            "head_dim": config.head_dim,
            "rotary_dim": config.rope.dim,
            "rope_theta": config.rope.theta,
            "num_experts": config.num_experts,
            "top_k": config.top_k,
            "tied_embeddings": config.tie_embeddings,
            "layers": [_layer_dict(index, layer) for index, layer in enumerate(self.layers)],
        }


def model_figures(config: ModelConfig) -> ModelFigures:
    """The figures of a model of this shape. Needs neither weights nor torch, and the same time for any size."""
    kinds = {spec: _layer_figures(config, spec) for spec in set(config.layers)}
    table = _small_table(config, config.layers[0])
    embeddings = [table[name] for name in ("model.embed_tokens.weight", "lm_head.weight") if name in table]
    return ModelFigures(
        config=config,
        layers=tuple(kinds[spec] for spec in config.layers),
        embedding_parameters=_count(embeddings),
        final_norm_parameters=_count([table["model.norm.weight"]]),
    )


def _layer_figures(config: ModelConfig, spec: LayerSpec) -> LayerFigures:
    entries = [entry for entry in _small_table(config, spec).values() if entry.parameter.startswith("layers.")]
    expert = _count(entry for entry in entries if ".mlp.experts." in entry.parameter)
    router_row = _count(entry for entry in entries if ".mlp.router." in entry.parameter)
    always = _count(entries) - expert - router_row + router_row * config.num_experts
    softmax = spec.attention == "softmax"
    return LayerFigures(
        spec=spec,
        parameters=always + config.num_experts * expert,
        active_parameters=always + config.top_k * expert,
        kv_bytes_per_token=2 * config.num_kv_heads * config.head_dim * BF16_BYTES if softmax else 0,
        state_bytes_per_sequence=0 if softmax else config.num_heads * config.head_dim**2 * FP32_BYTES,
    )


def _small_table(config: ModelConfig, spec: LayerSpec) -> dict[str, TensorEntry]:
    """Tensors of a model with this one layer and one expert: all layers of a kind and all experts are alike, and a
    damaged number of them must not fill the memory."""
    return tensor_table(replace(config, layers=(spec,), num_experts=1, top_k=1))


def _count(entries: Iterable[TensorEntry]) -> int:
    return sum(prod(entry.shape) for entry in entries)


def _layer_dict(index: int, layer: LayerFigures) -> dict[str, Any]:
    return {
        "layer": index,
        "attention": layer.spec.attention,
        "mlp": layer.spec.mlp,
        "parameters": layer.parameters,
        "active_parameters": layer.active_parameters,
        "kv_bytes_per_token": layer.kv_bytes_per_token,
        "state_bytes_per_sequence": layer.state_bytes_per_sequence,
    }
