"""Requests to engines, as the event loop reads them."""

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from octavo.engine.answer import Piece
from octavo.engine.engine import Engine, Ticket
from octavo.serve.errors import ApiError
from octavo.serve.metrics import Watch

Emit = Callable[[int, Any], None]  # gets the number of a prompt, and a piece, a result or an error
Start = Callable[[Emit], Sequence[Ticket]]


class Jobs:
    """The requests under way, and their post: items from the engines' threads.

    The event loop is woken after a step, not with every item: that is a system call, and the loop would take the
    interpreter's lock from an engine that has more to deal out. And where steps are short not after each of them: to
    write to every stream costs a few hundredths of a step. Beginnings, ends and errors never wait.
    """

    def __init__(self, engines: Iterable[Engine], interval: float = 0.0) -> None:
        """interval: seconds in which a stream is written to once."""
        self._interval, self._woken_at, self._urgent = interval, 0.0, False
        self.under_way: set[Job] = set()
        self._engines = tuple(engines)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._post: deque[tuple[Job, int, Any]] = deque()
        self._announced = False

    def job(self) -> "Job":
        """A new one; called from the event loop."""
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
            for engine in self._engines:
                engine.after_step.add(self._wake)
        job = Job(self)
        self.under_way.add(job)
        return job

    def stop(self) -> None:
        """End every job; its client is told. The last call."""
        for engine in self._engines:
            engine.after_step.discard(self._wake)
        for job in list(self.under_way):
            job.fail(ApiError(503, "the server is shutting down", code="shutting_down"))

    def put(self, job: "Job", number: int, item: Any) -> None:
        """One more item for a job, from any thread; it is there after the step."""
        self._post.append((job, number, item))
        if not (job.has_begun and isinstance(item, Piece) and item.finish_reason is None):
            job.has_begun = self._urgent = True

    def _wake(self) -> None:
        now = time.monotonic()
        if not (self._urgent or now - self._woken_at >= self._interval):
            return
        if self._post and not self._announced and self._loop and not self._loop.is_closed():
            self._announced, self._urgent, self._woken_at = True, False, now
            with contextlib.suppress(RuntimeError):  # it was closed just now
                self._loop.call_soon_threadsafe(self._deliver)

    def _deliver(self) -> None:
        self._announced = False  # first: what comes while we look is announced again
        while self._post:
            job, number, item = self._post.popleft()
            job.arrive(number, item)


class Job:
    """What one request has an engine do, read by the event loop; `cancel` it in the end."""

    def __init__(self, jobs: Jobs) -> None:
        self._jobs = jobs
        self._arrived: list[tuple[int, Any]] = []
        self._error: Exception | None = None
        self._news = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._read_at = self._loop.time()
        self._over = False
        self.has_begun = False  # whether anything has come
        self.tickets: Sequence[Ticket] = ()
        self.watch: Watch | None = None  # is told of every piece that is read, and of the end

    def begin(self, start: Start) -> None:
        """Hand the work in, from any thread. Raises `Busy` when too many requests wait, UserError for what cannot be
        answered."""
        self.tickets = start(lambda number, item: self._jobs.put(self, number, item))
        if self._over:  # cancelled meanwhile, which does not stop a thread
            self.cancel()

    @property
    def cached_tokens(self) -> int:
        """Tokens of the prompts that the prefix cache knew."""
        return sum(ticket.cached_tokens for ticket in self.tickets)

    async def items(self, shown: bool = True) -> list[tuple[int, Any]]:
        """What has come, with the numbers of the prompts, as soon as there is anything; nothing when it is time for a
        reminder. Raises what ended the answer, after what came before it. shown: whether the last items were."""
        if shown:
            self._read_at = self._loop.time()
        if not (self._arrived or self._error):
            self._news.clear()
            await self._news.wait()
        arrived, self._arrived = self._arrived, []
        if self._error and not arrived:
            if self.watch:
                self.watch.end(self._error)
            raise self._error
        if self.watch:
            self._count(self.watch, arrived)
        return arrived

    def _count(self, watch: Watch, arrived: Sequence[tuple[int, Any]]) -> None:
        """Tell of pieces, with those of an answer in one: they come together, but were not made at once."""
        tokens: dict[tuple[int, int], int] = {}
        reasons: dict[tuple[int, int], str] = {}
        for number, piece in arrived:
            answer = number, piece.index
            tokens[answer] = tokens.get(answer, 0) + 1
            if piece.finish_reason is not None:
                reasons[answer] = piece.finish_reason
        for answer, count in tokens.items():
            watch.piece(answer, reasons.get(answer), count)

    @contextlib.contextmanager
    def reminders(self, seconds: float) -> Iterator[None]:
        """Within, `items` returns after each `seconds` in which none were shown. One timer for all of them: one for
        every item would cost more than to send it."""

        timer: asyncio.TimerHandle

        def remind() -> None:
            nonlocal timer
            silent = self._loop.time() - self._read_at
            if silent >= seconds:
                self._news.set()
            timer = self._loop.call_later(seconds - silent if silent < seconds else seconds, remind)

        timer = self._loop.call_later(seconds, remind)
        try:
            yield
        finally:
            timer.cancel()

    def arrive(self, number: int, item: Any) -> None:
        """One more item, or the error that ends the job; from the event loop."""
        if isinstance(item, Exception):
            self._error = self._error or item
        elif self._error is None:
            self._arrived.append((number, item))
        self._news.set()

    def cancel(self) -> None:
        """End the job, after the step under way; harmless when it is over."""
        self._over = True
        for ticket in self.tickets:
            ticket.cancel()
        if self.watch:
            self.watch.end()
        self._jobs.under_way.discard(self)

    def fail(self, error: Exception) -> None:
        """End the job; `items` raises `error` after what has already come."""
        self.arrive(0, error)
        if self.watch:
            self.watch.end(error)
        self.cancel()
