"""uvicorn on a socket of ours: where it listens, how it starts and how it stops."""

import contextlib
import socket
from collections.abc import Callable, Mapping

import uvicorn
from fastapi import FastAPI

from octavo.engine.engine import Engine
from octavo.errors import UsageError, UserError
from octavo.serve.app import create_app
from octavo.serve.guard import is_loopback
from octavo.serve.jobs import Jobs
from octavo.serve.options import ServeOptions

SHUTDOWN_SECONDS = 2  # for clients to read the end of their answers


def run(
    engines: Mapping[str, Engine],
    listener: socket.socket,
    on_ready: Callable[[str], None] | None = None,
    options: ServeOptions | None = None,
) -> None:
    """Serve models, by their names, on a socket of `listen` until interrupted. `on_ready` gets the page's address as
    soon as it answers."""
    with listener, contextlib.suppress(KeyboardInterrupt):
        Server(create_app(engines, options), listener, on_ready).run()


def listen(host: str, port: int) -> socket.socket:
    """A listening socket on a loopback address; port 0 takes a free one. Called before a model is loaded for long.

    Raises UsageError for a host that others could reach, UserError for a port that cannot be had.
    """
    if not is_loopback(host):
        raise UsageError(f"--host {host}: only this machine's own addresses will do, accounts come later")
    if not 0 <= port < 2**16:
        raise UsageError(f"--port {port}: it must be between 0 and 65535")
    address = "127.0.0.1" if host.lower() == "localhost" else host
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        return socket.create_server((address, port), family=family)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise UserError(f"cannot listen on {host} port {port} ({reason}): choose another with --port") from None


class Server(uvicorn.Server):
    """uvicorn on a socket of ours, with a call when it answers. `should_exit = True` ends it from another thread."""

    def __init__(self, app: FastAPI, listener: socket.socket, on_ready: Callable[[str], None] | None = None) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                log_config=None,
                log_level="warning",
                access_log=False,
                proxy_headers=False,
                server_header=False,
                ws="none",
                timeout_graceful_shutdown=SHUTDOWN_SECONDS,
            )
        )
        host, port = listener.getsockname()[:2]
        self.url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        self._listener, self._on_ready = listener, on_ready
        self._jobs: Jobs = app.state.jobs

    def run(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve until told to stop."""
        super().run(sockets or [self._listener])

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """uvicorn's start, and word of it."""
        await super().startup(sockets)
        if self.started and self._on_ready:
            self._on_ready(self.url)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End the answers under way, then stop."""
        self._jobs.stop()
        await super().shutdown(sockets)
