"""Routing and the sum over experts: the plain definition, and the grouped path that is run.

Shapes: N tokens, H hidden, E experts, F expert hidden, K experts per token, R = N * K rows sorted by expert.
Weights of all experts are stacked: `gate_up` [E, 2F, H] holds w1 (gate) in rows 0..F-1 and w3 (up) in rows
F..2F-1; `down` [E, H, F] is w2.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from octavo.ops.precision import at_least_fp32


def route(logits: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    """Mixtral's router (Jiang et al. 2024, section 2.1): softmax over all experts, top-k, renormalised.

    logits: [N, E]. Returns weights [N, K] (fp32 or wider, rows sum to 1) and expert indices [N, K] (int64).
    """
    probabilities = at_least_fp32(logits).softmax(-1)
    weights, experts = probabilities.topk(top_k, dim=-1)
    return weights / weights.sum(-1, keepdim=True), experts


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up (Shazeer 2020, eq. 6); all of one shape."""
    return F.silu(gate) * up


def experts_reference(x: Tensor, weights: Tensor, experts: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    """The definition as one nested sum: y_n = sum_j weights[n, j] * expert_{experts[n, j]}(x_n).

    x: [N, H]; weights, experts: [N, K]. Returns [N, H] in x's dtype. Slow; for tests and as specification.
    """
    outputs = []
    for token, token_weights, chosen in zip(x, weights, experts.tolist(), strict=True):
        terms = [
            w * (down[e] @ swiglu(*(gate_up[e] @ token).chunk(2))) for w, e in zip(token_weights, chosen, strict=True)
        ]
        outputs.append(torch.stack(terms).sum(0))
    return torch.stack(outputs).to(x.dtype) if outputs else x.new_zeros(x.shape)


def experts_grouped(x: Tensor, counts: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    """Expert outputs for rows already sorted by expert: the first counts[0] rows are expert 0's, and so on.

    x: [R, H]; counts: int64 [E] with sum R. Returns [R, H], not yet weighted. Experts may have no rows.
    """
    gate, up = grouped_linear(x, gate_up, counts).chunk(2, dim=-1)
    return grouped_linear(swiglu(gate, up), down, counts)


def grouped_linear(x: Tensor, weight: Tensor, counts: Tensor) -> Tensor:
    """Row groups of x times their own matrix: x [R, I], weight [E, O, I], counts int64 [E]; returns [R, O].

    One `torch.nn.functional.grouped_mm` where torch allows it, else `grouped_linear_loop`. Gradients flow to
    x and weight; a matrix without rows gets a zero gradient.
    """
    if not _grouped_mm_allowed(x, weight):
        return grouped_linear_loop(x, weight, counts)
    ends = counts.cumsum(0).to(torch.int32)
    out = F.grouped_mm(x, weight.transpose(-2, -1), offs=ends)
    # grouped_mm's backward refuses the stride-0 gradient that a plain sum() sends
    return _contiguous_gradient(out) if out.requires_grad else out


def grouped_linear_loop(x: Tensor, weight: Tensor, counts: Tensor) -> Tensor:
    """`grouped_linear` as one matmul per expert: the reference, and the path for fp64 and odd widths."""
    return torch.cat([rows @ matrix.T for rows, matrix in zip(x.split(counts.tolist()), weight, strict=True)])


def _grouped_mm_allowed(x: Tensor, weight: Tensor) -> bool:
    """torch 2.13: no fp64, rows must start on 16-byte borders (also on CPU), on CUDA only bf16 from SM80 on."""
    aligned = all(width * x.element_size() % 16 == 0 for width in weight.shape[1:])
    if x.dtype != weight.dtype or not aligned or x.shape[0] == 0 or not (x.is_contiguous() and weight.is_contiguous()):
        return False
    if x.device.type == "cuda":
        return x.dtype == torch.bfloat16 and torch.cuda.get_device_capability(x.device) >= (8, 0)
    return x.device.type == "cpu" and x.dtype in (torch.float32, torch.bfloat16, torch.float16)


class _ContiguousGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *grads: Tensor) -> Tensor:
        return grads[0].contiguous()


def _contiguous_gradient(x: Tensor) -> Tensor:
    out: Tensor = _ContiguousGradient.apply(x)
    return out
