"""Bytes and operations, counted by hand for small models and against figures that were measured elsewhere."""

from dataclasses import replace
from itertools import combinations, product

import pytest

from octavo.bench.bounds import (
    HEAD_BYTES,
    WEIGHT_BYTES,
    Widths,
    bound,
    expected_expert_reads,
    parts,
    step_bytes,
    token_operations,
)
from octavo.bench.metrics import parse_metric
from octavo.bench.shapes import SHAPES
from octavo.checkpoint.figures import model_figures
from octavo.config import LayerSpec, preset
from tests.tiny import tiny_config

SMOLLM2_8X = replace(
    preset("smollm2-135m"), family="mixtral", layers=(LayerSpec(mlp="experts"),) * 30, num_experts=8, top_k=2
)


def test_weights_read_of_smollm2_8x135m() -> None:
    """214 M for one token and 692 M once every expert is hit."""
    metric, plain = parse_metric("decode_1"), 4 * parts(SMOLLM2_8X).plain
    read = [step_bytes(SMOLLM2_8X, metric, 1, 30 * experts, Widths(1.0, 1.0, 0.0)) - plain for experts in (2, 8)]
    assert [round(weights / 1e6) for weights in read] == [214, 692]


@pytest.mark.parametrize("family", ["llama", "mixtral", "minimax", "minimax_text_01"])
def test_parts_add_up_to_all_parameters(family) -> None:
    config = tiny_config(family, shared_intermediate_size=24 if family == "minimax_text_01" else 0)
    found, figures = parts(config), model_figures(config)
    experts = sum(layer.mlp == "experts" for layer in config.layers) * config.num_experts
    assert found.matrices + found.plain + experts * found.expert + 2 * found.head == figures.total_parameters


def test_bytes_of_a_step_by_hand() -> None:
    """tiny_config: 2 layers, width 48, 6 heads of 16 on 3, 5 experts 40 wide, 331 ids; 3 sequences that see
    10 + 2 + 1.5 keys on average over two steps."""
    attention, expert = 2 * 48 * (96 + 48), 3 * 48 * 40
    matrices, outside = 2 * attention + 7 * expert, 331 * 48 + 3 * 48
    plain = 2 * (2 * 48 + 5 * 48) + 48
    keys = 3 * 13.5 * 2 * 2 * 3 * 16
    found = step_bytes(tiny_config(), parse_metric("decode_3@10"), 2, 7, Widths(0.5, 3.0, 2.0))
    assert found == pytest.approx(0.5 * matrices + 3 * outside + 4 * plain + 2 * keys)


def test_states_are_read_and_written_and_a_window_limits_keys() -> None:
    hybrid, metric = tiny_config("minimax_text_01"), parse_metric("decode_2@100")
    nothing = Widths(0.0, 0.0, 0.0)
    states = 2 * 2 * 3 * 6 * 16 * 16 * 4
    assert step_bytes(hybrid, metric, 1, 0, nothing) - 4 * parts(hybrid).plain == states
    windowed = tiny_config("mistral")
    one, two = (step_bytes(windowed, parse_metric(f"decode_1@{depth}"), 1, 0, Widths(0, 0, 4)) for depth in (50, 5000))
    assert one == two == 4 * parts(windowed).plain + 4 * 7 * 2 * 2 * 3 * 16


def test_expected_experts_are_those_of_random_choices() -> None:
    config = tiny_config()
    choices = list(combinations(range(5), 3))
    mean = sum(len({*a, *b}) for a, b in product(choices, choices)) / len(choices) ** 2
    assert expected_expert_reads(config, 2) == pytest.approx(2 * mean)
    assert expected_expert_reads(config, 1) == pytest.approx(6) and expected_expert_reads(tiny_config("llama"), 9) == 0


def test_operations_of_a_prompt_token_by_hand() -> None:
    config = tiny_config()
    matrices = 2 * 2 * 48 * (96 + 48) + 2 * 3 * 3 * 48 * 40 + 331 * 48 / 4
    plain = 2 * (2 * 48 + 5 * 48) + 48
    attention = 2 * 4 * 96 * (1 + 2 + 3 + 4) / 4
    assert token_operations(config, parse_metric("prefill_4")) == pytest.approx(2 * (matrices + plain) + attention)


def test_bounds_come_from_memory_or_arithmetic() -> None:
    metric = parse_metric("decode_8")
    size = step_bytes(SMOLLM2_8X, metric, 1, 240, Widths(WEIGHT_BYTES["int4"], HEAD_BYTES["int4"], 0))
    assert bound(SMOLLM2_8X, metric, size, 25.6, 1.0) == pytest.approx(8 * 25.6e9 / size)
    assert bound(SMOLLM2_8X, parse_metric("decode_1"), 214e6 * 1.0625, 25.6, 1.0) == pytest.approx(112.6, rel=1e-3)
    prefill = parse_metric("prefill_512")
    assert bound(SMOLLM2_8X, prefill, 1.0, 1.0, 130.0) == pytest.approx(333, rel=0.1)


@pytest.mark.parametrize("name", SHAPES)
def test_shapes_are_of_the_size_to_quote(name) -> None:
    """1 to 3 GB as int4; widths for K-quants."""
    config = SHAPES[name]
    packed = model_figures(config).total_parameters * WEIGHT_BYTES["int4"]
    assert 1e9 < packed < 3e9 and 1024 <= config.hidden_size <= 2048
    assert config.hidden_size % 256 == config.intermediate_size % 256 == 0
