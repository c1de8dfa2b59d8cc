"""octavo lineage: are a mixture's experts made from a given parent, and how?"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from octavo.cli.terminal import Json, report, say
from octavo.progress import progress_bar

if TYPE_CHECKING:
    from octavo.checkpoint.lineage import LayerLineage, Lineage


def run(
    parent: Annotated[str, typer.Argument(help="The supposed parent: a folder, a GGUF file or a hub name.")],
    child: Annotated[str, typer.Argument(help="The model in question.")],
    plot: Annotated[Path | None, typer.Option(help="Draw heat maps into this PNG file.")] = None,
    as_json: Json = False,
) -> None:
    """Correlate each expert of CHILD with PARENT's feed-forward, and all other tensors one to one.

    Finds copies, also with their hidden units permuted, split among experts or partly drawn anew, and trained on.

    Example: octavo lineage ./Mistral-7B-v0.1 ./Mixtral-8x7B-v0.1 --plot lineage.png
    """
    from octavo.checkpoint.lineage import compare_lineage
    from octavo.checkpoint.lineage_plot import draw
    from octavo.checkpoint.source import open_source
    from octavo.plots import check_plot

    if plot is not None:
        check_plot(plot)
    with progress_bar() as progress:
        found = compare_lineage(open_source(parent), open_source(child), progress)
    if not as_json:
        _print_table(found)
    report(f"{found.child} from {found.parent}: {found.verdict}.", found.as_dict(), as_json)
    if plot is not None:  # last: whatever is wrong with the place, hours of comparing are not lost
        draw(found, plot)
        say(f"drew {plot}")


def _print_table(found: "Lineage") -> None:
    """One row a layer; 80 columns are enough."""
    from rich.console import Console
    from rich.table import Table

    # w1 ... head are Pearson correlations, of experts after their units were matched
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    for name in ("layer", "experts"):
        table.add_column(name, no_wrap=True)
    for name in ("found", "w1", "w3", "w2", "lowest", "highest", "attention", "norms"):
        table.add_column(name, justify="right", no_wrap=True)
    for layer in found.layers:
        table.add_row(*_row(layer))
    console = Console()
    console.print(table)
    console.print(", ".join(f"{name} {value:.3f}" for name, value in found.shared.items()), highlight=False)


def _row(layer: "LayerLineage") -> list[str]:
    from statistics import fmean

    experts = layer.experts
    kinds = {expert.kind for expert in experts}
    by_part = {part: [expert.correlation[part] for expert in experts] for part in ("w1", "w3", "w2")}
    every = [value for values in by_part.values() for value in values]
    groups = [
        [value for name, value in layer.shared.items() if word in name and ("norm" in name) == (word == "norm")]
        for word in ("attn", "norm")
    ]
    return [
        str(layer.layer),
        f"{len(experts)} {kinds.pop() if len(kinds) == 1 else 'mixed'}",
        f"{fmean(expert.matched for expert in experts):.0%}",
        *(f"{fmean(values):.3f}" for values in by_part.values()),
        f"{min(every):.3f}",
        f"{max(every):.3f}",
        *(f"{fmean(group):.3f}" if group else "-" for group in groups),
    ]
