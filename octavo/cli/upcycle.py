"""octavo upcycle: a dense checkpoint into a mixture of experts."""

from pathlib import Path
from typing import Annotated

import typer

from octavo.cli.terminal import Json, parse_dtype, report
from octavo.progress import progress_bar


def run(
    src: Annotated[str, typer.Argument(help="The dense parent: a folder, a GGUF file or a hub name.")],
    out: Annotated[Path, typer.Argument(help="The new model folder.")],
    experts: Annotated[int, typer.Option(help="Number of experts.")] = 8,
    top_k: Annotated[int, typer.Option(help="Experts per token.")] = 2,
    method: Annotated[str, typer.Option(help="How experts are made: copy, permute, split or drop.")] = "copy",
    granularity: Annotated[
        int | None, typer.Option(help="split: cut each feed-forward into this many experts [default: 2].")
    ] = None,
    drop_share: Annotated[
        float | None, typer.Option(help="drop: draw this share of the hidden units anew [default: 0.5].")
    ] = None,
    router_init: Annotated[str, typer.Option(help="The new router: normal (std 0.02) or orthogonal.")] = "normal",
    seed: Annotated[int, typer.Option(help="Seed of the router, the experts and the proof.")] = 0,
    drop_window: Annotated[
        bool, typer.Option("--drop-window", help="Drop the parent's sliding window (equal only within it).")
    ] = False,
    dtype: Annotated[
        str | None, typer.Option(help="Storage: float32, bfloat16, float16 [default: the parent's].")
    ] = None,
    as_json: Json = False,
) -> None:
    """Turn the dense SRC into a mixture of experts OUT that computes the same function, and prove it.

    Only --method drop changes the function, and says by how much.

    Example: octavo upcycle ./Mistral-7B-v0.1 ./Mistral-8x7B --experts 8 --top-k 2
    """
    from octavo.checkpoint.source import open_source
    from octavo.checkpoint.upcycle import UpcycleOptions, upcycle

    options = UpcycleOptions(
        experts=experts, top_k=top_k, method=method, granularity=granularity, drop_share=drop_share,
        router_init=router_init, seed=seed, drop_window=drop_window, dtype=parse_dtype(dtype),
    )  # fmt: skip
    with progress_bar() as progress:
        proof = upcycle(open_source(src), out, options, progress)
    figures = {"out": str(out), "experts": experts, "top_k": top_k, "exact": method != "drop", "proof": proof.as_dict()}
    report(f"{out}: {experts} experts, {top_k} per token. {proof.summary()}", figures, as_json)
