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
from octavo.engine.engine import Engine
from octavo.engine.prompts import Encoded
from octavo.errors import UserError
from octavo.serve.answers import EventStream, events, while_connected, whole
from octavo.serve.errors import ApiError, Json, as_api_error
from octavo.serve.gates import add_gates
from octavo.serve.guard import SECURITY_HEADERS
from octavo.serve.jobs import Job, Jobs
from octavo.serve.metrics import Metrics
from octavo.serve.models import Models
from octavo.serve.options import ServeOptions
from octavo.serve.page import add_page
from octavo.serve.protocol import ChatRequest, Reply


def create_app(engines: Mapping[str, Engine], options: ServeOptions | None = None) -> FastAPI:
    """The application that serves models by their names."""
    options = options or ServeOptions()

    # FastAPI's own documentation pages load their scripts from a CDN.
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False)
    metrics = add_gates(app, engines, options)
    api = _Api(Models(engines), options, metrics)
    app.state.jobs = api.jobs
    app.add_api_route("/v1/chat/completions", api.chat, methods=["POST"], response_model=None)
    reads: dict[str, Callable[..., object]] = {
        "/v1/models": api.list_models,
        "/v1/models/{name:path}": api.model,
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

    def __init__(self, models: Models, options: ServeOptions, metrics: Metrics) -> None:
        self._models, self._options, self._metrics = models, options, metrics
        self.jobs = Jobs()

    async def list_models(self) -> Json:
        return self._models.cards()

    async def model(self, name: str) -> Json:
        return self._models.card(name)

    async def chat(self, request: Request) -> Response:
        body = await read_body(request, self._options.max_body_bytes, self._options.body_seconds)
        with contextlib.ExitStack() as held:
            chat, engine, prompt, params = await asyncio.to_thread(self._prepare, body)
            job = Job(self.jobs, engine, prompt, params, request.state.tenant)
            held.callback(job.cancel)
            job.watch = self._metrics.begin(chat.model, [job.ticket], request.state.began)
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


async def read_body(request: Request, most: int, seconds: float) -> bytes:
    """A request's body. Raises ApiError 413 as soon as it is known to be longer than `most` bytes, 408 when it is not
    there after `seconds`."""
    too_long = ApiError(413, f"the body is longer than {most} bytes", code="request_too_large")
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length[:20]) > most:
        raise too_long
    body = bytearray()
    try:
        async with asyncio.timeout(seconds):
            async for part in request.stream():
                body += part
                if len(body) > most:  # a body in chunks does not say its length
                    raise too_long
    except TimeoutError:
        message = f"the body did not come within {seconds:g} seconds"
        raise ApiError(408, message, code="request_timeout", headers={"Connection": "close"}) from None
    return bytes(body)


async def _answer_error(request: Request, error: Exception) -> Response:
    found = as_api_error(error)
    # the answer to an unexpected error bypasses the middleware
    headers = SECURITY_HEADERS | found.headers | {"x-request-id": request.state.request_id}
    return JSONResponse(found.body, found.status, headers=headers)


async def _answer_nobody(request: Request, error: Exception) -> Response:
    return Response(status_code=400)
