"""How a job becomes an answer, whole or as server-sent events."""

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import AsyncIterator, Awaitable
from dataclasses import dataclass
from typing import TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from octavo.errors import UserError
from octavo.serve.errors import ApiError, Json, as_api_error
from octavo.serve.jobs import Job
from octavo.serve.replies import Reply, usage

logger = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass(frozen=True)
class Asked:
    """What a request wants to know of its answers."""

    choices: int
    prompt_tokens: int
    stream: bool
    with_usage: bool
    shows_tokens: bool = True  # else those that were computed are not counted

    def usage(self, job: Job, tokens: int) -> Json:
        """The counts of a finished job."""
        return usage(self.prompt_tokens, job.cached_tokens, tokens if self.shows_tokens else 0)


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


async def whole(job: Job, reply: Reply, ask: Asked) -> Json:
    """The job's answers when they are complete."""
    tokens, left = 0, ask.choices
    while left:
        item = await job.next()
        assert item is not None
        number, piece = item
        reply.put(number, piece)
        tokens += 1
        left -= piece.finish_reason is not None
    return reply.frame.whole(reply.whole(), ask.usage(job, tokens))


async def events(job: Job, reply: Reply, ask: Asked, keep_alive: float) -> AsyncIterator[str]:
    """The job's answers as they come, with a comment after each `keep_alive` seconds of silence."""
    frame = reply.frame
    for choice in reply.opening():
        yield frame.chunk(choice)
    tokens, left, silent_since = 0, ask.choices, time.monotonic()
    try:
        while left:
            item = await job.next(silent_since + keep_alive - time.monotonic())
            shown = ""
            if item is not None:
                number, piece = item
                tokens += 1
                left -= piece.finish_reason is not None
                shown = "".join(map(frame.chunk, reply.put(number, piece)))
            if not shown and time.monotonic() - silent_since >= keep_alive:
                shown = ": keep-alive\n\n"
            if shown:
                yield shown
                silent_since = time.monotonic()
    except Exception as error:
        if not isinstance(error, (ApiError, UserError)):
            logger.exception("an answer broke off")
        # the status line has long been sent, and this is the form that OpenAI's client raises as an error
        yield f"data: {json.dumps(as_api_error(error).body)}\n\n"
        return
    if ask.with_usage:
        yield frame.usage_chunk(ask.usage(job, tokens))
    yield "data: [DONE]\n\n"


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
