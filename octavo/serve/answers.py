"""How a job becomes an answer, whole or as server-sent events."""

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import AsyncIterator, Awaitable
from typing import TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from octavo.errors import UserError
from octavo.serve.errors import ApiError, Json, as_api_error
from octavo.serve.jobs import Job
from octavo.serve.protocol import Reply, usage

logger = logging.getLogger(__name__)
T = TypeVar("T")


class EventStream(StreamingResponse):
    """Server-sent events. However they end (the last one, an error, a client that left), `held` is let go."""

    media_type = "text/event-stream"

    def __init__(self, events: AsyncIterator[str], held: contextlib.ExitStack) -> None:
        super().__init__(events, headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        self._held = held

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events; Starlette stops when the client leaves."""
        with self._held:
            await super().__call__(scope, receive, send)


async def whole(job: Job, reply: Reply) -> Json:
    """The job's answer when it is complete."""
    text, tokens, reason = "", 0, None
    while reason is None:
        piece = await job.next()
        assert piece is not None
        text, tokens, reason = text + piece.text, tokens + 1, piece.finish_reason
    return reply.whole(text, reason, usage(job.ticket, tokens))


async def events(job: Job, reply: Reply, with_usage: bool, keep_alive: float) -> AsyncIterator[str]:
    """The job's answer as it comes, with a comment after each `keep_alive` seconds of silence."""
    yield _event(reply.chunk({"role": "assistant", "content": ""}))
    tokens, reason, silent_since = 0, None, time.monotonic()
    try:
        while reason is None:
            piece = await job.next(silent_since + keep_alive - time.monotonic())
            if piece is not None:
                tokens, reason = tokens + 1, piece.finish_reason
            if piece is not None and piece.text:
                yield _event(reply.chunk({"content": piece.text}))
            elif time.monotonic() - silent_since >= keep_alive:
                yield ": keep-alive\n\n"
            else:
                continue
            silent_since = time.monotonic()
    except Exception as error:
        if not isinstance(error, (ApiError, UserError)):
            logger.exception("an answer broke off")
        # the status line has long been sent, and this is the form that OpenAI's client raises as an error
        yield _event(as_api_error(error).body)
        return
    yield _event(reply.chunk({}, reason))
    if with_usage:
        yield _event(reply.usage_chunk(usage(job.ticket, tokens)))
    yield "data: [DONE]\n\n"


def _event(data: Json) -> str:
    # ASCII only: clients that cut lines with Python's splitlines would break an answer at U+2028
    return f"data: {json.dumps(data)}\n\n"


async def while_connected(request: Request, work: Awaitable[T]) -> T:
    """The result of `work`; raises ClientDisconnect if the client leaves before. The body must have been read."""

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    answer, leaving = asyncio.ensure_future(work), asyncio.ensure_future(gone())
    try:
        await asyncio.wait((answer, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not answer.done():
            raise ClientDisconnect
        return answer.result()
    finally:
        answer.cancel()
        leaving.cancel()
