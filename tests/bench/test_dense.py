"""Dense models beside a mixture: their size, their weights, and that they are written once."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from octavo.bench import dense
from octavo.bench.dense import RandomSource, dense_pack, dense_shapes
from octavo.bench.measure import measure
from octavo.bench.metrics import parse_metric
from octavo.bench.parties import own_party
from octavo.bench.party import Worker
from octavo.bench.workers.own import load_runner
from octavo.checkpoint.figures import model_figures
from octavo.checkpoint.pack import Pack
from octavo.config import FORMS, ModelConfig
from octavo.errors import UsageError
from octavo.models import Decoder
from octavo.ops.quantize import dequantize
from tests.tiny import tiny_config


def mixture(family: str) -> ModelConfig:
    return tiny_config(family, shared_intermediate_size=24 if family == "minimax_text_01" else 0)


@pytest.mark.parametrize("family", ["mixtral", "minimax", "minimax_text_01"])
def test_sizes_are_those_of_the_mixture_without_its_router(family) -> None:
    config = mixture(family)
    sizes = {name: parameter.numel() for name, parameter in Decoder(config).named_parameters()}
    routing = sum(size for name, size in sizes.items() if ".router." in name or ".coefficient." in name)
    experts = sum(size for name, size in sizes.items() if ".experts." in name)
    assert routing > 0 and experts > 0
    total = sum(sizes.values()) - routing
    expected = {"active": total - experts * (5 - 3) // 5, "total": total}
    shapes = dense_shapes(config, "tiny")
    for size, shape in shapes.items():
        assert sum(parameter.numel() for parameter in Decoder(shape).parameters()) == expected[size]
        assert model_figures(shape).total_parameters == expected[size] and not shape.has_experts
        assert [layer.attention for layer in shape.layers] == [layer.attention for layer in config.layers]
    assert list(shapes) == ["active", "total"]


def test_a_model_with_dense_layers_has_no_such_sizes() -> None:
    with pytest.raises(UsageError, match="tiny has no experts in 2 of its 2 layers; name a mixture"):
        dense_shapes(tiny_config("llama"), "tiny")
    layers = (tiny_config("mixtral").layers[0], tiny_config("llama").layers[0])
    with pytest.raises(UsageError, match="in 1 of its 2 layers"):
        dense_shapes(tiny_config("mixtral", layers=layers), "tiny")


@pytest.mark.parametrize("bits", [4, 8])
def test_weights_are_random_as_a_models_are(bits) -> None:
    config = dense_shapes(tiny_config(hidden_size=49, initializer_range=0.02), "tiny")["total"]
    source = RandomSource(config, bits)
    names = [f"model.layers.{layer}.mlp.gate_proj.weight" for layer in (0, 1)]
    first, second = (dequantize(source.quantized(name), 49) for name in names)
    assert first.shape == (200, 49) and abs(torch.stack((first, second)).mean()) < 0.002
    assert first.std().item() == pytest.approx(0.02, rel=0.03)
    assert abs(torch.corrcoef(torch.stack((first.flatten(), second.flatten())))[0, 1]) < 0.05
    assert torch.equal(dequantize(RandomSource(config, bits).quantized(names[0]), 49), first)
    assert torch.equal(source.tensor("model.norm.weight"), torch.ones(49))
    if bits == 8:
        assert source.quantized(names[0]).qweight.min() == -127


@pytest.mark.parametrize(("family", "quant"), [("mixtral", "int4"), ("minimax_text_01", "int8"), ("minimax", "bf16")])
def test_a_pack_is_written_once_without_quantising_and_runs(family, quant, monkeypatch, tmp_path) -> None:
    monkeypatch.setattr("octavo.checkpoint.quantized.quantize", lambda *_: pytest.fail("quantised"))
    shape = dense_shapes(mixture(family), "tiny")["total"]
    path = dense_pack(shape, quant, tmp_path)
    pack = Pack(path)
    assert pack.config == shape and pack.bits == FORMS[quant]
    assert np.array_equal(pack.tensor("final_norm"), np.ones(48, np.float32))
    runner = load_runner(str(path), quant, 4, 2, 1)
    timing = measure(runner, parse_metric("decode_2"), 2)
    assert runner.config == shape and timing.tokens == 4 and timing.expert_reads == 0
    written = path.stat().st_mtime_ns
    assert dense_pack(shape, quant, tmp_path) == path and path.stat().st_mtime_ns == written
    path.write_bytes(path.read_bytes()[:-100])
    assert dense_pack(shape, quant, tmp_path) == path and Pack(path).config == shape
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_packs_of_other_shapes_and_forms_have_other_names(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(dense, "write_pack", lambda source, bits, path, progress: path.touch())
    shapes = dense_shapes(tiny_config(), "tiny")
    changed = replace(shapes["total"], vocab_size=64)
    made = [dense_pack(shape, quant, tmp_path) for shape in (*shapes.values(), changed) for quant in FORMS]
    assert len(set(made)) == 9 and all(path.parent == tmp_path for path in made)


def test_a_dense_party_in_its_own_process(tmp_path) -> None:
    shape = dense_shapes(tiny_config(), "tiny")["active"]
    metric = parse_metric("decode_2@33")
    party = own_party(dense_pack(shape, "int4", tmp_path), "int4", shape, [metric], 3, 1, "dense_active")
    with Worker(party) as worker:
        about, answer = worker.ready(60), worker.ask(metric.request(3), 60)
    assert party.name == "dense_active" and about["runner"] == "NativeRunner" and about["weight_bytes"] == 0.5625
    assert answer["tokens"] == 6 and answer["expert_reads"] == 0
