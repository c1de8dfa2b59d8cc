"""octavo bench: tokens per second beside this machine's limits and beside a peer."""

from pathlib import Path
from typing import Annotated, Any

import typer

from octavo.cli.terminal import Json, report, say
from octavo.errors import UserError
from octavo.progress import progress_bar


def run(
    model: Annotated[
        str | None,
        typer.Argument(help="A folder, GGUF file, hub name or the shape mixtral-8x0.5b [default: quickstart's]."),
    ] = None,
    quant: Annotated[
        str | None,
        typer.Option(help="int4, int8, bf16, or fp32 in torch [default: as stored, else int4]."),
    ] = None,
    peer: Annotated[list[str] | None, typer.Option(help="llama.cpp or transformers; may be repeated.")] = None,
    metrics: Annotated[str | None, typer.Option(help="A list such as prefill_512,decode_8@4096.")] = None,
    rounds: Annotated[int, typer.Option(help="How often each metric is measured.", min=1)] = 3,
    steps: Annotated[int, typer.Option(help="Decoding steps that are timed.", min=1)] = 64,
    threads: Annotated[int | None, typer.Option(help="[default: the cores that may be used]", min=1)] = None,
    peer_python: Annotated[str | None, typer.Option(help="The Python that has llama_cpp.")] = None,
    peer_file: Annotated[Path | None, typer.Option(help="Another GGUF file for llama.cpp: speed only.")] = None,
    peer_depth: Annotated[int, typer.Option(help="Deepest @DEPTH for llama.cpp.", min=0)] = 4096,
    timeout: Annotated[float, typer.Option(help="Seconds that one answer may take.", min=1)] = 1800,
    dense: Annotated[bool, typer.Option("--dense", help="Also dense models of its active and its total size.")] = False,
    plot: Annotated[Path | None, typer.Option(help="Draw bars into this PNG file.")] = None,
    page: Annotated[Path | None, typer.Option("--report", help="Write a Markdown page into this file.")] = None,
    as_json: Json = False,
) -> None:
    """Measure prefill and decode of MODEL beside the read bandwidth and matrix rate of this machine, and beside peers.

    Parties run in processes of their own and take turns; figures are medians. What lies before a @DEPTH is noise in
    octavo and computed by llama.cpp. With --dense, dense models of the same shape, as large as what a token uses of the
    mixture and as all of it, take turns too.

    Example: octavo bench ./SmolLM2-8x135M-Instruct --metrics prefill_512,decode_1 --peer transformers
    """
    from octavo.bench.metrics import parse_metrics
    from octavo.bench.parties import PeerOptions
    from octavo.bench.report import table
    from octavo.bench.schedule import Plan
    from octavo.bench.session import bench, check_quant, chosen_quant, chosen_threads, find_model

    plan = Plan(parse_metrics(metrics), rounds, steps, timeout)
    peers = PeerOptions(peer or (), peer_python, peer_file, peer_depth)
    count = chosen_threads(threads)
    check_quant(quant, dense)
    _check_places(page, plot)
    with progress_bar(per_second=1) as progress:
        found = find_model(model or _quickstart_model(), progress)
        figures = bench(found, chosen_quant(found, quant), plan, peers, count, say, progress, dense)
    report(table(figures), figures, as_json)
    _write(figures, page, plot)
    for reasons in figures["errors"].values():  # last: what was measured is not lost
        raise UserError(next(iter(reasons.values())))


def _check_places(page: Path | None, plot: Path | None) -> None:
    """Raise UserError where one of the files could not be written."""
    from octavo.bench.report import check_report
    from octavo.plots import check_plot

    if page is not None:
        check_report(page)
    if plot is not None:
        check_plot(plot)


def _write(figures: dict[str, Any], page: Path | None, plot: Path | None) -> None:
    from octavo.bench.plot import draw
    from octavo.bench.report import write_report

    if page is not None:
        write_report(figures, page)
        say(f"wrote {page}")
    if plot is not None:
        draw(figures, plot)
        say(f"drew {plot}")


def _quickstart_model() -> str:
    from octavo.config import home
    from octavo.quickstart import EXPERTS, child_name

    folder = home() / child_name("SmolLM2-135M-Instruct", EXPERTS)
    if not folder.is_dir():
        raise UserError(f"{folder}: not made yet: run `octavo quickstart`, or name a MODEL, or mixtral-8x0.5b")
    return str(folder)
