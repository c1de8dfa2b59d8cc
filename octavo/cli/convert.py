"""octavo convert: any checkpoint octavo reads into a Hugging Face folder."""

from pathlib import Path
from typing import Annotated

import typer

from octavo.cli.terminal import Json, parse_dtype, parse_quant, progress_bar, report


def run(
    src: Annotated[
        str, typer.Argument(help="A folder (Hugging Face's or Mistral's layout), a GGUF file or a hub name.")
    ],
    out: Annotated[Path, typer.Argument(help="The new model folder.")],
    dtype: Annotated[
        str | None, typer.Option(help="Storage: float32, bfloat16, float16 [default: the source's].")
    ] = None,
    quant: Annotated[str | None, typer.Option(help="Quantise the matrices: int4 or int8.")] = None,
    as_json: Json = False,
) -> None:
    """Convert SRC into the Hugging Face folder OUT and prove that both compute the same; with --quant, into a quantised
    folder that octavo reads, with the proof that it computes what SRC does once its weights are rounded so.

    Example: octavo convert SmolLM2-135M-Instruct.Q4_1.gguf ./SmolLM2-135M-Instruct
    """
    from octavo.checkpoint.convert import convert
    from octavo.checkpoint.quantize import quantize_model
    from octavo.checkpoint.source import open_source

    bits = parse_quant(quant, dtype)
    with progress_bar() as progress:
        source = open_source(src)
        if bits:
            proof = quantize_model(source, out, bits, progress)
        else:
            proof = convert(source, out, parse_dtype(dtype), progress)
    report(f"{out}: written. {proof.summary()}", {"out": str(out), "proof": proof.as_dict()}, as_json)
