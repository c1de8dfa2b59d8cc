"""Mixture of experts: router, experts, and the dispatch between them."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from octavo.config import ModelConfig
from octavo.models.layers import DenseMLP
from octavo.ops.experts import experts_grouped, route
from octavo.ops.precision import at_least_fp32


@dataclass(frozen=True)
class Routing:
    """A layer's routing of N tokens to K of E experts each.

    logits: fp32 [N, E]; weights: fp32 [N, K], rows sum to 1; experts: int64 [N, K]; counts: int64 [E], the rows
    each expert got.
    """

    logits: Tensor
    weights: Tensor
    experts: Tensor
    counts: Tensor


class LocalDispatch:
    """Sorts token copies by expert on one device; dropless. Expert parallelism has the same two methods."""

    def dispatch(self, x: Tensor, routing: Routing) -> tuple[Tensor, Tensor, Tensor]:
        """x: [N, H] to rows sorted by expert [N * K, H], their counts [E], and the order `combine` undoes."""
        order = routing.experts.flatten().argsort(stable=True)
        return x[order // routing.experts.shape[1]], routing.counts, order

    def combine(self, rows: Tensor, routing: Routing, order: Tensor) -> Tensor:
        """Expert outputs [N * K, H] back to tokens: weighted and summed over K in fp32, returned as [N, H]."""
        unsorted = rows[order.argsort()].unflatten(0, routing.weights.shape)
        return (unsorted * routing.weights[..., None]).sum(1).to(rows.dtype)


class Router(nn.Module):
    """Linear scores per expert, in fp32 whatever the model's dtype."""

    def __init__(self, hidden: int, num_experts: int, top_k: int) -> None:
        super().__init__()
        self.top_k = top_k
        self.weight = nn.Parameter(torch.empty(num_experts, hidden))

    def forward(self, x: Tensor) -> Routing:
        """x: [N, H]."""
        logits = F.linear(at_least_fp32(x), at_least_fp32(self.weight))
        weights, experts = route(logits, self.top_k)
        # counted by searching the sorted choices: bincount would make a GPU wait for the host
        ranks = torch.arange(self.weight.shape[0], device=x.device)
        ends = torch.searchsorted(experts.flatten().sort().values, ranks, right=True)
        return Routing(logits, weights, experts, ends.diff(prepend=ends.new_zeros(1)))


class Experts(nn.Module):
    """Stacked SwiGLU experts: gate_up [E, 2F, H] (w1 rows, then w3 rows) and down [E, H, F] (w2)."""

    def __init__(self, num_experts: int, hidden: int, intermediate: int) -> None:
        super().__init__()
        self.gate_up = nn.Parameter(torch.empty(num_experts, 2 * intermediate, hidden))
        self.down = nn.Parameter(torch.empty(num_experts, hidden, intermediate))

    def forward(self, rows: Tensor, counts: Tensor) -> Tensor:
        """rows: [R, H] sorted by expert, counts: int64 [E]; returns [R, H]."""
        return experts_grouped(rows, counts, self.gate_up, self.down)


class SharedExpert(nn.Module):
    """MiniMax's shared expert, mixed in by a gate: (1 - g) * routed + g * shared, g = sigmoid(c . x)."""

    def __init__(self, hidden: int, intermediate: int) -> None:
        super().__init__()
        self.mlp = DenseMLP(hidden, intermediate)
        self.coefficient = nn.Linear(hidden, 1, bias=False)

    def forward(self, x: Tensor, routed: Tensor) -> Tensor:
        """x, routed: [N, H]; returns [N, H]. The gate is fp32."""
        gate = F.linear(at_least_fp32(x), at_least_fp32(self.coefficient.weight)).sigmoid()
        return ((1 - gate) * routed + gate * self.mlp(x)[0]).to(x.dtype)


class MoE(nn.Module):
    """Routed experts, optionally with a shared one. `dispatch` may be replaced from outside."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.router = Router(config.hidden_size, config.num_experts, config.top_k)
        self.experts = Experts(config.num_experts, config.hidden_size, config.intermediate_size)
        shared = config.shared_intermediate_size
        self.shared = SharedExpert(config.hidden_size, shared) if shared else None
        self.dispatch = LocalDispatch()

    def forward(self, x: Tensor) -> tuple[Tensor, Routing]:
        """x: [N, H]; returns [N, H] and how the tokens were routed."""
        routing = self.router(x)
        rows, counts, order = self.dispatch.dispatch(x, routing)
        y = self.dispatch.combine(self.experts(rows, counts), routing, order)
        return (y if self.shared is None else self.shared(x, y)), routing
