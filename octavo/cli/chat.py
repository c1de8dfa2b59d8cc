"""octavo chat: a conversation in the terminal."""

import contextlib
import sys
from collections.abc import Callable, Generator, Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from octavo.cli.remote import ApiKey, ModelOrUrl, Remote, Served, check_options, is_url
from octavo.cli.terminal import (
    Context,
    Device,
    Dtype,
    MaxNewTokens,
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
    from octavo.engine.prompts import Message

    Answering = Callable[[Sequence[Message]], Generator[str]]

CONTEXT = 8192


def run(
    model: ModelOrUrl,
    system: Annotated[str | None, typer.Option(help="A system prompt.")] = None,
    max_new_tokens: MaxNewTokens = 512,
    temperature: Temperature = 0.7,
    top_k: TopK = 0,
    top_p: TopP = 0.95,
    seed: Seed = None,
    context: Context = CONTEXT,
    quant: Quant = None,
    device: Device = "cpu",
    dtype: Dtype = None,
    api_key: ApiKey = None,
    served: Served = None,
) -> None:
    """Chat with MODEL. Answers stream; Ctrl-C stops one, Ctrl-D or /exit leaves, /new starts over.

    MODEL may be the URL of a server with the OpenAI API, such as http://127.0.0.1:8000.

    Example: octavo chat ./SmolLM2-8x135M-Instruct --system "You are brief."
    """
    params = SamplingParams(max_new_tokens=max_new_tokens, temperature=temperature, top_k=top_k, top_p=top_p, seed=seed)
    opening: list[Message] = [{"role": "system", "content": system}] if system else []
    local = {"--quant": quant, "--dtype": dtype, "--device": None if device == "cpu" else device}
    local["--context"] = None if context == CONTEXT else str(context)
    check_options(model, local, {"--api-key": api_key, "--model": served})
    if is_url(model):
        with Remote(model, api_key, served) as remote:
            _converse(lambda messages: remote.chat(messages, params), opening)
        return
    from octavo.config import EngineOptions
    from octavo.engine.engine import Engine

    opened = load_model(model, quant, device, dtype)
    with Engine(opened, EngineOptions(context=context, max_running=1)) as engine:
        _converse(lambda messages: (piece.text for piece in engine.stream(messages, params)), opening)


def _converse(answering: "Answering", opening: "list[Message]") -> None:
    """Ask and answer until the person leaves."""
    messages = list(opening)
    say("Ctrl-C stops an answer, Ctrl-D or /exit leaves, /new starts over.")
    while (line := _ask()) not in (None, "/exit"):
        if line == "/new":
            messages = list(opening)
        elif line:
            messages.append({"role": "user", "content": line})
            answer = _answer(answering, messages)
            if answer is None:
                messages.pop()
            else:
                messages.append({"role": "assistant", "content": answer})


def _ask() -> str | None:
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  # arrow keys and a history for input()
    try:
        return input("> ").strip()
    except (EOFError, KeyboardInterrupt):
        print()
        return None


def _answer(answering: "Answering", messages: "list[Message]") -> str | None:
    """Print the answer as it comes; returns it, or None when the request was refused."""
    parts: list[str] = []
    try:
        with contextlib.closing(answering(messages)) as texts:  # whatever ends it here, ends it there
            for text in texts:
                parts.append(text)
                sys.stdout.write(text)
                sys.stdout.flush()
    except KeyboardInterrupt:
        pass
    except UserError as error:
        if parts:
            sys.stdout.write("\n")
            sys.stdout.flush()
        say(f"octavo: {error} (/new starts over)")
        return None
    sys.stdout.write("\n")
    return "".join(parts)
