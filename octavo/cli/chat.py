"""octavo chat: a conversation in the terminal."""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from octavo.cli.terminal import (
    Context,
    Device,
    Dtype,
    MaxNewTokens,
    Model,
    Quant,
    Seed,
    Temperature,
    TopK,
    TopP,
    load_model,
    say,
)
from octavo.config import SamplingParams
from octavo.errors import UserError

if TYPE_CHECKING:
    from octavo.engine.engine import Engine
    from octavo.engine.prompts import Message


def run(
    model: Model,
    system: Annotated[str | None, typer.Option(help="A system prompt.")] = None,
    max_new_tokens: MaxNewTokens = 512,
    temperature: Temperature = 0.7,
    top_k: TopK = 0,
    top_p: TopP = 0.95,
    seed: Seed = None,
    context: Context = 8192,
    quant: Quant = None,
    device: Device = "cpu",
    dtype: Dtype = None,
) -> None:
    """Chat with MODEL. Answers stream; Ctrl-C stops one, Ctrl-D or /exit leaves, /new starts over.

    Example: octavo chat ./SmolLM2-8x135M-Instruct --system "You are brief."
    """
    params = SamplingParams(max_new_tokens=max_new_tokens, temperature=temperature, top_k=top_k, top_p=top_p, seed=seed)
    from octavo.config import EngineOptions
    from octavo.engine.engine import Engine

    opened = load_model(model, quant, device, dtype)
    with Engine(opened, EngineOptions(context=context, max_running=1)) as engine:
        _converse(engine, params, [{"role": "system", "content": system}] if system else [])


def _converse(engine: "Engine", params: SamplingParams, opening: "list[Message]") -> None:
    """Ask and answer until the person leaves."""
    messages = list(opening)
    say("Ctrl-C stops an answer, Ctrl-D or /exit leaves, /new starts over.")
    while (line := _ask()) not in (None, "/exit"):
        if line == "/new":
            messages = list(opening)
        elif line:
            messages.append({"role": "user", "content": line})
            answer = _answer(engine, messages, params)
            if answer is None:
                messages.pop()
            else:
                messages.append({"role": "assistant", "content": answer})


def _ask() -> str | None:
    try:
        return input("> ").strip()
    except (EOFError, KeyboardInterrupt):
        print()
        return None


def _answer(engine: "Engine", messages: "Sequence[Message]", params: SamplingParams) -> str | None:
    """Print the answer as it comes; returns it, or None when the request was refused."""
    parts: list[str] = []
    try:
        for piece in engine.stream(messages, params):
            parts.append(piece.text)
            sys.stdout.write(piece.text)
            sys.stdout.flush()
    except KeyboardInterrupt:
        pass
    except UserError as error:
        say(f"octavo: {error} (/new starts over)")
        return None
    sys.stdout.write("\n")
    return "".join(parts)
