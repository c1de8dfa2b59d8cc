"""Heat maps of a lineage: layers down, experts across, one panel a matrix."""

from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from textwrap import fill
from typing import TYPE_CHECKING

from octavo.checkpoint.lineage import Lineage
from octavo.plots import write_png

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

COLOURS = "viridis"  # even in lightness, so that it reads in grey and with any colour vision
_MATRICES = {"w1": "w1 (gate)", "w3": "w3 (up)", "w2": "w2 (down)"}
_SHORT = {"input_layernorm": "norm 1", "post_attention_layernorm": "norm 2", "block_sparse_moe.gate": "router"}
# inches; cells shrink when there are many layers or experts
_CELL, _MOST_WIDE, _MOST_HIGH, _LEAST, _LINED = 0.17, 3.2, 8.0, 1.15, 0.1
_LEFT, _RIGHT, _BOTTOM, _TOP, _GAP, _GROUP_GAP, _BAR = 0.6, 1.3, 0.75, 1.35, 0.12, 0.6, 0.16


@dataclass(frozen=True)
class _Panel:
    """One heat map: values [layers][columns], None where a layer lacks the tensor."""

    title: str
    values: list[list[float | None]]
    columns: list[str]
    axis: str

    @property
    def width(self) -> float:
        """In inches."""
        return min(max(_CELL * len(self.columns), _LEAST), _MOST_WIDE)


def draw(found: Lineage, out: Path) -> None:
    """Write the heat maps as the PNG `out`, as `write_png` does. Colours run from 0 to 1."""
    write_png(_figure(found), out)


def _figure(found: Lineage) -> "Figure":
    from matplotlib.figure import Figure

    groups = _groups(found)
    height = _height(len(found.layers))
    inner = sum(panel.width + _GAP for _, panels in groups for panel in panels) + _GROUP_GAP * (len(groups) - 1)
    size = (max(_LEFT + inner + _RIGHT, 7.0), _BOTTOM + height + _TOP)
    figure = Figure(figsize=size)

    def axes(left: float, width: float) -> "Axes":
        return figure.add_axes((left / size[0], _BOTTOM / size[1], width / size[0], height / size[1]))

    title = "\n".join(
        fill(line, int(size[0] * 13)) for line in (f"{found.child} against {found.parent}", found.verdict)
    )
    figure.text(_LEFT / size[0], 1 - 0.12 / size[1], title, fontsize=11, va="top", parse_math=False)
    left = _LEFT
    for name, panels in groups:
        figure.text(left / size[0], (_BOTTOM + height + 0.47) / size[1], name, fontsize=10, weight="bold")
        for index, panel in enumerate(panels):
            image = _heat_map(axes(left, panel.width), panel, labelled=index == 0)
            left += panel.width + _GAP
        left += _GROUP_GAP
    bar = figure.colorbar(image, cax=axes(left - _GROUP_GAP + 0.1, _BAR), ticks=[0, 0.25, 0.5, 0.75, 1])
    bar.ax.set_yticklabels(["0 or less", "0.25", "0.5", "0.75", "1"], fontsize=8)
    bar.set_label("Pearson correlation", fontsize=9)
    return figure


def _height(layers: int) -> float:
    return min(max(_CELL * layers, _LEAST), _MOST_HIGH)


def _groups(found: Lineage) -> list[tuple[str, list[_Panel]]]:
    """Experts as stored, experts with units matched where that makes a difference, shared tensors."""
    layers = found.layers
    stored = [
        [[e.aligned[part] if e.aligned else None for e in layer.experts] for layer in layers] for part in _MATRICES
    ]
    matched: list[list[list[float | None]]]
    matched = [[[e.correlation[part] for e in layer.experts] for layer in layers] for part in _MATRICES]
    groups = []
    if any(expert.aligned for expert in found.experts):
        groups.append(("experts, units as stored", _expert_panels(stored)))
    if matched != stored:
        groups.append(("experts, units matched", _expert_panels(matched)))
    names = list(dict.fromkeys(name for layer in layers for name in layer.shared))
    shared = [[layer.shared.get(name) for name in names] for layer in layers]
    short = [_SHORT.get(name, name.rpartition(".")[2].removesuffix("_proj")) for name in names]
    groups.append(("shared tensors", [_Panel("", shared, short, "")]))
    return groups


def _expert_panels(values: list[list[list[float | None]]]) -> list[_Panel]:
    most = max(len(row) for matrix in values for row in matrix)
    columns = [str(expert) for expert in range(most)]
    return [
        _Panel(title, [row + [None] * (most - len(row)) for row in matrix], columns, "expert")
        for title, matrix in zip(_MATRICES.values(), values, strict=True)
    ]


def _heat_map(axes: "Axes", panel: _Panel, labelled: bool) -> "AxesImage":
    known = [value for row in panel.values for value in row if value is not None]
    title = f"{panel.title}\nmean {fmean(known):.3f}" if known else f"{panel.title}\nnone"
    data = [[float("nan") if value is None else value for value in row] for row in panel.values]
    image = axes.imshow(data, cmap=COLOURS, vmin=0, vmax=1, aspect="auto", interpolation="nearest")
    axes.set_title(title.strip(), fontsize=9)
    axes.set_xlabel(panel.axis, fontsize=9)
    layers, columns = len(panel.values), len(panel.columns)
    step = max(1, columns // 8) if panel.axis else 1
    axes.set_xticks(range(0, columns, step), panel.columns[::step], fontsize=8)
    for label in axes.get_xticklabels():
        label.set_rotation(90 if len(label.get_text()) > 3 else 0)
    axes.set_yticks(range(0, layers, 1 if layers <= 12 else 5))
    axes.tick_params(length=2, labelsize=8, left=labelled, labelleft=labelled)
    if labelled:
        axes.set_ylabel("layer", fontsize=9)
    if min(panel.width / columns, _height(layers) / layers) >= _LINED:
        # lines between cells, so that equal neighbours can be counted; over small cells they would be all one sees
        axes.set_xticks([column - 0.5 for column in range(1, columns)], minor=True)
        axes.set_yticks([layer - 0.5 for layer in range(1, layers)], minor=True)
        axes.grid(which="minor", color="white", linewidth=0.4)
        axes.tick_params(which="minor", length=0)
    return image
