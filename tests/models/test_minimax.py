"""MiniMax-Text-01 against an independent float64 implementation, with the known faults of others planted."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.numpy import load_file

from octavo.checkpoint.folder import FolderSource
from octavo.checkpoint.load import load_decoder
from octavo.checkpoint.names import tensor_table
from octavo.checkpoint.save import save
from octavo.config import ModelConfig, ResidualConfig, RopeConfig
from octavo.config.presets import preset
from octavo.models import Decoder, Packing, lightning
from octavo.models.lightning import LightningAttention
from octavo.ops import linear_attention as ops
from octavo.ops.linear_attention import recurrent_attention
from tests.compare import assert_rms
from tests.models import minimax_float64
from tests.tiny import tiny_config

LENGTH = 300  # more than a block
BOUND = 1e-5  # relative RMS of logits
SHAPES = {
    "alibi slopes, half a head rotated": {},
    "power of two": {"num_heads": 8, "num_kv_heads": 2},
    "shared expert": {"shared_intermediate_size": 24},
    "pre-norm": {"residual": ResidualConfig(lightning=(1.3, 0.7), softmax=(1.1, 1.2), mlp=(0.9, 1.4))},
    "released alpha and beta": {
        "residual": ResidualConfig(post_norm=True, lightning=(3.5566, 1.0), softmax=(3.5566, 1.0), mlp=(3.5566, 1.0))
    },
    "whole heads rotated": {"rope": RopeConfig(theta=1e4, dim=16)},
    "two entries rotated": {"rope": RopeConfig(theta=100.0, dim=2)},
}


def config(**changes: Any) -> ModelConfig:
    return tiny_config("minimax_text_01", **changes)


def ids(count: int = LENGTH, seed: int = 0) -> torch.Tensor:
    return torch.randint(331, (count,), generator=torch.Generator().manual_seed(seed))


def departure(decoder: Decoder, folder: Path) -> float:
    """Relative RMS between the logits of the decoder and those of the float64 implementation on the saved folder."""
    hf = json.loads((folder / "config.json").read_text())
    tensors = {name: array for path in folder.glob("*.safetensors") for name, array in load_file(path).items()}
    expected = torch.from_numpy(minimax_float64.logits(hf, tensors, ids().numpy()))
    with torch.no_grad():
        actual = decoder.logits(decoder(ids()).hidden)
    return ((actual.double() - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("shape", SHAPES)
def test_equals_an_independent_implementation(shape, tmp_path) -> None:
    decoder = Decoder(config(**SHAPES[shape])).initialise(1)
    save(decoder, tmp_path / "model")
    assert departure(load_decoder(FolderSource(tmp_path / "model")), tmp_path / "model") < BOUND
    wide = load_decoder(FolderSource(tmp_path / "model"), dtype=torch.float64)
    assert departure(wide, tmp_path / "model") < 2e-6  # slopes and rotary angles are fp32


# ---- the faults of others, each planted once. A wrong scale of q would not show: the norm takes it out again.


def plant_full_rotary(monkeypatch, decoder) -> None:
    """transformers: rotary_dim is ignored."""
    rope = RopeConfig(theta=1e4, dim=16)
    whole = Decoder(config(rope=rope))
    monkeypatch.setattr(decoder, "rotary", whole.rotary)


def plant_wrong_base_width(monkeypatch, decoder) -> None:
    """The right width with the frequencies of a whole head."""
    frequencies = 1e4 ** (-torch.arange(0, 8, 2) / 16)
    monkeypatch.setattr("octavo.models.decoder.inverse_frequencies", lambda rope, device: frequencies)


def plant_bf16_slopes(monkeypatch, decoder) -> None:
    """transformers: slopes and ratios are buffers that are cast with the model, and many ratios become 1."""

    def cast(*arguments: Any) -> torch.Tensor:
        return -slopes(*arguments).bfloat16().neg().exp().log().float()

    slopes = ops.decay_slopes
    monkeypatch.setattr(lightning, "decay_slopes", cast)


def plant_late_state(monkeypatch, decoder) -> None:
    """vLLM: the state that enters a block has decayed by one token too little."""
    original = ops._Decay.from_start
    monkeypatch.setattr(ops._Decay, "from_start", lambda self, rows: original(self, rows) * self._slopes.exp())


def plant_linear_slopes(monkeypatch, decoder) -> None:
    """fla's chunk_lightning_attn: slopes linear in the head, layer over L."""
    monkeypatch.setattr(
        lightning,
        "decay_slopes",
        lambda heads, layer, layers, *_: 8 / heads * (1 - layer / layers) * torch.arange(heads).float(),
    )


def plant_geometric_slopes(monkeypatch, decoder) -> None:
    """transformers: no ALiBi fallback for six heads."""
    original = ops.decay_slopes
    monkeypatch.setattr(lightning, "decay_slopes", lambda h, layer, n, alibi, device: original(h, layer, n, False))


def plant_lightning_only_layer_count(monkeypatch, decoder) -> None:
    """The factor counted over lightning layers only."""
    original = ops.decay_slopes
    place = {0: 0, 1: 1, 3: 2}
    monkeypatch.setattr(lightning, "decay_slopes", lambda h, layer, n, *rest: original(h, place[layer], 3, *rest))


def plant_norm_eps(monkeypatch, decoder) -> None:
    """vLLM: the inner norm with the config's eps, here large enough to show in tiny activations."""
    for layer in decoder.layers:
        if isinstance(layer.attention, LightningAttention):
            layer.attention.norm.eps = 1e-3


def plant_norm_per_head(monkeypatch, decoder) -> None:
    """One norm a head in place of one over all heads."""

    def per_head(x: torch.Tensor, original: torch.nn.Module) -> torch.Tensor:
        heads = x.unflatten(-1, (6, -1))
        return (heads * torch.rsqrt(heads.pow(2).mean(-1, keepdim=True) + 1e-6)).flatten(-2) * original.weight

    for layer in decoder.layers:
        if isinstance(layer.attention, LightningAttention):
            norm = layer.attention.norm
            monkeypatch.setattr(norm, "forward", lambda x, norm=norm: per_head(x, norm))


def plant_qkv_rows(monkeypatch, decoder) -> None:
    """All q, then all k, then all v."""
    for layer in decoder.layers:
        if isinstance(layer.attention, LightningAttention):
            weight = layer.attention.qkv_proj.weight
            weight.data = weight.data.unflatten(0, (6, 3, 16)).transpose(0, 1).flatten(0, 2).clone()


def plant_plain_residual(monkeypatch, decoder) -> None:
    """The stream itself where post-norm adds its norm."""
    for layer in decoder.layers:
        layer.post_norm = False


def plant_swapped_scales(monkeypatch, decoder) -> None:
    """alpha and beta of lightning layers in softmax layers."""
    for layer in decoder.layers:
        layer.attention_scale = (1.7, 0.9)


FAULTS = {name.removeprefix("plant_"): plant for name, plant in globals().items() if name.startswith("plant_")}


@pytest.mark.parametrize("fault", FAULTS)
def test_every_known_fault_shows(fault, tmp_path, monkeypatch) -> None:
    decoder = Decoder(config()).initialise(1)
    save(decoder, tmp_path / "model")
    assert departure(decoder, tmp_path / "model") < BOUND
    FAULTS[fault](monkeypatch, decoder)
    assert departure(decoder, tmp_path / "model") > 10 * BOUND


# ---- half precision


def test_a_bf16_layer_keeps_slopes_states_and_norm_in_fp32() -> None:
    """Against the same bf16 weights in float64: what is bf16 are the projections, everything between them is not."""
    layer, twin = (LightningAttention(config(), 3) for _ in range(2))
    for index, (parameter, other) in enumerate(zip(layer.parameters(), twin.parameters(), strict=True)):
        torch.nn.init.normal_(parameter, std=0.2, generator=torch.Generator().manual_seed(index))
        other.data = parameter.data.bfloat16().double()
    layer.bfloat16()
    assert layer.slopes().dtype == torch.float32 and torch.equal(layer.slopes(), twin.slopes())
    seen: dict[str, torch.Tensor] = {}
    layer.norm.register_forward_hook(lambda module, inputs, output: seen.update(y=inputs[0], normed=output))
    layer.out_proj.register_forward_pre_hook(lambda module, inputs: seen.update(gated=inputs[0]))
    qkv = layer.qkv_proj.register_forward_hook(lambda module, inputs, output: seen.update(qkv=output))
    cache, x = OneState(), torch.randn(LENGTH, 48, generator=torch.Generator().manual_seed(9)).bfloat16()
    layer(x, None, Packing.from_lengths([LENGTH]), cache)
    qkv.remove()
    # from the rounded projections on, the float64 twin has to find the same numbers
    q, k, v = torch.nn.functional.silu(seen["qkv"]).double().unflatten(-1, (6, 3, -1)).unbind(2)
    out, state = recurrent_attention(q, k, v, twin.slopes(), [LENGTH])
    assert_rms(seen["y"], out.flatten(-2), BOUND, "before the norm")
    assert_rms(cache.stored, state, BOUND, "state")
    assert_rms(seen["normed"], twin.norm(out.flatten(-2)), BOUND, "after the norm")
    assert seen["y"].dtype == cache.stored.dtype == torch.float32 and seen["gated"].dtype == torch.bfloat16


class OneState:
    """A cache that begins empty and remembers what it was given."""

    def states(self, layer: int) -> torch.Tensor:
        return torch.zeros(1, 6, 16, 16)

    def store_states(self, layer: int, states: torch.Tensor) -> None:
        self.stored = states


# ---- packed documents


@pytest.mark.parametrize("lengths", [[300, 1, 40, 7], [20, 20, 20]], ids=str)
def test_gradients_of_packed_documents_equal_separate_ones_in_float64(lengths, monkeypatch) -> None:
    """Every parameter: fp32 and blocks against fp64, the recurrence, and a forward pass a document."""
    packed, apart = Decoder(config()).initialise(1), Decoder(config()).initialise(1).double()
    documents = ids(sum(lengths)).split(lengths)
    cu_seqlens = torch.tensor([0, *lengths]).cumsum(0)
    out = packed.logits(packed(torch.cat(documents), Packing.from_cu_seqlens(cu_seqlens)).hidden)
    monkeypatch.setattr(lightning, "linear_attention", recurrent_attention)
    expected = torch.cat([apart.logits(apart(document).hidden) for document in documents])
    assert_rms(out, expected)
    targets = ids(sum(lengths), seed=1)
    for logits in (out, expected):
        torch.nn.functional.cross_entropy(logits, targets).backward()
    for (name, mine), theirs in zip(packed.named_parameters(), apart.parameters(), strict=True):
        assert_rms(mine.grad, theirs.grad, 5e-5, name)


def test_a_document_cannot_see_the_one_before(monkeypatch) -> None:
    decoder = Decoder(config()).initialise(1)
    first, second = ids(30), ids(30, seed=5)
    packing = Packing.from_lengths([30, 30])
    with torch.no_grad():
        same = [decoder(torch.cat((document, second)), packing).hidden[30:] for document in (first, ids(30, seed=9))]
        joined = decoder(torch.cat((first, second))).hidden[30:]
    assert torch.equal(*same) and not torch.allclose(same[0], joined, rtol=0.01)


# ---- the released shape


def test_the_released_shape_on_the_meta_device() -> None:
    """80 layers, 456.09 billion parameters, every name with its place."""
    released = preset("minimax-text-01")
    with torch.device("meta"):
        decoder = Decoder(released)
    parameters = dict(decoder.named_parameters())
    assert sum(parameter.numel() for parameter in parameters.values()) == 456_089_655_296
    table = tensor_table(released)
    assert {entry.parameter for entry in table.values()} == set(parameters)
    for entry in table.values():
        assert parameters[entry.parameter][entry.index or ...].shape == entry.shape
    assert [i for i in range(80) if table.get(f"model.layers.{i}.self_attn.q_proj.weight")] == list(range(7, 80, 8))
    assert table["model.layers.0.self_attn.qkv_proj.weight"].shape == (24576, 6144)
    assert table["model.layers.79.block_sparse_moe.experts.31.w2.weight"].shape == (6144, 9216)
