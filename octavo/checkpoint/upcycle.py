"""Upcycle a dense checkpoint into a mixture of experts (Komatsuzaki et al. 2023; the way Mixtral was made).

Every expert starts as the parent's feed-forward, or as what `--method` makes of it, and the router is new. Because
Mixtral renormalises the chosen weights to sum 1, the mixture computes its parent's function whatever the router says;
`proof.compare` shows it before the folder gets its name. Only `drop` changes the function: see `drop_proof`.
"""

import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from octavo.checkpoint.convert import display_name, storage_dtype, write_model
from octavo.checkpoint.drop_proof import compare_restored
from octavo.checkpoint.expert_inits import ROUTER_INITS, dropped, dropped_count, permuted, router, shard
from octavo.checkpoint.load import load_tokenizer
from octavo.checkpoint.names import DENSE_NAMES, expert_of, tensor_table
from octavo.checkpoint.proof import PROOF_TOKENS, Proof, compare
from octavo.checkpoint.source import Source
from octavo.checkpoint.writer import PlannedTensor
from octavo.config import LayerSpec, ModelConfig
from octavo.errors import UsageError
from octavo.progress import Progress, silent

logger = logging.getLogger(__name__)

MAX_EXPERTS = 4096  # some ten times the most in any model
METHODS = ("copy", "permute", "split", "drop")
AUX_LOSS_COEF = 0.02  # Mixtral-8x7B's


@dataclass(frozen=True, kw_only=True)
class UpcycleOptions:
    """How to make the mixture. dtype None keeps the parent's storage type (fp32 for GGUF).

    granularity: into how many experts `split` cuts a feed-forward (None: 2); 1 for other methods.
    drop_share: the share of hidden units that `drop` draws anew (None: 0.5); 0 for other methods.
    """

    experts: int = 8
    top_k: int = 2
    method: str = "copy"
    granularity: int | None = None
    drop_share: float | None = None
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
        self._check_granularity()
        self._check_drop_share()

    @property
    def shards(self) -> int:
        """Experts that make up one feed-forward of the parent: G, 1 unless they are split."""
        return self.granularity or (2 if self.method == "split" else 1)

    @property
    def dropped_share(self) -> float:
        """Share of each expert's hidden units that is drawn anew, 0 unless the method is drop."""
        return (0.5 if self.drop_share is None else self.drop_share) if self.method == "drop" else 0.0

    def _check_granularity(self) -> None:
        given = self.granularity
        if given is not None and given < 1:
            raise UsageError(f"granularity is {given}: it must be at least 1")
        if self.method != "split" and self.shards != 1:
            raise UsageError(f"granularity is {given} with --method {self.method}: only --method split cuts experts")
        for name, value in (("experts", self.experts), ("top-k", self.top_k)):
            if value % self.shards:
                raise UsageError(f"{name} is {value}: with --method split it must be a multiple of the granularity "
                                 f"({self.shards}), so that whole feed-forwards can be chosen")  # fmt: skip

    def _check_drop_share(self) -> None:
        given = self.drop_share
        if given is not None and not 0 <= given <= 1:
            raise UsageError(f"drop-share is {given}: it must be above 0 and at most 1")
        if given and self.method != "drop":
            raise UsageError(f"drop-share is {given} with --method {self.method}: only --method drop draws units anew")


def upcycle(parent: Source, out: Path, options: UpcycleOptions, progress: Progress = silent) -> Proof:
    """Write the mixture to the new folder `out` and return the proof that it computes what its parent does.

    With `drop` it does not: the proof is then a `DropProof`, which also tells by how much the two differ. Memory is a
    few tensors whatever the model's size and the number of experts. Raises UsageError for a parent that is a mixture
    already, for options that do not suit it and for an `out` that exists, UserError for a damaged parent or one
    without a tokenizer, when the disk fills or the proof fails; `out` then does not exist.
    """
    config = mixture_config(parent.config, options, parent.label)
    dtype = storage_dtype(parent, options.dtype)
    _check_scale(options.shards, dtype)
    load_tokenizer(parent)
    if options.top_k == 1:
        logger.warning("top-k is 1: the one renormalised weight is always 1, so training gives the router no gradient "
                       "from the task; use --top-k 2 if you mean to train")  # fmt: skip
    make = _Experts(parent, config, options, dtype)
    planned = [PlannedTensor(name, entry.shape, make.reader(name)) for name, entry in tensor_table(config).items()]
    window = parent.config.sliding_window if options.drop_window else None
    # without the parent's window the two agree only as long as it would not have cut anything off
    tokens = min(PROOF_TOKENS, window or PROOF_TOKENS)
    round_to = None if dtype == parent.dtype else dtype

    def prove(child: Source) -> Proof:
        if options.method == "drop":
            return compare_restored(parent, child, options.dropped_share, options.seed, tokens, round_to, progress)
        return compare(parent, child, options.seed, tokens, round_to, progress)

    lineage = {
        "made_by": "octavo upcycle",
        "parent": display_name(parent),
        **{name: value for name, value in asdict(options).items() if name != "dtype"},
        "granularity": options.shards,
        "drop_share": options.dropped_share,
        "exact": options.method != "drop",
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
    units = parent.intermediate_size
    if units % options.shards:
        raise UsageError(f"granularity is {options.shards}: it must divide the {units} hidden units of {label}")
    if options.method == "drop" and dropped_count(units, options.dropped_share) == 0:
        raise UsageError(f"drop-share is {options.dropped_share}: draws none of the {units} hidden units of {label} "
                         f"anew; use at least {1 / units:.2g}, or --method copy")  # fmt: skip
    return replace(
        parent,
        family="mixtral",
        layers=(LayerSpec(mlp="experts"),) * parent.num_layers,
        intermediate_size=units // options.shards,
        num_experts=options.experts,
        top_k=options.top_k,
        router_aux_loss_coef=AUX_LOSS_COEF,
        sliding_window=None if options.drop_window else parent.sliding_window,
    )


def _check_scale(shards: int, dtype: torch.dtype) -> None:
    if shards & (shards - 1) and dtype != torch.float32:
        name = str(dtype).removeprefix("torch.")
        raise UsageError(f"granularity is {shards} and the child is stored as {name}, which would round {shards} times "
                         "a weight: use a power of two, or --dtype float32")  # fmt: skip


class _Experts:
    """Where each of the child's tensors comes from. Holds the last parent tensor, which all experts share."""

    def __init__(self, parent: Source, config: ModelConfig, options: UpcycleOptions, dtype: torch.dtype) -> None:
        self._parent, self._config, self._options, self._dtype = parent, config, options, dtype
        self._last: tuple[str, Tensor] | None = None

    def reader(self, name: str) -> Callable[[], Tensor]:
        prefix, moe, rest = name.partition("block_sparse_moe.")
        if not moe:
            return lambda: self._parent.tensor(name)
        if rest == "gate.weight":
            return lambda: self._router(int(prefix.split(".")[2]))
        layer, expert, part = expert_of(name)
        return lambda: self._expert(part, self._shared(f"{prefix}mlp.{DENSE_NAMES[part]}.weight"), layer, expert)

    def _shared(self, name: str) -> Tensor:
        if self._last is None or self._last[0] != name:
            self._last = None  # let go of the old tensor before the new one is read
            self._last = (name, self._parent.tensor(name))
        return self._last[1]

    def _expert(self, part: str, matrix: Tensor, layer: int, expert: int) -> Tensor:
        options = self._options
        if options.method == "permute":
            return permuted(part, matrix, options.seed, layer, expert)
        if options.method == "split":
            return shard(part, matrix, options.shards, expert, self._dtype)
        if options.method == "drop":
            return dropped(part, matrix, options.dropped_share, options.seed, layer, expert)
        return matrix

    def _router(self, layer: int) -> Tensor:
        options, config = self._options, self._config
        return router(config.num_experts, config.hidden_size, options.shards, options.router_init, options.seed, layer)
