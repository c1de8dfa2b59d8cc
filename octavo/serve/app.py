"""The HTTP application: which route is answered by what.

For one person on their own machine: no accounts, so it listens on loopback addresses only.
"""

import asyncio
import contextlib
from collections.abc import Callable, Mapping

from fastapi import FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response

from octavo.config import SamplingParams
from octavo.engine.core import Closed
from octavo.engine.engine import Engine
from octavo.engine.prompts import Encoded
from octavo.errors import UserError
from octavo.serve.answers import EventStream, events, while_connected, whole
from octavo.serve.errors import ApiError, Json, as_api_error
from octavo.serve.guard import SECURITY_HEADERS, Guard
from octavo.serve.jobs import Job, Jobs
from octavo.serve.models import Models
from octavo.serve.options import ServeOptions
from octavo.serve.page import add_page
from octavo.serve.protocol import ChatRequest, Reply


def create_app(engines: Mapping[str, Engine], options: ServeOptions | None = None) -> FastAPI:
    """The application that serves models by their names."""
    api = _Api(Models(engines), options or ServeOptions())

    # FastAPI's own documentation pages load their scripts from a CDN.
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False)
    app.state.jobs = api.jobs
    app.add_middleware(Guard)
    app.add_api_route("/v1/chat/completions", api.chat, methods=["POST"], response_model=None)
    reads: dict[str, Callable[..., object]] = {
        "/v1/models": api.list_models,
        "/v1/models/{name:path}": api.model,
        "/health": api.health,
    }
    for path, answer in reads.items():
        app.add_api_route(path, answer, methods=["GET", "HEAD"], response_model=None)
    add_page(app)
    for kind in (ApiError, UserError, HTTPException, Exception):
        app.add_exception_handler(kind, _answer_error)
    app.add_exception_handler(ClientDisconnect, _answer_nobody)
    return app


class _Api:
    """The routes."""

    def __init__(self, models: Models, options: ServeOptions) -> None:
        self._models, self._options = models, options
        self.jobs = Jobs()

    async def health(self) -> Json:
        if any(engine.closed for engine in self._models.engines.values()):
            raise Closed("the engine broke down")
        return {"status": "ok"}

    async def list_models(self) -> Json:
        return self._models.cards()

    async def model(self, name: str) -> Json:
        return self._models.card(name)

    async def chat(self, request: Request) -> Response:
        body = await read_body(request, self._options.max_body_bytes)
        with contextlib.ExitStack() as held:
            chat, engine, prompt, params = await asyncio.to_thread(self._prepare, body)
            job = Job(self.jobs, engine, prompt, params)
            held.callback(job.cancel)
            reply = Reply(chat.model)
            if chat.stream:
                stream = events(job, reply, chat.wants_usage, self._options.keep_alive)
                return EventStream(stream, held.pop_all())
            return JSONResponse(await while_connected(request, whole(job, reply)))

    def _prepare(self, body: bytes) -> tuple[ChatRequest, Engine, Encoded, SamplingParams]:
        """Everything that can be wrong with a request, before an answer begins; in a thread, as it may take long."""
        chat = ChatRequest.parse(body)
        engine = self._models.engine(chat.model)
        prompt = engine.encode(chat.prompt())
        room = engine.context - len(prompt.ids)
        params = chat.sampling(max(1, min(self._options.default_max_tokens, room)))
        engine.check_fits(len(prompt.ids), params)
        return chat, engine, prompt, params


async def read_body(request: Request, most: int) -> bytes:
    """A request's body. Raises ApiError 413 as soon as it is known to be longer than `most` bytes."""
    too_long = ApiError(413, f"the body is longer than {most} bytes", code="request_too_large")
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length) > most:
        raise too_long
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > most:  # a body in chunks does not say its length
            raise too_long
    return bytes(body)


async def _answer_error(request: Request, error: Exception) -> Response:
    found = as_api_error(error)
    # the answer to an unexpected error bypasses the middleware
    return JSONResponse(found.body, found.status, headers=SECURITY_HEADERS | found.headers)


async def _answer_nobody(request: Request, error: Exception) -> Response:
    return Response(status_code=400)
