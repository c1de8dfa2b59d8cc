"""The proof that two checkpoints compute the same function, streamed so that neither is ever whole in memory."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from octavo.checkpoint.load import fill
from octavo.checkpoint.source import Source
from octavo.errors import UserError
from octavo.models.decoder import Block
from octavo.models.layers import RMSNorm
from octavo.models.moe import MoE
from octavo.models.packing import Packing
from octavo.ops.experts import swiglu
from octavo.ops.rotary import inverse_frequencies, rotary_table
from octavo.progress import Progress, silent

MAX_DIFFERENCE = 1e-3  # fp32 noise of two paths through a real checkpoint, at logits around 35
RMS_DIFFERENCE = 5e-5
USUAL_LOGIT = 35.0
PROOF_TOKENS = 512
_ROWS = 64  # logit rows at a time, so that a large vocabulary does not set the memory


@dataclass(frozen=True)
class Proof:
    """Logits of two checkpoints on the same random ids, both computed in fp32.

    rounded_to: the type the reference's weights were rounded to first, None when they were taken as stored.
    """

    tokens: int
    seed: int
    max_difference: float
    rms_difference: float
    largest_logit: float
    rounded_to: str | None = None
    max_bound: float = MAX_DIFFERENCE
    rms_bound: float = RMS_DIFFERENCE

    @property
    def holds(self) -> bool:
        """Whether both differences are within their bounds (NaN is not), which grow with logits above the usual."""
        scale = max(1.0, self.largest_logit / USUAL_LOGIT)
        return self.max_difference <= self.max_bound * scale and self.rms_difference <= self.rms_bound * scale

    def summary(self) -> str:
        """One sentence for the terminal."""
        rounded = f", rounded to {self.rounded_to}," if self.rounded_to else ""
        return (
            f"Logits equal the parent's{rounded} within {self.max_difference:.1e} (bound {self.max_bound:.0e}) on "
            f"{self.tokens} random ids."
        )

    def as_dict(self) -> dict[str, Any]:
        """For the output's metadata."""
        return {**asdict(self), "holds": self.holds}


@torch.no_grad()
def compare(
    reference: Source,
    other: Source,
    seed: int = 0,
    tokens: int = PROOF_TOKENS,
    round_to: torch.dtype | None = None,
    progress: Progress = silent,
) -> Proof:
    """Run both checkpoints layer by layer on one sequence of random ids and compare their logits.

    round_to casts the reference's weights to the type the other is stored in, to tell a wrong conversion from
    rounding. Raises UserError when the two do not have the same vocabulary and depth.
    """
    a, b = reference.config, other.config
    if (a.vocab_size, a.num_layers) != (b.vocab_size, b.num_layers):
        raise UserError(f"{reference.label} and {other.label} differ in vocabulary or depth and cannot be compared")
    tokens = min(tokens, a.max_positions, b.max_positions)
    ids = torch.randint(a.vocab_size, (tokens,), generator=torch.Generator().manual_seed(seed))
    streams = (_Stream(reference, ids, round_to), _Stream(other, ids, None))
    for layer in range(a.num_layers):
        for stream in streams:
            stream.advance(layer)
        progress("proving equality", layer + 1, a.num_layers)
    return _differences(streams[0].finish(), streams[1].finish(), seed, round_to)


class _Stream:
    """Hidden states of one checkpoint, advanced a layer at a time."""

    def __init__(self, source: Source, ids: Tensor, round_to: torch.dtype | None) -> None:
        self._source: Source = source if round_to is None else Rounded(source, lambda _, values: values.to(round_to))
        self._packing = Packing.from_lengths([len(ids)])
        frequencies = inverse_frequencies(source.config.rope)
        self._rotary = rotary_table(self._packing.positions, frequencies)
        self._x = F.embedding(ids, self._source.tensor("model.embed_tokens.weight").float())

    def advance(self, layer: int) -> None:
        with torch.device("meta"):
            block = Block(self._source.config, layer)
        if isinstance(block.mlp, MoE):
            block.mlp.experts = _StreamedExperts(self._source, layer)  # type: ignore[assignment]
        fill(block, self._source, f"layers.{layer}.", "cpu", torch.float32)
        self._x, _ = block(self._x, self._rotary, self._packing)

    def finish(self) -> tuple[Tensor, Tensor]:
        """Final hidden states [N, H] and the head [vocab, H]."""
        config = self._source.config
        with torch.device("meta"):
            norm = RMSNorm(config.hidden_size, config.norm_eps)
        fill(norm, self._source, "norm.", "cpu", torch.float32)
        head = "model.embed_tokens.weight" if config.tie_embeddings else "lm_head.weight"
        return norm(self._x), self._source.tensor(head).float()


class _StreamedExperts(nn.Module):
    """`models.moe.Experts` that reads each expert when its turn comes: a layer of experts may not fit in memory."""

    def __init__(self, source: Source, layer: int) -> None:
        super().__init__()
        self._source, self._prefix = source, f"model.layers.{layer}.block_sparse_moe.experts."

    def forward(self, rows: Tensor, counts: Tensor) -> Tensor:
        """rows: [R, H] sorted by expert, counts: int64 [E]; returns [R, H]."""
        out = torch.empty_like(rows)
        ends = counts.cumsum(0).tolist()
        for expert, (end, count) in enumerate(zip(ends, counts.tolist(), strict=True)):
            if count:
                w1, w3, w2 = (self._source.tensor(f"{self._prefix}{expert}.{w}.weight") for w in ("w1", "w3", "w2"))
                group = rows[end - count : end]
                out[end - count : end] = swiglu(group @ w1.float().T, group @ w3.float().T) @ w2.float().T
        return out


class Rounded:
    """A source whose tensors are rounded first, each by `rounding` of its name and values."""

    def __init__(self, source: Source, rounding: Callable[[str, Tensor], Tensor]) -> None:
        self._source, self._rounding = source, rounding
        self.config, self.label, self.licence, self.dtype = source.config, source.label, source.licence, source.dtype
        self.side_files, self.check = source.side_files, source.check

    def tensor(self, name: str) -> Tensor:
        """One canonical tensor, rounded."""
        return self._rounding(name, self._source.tensor(name))


def _differences(
    reference: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor], seed: int, round_to: torch.dtype | None
) -> Proof:
    largest_difference = largest_logit = torch.zeros(())
    squares, count = 0.0, 0
    for hidden, other_hidden in zip(reference[0].split(_ROWS), other[0].split(_ROWS), strict=True):
        logits = hidden @ reference[1].T
        difference = (other_hidden @ other[1].T - logits).abs()
        # torch.maximum, unlike max(), carries a NaN on
        largest_difference = torch.maximum(largest_difference, difference.max())
        largest_logit = torch.maximum(largest_logit, logits.abs().max())
        squares += difference.double().pow(2).sum().item()
        count += difference.numel()
    return Proof(
        tokens=reference[0].shape[0],
        seed=seed,
        max_difference=largest_difference.item(),
        rms_difference=(squares / count) ** 0.5,
        largest_logit=largest_logit.item(),
        rounded_to=None if round_to is None else str(round_to).removeprefix("torch."),
    )
