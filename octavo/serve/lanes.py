"""Threads in which requests are read: parsed, written by the chat template, cut into tokens, their grammars compiled.

Short ones do not wait for long ones, nor for grammars. Within a lane tenants take turns, so that one who sends many
keeps only itself waiting. Only so many wait, because each holds its body.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from octavo.engine.core import Busy

T = TypeVar("T")
LONG_BODY = 64 * 2**10  # bytes


class Lane:
    """Some threads, and those who wait for one. Used from one event loop."""

    def __init__(self, name: str, threads: int, most: int) -> None:
        """most: requests that may wait."""
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix=f"octavo-{name}")
        self._free, self._most = threads, most
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}  # by tenant, whose turn is next first

    async def run(self, tenant: str, work: Callable[[], T]) -> T:
        """The result of `work`, done in a thread. Raises what it raises, and `Busy` where too many wait."""
        await self._turn(tenant)
        loop = asyncio.get_running_loop()
        future = self._pool.submit(work)

        def done(_: Future[Any]) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(self._next)

        future.add_done_callback(done)  # not when we are done waiting for it: who leaves does not stop a thread
        return await asyncio.wrap_future(future)

    async def _turn(self, tenant: str) -> None:
        if self._free:
            self._free -= 1
            return
        if sum(map(len, self._waiting.values())) >= self._most:
            self._make_room(tenant)
        turn = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(tenant, deque()).append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.cancelled():
                self._leave(tenant, turn)
            elif turn.exception() is None:  # it came to its turn just now
                self._next()
            raise

    def _make_room(self, tenant: str) -> None:
        """Refuse the last of those whose tenant has the most in line, or else raise `Busy`."""
        busy = Busy("too many requests like this one wait already to be read: try again in a moment")
        longest = max(self._waiting.values(), key=len)
        if len(longest) <= len(self._waiting.get(tenant, ())) + 1:
            raise busy
        if not (last := longest.pop()).done():
            last.set_exception(busy)

    def _leave(self, tenant: str, turn: asyncio.Future[None]) -> None:
        line = self._waiting.get(tenant, deque())
        if turn in line:
            line.remove(turn)
            if not line:
                del self._waiting[tenant]

    def _next(self) -> None:
        while self._waiting:
            tenant, line = next(iter(self._waiting.items()))
            turn = line.popleft()
            del self._waiting[tenant]
            if line:
                self._waiting[tenant] = line  # behind the others
            if not turn.done():
                turn.set_result(None)
                return
        self._free += 1


class Lanes:
    """The lanes of a server."""

    def __init__(self) -> None:
        self._short, self._long = Lane("short", threads=4, most=1024), Lane("long", threads=1, most=16)
        self.grammars = Lane("grammar", threads=1, most=64)  # they are compiled one at a time anyway

    def of(self, body: bytes) -> Lane:
        """The lane in which a body is read."""
        return self._short if len(body) <= LONG_BODY else self._long
