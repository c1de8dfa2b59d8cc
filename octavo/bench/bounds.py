"""What a step cannot do without: bytes it has to read, operations it has to do, and the rates they allow.

Decoding is bounded by memory: read bandwidth / bytes of a step. Prefill is bounded by arithmetic, and the bound given
is that of fp32: sgemm rate / operations of a token. Kernels on 8-bit integers can do more, so their share may exceed 1.
Activations are left out: they stay in the caches.
"""

from collections import Counter
from dataclasses import dataclass, replace
from math import prod

from octavo.bench.metrics import CHUNK, WARM_STEPS, Metric
from octavo.checkpoint.names import TensorEntry, tensor_table
from octavo.config import LayerSpec, ModelConfig

FP32 = 4  # bytes: norms, routers and states, in every form of a model
# Bytes of a weight in a matrix; int4 and int8 have an fp16 scale for each group of 32.
WEIGHT_BYTES = {"fp32": 4.0, "bf16": 2.0, "int8": 1 + 2 / 32, "int4": 1 / 2 + 2 / 32}
HEAD_BYTES = {"fp32": 4.0, "bf16": 2.0, "int8": 1 + 2 / 32, "int4": 1 + 2 / 32}  # of embedding and head


@dataclass(frozen=True)
class Widths:
    """Bytes of one weight of a matrix, of one of embedding or head, and of one entry of a key or value."""

    weight: float
    head: float
    key_value: float


@dataclass(frozen=True)
class Parts:
    """Numbers of entries by how a step reads them: `matrices` and `plain` (norms, routers) at each step, `expert` is
    one expert's, `head` at each step with logits, `embedding_row` once a token."""

    matrices: int
    plain: int
    expert: int
    head: int
    embedding_row: int


def parts(config: ModelConfig) -> Parts:
    """The model's tensors by how they are read."""
    matrices, plain = 0, config.hidden_size  # the final norm
    for spec, layers in Counter(config.layers).items():
        for entry in _layer_table(config, spec).values():
            size = layers * prod(entry.shape)
            if ".mlp.router." in entry.parameter:
                plain += size * config.num_experts
            elif len(entry.shape) < 2 or ".coefficient." in entry.parameter:
                plain += size
            elif ".mlp.experts." not in entry.parameter:
                matrices += size
    expert = 3 * config.hidden_size * config.intermediate_size if config.has_experts else 0
    return Parts(matrices, plain, expert, config.vocab_size * config.hidden_size, config.hidden_size)


def expected_expert_reads(config: ModelConfig, tokens: int) -> float:
    """Experts that a step of `tokens` tokens reads, all layers together, if each token chose at random."""
    if not config.has_experts:
        return 0.0
    missed = (1 - config.top_k / config.num_experts) ** tokens
    return sum(layer.mlp == "experts" for layer in config.layers) * config.num_experts * (1 - missed)


def step_bytes(config: ModelConfig, metric: Metric, steps: int, expert_reads: float, widths: Widths) -> float:
    """Bytes that a step must read, states also write; the mean over a metric's steps.

    A step is one token for each sequence of a decode metric, up to CHUNK prompt tokens of a prefill metric.
    """
    sizes = parts(config)
    count = metric.sequences if metric.kind == "decode" else min(metric.count, CHUNK)
    with_logits = 1.0 if metric.kind == "decode" else 1 / -(-metric.count // CHUNK)
    weights = sizes.matrices + expert_reads * sizes.expert
    outside = with_logits * sizes.head + count * sizes.embedding_row
    states = len(config.lightning_layers) * config.num_heads * config.head_dim**2
    row = 2 * len(config.softmax_layers) * config.num_kv_heads * config.head_dim
    return (
        widths.weight * weights
        + widths.head * outside
        + FP32 * (sizes.plain + 2 * metric.sequences * states)
        + widths.key_value * metric.sequences * row * _held(config, metric, steps)
    )


def token_operations(config: ModelConfig, metric: Metric) -> float:
    """Floating-point operations of a prompt token, the mean over a prefill metric: two for each weight it meets, and
    attention over what it sees; a state costs its update and its reading."""
    sizes = parts(config)
    experts = sum(layer.mlp == "experts" for layer in config.layers) * config.top_k
    weights = sizes.matrices + sizes.plain + experts * sizes.expert + sizes.head / metric.count
    seen = _mean_seen(config, metric.depth, metric.count)
    width = config.num_heads * config.head_dim
    softmax = len(config.softmax_layers) * 4 * width * seen
    return 2 * weights + softmax + len(config.lightning_layers) * 4 * width * config.head_dim


def bound(config: ModelConfig, metric: Metric, bytes_of_step: float, read_gb_s: float, sgemm_gflops: float) -> float:
    """Most tokens a second that the machine's limits allow for the metric."""
    if metric.kind == "decode":
        return metric.count * read_gb_s * 1e9 / bytes_of_step
    return sgemm_gflops * 1e9 / token_operations(config, metric)


def _held(config: ModelConfig, metric: Metric, steps: int) -> float:
    """Keys of one sequence that a step reads, the mean over the steps."""
    if metric.kind == "decode":
        return _mean_seen(config, metric.depth + WARM_STEPS, steps)
    ends = [metric.depth + min(start + CHUNK, metric.count) for start in range(0, metric.count, CHUNK)]
    window = config.sliding_window
    return sum(min(end, window + CHUNK) if window else end for end in ends) / len(ends)


def _mean_seen(config: ModelConfig, start: int, count: int) -> float:
    """Keys that a token sees, itself included, the mean over positions start ... start + count - 1."""
    window = config.sliding_window or start + count
    return sum(min(position + 1, window) for position in range(start, start + count)) / count


def _layer_table(config: ModelConfig, spec: LayerSpec) -> dict[str, TensorEntry]:
    """A layer's tensors with one expert: all are alike, and a damaged number of them must not fill the memory."""
    table = tensor_table(replace(config, layers=(spec,), num_experts=1, top_k=1))
    return {name: entry for name, entry in table.items() if entry.parameter.startswith("layers.")}
