"""Lightning attention on a GPU, by flash-linear-attention's kernels (the `gpu` extra).

`chunk_simple_gla` takes any decay per head, so it gets our slopes and scale 1. Traps: `chunk_lightning_attn` of the
same library has another law of decay (linear in the head, divided by L) and scales by 1/sqrt(D); and in bf16 the
library rounds the state between its blocks, so the inputs are widened to fp32 here. Its products are then TF32 unless
the environment says TRITON_F32_DEFAULT=ieee.
"""

from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor

from octavo.ops.precision import at_least_fp32


@cache
def _installed() -> bool:
    return find_spec("fla") is not None


def fla_is_usable(q: Tensor) -> bool:
    """Whether these queries lie on a GPU, in a dtype the kernels have, and the library is there."""
    return q.is_cuda and q.dtype != torch.float64 and _installed()


def fla_attention(
    q: Tensor, k: Tensor, v: Tensor, slopes: Tensor, lengths: Sequence[int], initial: Tensor
) -> tuple[Tensor, Tensor]:
    """`ops.linear_attention.linear_attention` on a GPU; same arguments and results."""
    from fla.ops.simple_gla import chunk_simple_gla

    ends = torch.tensor([0, *lengths]).cumsum(0)
    q, k, v = (at_least_fp32(x)[None].contiguous() for x in (q, k, v))
    out, states = chunk_simple_gla(
        q,
        k,
        v,
        g_gamma=-slopes,
        scale=1.0,
        initial_state=initial.contiguous(),
        output_final_state=True,
        cu_seqlens=ends.to(q.device),
        cu_seqlens_cpu=ends,
    )
    return out[0], states
