"""octavo convert: any checkpoint octavo reads into a Hugging Face folder."""

from pathlib import Path
from typing import Annotated

import typer

from octavo.cli.terminal import Json, parse_dtype, progress_bar, report


def run(
    src: Annotated[
        str, typer.Argument(help="A folder (Hugging Face's or Mistral's layout), a GGUF file or a hub name.")
    ],
    out: Annotated[Path, typer.Argument(help="The new model folder.")],
    dtype: Annotated[
        str | None, typer.Option(help="Storage: float32, bfloat16, float16 [default: the source's].")
    ] = None,
    as_json: Json = False,
) -> None:
    """Convert SRC into the Hugging Face folder OUT and prove that both compute the same.

    Example: octavo convert SmolLM2-135M-Instruct.Q4_1.gguf ./SmolLM2-135M-Instruct
    """
    from octavo.checkpoint.convert import convert
    from octavo.checkpoint.source import open_source

    with progress_bar() as progress:
        proof = convert(open_source(src), out, parse_dtype(dtype), progress)
    report(f"{out}: written. {proof.summary()}", {"out": str(out), "proof": proof.as_dict()}, as_json)
