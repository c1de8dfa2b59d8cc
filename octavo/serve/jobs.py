"""One request to the engine, as the event loop reads it."""

import asyncio

from octavo.config import SamplingParams
from octavo.engine.answer import Piece
from octavo.engine.engine import Engine
from octavo.engine.prompts import Encoded
from octavo.serve.errors import ApiError
from octavo.serve.metrics import Watch


class Jobs:
    """The requests under way, so that they can be ended together."""

    def __init__(self) -> None:
        self.under_way: set[Job] = set()

    def stop(self) -> None:
        """End every job; its client is told."""
        for job in list(self.under_way):
            job.fail(ApiError(503, "the server is shutting down", code="shutting_down"))


class Job:
    """One generation, begun at construction, read piece by piece from the event loop; `cancel` it in the end."""

    watch: Watch | None = None  # is told of every piece, and of the end

    def __init__(self, jobs: Jobs, engine: Engine, prompt: Encoded, params: SamplingParams, tenant: str = "") -> None:
        """Raises `Busy` when too many requests wait, UserError for one that cannot be answered."""
        self._jobs, self._loop = jobs, asyncio.get_running_loop()
        self._arrived: asyncio.Queue[Piece | Exception] = asyncio.Queue()
        self.ticket = engine.submit(prompt, params, self._emit, tenant)
        jobs.under_way.add(self)

    async def next(self, seconds: float | None = None) -> Piece | None:
        """The next piece, None if none comes in time; no more after one with a finish_reason. Raises what ended the
        answer instead."""
        try:
            item = await asyncio.wait_for(self._arrived.get(), seconds)
        except TimeoutError:
            return None
        if isinstance(item, Exception):
            if self.watch:
                self.watch.end(item)
            raise item
        if self.watch:
            self.watch.piece(item.index, item.finish_reason)
        return item

    def cancel(self) -> None:
        """End the job, after the step under way; harmless when it is over."""
        self.ticket.cancel()
        if self.watch:
            self.watch.end()
        self._jobs.under_way.discard(self)

    def fail(self, error: Exception) -> None:
        """End the job; `next` raises `error` after what has already come."""
        self._arrived.put_nowait(error)
        if self.watch:
            self.watch.end(error)
        self.cancel()

    def _emit(self, item: Piece | Exception) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._arrived.put_nowait, item)
