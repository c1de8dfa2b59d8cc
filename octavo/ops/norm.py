"""Root-mean-square normalisation."""

import torch
from torch import Tensor

from octavo.ops.precision import at_least_fp32


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """RMSNorm over the last dimension (Zhang & Sennrich 2019, eq. 4): x / sqrt(mean(x^2) + eps) * weight.

    x: [..., H], weight: [H]; returns x's shape and dtype. The statistics are fp32; the result is cast back
    *before* it is scaled, as Llama and Mixtral do: the other order differs in the last bf16 bit.
    """
    wide = at_least_fp32(x)
    wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    return weight * wide.to(x.dtype)
