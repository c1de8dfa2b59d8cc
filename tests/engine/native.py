"""Models of every kind for the CPU core's tests, and runners whose memory is poisoned."""

from typing import Any

import numpy as np
import torch

from octavo.checkpoint.pack import Pack
from octavo.config import LayerSpec, ModelConfig, ResidualConfig, RopeConfig
from octavo.engine.native_runner import NativeRunner
from tests.engine.steps import PAGES
from tests.tiny import tiny_config

# Widths of no multiple of 32 (or 16, or 8); more query heads to a key head than are taken together; each kind of layer.
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "tied": ("llama", {"tie_embeddings": True, "hidden_size": 64, "head_dim": 6, "num_kv_heads": 1}),
    "mistral": ("mistral", {}),
    "mixtral": ("mixtral", {}),
    "all experts": ("mixtral", {"top_k": 5, "intermediate_size": 33, "head_dim": 20, "num_kv_heads": 6}),
    "one expert": ("mixtral", {"num_experts": 1, "top_k": 1, "hidden_size": 31, "intermediate_size": 1}),
    "partial rotary": ("mixtral", {"head_dim": 20, "rope": RopeConfig(theta=1e4, dim=6), "hidden_size": 50}),
    "many heads": ("mistral", {"num_heads": 70, "num_kv_heads": 2, "head_dim": 6, "sliding_window": 40}),
    "minimax": ("minimax", {"head_dim": 20, "hidden_size": 50, "tie_embeddings": True}),
    "shared expert": (
        "minimax_text_01",
        {
            "shared_intermediate_size": 45,
            "head_dim": 12,
            "residual": ResidualConfig(lightning=(1.7, 0.9), softmax=(1.4, 1.1), mlp=(1.9, 0.8)),  # not post-norm
        },
    ),
    "dense and experts": ("mixtral", {"layers": tuple(LayerSpec(mlp=mlp) for mlp in ("dense", "experts", "dense"))}),
}


def variant(name: str, **changes: Any) -> ModelConfig:
    family, own = VARIANTS[name]
    return tiny_config(family, **own | changes)


def poisoned(pack: Pack, kv: str = "float32", threads: int = 1, pages: int = PAGES) -> NativeRunner:
    """Whatever a step does not write must not be read."""
    runner = NativeRunner(pack, pages, pages, threads, kv)
    for array in runner._arrays.values():
        array.fill(np.nan if array.dtype == np.float32 else 111)
    return runner


def same_bits(actual: np.ndarray, expected: np.ndarray) -> bool:
    """Bit for bit, with no NaN and not all zeros in what is expected."""
    assert np.isfinite(expected).all() and expected.any()
    return np.array_equal(actual.view(np.uint32), expected.view(np.uint32))


def row_errors(actual: np.ndarray, expected: torch.Tensor) -> torch.Tensor:
    """|actual - expected| / |expected| of each row [N, ...]; zeros would give exactly 1."""
    difference = torch.from_numpy(actual).double() - expected.double()
    assert expected.norm(dim=-1).min() > 0
    return difference.norm(dim=-1) / expected.double().norm(dim=-1)
