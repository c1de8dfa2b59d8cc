"""octavo convert: any checkpoint octavo reads into a Hugging Face folder or a GGUF file."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from octavo.cli.terminal import Json, parse_dtype, parse_quant, report
from octavo.errors import UsageError
from octavo.progress import progress_bar

if TYPE_CHECKING:
    from octavo.config import Bits


def run(
    src: Annotated[
        str, typer.Argument(help="A folder (Hugging Face's or Mistral's layout), a GGUF file or a hub name.")
    ],
    out: Annotated[Path, typer.Argument(help="The new model folder, or a file ending in .gguf.")],
    dtype: Annotated[
        str | None, typer.Option(help="Of a folder: float32, bfloat16, float16 [default: the source's].")
    ] = None,
    kind: Annotated[
        str | None, typer.Option("--type", help="Of a GGUF file: f32, f16, q8_0, q4_0 [default: f16].")
    ] = None,
    quant: Annotated[str | None, typer.Option(help="Quantise the matrices: int4 or int8.")] = None,
    as_json: Json = False,
) -> None:
    """Convert SRC into the Hugging Face folder or the GGUF file OUT and prove that both compute the same; with --quant,
    into a quantised folder that octavo reads, with the proof that it computes what SRC does with its weights rounded.

    Example: octavo convert SmolLM2-135M-Instruct.Q4_1.gguf ./SmolLM2-135M-Instruct

    Example: octavo convert ./SmolLM2-135M-Instruct SmolLM2-135M-Instruct.Q8_0.gguf --type q8_0
    """
    from octavo.checkpoint.convert import convert
    from octavo.checkpoint.gguf_convert import DEFAULT_TYPE, convert_to_gguf
    from octavo.checkpoint.quantize import quantize_model
    from octavo.checkpoint.source import open_source

    gguf, bits = out.suffix.lower() == ".gguf", _quantised_bits(quant, dtype)
    if gguf and (dtype or quant) is not None:
        raise UsageError(f"--{'dtype' if dtype else 'quant'} is for folders; {out} will be a GGUF file: use --type")
    if kind is not None and not gguf:
        raise UsageError(f"--type is for GGUF files; {out} will be a folder: use --dtype, or a name that ends in .gguf")
    with progress_bar() as progress:
        source = open_source(src)
        if gguf:
            proof = convert_to_gguf(source, out, kind or DEFAULT_TYPE, progress)
        elif bits:
            proof = quantize_model(source, out, bits, progress)
        else:
            proof = convert(source, out, parse_dtype(dtype), progress)
    report(f"{out}: written. {proof.summary()}", {"out": str(out), "proof": proof.as_dict()}, as_json)


def _quantised_bits(quant: str | None, dtype: str | None) -> "Bits | None":
    bits = parse_quant(quant, dtype)
    if bits == 16:
        raise UsageError("--quant is 'bf16': a folder in bf16 is not quantised; use --dtype bfloat16")
    return bits
