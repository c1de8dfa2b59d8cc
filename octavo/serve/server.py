"""The HTTP server: /v1/chat/completions, /v1/models, /health, and the chat page at /.

For one person on their own machine: no accounts, so it listens on loopback addresses only.
"""

import asyncio
import contextlib
import socket
import time
from collections.abc import Callable
from pathlib import Path

import uvicorn
from fastapi import FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import FileResponse, JSONResponse, Response

from octavo.config import SamplingParams
from octavo.engine.core import Closed
from octavo.engine.engine import Engine
from octavo.engine.prompts import Encoded
from octavo.errors import UsageError, UserError
from octavo.serve.answers import EventStream, as_api_error, events, while_connected, whole
from octavo.serve.guard import SECURITY_HEADERS, Guard, is_loopback
from octavo.serve.jobs import Job, Jobs
from octavo.serve.protocol import ApiError, ChatRequest, Json, Reply

MAX_BODY_BYTES = 4 * 2**20
DEFAULT_MAX_TOKENS = 512
KEEP_ALIVE_SECONDS = 15.0  # proxies and browsers give up on a silent connection, and a long prompt takes its time
SHUTDOWN_SECONDS = 2  # for clients to read the end of their answers

_WEB = Path(__file__).parent / "web"
# The types are spelled out: with `nosniff` a wrong entry in a machine's MIME table would block the page.
_PAGE = {
    "/": ("index.html", "text/html"),
    "/chat.js": ("chat.js", "text/javascript"),
    "/chat.css": ("chat.css", "text/css"),
}


def create_app(engine: Engine, model_name: str, keep_alive: float = KEEP_ALIVE_SECONDS) -> FastAPI:
    """The application that serves `engine` under `model_name`.

    keep_alive: seconds of silence after which a stream sends a comment.
    """
    api = _Api(engine, model_name, keep_alive)

    # FastAPI's own documentation pages load their scripts from a CDN.
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False)
    app.state.jobs = api.jobs
    app.add_middleware(Guard)
    app.add_api_route("/v1/chat/completions", api.chat, methods=["POST"], response_model=None)
    reads: dict[str, Callable[..., object]] = {
        "/v1/models": api.models,
        "/v1/models/{name:path}": api.model,
        "/health": api.health,
        **dict.fromkeys(_PAGE, _page),
    }
    for path, answer in reads.items():
        app.add_api_route(path, answer, methods=["GET", "HEAD"], response_model=None)
    for kind in (ApiError, UserError, HTTPException, Exception):
        app.add_exception_handler(kind, _answer_error)
    app.add_exception_handler(ClientDisconnect, _answer_nobody)
    return app


def run(
    engine: Engine,
    model_name: str,
    listener: socket.socket,
    on_ready: Callable[[str], None] | None = None,
) -> None:
    """Serve on a socket of `listen` until interrupted. `on_ready` gets the page's address as soon as it answers."""
    with listener, contextlib.suppress(KeyboardInterrupt):
        Server(create_app(engine, model_name), listener, on_ready).run()


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


class _Api:
    """The routes of one model."""

    def __init__(self, engine: Engine, model_name: str, keep_alive: float) -> None:
        self._engine, self._model_name, self._keep_alive = engine, model_name, keep_alive
        self._created = int(time.time())
        self.jobs = Jobs(engine)

    async def health(self) -> Json:
        if self._engine.closed:
            raise Closed("the engine broke down")
        return {"status": "ok"}

    async def models(self) -> Json:
        return {"object": "list", "data": [self._card()]}

    async def model(self, name: str) -> Json:
        self._check_model(name)
        return self._card()

    async def chat(self, request: Request) -> Response:
        body = await _read_body(request)
        with contextlib.ExitStack() as held:
            chat, prompt, params = await asyncio.to_thread(self._prepare, body)
            job = Job(self.jobs, prompt, params)
            held.callback(job.cancel)
            reply = Reply(self._model_name)
            if chat.stream:
                stream = events(job, reply, chat.wants_usage, self._keep_alive)
                return EventStream(stream, held.pop_all())
            return JSONResponse(await while_connected(request, whole(job, reply)))

    def _prepare(self, body: bytes) -> tuple[ChatRequest, Encoded, SamplingParams]:
        """Everything that can be wrong with a request, before an answer begins; in a thread, as it may take long."""
        chat = ChatRequest.parse(body)
        self._check_model(chat.model)
        prompt = self._engine.encode(chat.prompt())
        room = self._engine.context - len(prompt.ids)
        params = chat.sampling(max(1, min(DEFAULT_MAX_TOKENS, room)))
        self._engine.check_fits(len(prompt.ids), params)
        return chat, prompt, params

    def _check_model(self, name: str) -> None:
        if name != self._model_name:
            message = f"the model {name[:100]!r} does not exist: this server has {self._model_name!r}"
            raise ApiError(404, message, param="model", code="model_not_found")

    def _card(self) -> Json:
        return {
            "id": self._model_name,
            "object": "model",
            "created": self._created,
            "owned_by": "octavo",
            "max_model_len": self._engine.context,
        }


async def _read_body(request: Request) -> bytes:
    too_long = ApiError(413, f"the body is longer than {MAX_BODY_BYTES} bytes", code="request_too_large")
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length) > MAX_BODY_BYTES:
        raise too_long
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > MAX_BODY_BYTES:  # a body in chunks does not say its length
            raise too_long
    return bytes(body)


async def _page(request: Request) -> Response:
    name, kind = _PAGE[request.scope["path"]]
    return FileResponse(_WEB / name, media_type=kind, headers={"Cache-Control": "no-cache"})


async def _answer_error(request: Request, error: Exception) -> Response:
    found = as_api_error(error)
    # the answer to an unexpected error bypasses the middleware
    return JSONResponse(found.body, found.status, headers=SECURITY_HEADERS | found.headers)


async def _answer_nobody(request: Request, error: Exception) -> Response:
    return Response(status_code=400)
