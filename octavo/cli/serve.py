"""octavo serve: an OpenAI-compatible server with a chat page."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from octavo.cli.terminal import Context, Device, Dtype, MemoryTokens, Model, Quant, load_model, say

if TYPE_CHECKING:
    from socket import socket

    from octavo.engine.engine import Engine

MAX_WAITING = 64  # requests in line: one more is told to come again

Host = Annotated[str, typer.Option(help="Address to listen on; only this machine's own, until there are keys.")]
Port = Annotated[int, typer.Option(help="Port to listen on.", min=0, max=65535)]

CacheDisk = Annotated[
    float, typer.Option(help="GiB of a file for conversations that memory has no room for.", min=0, metavar="GIB")
]


def run(
    model: Model,
    host: Host = "127.0.0.1",
    port: Port = 8000,
    name: Annotated[str | None, typer.Option(help="Name in the API [default: the folder's].")] = None,
    context: Context = 8192,
    memory_tokens: MemoryTokens = None,
    cache_disk: CacheDisk = 0,
    quant: Quant = None,
    device: Device = "cpu",
    dtype: Dtype = None,
) -> None:
    """Serve MODEL on http://HOST:PORT with the OpenAI API under /v1 and a chat page at /.

    Example: octavo serve ./SmolLM2-8x135M-Instruct --port 8000
    """
    from octavo.config import EngineOptions
    from octavo.engine.engine import Engine
    from octavo.serve.server import listen

    listener = listen(host, port)
    opened = load_model(model, quant, device, dtype)
    options = EngineOptions(
        context=context,
        memory_tokens=memory_tokens,
        max_waiting=MAX_WAITING,
        disk_bytes=int(cache_disk * 2**30),
    )
    with Engine(opened, options) as engine:
        serve_model(engine, name or Path(model).name, listener)


def serve_model(engine: "Engine", name: str, listener: "socket") -> None:
    """Serve until interrupted; prints the chat page's address and a curl line once it listens."""
    from octavo.serve.server import run as run_server

    def announce(url: str) -> None:
        body = f'{{"model": "{name}", "messages": [{{"role": "user", "content": "What is the capital of France?"}}]}}'
        say(f"\n{name} is ready. Ctrl-C stops it.\n")
        say(f"  chat page   {url}/")
        say(f"  try         curl {url}/v1/chat/completions -H 'Content-Type: application/json' -d '{body}'\n")

    run_server({name: engine}, listener, on_ready=announce)
