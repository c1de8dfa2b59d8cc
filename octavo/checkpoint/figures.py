"""How large a model is, from its config alone: parameters, what a token uses of them, memory per token and sequence.

Counted is every tensor of the checkpoint, routers and norms included, a tied head once. Active is all of that but the
experts that a token is not sent to; embedding and head count in full, as the field does, though a token reads one row.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from math import prod
from typing import Any

from octavo.checkpoint.names import TensorEntry, is_quantized_name, matrix_bits, tensor_table
from octavo.config import Bits, LayerSpec, ModelConfig
from octavo.config.quantization import GROUP

BF16_BYTES = 2  # a weight, key or value
FP32_BYTES = 4  # an entry of a recurrent state, whatever the model's dtype; what a quantised model keeps unquantised
FP16_BYTES = 2  # a scale of a quantised model


@dataclass(frozen=True)
class LayerFigures:
    """One layer: its parameters, their bytes, and the bytes it keeps for each token (bf16) and each sequence (fp32)."""

    spec: LayerSpec
    parameters: int
    active_parameters: int
    weight_bytes: int
    kv_bytes_per_token: int
    state_bytes_per_sequence: int


@dataclass(frozen=True)
class ModelFigures:
    """A whole model. `embedding_parameters` are the input embedding and the head, once if they are tied.

    bits: of the weights where they are quantised, with norms and routers in fp32; None for all of them in bf16.
    """

    config: ModelConfig
    layers: tuple[LayerFigures, ...]
    embedding_parameters: int
    final_norm_parameters: int
    bits: Bits | None
    outside_bytes: int

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
        """Bytes of all weights, as stored where they are quantised, else in bf16."""
        return self.outside_bytes + sum(layer.weight_bytes for layer in self.layers)

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
            "quantization": f"int{self.bits}" if self.bits else None,
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


def model_figures(config: ModelConfig, bits: Bits | None = None) -> ModelFigures:
    """The figures of a model of this shape, quantised to `bits` or not. Needs neither weights nor torch, and the same
    time for any size."""
    kinds = {spec: _layer_figures(config, spec, bits) for spec in set(config.layers)}
    table = _small_table(config, config.layers[0])
    outside = {name: entry for name, entry in table.items() if not entry.parameter.startswith("layers.")}
    return ModelFigures(
        config=config,
        layers=tuple(kinds[spec] for spec in config.layers),
        embedding_parameters=_count(entry for name, entry in outside.items() if name != "model.norm.weight"),
        final_norm_parameters=_count([table["model.norm.weight"]]),
        bits=bits,
        outside_bytes=_bytes(outside, bits),
    )


def _layer_figures(config: ModelConfig, spec: LayerSpec, bits: Bits | None) -> LayerFigures:
    always, each_expert, expert = dict[str, TensorEntry](), dict[str, TensorEntry](), dict[str, TensorEntry]()
    for name, entry in _small_table(config, spec).items():
        if entry.parameter.startswith("layers."):
            part = entry.parameter.split(".mlp.")[-1].split(".")[0]
            (expert if part == "experts" else each_expert if part == "router" else always)[name] = entry
    fixed = _count(always.values()) + config.num_experts * _count(each_expert.values())
    softmax = spec.attention == "softmax"
    return LayerFigures(
        spec=spec,
        parameters=fixed + config.num_experts * _count(expert.values()),
        active_parameters=fixed + config.top_k * _count(expert.values()),
        weight_bytes=_bytes(always, bits) + config.num_experts * (_bytes(each_expert, bits) + _bytes(expert, bits)),
        kv_bytes_per_token=2 * config.num_kv_heads * config.head_dim * BF16_BYTES if softmax else 0,
        state_bytes_per_sequence=0 if softmax else config.num_heads * config.head_dim**2 * FP32_BYTES,
    )


def _small_table(config: ModelConfig, spec: LayerSpec) -> dict[str, TensorEntry]:
    """Tensors of a model with this one layer and one expert: all layers of a kind and all experts are alike, and a
    damaged number of them must not fill the memory."""
    return tensor_table(replace(config, layers=(spec,), num_experts=1, top_k=1))


def _count(entries: Iterable[TensorEntry]) -> int:
    return sum(prod(entry.shape) for entry in entries)


def _bytes(table: Mapping[str, TensorEntry], bits: Bits | None) -> int:
    """Bytes of these tensors: as a quantised folder stores them, or in bf16."""
    if bits is None:
        return BF16_BYTES * _count(table.values())
    total = 0
    for name, entry in table.items():
        if is_quantized_name(name):
            rows, columns = entry.shape
            total += rows * (-(-columns * matrix_bits(name, bits) // 8) + -(-columns // GROUP) * FP16_BYTES)
        else:
            total += prod(entry.shape) * FP32_BYTES
    return total


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
