"""Requests to engines, as the event loop reads them."""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from octavo.engine.engine import Ticket
from octavo.serve.errors import ApiError

Emit = Callable[[int, Any], None]  # gets the number of a prompt, and a piece, a result or an error
Start = Callable[[Emit], Sequence[Ticket]]


class Jobs:
    """The requests under way, so that they can be ended together."""

    def __init__(self) -> None:
        self.under_way: set[Job] = set()
        self._post: Post | None = None

    def job(self) -> "Job":
        """A new one; called from the event loop."""
        if self._post is None:
            self._post = Post(asyncio.get_running_loop())
        job = Job(self._post, self.under_way.discard)
        self.under_way.add(job)
        return job

    def stop(self) -> None:
        """End every job; its client is told."""
        for job in list(self.under_way):
            job.fail(ApiError(503, "the server is shutting down", code="shutting_down"))


class Job:
    """What one request has the engine do, read item by item from the event loop; `cancel` it in the end."""

    def __init__(self, post: "Post", forget: Callable[["Job"], None]) -> None:
        self._post, self._forget = post, forget
        self._arrived: asyncio.Queue[tuple[int, Any]] = asyncio.Queue()
        self._over = False
        self.tickets: Sequence[Ticket] = ()

    def begin(self, start: Start) -> None:
        """Hand the work in, from any thread. Raises `Busy` when too many requests wait, UserError for what cannot be
        answered."""
        self.tickets = start(self._emit)
        if self._over:  # cancelled meanwhile, which does not stop a thread
            self.cancel()

    @property
    def cached_tokens(self) -> int:
        """Tokens of the prompts that the prefix cache knew."""
        return sum(ticket.cached_tokens for ticket in self.tickets)

    async def next(self, seconds: float | None = None) -> tuple[int, Any] | None:
        """The next item and its prompt's number, None if none comes in time. Raises what ended the answer instead."""
        if self._arrived.empty() and seconds is not None:
            try:
                number, item = await asyncio.wait_for(self._arrived.get(), seconds)
            except TimeoutError:
                return None
        else:
            number, item = await self._arrived.get()
        if isinstance(item, Exception):
            raise item
        return number, item

    def cancel(self) -> None:
        """End the job, after the step under way; harmless when it is over."""
        self._over = True
        for ticket in self.tickets:
            ticket.cancel()
        self._forget(self)

    def fail(self, error: Exception) -> None:
        """End the job; `next` raises `error` after what has already come."""
        self._arrived.put_nowait((0, error))
        self.cancel()

    def _emit(self, number: int, item: Any) -> None:
        self._post.put(self._arrived, (number, item))


class Post:
    """Carries items from the engines' threads into queues of the event loop, which is woken once for many: waking it
    is a system call, and a step has an item for every sequence."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._items: deque[tuple[asyncio.Queue[Any], Any]] = deque()
        self._announced = False

    def put(self, queue: "asyncio.Queue[Any]", item: Any) -> None:
        """From any thread; nothing happens once the loop is closed."""
        self._items.append((queue, item))
        if not self._announced and not self._loop.is_closed():
            self._announced = True
            self._loop.call_soon_threadsafe(self._deliver)

    def _deliver(self) -> None:
        self._announced = False  # first: what comes while we look is announced again
        while self._items:
            queue, item = self._items.popleft()
            queue.put_nowait(item)
