"""Upcycle a dense checkpoint into a mixture of experts (Komatsuzaki et al. 2023; the way Mixtral was made).

Every expert starts as the parent's feed-forward and the router is new. Because Mixtral renormalises the chosen
weights to sum 1, the mixture computes its parent's function whatever the router says; `proof.compare` shows it
before the folder gets its name.
"""

import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from octavo.checkpoint.convert import display_name, storage_dtype, write_model
from octavo.checkpoint.load import load_tokenizer
from octavo.checkpoint.names import tensor_table
from octavo.checkpoint.proof import PROOF_TOKENS, Proof, compare
from octavo.checkpoint.source import Source
from octavo.checkpoint.writer import PlannedTensor
from octavo.config import LayerSpec, ModelConfig
from octavo.errors import UsageError
from octavo.progress import Progress, silent

logger = logging.getLogger(__name__)

MAX_EXPERTS = 4096  # some ten times the most in any model
METHODS = ("copy",)
ROUTER_INITS = ("normal", "orthogonal")
ROUTER_STD = 0.02
AUX_LOSS_COEF = 0.02  # Mixtral-8x7B's
_PARENT_NAMES = {"w1": "gate_proj", "w3": "up_proj", "w2": "down_proj"}


@dataclass(frozen=True, kw_only=True)
class UpcycleOptions:
    """How to make the mixture. dtype None keeps the parent's storage type (fp32 for GGUF)."""

    experts: int = 8
    top_k: int = 2
    method: str = "copy"
    router_init: str = "normal"
    seed: int = 0
    drop_window: bool = False
    dtype: torch.dtype | None = None

    def __post_init__(self) -> None:
        if self.experts < 1:
            raise UsageError(f"experts is {self.experts}: it must be at least 1")
        if not 1 <= self.top_k <= self.experts:
            raise UsageError(f"top-k is {self.top_k}: it must be between 1 and the number of experts ({self.experts})")
        if not 0 <= self.seed < 2**31:
            raise UsageError(f"seed is {self.seed}: it must be between 0 and {2**31 - 1}")
        if self.method not in METHODS:
            raise UsageError(f"method is {self.method!r}: choose one of {', '.join(METHODS)}")
        if self.router_init not in ROUTER_INITS:
            raise UsageError(f"router-init is {self.router_init!r}: choose one of {', '.join(ROUTER_INITS)}")


def upcycle(parent: Source, out: Path, options: UpcycleOptions, progress: Progress = silent) -> Proof:
    """Write the mixture to the new folder `out` and return the proof that it computes what its parent does.

    Memory is a few tensors whatever the model's size and the number of experts. Raises UsageError for a parent that
    is a mixture already or an `out` that exists, UserError for a damaged parent or one without a tokenizer, when the
    disk fills or the proof fails; `out` then does not exist.
    """
    config = mixture_config(parent.config, options, parent.label)
    load_tokenizer(parent)
    if options.top_k == 1:
        logger.warning("top-k is 1: the one renormalised weight is always 1, so training gives the router no gradient "
                       "from the task; use --top-k 2 if you mean to train")  # fmt: skip
    dtype = storage_dtype(parent, options.dtype)
    make = _Experts(parent, config, options)
    planned = [PlannedTensor(name, entry.shape, make.reader(name)) for name, entry in tensor_table(config).items()]
    window = parent.config.sliding_window if options.drop_window else None
    # without the parent's window the two agree only as long as it would not have cut anything off
    tokens = min(PROOF_TOKENS, window or PROOF_TOKENS)
    round_to = None if dtype == parent.dtype else dtype

    def prove(child: Source) -> Proof:
        return compare(parent, child, options.seed, tokens, round_to, progress)

    lineage = {
        "made_by": "octavo upcycle",
        "parent": display_name(parent),
        **{name: value for name, value in asdict(options).items() if name != "dtype"},
        "equal_up_to_context": window,
    }
    return write_model(out, parent, config, planned, dtype, prove, lineage, progress)


def mixture_config(parent: ModelConfig, options: UpcycleOptions, label: str) -> ModelConfig:
    """The child's config: the parent's with experts in every layer."""
    if options.experts > MAX_EXPERTS:
        raise UsageError(f"experts is {options.experts}: it must be at most {MAX_EXPERTS}")
    if parent.has_experts:
        raise UsageError(
            f"{label}: is a mixture of {parent.num_experts} experts already; upcycling needs a dense parent"
        )
    return replace(
        parent,
        family="mixtral",
        layers=(LayerSpec(mlp="experts"),) * parent.num_layers,
        num_experts=options.experts,
        top_k=options.top_k,
        router_aux_loss_coef=AUX_LOSS_COEF,
        sliding_window=None if options.drop_window else parent.sliding_window,
    )


class _Experts:
    """Where each of the child's tensors comes from. Holds the last parent tensor, which all experts share."""

    def __init__(self, parent: Source, config: ModelConfig, options: UpcycleOptions) -> None:
        self._parent, self._config, self._options = parent, config, options
        self._last: tuple[str, Tensor] | None = None

    def reader(self, name: str) -> Callable[[], Tensor]:
        prefix, moe, rest = name.partition("block_sparse_moe.")
        if not moe:
            return lambda: self._parent.tensor(name)
        if rest == "gate.weight":
            layer = int(prefix.split(".")[2])
            return lambda: self._router(layer)
        part = rest.split(".")[2]
        return lambda: self._shared(f"{prefix}mlp.{_PARENT_NAMES[part]}.weight")

    def _shared(self, name: str) -> Tensor:
        if self._last is None or self._last[0] != name:
            self._last = None  # let go of the old tensor before the new one is read
            self._last = (name, self._parent.tensor(name))
        return self._last[1]

    def _router(self, layer: int) -> Tensor:
        """[E, H] from its own seed, so that a layer's router does not depend on the order of writing."""
        generator = torch.Generator().manual_seed(self._options.seed * 1_000_003 + layer)
        weight = torch.empty(self._config.num_experts, self._config.hidden_size)
        if self._options.router_init == "orthogonal":
            # rows as long as those of the normal initialisation, so that both route equally sharply
            gain = ROUTER_STD * self._config.hidden_size**0.5
            return torch.nn.init.orthogonal_(weight, gain, generator=generator)
        return weight.normal_(0.0, ROUTER_STD, generator=generator)
