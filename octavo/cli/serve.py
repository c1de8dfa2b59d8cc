"""octavo serve: an OpenAI-compatible server with a chat page."""

import contextlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from octavo.cli.terminal import Context, Device, Dtype, MemoryTokens, Quant, load_model, say
from octavo.errors import UsageError

if TYPE_CHECKING:
    from socket import socket

    from octavo.engine.engine import Engine
    from octavo.serve.options import ServeOptions

MAX_WAITING = 512  # requests in line: one more is told to come again

Models = Annotated[
    list[str], typer.Argument(metavar="MODEL...", help="Model folders, GGUF files or hub names (owner/name).")
]
Names = Annotated[
    list[str] | None, typer.Option("--name", help="Name in the API, once for each MODEL [default: the folder's].")
]
Host = Annotated[str, typer.Option(help="Address to listen on; one that others can reach needs a key.")]
Port = Annotated[int, typer.Option(help="Port to listen on.", min=0, max=65535)]
ApiKey = Annotated[
    list[str] | None,
    typer.Option(
        "--api-key",
        envvar="OCTAVO_API_KEY",
        help="A key that clients need; may be repeated. Others on this machine see it in the list of processes: "
        "prefer the variable or a file.",
    ),
]
ApiKeyFile = Annotated[str | None, typer.Option(help="A file with keys, one a line.", metavar="FILE")]
CacheDisk = Annotated[
    float, typer.Option(help="GiB of a file for conversations that memory has no room for.", min=0, metavar="GIB")
]
Drain = Annotated[float, typer.Option(help="Most seconds for answers to end after SIGTERM or Ctrl-C.", min=0)]
RequestsPerKey = Annotated[int | None, typer.Option(help="Requests that one API key may have under way.", min=1)]
LogRequests = Annotated[bool, typer.Option("--log-requests", help="A line for each request, without its text.")]


def run(
    models: Models,
    host: Host = "127.0.0.1",
    port: Port = 8000,
    name: Names = None,
    api_key: ApiKey = None,
    api_key_file: ApiKeyFile = None,
    context: Context = 8192,
    memory_tokens: MemoryTokens = None,
    cache_disk: CacheDisk = 0,
    quant: Quant = None,
    device: Device = "cpu",
    dtype: Dtype = None,
    requests_per_key: RequestsPerKey = None,
    drain_seconds: Drain = 30.0,
    log_requests: LogRequests = False,
) -> None:
    """Serve MODELS on http://HOST:PORT with the OpenAI API under /v1 and a chat page at /.

    Several models share the process, not their memory: each has an engine and a prefix cache of its own, and every
    option holds for each of them.

    Example: octavo serve ./SmolLM2-8x135M-Instruct --port 8000
    """
    names = _names(models, name)
    from octavo.serve.keys import Keys, read_keys
    from octavo.serve.options import ServeOptions
    from octavo.serve.server import listen

    keys = Keys([*(api_key or ()), *(read_keys(api_key_file) if api_key_file is not None else ())])
    listener = listen(host, port, has_keys=bool(keys))
    options = ServeOptions(
        keys=keys, requests_per_key=requests_per_key, drain_seconds=drain_seconds, log_requests=log_requests
    )
    with contextlib.ExitStack() as opened:

        def load() -> "dict[str, Engine]":
            from octavo.config import EngineOptions
            from octavo.engine.engine import Engine

            settings = EngineOptions(
                context=context,
                memory_tokens=memory_tokens,
                max_waiting=MAX_WAITING,
                disk_bytes=int(cache_disk * 2**30),
            )
            ready = {}
            for each, model in zip(names, models, strict=True):
                ready[each] = engine = opened.enter_context(Engine(load_model(model, quant, device, dtype), settings))
                if engine.context < context:
                    say(f"{each}: requests of up to {engine.context} tokens, the most that the model was made for")
            return ready

        serve_models(load, names, listener, options)


def _names(models: list[str], given: list[str] | None) -> list[str]:
    """The models' names in the API. Raises UsageError unless there is a different one for each."""
    names = given or [Path(model).name for model in models]
    if len(names) != len(models):
        raise UsageError(f"--name is given {len(names)} times for {len(models)} models: give it once for each, or not")
    for name in names:
        if not name:
            raise UsageError("--name is empty: give the model a name")
        if names.count(name) > 1:
            raise UsageError(f"two models are called {name!r}: give each its own with --name, in their order")
    return names


def serve_models(
    engines: "Mapping[str, Engine] | Callable[[], Mapping[str, Engine]]",
    names: list[str],
    listener: "socket",
    options: "ServeOptions | None" = None,
) -> None:
    """Serve engines, or what loads them, until told to stop; prints the chat page's address and a curl line once they
    answer."""
    from octavo.serve.server import run as run_server

    def announce(url: str) -> None:
        question = '[{"role": "user", "content": "What is the capital of France?"}]'
        body = f'{{"model": "{names[0]}", "messages": {question}}}'
        key = " -H 'Authorization: Bearer KEY'" if options is not None and options.keys else ""
        say(f"\n{', '.join(names)} {'are' if len(names) > 1 else 'is'} ready. Ctrl-C stops the server.\n")
        say(f"  chat page   {url}/")
        say(f"  try         curl {url}/v1/chat/completions -H 'Content-Type: application/json'{key} -d '{body}'\n")

    run_server(engines, listener, on_ready=announce, options=options)
