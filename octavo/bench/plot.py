"""Bars of the rates, each with its bound as a line; prefill and decode in a panel each."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from octavo.bench.results import named_parties
from octavo.plots import write_png

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# ends and middle of viridis, apart in grey too, then what lies between them
_COLOURS = ("#440154", "#21918c", "#fde725", "#3b528b", "#5ec962")
_BAR = 0.8  # of the distance between two metrics, all parties together


def draw(figures: Mapping[str, Any], out: Path) -> None:
    """Write the bars as the PNG `out`, which is replaced whole or not at all. Raises UserError where it cannot."""
    from matplotlib.figure import Figure

    kinds = [[name for name in figures["metrics"] if name.startswith(kind)] for kind in ("prefill", "decode")]
    kinds = [names for names in kinds if names]
    figure = Figure(figsize=(3 + 1.1 * len(figures["metrics"]), 4.5), layout="constrained")
    panels = figure.subplots(1, len(kinds), squeeze=False, width_ratios=[len(names) + 0.5 for names in kinds])[0]
    for axes, names in zip(panels, kinds, strict=True):
        _bars(axes, figures, names)
    panels[0].set_ylabel("tokens/s")
    figure.legend(*panels[-1].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=8)
    figure.suptitle(f"{figures['model']}, {figures['quant']}, {figures['threads']} threads", parse_math=False)
    write_png(figure, out)


def _bars(axes: "Axes", figures: Mapping[str, Any], names: list[str]) -> None:
    parties = named_parties(figures)
    width = _BAR / len(parties)
    for place, (party, rates) in enumerate(parties.items()):
        left = (place - (len(parties) - 1) / 2) * width
        measured = [(index, rates[name]) for index, name in enumerate(names) if name in rates]
        places, heights = [index + left for index, _ in measured], [rate for _, rate in measured]
        colour = _COLOURS[place % len(_COLOURS)]
        bars = axes.bar(places, heights, width, label=party, color=colour, edgecolor="black", linewidth=0.4)
        axes.bar_label(bars, fmt=_short, fontsize=7)
        bounds = [rates["bound"][name] for name in names if name in rates]
        begins, ends = ([middle + half for middle in places] for half in (-width / 2, width / 2))
        axes.hlines(bounds, begins, ends, colors="crimson", label="bound" if place == len(parties) - 1 else "")
    axes.set_xticks(range(len(names)), names, rotation=30, ha="right", fontsize=8)


def _short(rate: float) -> str:
    return f"{rate:.0f}" if rate >= 100 else f"{rate:.3g}"
