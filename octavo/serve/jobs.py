"""Generation beside the event loop: who may run when, and one worker thread a request.

`Generator` blocks, so it never runs on the event loop. Its memory is handed out here, in order of arrival, before a
thread is started: a request that waits for memory is then only an entry in a queue, which its client can leave.
"""

import asyncio
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager

from octavo.config import SamplingParams
from octavo.engine.generate import Generator, Piece
from octavo.engine.runner import PAGE_TOKENS
from octavo.serve.protocol import ApiError


class Gate:
    """Lets requests in, first come first served, while a place and their pages are free. Event loop only."""

    def __init__(self, running: int, waiting: int, pages: int) -> None:
        self._places, self._most_inside = running, running + waiting
        self._pages, self._inside = pages, 0
        self._line: deque[tuple[int, asyncio.Future[None]]] = deque()

    @contextmanager
    def inside(self) -> Iterator[None]:
        """Count a request from its arrival to the end of its answer. Raises ApiError 503 when there are too many."""
        if self._inside >= self._most_inside:
            message = f"the server is busy with {self._inside} requests: try again in a moment"
            raise ApiError(503, message, code="overloaded", headers={"Retry-After": "5"})
        self._inside += 1
        try:
            yield
        finally:
            self._inside -= 1

    async def enter(self, pages: int) -> None:
        """Wait for a place and `pages` pages; give them back with `leave`."""
        turn = asyncio.get_running_loop().create_future()
        self._line.append((pages, turn))
        self._admit()
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():  # let in at the very moment it gave up
                self.leave(pages)
            self._line = deque(entry for entry in self._line if entry[1] is not turn)
            self._admit()  # whoever stood behind may be smaller
            raise

    def leave(self, pages: int) -> None:
        """Give back a place and its pages."""
        self._places += 1
        self._pages += pages
        self._admit()

    def _admit(self) -> None:
        while self._line and self._places and self._line[0][0] <= self._pages:
            pages, turn = self._line.popleft()
            if not turn.done():
                self._places -= 1
                self._pages -= pages
                turn.set_result(None)


class Workers:
    """The threads that generate, behind their gate."""

    def __init__(self, generator: Generator, running: int, waiting: int) -> None:
        self.generator = generator
        running = min(running, generator.runner.num_slots or running)  # where there are states, each needs a slot
        self.gate = Gate(running, waiting, generator.runner.num_pages)
        self.threads: Executor = ThreadPoolExecutor(running, thread_name_prefix="octavo-generate")
        self.jobs: set[Job] = set()

    def stop(self) -> None:
        """End every job; its client is told."""
        for job in list(self.jobs):
            job.fail(ApiError(503, "the server is shutting down", code="shutting_down"))

    async def close(self) -> None:
        """Wait for the threads, whose jobs must have been ended."""
        await asyncio.to_thread(self.threads.shutdown)


class Job:
    """One generation, begun at construction, read piece by piece from the event loop; `cancel` it in the end."""

    def __init__(self, workers: Workers, prompt: Sequence[int], params: SamplingParams) -> None:
        self.prompt_tokens = len(prompt)
        self._workers, self._prompt, self._params = workers, prompt, params
        self._loop = asyncio.get_running_loop()
        self._arrived: asyncio.Queue[Piece | Exception] = asyncio.Queue()
        self._cancelled = threading.Event()
        self._start = asyncio.create_task(self._enter())
        workers.jobs.add(self)

    async def next(self, seconds: float | None = None) -> Piece | None:
        """The next piece, None if none comes in time; no more after one with a finish_reason. Raises what the
        generator raised."""
        try:
            item = await asyncio.wait_for(self._arrived.get(), seconds)
        except TimeoutError:
            return None
        if isinstance(item, Exception):
            raise item
        return item

    def cancel(self) -> None:
        """End the job: at once while it waits, after the step under way while it runs. Harmless when it is over."""
        self._cancelled.set()
        self._start.cancel()
        self._workers.jobs.discard(self)

    def fail(self, error: Exception) -> None:
        """End the job; `next` raises `error` after what has already come."""
        self._arrived.put_nowait(error)
        self.cancel()

    async def _enter(self) -> None:
        pages = -(-(self.prompt_tokens + self._params.max_new_tokens) // PAGE_TOKENS)
        await self._workers.gate.enter(pages)
        done = self._loop.run_in_executor(self._workers.threads, self._work)
        # not when the client leaves, but when the generator has really let go of its memory
        done.add_done_callback(lambda _: self._workers.gate.leave(pages))

    def _work(self) -> None:
        try:
            pieces = self._workers.generator.stream(self._prompt, self._params, self._cancelled.is_set)
            try:
                for piece in pieces:
                    if self._cancelled.is_set():
                        return
                    self._tell(piece)
            finally:
                pieces.close()  # type: ignore[attr-defined]  # the generator behind the Iterator
        except Exception as error:  # noqa: BLE001 - handed over to the event loop, which answers and logs it
            self._tell(error)

    def _tell(self, item: Piece | Exception) -> None:
        self._loop.call_soon_threadsafe(self._arrived.put_nowait, item)
