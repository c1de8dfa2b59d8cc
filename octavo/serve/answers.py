"""How a job becomes an answer, whole or as server-sent events."""

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncIterator, Coroutine
from dataclasses import dataclass
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from octavo.engine.answer import Piece
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


class EventStream(Response):
    """Server-sent events. However they end (the last one, an error, a client that left), `held` is let go.

    Starlette's StreamingResponse does the same in twice the time a token.
    """

    media_type = "text/event-stream"

    def __init__(self, events: AsyncIterator[str], held: contextlib.ExitStack) -> None:
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._events, self._held = events, held

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events until the last one, or until the client leaves."""
        with self._held:
            await first_of(self._send(send), left(receive))

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        async for events in self._events:
            await send({"type": "http.response.body", "body": events.encode("ascii"), "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def whole(job: Job, reply: Reply, asked: Asked) -> Json:
    """The job's answers when they are complete."""
    tokens, left = 0, asked.choices
    while left:
        for number, piece in await job.items():
            await _put(reply, number, piece)
            tokens += 1
            left -= piece.finish_reason is not None
    return reply.frame.whole(reply.whole(), asked.usage(job, tokens))


async def events(job: Job, reply: Reply, asked: Asked, keep_alive: float) -> AsyncIterator[str]:
    """The job's answers as they come, all of a step at once, with a comment after each `keep_alive` seconds of
    silence."""
    shown, tokens, left = reply.opening(), 0, asked.choices
    try:
        with job.reminders(keep_alive):
            while left:
                if shown:
                    yield shown
                items = await job.items(shown != "")
                shown = "" if items else ": keep-alive\n\n"
                for number, piece in items:
                    tokens += 1
                    left -= piece.finish_reason is not None
                    shown += await _put(reply, number, piece)
    except Exception as error:
        if not isinstance(error, (ApiError, UserError)):
            logger.exception("an answer broke off")
        # the status line has long been sent, and this is the form that OpenAI's client raises as an error
        yield f"data: {json.dumps(as_api_error(error).body)}\n\n"
        return
    if asked.with_usage:
        shown += reply.frame.usage_chunk(asked.usage(job, tokens))
    yield shown + "data: [DONE]\n\n"


async def _put(reply: Reply, number: int, piece: Piece) -> str:
    """`reply.put`; in a thread where a long prompt's log probabilities take it long."""
    if piece.prompt_logprobs is None:
        return reply.put(number, piece)
    return await asyncio.to_thread(reply.put, number, piece)


async def while_connected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`; raises ClientDisconnect if the client leaves before. The body must have been read."""
    result = await first_of(work, left(request.receive))
    if result is None:
        raise ClientDisconnect
    return result


async def left(receive: Receive) -> None:
    """Returns when the client has left."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def first_of(work: Coroutine[Any, Any, T], end: Coroutine[Any, Any, None]) -> T | None:
    """The result of `work`, None if `end` came first; neither is left running."""
    tasks = asyncio.ensure_future(work), asyncio.ensure_future(end)
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        return tasks[0].result() if tasks[0].done() else None
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
