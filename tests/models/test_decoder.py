"""The decoder against its own definitions: packing, gradients through experts, shared expert, rotary widths, dtype."""

import pytest
import torch

from octavo.config import LayerSpec, RopeConfig
from octavo.models import Decoder, Packing
from octavo.models.moe import MoE
from octavo.ops import experts as ops
from octavo.ops.experts import experts_reference
from tests.compare import assert_rms, assert_same
from tests.tiny import tiny_config

FAMILIES = ["llama", "mistral", "mixtral", "minimax"]


def ids(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(331, (count,), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("lengths", [[5, 1, 17, 9], [8, 8, 8]])
def test_packed_documents_equal_separate_forwards(family, lengths) -> None:
    decoder = Decoder(tiny_config(family)).initialise()
    tokens = ids(sum(lengths))
    cu_seqlens = torch.tensor([0, *lengths]).cumsum(0)
    packed = decoder.logits(decoder(tokens, Packing.from_cu_seqlens(cu_seqlens)).hidden)
    apart = torch.cat([decoder.logits(decoder(document).hidden) for document in tokens.split(lengths)])
    assert_same(packed, apart)
    packed.logsumexp(-1).sum().backward()
    gradients = {name: p.grad.clone() for name, p in decoder.named_parameters()}
    decoder.zero_grad()
    torch.cat([decoder.logits(decoder(document).hidden) for document in tokens.split(lengths)]).logsumexp(
        -1
    ).sum().backward()
    for name, parameter in decoder.named_parameters():
        assert_rms(gradients[name], parameter.grad, what=name)


def test_every_gradient_equals_the_reference_mixture(monkeypatch) -> None:
    """The whole decoder, fast experts in fp32 against the nested sum in fp64; 12 tokens leave experts empty."""
    config = tiny_config("mixtral", num_experts=16, top_k=2)
    fast = Decoder(config).initialise()
    plain = Decoder(config).initialise().double()
    out = fast.logits(fast(ids(6)).hidden)

    def reference(self, x):
        routing = self.router(x)
        return experts_reference(x, routing.weights, routing.experts, self.experts.gate_up, self.experts.down), routing

    monkeypatch.setattr(MoE, "forward", reference)
    expected = plain.logits(plain(ids(6)).hidden)
    assert_rms(out, expected)
    (out**2).sum().backward()
    (expected**2).sum().backward()
    for (name, mine), theirs in zip(fast.named_parameters(), plain.parameters(), strict=True):
        assert_rms(mine.grad, theirs.grad, 5e-5, name)


@pytest.mark.parametrize("rows", [1, 9])
def test_shared_expert_mixes_by_its_gate(rows) -> None:
    config = tiny_config("mixtral", shared_intermediate_size=24)
    moe = MoE(config).double()
    for index, parameter in enumerate(moe.parameters()):
        torch.nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(index))
    x = torch.randn(rows, config.hidden_size, dtype=torch.float64, generator=torch.Generator().manual_seed(9))
    out, routing = moe(x)
    routed = experts_reference(x, routing.weights, routing.experts, moe.experts.gate_up, moe.experts.down)
    mlp = moe.shared.mlp
    shared = (
        torch.nn.functional.silu(x @ mlp.gate_proj.weight.T) * (x @ mlp.up_proj.weight.T)
    ) @ mlp.down_proj.weight.T
    gate = 1 / (1 + torch.exp(-x @ moe.shared.coefficient.weight.T))
    assert_rms(out, (1 - gate) * routed + gate * shared, 1e-12)


@pytest.mark.parametrize("dim", [16, 8, 2])
def test_partial_rotary_sees_only_relative_positions(dim) -> None:
    config = tiny_config("mixtral", rope=RopeConfig(theta=1e4, dim=dim))
    decoder = Decoder(config).initialise()
    tokens = ids(11)
    here = decoder(tokens).hidden
    packing = Packing((11,), (11,), torch.arange(11) + 100)
    assert_same(decoder(tokens, packing).hidden, here, rtol=1e-3, atol=1e-4)
    backwards = Packing((11,), (11,), torch.arange(11).flip(0))
    assert (decoder(tokens, backwards).hidden - here).abs().max() > 0.01


def test_pattern_may_mix_dense_and_expert_layers() -> None:
    config = tiny_config("mixtral", layers=(LayerSpec(), LayerSpec(mlp="experts"), LayerSpec()))
    routings = Decoder(config).initialise()(ids(4)).routings
    assert [routing is not None for routing in routings] == [False, True, False]
    assert routings[1].counts.sum() == 4 * config.top_k


def test_bf16_keeps_router_and_logits_in_fp32() -> None:
    decoder = Decoder(tiny_config("mixtral")).initialise().to(torch.bfloat16)
    out = decoder(ids(5))
    assert out.hidden.dtype == torch.bfloat16
    assert out.routings[0].logits.dtype == decoder.logits(out.hidden).dtype == torch.float32
    wide = Decoder(tiny_config("mixtral")).initialise()
    assert_rms(decoder.logits(out.hidden), wide.logits(wide(ids(5)).hidden), 0.1)


def test_a_window_cuts_off_what_lies_before_it() -> None:
    """2 layers of window 7 see at most 13 tokens back; without the window the first token matters."""
    tokens = ids(20)
    changed = tokens.clone()
    changed[0] = (tokens[0] + 1) % 331
    for window, differs in ((7, False), (None, True)):
        decoder = Decoder(tiny_config("mistral", sliding_window=window)).initialise()
        last, other = decoder(tokens).hidden[-1], decoder(changed).hidden[-1]
        assert torch.equal(last, other) is not differs


def test_grouped_mm_runs_inside_the_decoder(monkeypatch) -> None:
    calls = []
    monkeypatch.setattr(ops.F, "grouped_mm", lambda *a, _f=ops.F.grouped_mm, **k: calls.append(1) or _f(*a, **k))
    Decoder(tiny_config("mixtral")).initialise()(ids(3))
    assert len(calls) == 4  # two products in each of two layers
