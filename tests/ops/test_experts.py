"""The grouped path against the nested sum: outputs and every gradient, empty experts, one token, odd widths."""

import pytest
import torch

from octavo.config import RopeConfig
from octavo.models.moe import LocalDispatch, Router, Routing
from octavo.ops import experts as ops
from octavo.ops.experts import experts_grouped, experts_reference, grouped_linear, grouped_linear_loop, route
from octavo.ops.norm import rms_norm
from octavo.ops.rotary import inverse_frequencies, rotary_table, rotate
from tests.compare import assert_rms, assert_same


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype).requires_grad_()


def routing_of(logits: torch.Tensor, top_k: int) -> Routing:
    weights, chosen = route(logits, top_k)
    return Routing(logits, weights, chosen, torch.bincount(chosen.flatten(), minlength=logits.shape[1]))


def mixture(x, logits, gate_up, down, top_k):
    routing, dispatch = routing_of(logits, top_k), LocalDispatch()
    rows, counts, order = dispatch.dispatch(x, routing)
    return dispatch.combine(experts_grouped(rows, counts, gate_up, down), routing, order)


# tokens, experts, top-k, hidden, expert hidden; the last two widths are odd, where grouped_mm is not allowed
SHAPES = [(13, 5, 3, 16, 24), (1, 8, 2, 16, 8), (1, 1, 1, 4, 4), (2, 64, 2, 8, 12), (9, 4, 2, 7, 5), (40, 2, 1, 6, 10)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("tokens", "experts", "top_k", "hidden", "inner"), SHAPES)
def test_mixture_equals_the_nested_sum(tokens, experts, top_k, hidden, inner, dtype) -> None:
    def arguments():
        return [
            random(tokens, hidden, seed=1, dtype=dtype),
            random(tokens, experts, seed=2, dtype=dtype),
            random(experts, 2 * inner, hidden, seed=3, dtype=dtype),
            random(experts, hidden, inner, seed=4, dtype=dtype),
        ]

    fast, plain = arguments(), arguments()
    out = mixture(*fast, top_k)
    weights, chosen = route(plain[1], top_k)
    expected = experts_reference(plain[0], weights, chosen, *plain[2:])
    assert_rms(out, expected)
    out.sum().backward()  # a plain sum sends the stride-0 gradient that grouped_mm refuses
    expected.sum().backward()
    for mine, theirs in zip(fast, plain, strict=True):
        if theirs.grad.norm() > 1e-4:
            assert_rms(mine.grad, theirs.grad)
        else:  # one expert, or top-1 renormalised: the router has no say
            assert top_k == 1 and mine.grad.norm() < 1e-4
    unused = sorted(set(range(experts)) - set(chosen.flatten().tolist()))
    assert not fast[2].grad[unused].any() and not fast[3].grad[unused].any()


def test_the_fast_path_is_taken_where_torch_allows_it(monkeypatch) -> None:
    taken = []
    monkeypatch.setattr(ops, "grouped_linear_loop", lambda *a: taken.append("loop") or grouped_linear_loop(*a))
    counts = torch.tensor([3, 0, 2])
    grouped_linear(random(5, 16), random(3, 8, 16), counts)
    assert taken == []
    grouped_linear(random(5, 7), random(3, 8, 7), counts)  # rows of 28 bytes
    grouped_linear(random(5, 16, dtype=torch.float64), random(3, 8, 16, dtype=torch.float64), counts)
    assert taken == ["loop", "loop"]


def test_rows_that_are_not_contiguous() -> None:
    wide, weight, counts = random(13, 17)[:, :16], random(3, 8, 16), torch.tensor([5, 0, 8])
    assert_rms(grouped_linear(wide, weight, counts), grouped_linear_loop(wide, weight, counts))


def test_bf16_products_and_gradients_are_near_those_of_fp32() -> None:
    fast = [x.detach().bfloat16().requires_grad_() for x in (random(20, 16), random(4, 8, 16, seed=1))]
    wide = [x.detach().float().requires_grad_() for x in fast]
    counts = torch.tensor([6, 0, 13, 1])
    out, expected = grouped_linear(*fast, counts), grouped_linear_loop(*wide, counts)
    assert_rms(out, expected, 5e-3)
    (out**2).sum().backward()
    (expected**2).sum().backward()
    for mine, theirs in zip(fast, wide, strict=True):
        assert_rms(mine.grad, theirs.grad, 2e-2)


def test_router_weights_are_the_softmax_over_the_chosen() -> None:
    logits = random(50, 8)
    weights, chosen = route(logits, 2)
    assert_same(weights, logits.gather(1, chosen).softmax(-1))
    assert (weights[:, 0] >= weights[:, 1]).all()


def test_router_computes_in_fp32_and_counts_its_choices() -> None:
    router = Router(hidden=32, num_experts=6, top_k=2).to(torch.bfloat16)
    torch.nn.init.normal_(router.weight)
    x = random(21, 32).to(torch.bfloat16)
    routing = router(x)
    assert routing.logits.dtype == routing.weights.dtype == torch.float32
    assert_same(routing.logits, x.float() @ router.weight.float().T)
    assert routing.counts.tolist() == torch.bincount(routing.experts.flatten(), minlength=6).tolist()


def test_rms_norm_casts_before_it_scales() -> None:
    x, weight = random(5, 64).to(torch.bfloat16), (1 + 0.3 * random(64, seed=1)).to(torch.bfloat16)
    wide = x.float()
    normed = wide / (wide.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt()
    assert torch.equal(rms_norm(x, weight, 1e-5), weight * normed.to(torch.bfloat16))
    assert not torch.equal(rms_norm(x, weight, 1e-5), (weight.float() * normed).to(torch.bfloat16))


@pytest.mark.parametrize("dim", [8, 4, 2])
def test_rotation_turns_the_first_pairs_and_keeps_the_rest(dim) -> None:
    rope = RopeConfig(theta=100.0, dim=dim)
    positions = torch.tensor([0, 1, 7])
    x = random(3, 2, 8, dtype=torch.float64).detach()
    out = rotate(x, *rotary_table(positions, inverse_frequencies(rope)))
    half = dim // 2
    for row, position in enumerate(positions.tolist()):
        for pair in range(half):
            turn = torch.polar(torch.tensor(1.0).double(), torch.tensor(position * 100.0 ** (-2 * pair / dim)).double())
            expected = torch.complex(x[row, :, pair], x[row, :, pair + half]) * turn
            assert_same(torch.complex(out[row, :, pair], out[row, :, pair + half]), expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(out[..., dim:], x[..., dim:])
