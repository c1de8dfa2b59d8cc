"""The heat maps: right colours in the right cells, and a clear line without matplotlib."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from octavo.checkpoint import lineage_plot
from octavo.checkpoint.lineage import LayerLineage, Lineage
from octavo.checkpoint.unit_match import ExpertMatch
from octavo.cli.lineage import _row as lineage_row

matplotlib = pytest.importorskip("matplotlib")


def lineage(layers: int = 3, experts: int = 4, aligned: bool = True) -> Lineage:
    """Expert e of layer l has the correlation (l * experts + e) / (layers * experts), and one is negative."""
    rows = []
    for layer in range(layers):
        row = []
        for expert in range(experts):
            value = (layer * experts + expert) / (layers * experts)
            same = dict.fromkeys(("w1", "w3", "w2"), value or -0.5)
            row.append(ExpertMatch("drop", 40, 40, value, 1.0, same if aligned else None, same, same, None))
        rows.append(LayerLineage(layer, tuple(row), {"input_layernorm": 1.0, "self_attn.q_proj": 0.25}))
    return Lineage("parent", "child", tuple(rows), {"embed_tokens": 1.0}, ())


def pixels(path: Path) -> np.ndarray:
    """[height, width, 3], 0 to 255."""
    from matplotlib.image import imread

    return (imread(path)[..., :3] * 255).round().astype(int)


def colour(value: float) -> tuple[int, ...]:
    red, green, blue, _ = matplotlib.colormaps["viridis"](value)
    return tuple(round(part * 255) for part in (red, green, blue))


def has(image: np.ndarray, value: float) -> bool:
    """Is there at least a cell's worth of this value's colour?"""
    return int((abs(image - np.array(colour(value))).max(-1) <= 1).sum()) > 100


@pytest.mark.parametrize(("layers", "experts"), [(3, 4), (32, 8)])
def test_each_cell_has_the_colour_of_its_correlation(layers, experts, tmp_path) -> None:
    found = lineage(layers, experts)
    lineage_plot.draw(found, tmp_path / "out.png")
    image = pixels(tmp_path / "out.png")
    panel = max(0.17 * experts, 1.15)
    width = max(0.6 + 3 * (panel + 0.12) + (1.15 + 0.12) + 0.6 + 1.3, 7.0)
    height = 0.75 + max(0.17 * layers, 1.15) + 1.35
    assert image.shape[:2] == pytest.approx((height * 100, width * 100), abs=1)
    for panel_number in range(3):
        for layer in range(layers):
            for expert in range(experts):
                x = 0.6 + panel_number * (panel + 0.12) + panel * (expert + 0.5) / experts
                y = 1.35 + max(0.17 * layers, 1.15) * (layer + 0.5) / layers
                value = max(found.layers[layer].experts[expert].correlation["w1"], 0)
                assert tuple(image[int(y * 100), int(x * 100)]) == pytest.approx(colour(value), abs=1)
    assert (tmp_path / "out.png").stat().st_size < 150_000
    assert [path.name for path in tmp_path.iterdir()] == ["out.png"]


def test_the_scale_is_the_same_whatever_the_values(tmp_path) -> None:
    """Correlations between 0.4 and 0.5 alone must not be stretched over all colours, but for the bar."""
    found = lineage(1, 2)
    object.__setattr__(found.layers[0], "shared", {"norm": 0.5})
    lineage_plot.draw(found, tmp_path / "out.png")
    image = pixels(tmp_path / "out.png")
    assert has(image, 0.0) and has(image, 0.5)
    assert not has(image[:, : image.shape[1] * 2 // 3], 1.0)


def test_as_stored_and_matched_are_drawn_apart_only_where_they_differ(tmp_path) -> None:
    titles = {}
    for name, aligned in (("same", True), ("split", False)):
        titles[name] = [title for title, _ in lineage_plot._groups(lineage(aligned=aligned))]
    found = lineage()
    object.__setattr__(found.layers[0].experts[0], "aligned", {"w1": 0.0, "w3": 0.0, "w2": 0.0})
    titles["permuted"] = [title for title, _ in lineage_plot._groups(found)]
    assert titles == {
        "same": ["experts, units as stored", "shared tensors"],
        "split": ["experts, units matched", "shared tensors"],
        "permuted": ["experts, units as stored", "experts, units matched", "shared tensors"],
    }
    lineage_plot.draw(found, tmp_path / "wide.png")
    lineage_plot.draw(lineage(aligned=False), tmp_path / "narrow.png")
    assert pixels(tmp_path / "wide.png").shape[1] > pixels(tmp_path / "narrow.png").shape[1] + 300


def test_each_panel_and_column_shows_its_own_tensor() -> None:
    found = lineage(2, 2, aligned=False)
    for number, layer in enumerate(found.layers):
        object.__setattr__(layer, "shared", {"input_layernorm": 0.1 + number, "self_attn.q_proj": 0.2 + number})
        for expert in layer.experts:
            object.__setattr__(expert, "correlation", {"w1": 0.1, "w3": 0.3, "w2": 0.2})
    (_, experts), (_, (shared,)) = lineage_plot._groups(found)
    assert [(panel.title, panel.values) for panel in experts] == [
        ("w1 (gate)", [[0.1] * 2] * 2), ("w3 (up)", [[0.3] * 2] * 2), ("w2 (down)", [[0.2] * 2] * 2)]  # fmt: skip
    assert (shared.columns, shared.values) == (["norm 1", "q"], [[0.1, 0.2], [1.1, 1.2]])


def test_many_experts_and_layers_do_not_make_the_page_larger(tmp_path) -> None:
    lineage_plot.draw(lineage(100, 64), tmp_path / "out.png")
    height, width, _ = pixels(tmp_path / "out.png").shape
    assert height < 1100 and width < 1700


# ---- the command


@pytest.fixture(scope="module")
def pair(tmp_path_factory) -> Path:
    from octavo.checkpoint.source import open_source
    from octavo.checkpoint.upcycle import UpcycleOptions, upcycle
    from tests.tiny import write_tiny_model

    folder = tmp_path_factory.mktemp("pair")
    write_tiny_model(folder / "parent", "llama")
    upcycle(open_source(folder / "parent"), folder / "child", UpcycleOptions(method="permute", experts=4))
    return folder


def octavo(capsys, *arguments: object) -> tuple[int, str, str]:
    from octavo.cli import main

    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return ended.value.code or 0, out, err


def test_the_table_has_a_row_for_each_layer_and_the_verdict_last(pair, capsys, tmp_path) -> None:
    status, out, err = octavo(capsys, "lineage", pair / "parent", pair / "child", "--plot", tmp_path / "map.png")
    lines = out.splitlines()
    assert status == 0 and max(map(len, lines[:4])) <= 80
    assert lines[0].split()[:6] == ["layer", "experts", "found", "w1", "w3", "w2"]
    assert lines[0].split()[6:] == ["lowest", "highest", "attention", "norms"]
    for layer in range(2):
        assert lines[1 + layer].split() == [str(layer), "4", "permuted", "100%", *["1.000"] * 7]
    assert lines[3] == "embed_tokens 1.000, norm 1.000, lm_head 1.000"
    assert lines[4].startswith("child from parent: every expert is a copy") and "permuted" in lines[4]
    assert len(lines) == 5 and "drew" in err and pixels(tmp_path / "map.png").shape[1] > 700


def test_the_columns_of_the_table(pair) -> None:
    """Five experts of which one matrix stands out, and shared tensors that differ in kind."""
    experts = [
        ExpertMatch("copy", 8, 8, 1.0, 1.0, None, {"w1": 0.5, "w3": 0.6, "w2": w2}, None, 0) for w2 in (0.1, 0.9)
    ]
    shared = {"input_layernorm": 0.2, "post_attention_layernorm": 0.4, "self_attn.q_proj": 0.7, "self_attn.o_proj": 0.8,
              "block_sparse_moe.gate": 0.0}  # fmt: skip
    row = lineage_row(LayerLineage(3, tuple(experts), shared))
    assert row == ["3", "2 copy", "100%", "0.500", "0.600", "0.500", "0.100", "0.900", "0.750", "0.300"]


def test_a_name_is_not_read_as_mathematics(pair, tmp_path) -> None:
    from octavo.checkpoint.lineage import compare_lineage
    from octavo.checkpoint.source import open_source

    found = compare_lineage(open_source(pair / "parent"), open_source(pair / "child"))
    lineage_plot.draw(replace(found, parent=r"a$b\zz$", child="$x"), tmp_path / "map.png")
    assert (tmp_path / "map.png").is_file()


def test_json_is_one_object_alone_on_standard_output(pair, capsys) -> None:
    status, out, _ = octavo(capsys, "lineage", pair / "parent", pair / "child", "--json")
    record = json.loads(out)
    assert status == 0 and record["kinds"] == {"permuted": 8} and len(record["layers"][0]["experts"]) == 4


def test_mistakes_of_the_command_are_one_line(pair, capsys, tmp_path, monkeypatch) -> None:
    status, out, err = octavo(capsys, "lineage", pair / "parent", pair / "child", "--plot", tmp_path / "x.pdf")
    assert status == 2 and not out and "must end in .png" in err
    status, out, err = octavo(capsys, "lineage", pair / "absent", pair / "child")
    assert status == 1 and not out and "no such folder" in err
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    status, out, err = octavo(capsys, "lineage", pair / "parent", pair / "child", "--plot", tmp_path / "x.png")
    assert status == 1 and not out and err.strip().endswith("pip install 'octavo[plot]'")
    assert octavo(capsys, "lineage", pair / "parent", pair / "child")[0] == 0  # only --plot needs it
