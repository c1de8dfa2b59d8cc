"""What the verbs share: their common options, and how a model is opened."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from octavo.errors import UsageError, UserError
from octavo.progress import progress_bar

if TYPE_CHECKING:
    import torch

    from octavo.config import FormBits, Grammar
    from octavo.engine.open import OpenModel

Model = Annotated[str, typer.Argument(help="A model folder, a GGUF file or a hub name (owner/name).")]
Device = Annotated[str, typer.Option(help="Where to run: cpu, cuda, cuda:1, mps.")]
Dtype = Annotated[
    str | None, typer.Option(help="Compute in torch: float32, bfloat16, float16 [default on a GPU: bf16].")
]
Quant = Annotated[
    str | None, typer.Option(help="On a CPU: int4, int8 or bf16 [default: as stored, int8 where it is not quantised].")
]
Context = Annotated[int, typer.Option(help="Most tokens of prompt and answer together.", min=1)]
MaxNewTokens = Annotated[int, typer.Option(help="Most tokens to generate.")]
Temperature = Annotated[float, typer.Option(help="0 is greedy.")]
TopK = Annotated[int, typer.Option(help="Draw from the K likeliest tokens only; 0 is off.")]
TopP = Annotated[float, typer.Option(help="Draw from the likeliest tokens that reach this probability.")]
MinP = Annotated[float, typer.Option(help="Leave out tokens less likely than this share of the likeliest's; 0 is off.")]
RepetitionPenalty = Annotated[float, typer.Option(help="Above 1: tokens of the prompt and the answer come less often.")]
PresencePenalty = Annotated[float, typer.Option(help="Taken from the logits of tokens that the answer has.")]
FrequencyPenalty = Annotated[float, typer.Option(help="The same, for each time that it has them.")]
JsonSchema = Annotated[str | None, typer.Option(help="A file with a JSON schema that the answer will match.")]
Regex = Annotated[str | None, typer.Option(help="A regular expression that the whole answer will match.")]
Choice = Annotated[list[str] | None, typer.Option(help="The answer is one of these; repeat the option.")]
MemoryTokens = Annotated[
    int | None,
    typer.Option(help="Tokens of all requests and the prefix cache held at once [default: four contexts].", min=1),
]
Seed = Annotated[int | None, typer.Option(help="Same seed, same answer.")]
Json = Annotated[bool, typer.Option("--json", help="Print the figures as one JSON object.")]
Stop = Annotated[list[str] | None, typer.Option(help="End the answer before this text; may be repeated.")]


def parse_dtype(name: str | None) -> "torch.dtype | None":
    """The torch dtype of an option's value. Raises UsageError for one we do not store."""
    if name is None:
        return None
    import torch

    known = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if name not in known:
        raise UsageError(f"--dtype is {name!r}: choose one of {', '.join(known)}")
    return known[name]


def parse_quant(name: str | None, dtype: str | None) -> "FormBits | None":
    """The bits of `--quant`. Raises UsageError for another form, and beside `--dtype`."""
    from octavo.config import FORMS

    if name is None:
        return None
    if name not in FORMS:
        raise UsageError(f"--quant is {name!r}: choose one of {', '.join(FORMS)}")
    if dtype is not None:
        raise UsageError(f"--quant {name} and --dtype {dtype}: each says how weights are held; give one of them")
    return FORMS[name]


def load_model(model: str, quant: str | None, device: str, dtype: str | None) -> "OpenModel":
    """`engine.open.open_model` with a progress bar, and a line that says how the model runs.

    Raises UsageError for a device torch does not have, and for options that exclude each other.
    """
    from octavo.engine.open import is_cpu, open_model

    bits = parse_quant(quant, dtype)
    if bits and not is_cpu(device):
        raise UsageError(f"--quant {quant} runs on the CPU core: leave out --device {device}, or --quant")
    if not is_cpu(device):
        _check_device(device)
    with progress_bar() as progress:
        opened = open_model(model, bits, device, parse_dtype(dtype), progress)
    say(f"{opened.how}")
    return opened


def parse_grammar(json_schema: str | None, regex: str | None, choices: list[str] | None) -> "Grammar | None":
    """What `--json-schema`, `--regex` and `--choice` ask for. Raises UsageError for more than one of them, and an empty
    one, UserError for a file that cannot be read."""
    from octavo.config import Grammar

    asked = (("--json-schema", json_schema), ("--regex", regex), ("--choice", choices or None))
    given = [name for name, value in asked if value is not None]
    if len(given) > 1:
        raise UsageError(f"{' and '.join(given)}: an answer has one form; give one of them")
    if json_schema is not None:
        return Grammar("json_schema", _schema_in(json_schema))
    if regex is not None:
        if not regex:
            raise UsageError("--regex is empty: give an expression, or leave it out")
        return Grammar("regex", regex)
    return Grammar("choice", choices=tuple(choices)) if choices else None


def _schema_in(path: str) -> str:
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--json-schema {path!r}: cannot be read ({error})") from None
    if not text.strip():
        raise UserError(f"--json-schema {path!r}: the file is empty; {{}} allows any JSON")
    return text


def _check_device(device: str) -> None:
    import torch

    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(f"--device is {device!r}: torch cannot use it here ({reason})") from None


def report(line: str, figures: Mapping[str, Any], as_json: bool) -> None:
    """A verb's result on standard output: the line for people, or the figures as JSON."""
    print(json.dumps(figures) if as_json else line)


def say(line: str) -> None:
    """A line for the person at the terminal; standard output stays for results."""
    print(line, file=sys.stderr, flush=True)
