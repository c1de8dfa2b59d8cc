"""Connections that take their time: clients that do not finish a request, do not read, or are gone without a word.

uvicorn itself waits for a request's head for ever, and holds as many connections as there are file descriptors.
"""

import asyncio
import resource
import socket
from typing import Any, cast

from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_SECONDS = 30  # for a client to send a request's head, and the rest of a body that nobody reads
IDLE_SECONDS = 75  # a connection is kept for a next request; longer than clients keep theirs, so that they close first
SILENT_SECONDS = 120  # until a client that does not read, or is gone, is given up
MOST_CONNECTIONS = 8192
MOST_FILES = 65536
_FULL = (
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nRetry-After: 5\r\nConnection: close\r\n"
    b"Content-Length: %d\r\n\r\n%s"
)
_FULL_BODY = (
    b'{"error":{"message":"too many connections: try again in a moment","type":"server_error","param":null,'
    b'"code":"overloaded"}}'
)


class Connection(H11Protocol):
    """uvicorn's, with an end to waiting. Its head timer runs while the client owes something that nobody reads."""

    _late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait, or refuse one too many."""
        super().connection_made(transport)
        if len(self.connections) > MOST_CONNECTIONS:
            transport.write(_FULL % (len(_FULL_BODY), _FULL_BODY))
            transport.close()
            return
        self._watch()

    def data_received(self, data: bytes) -> None:
        """Take in what came, and look whether a request is complete by now."""
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no more."""
        super().connection_lost(exc)
        self._stop_watching()

    def _watch(self) -> None:
        # cast: uvicorn says that there is a cycle from the beginning on
        cycle = cast(Any, self.cycle)
        if cycle is not None and not cycle.response_complete:
            self._stop_watching()
        elif self._late is None:
            self._late = self.loop.call_later(HEAD_SECONDS, self.transport.close)

    def _stop_watching(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None


def give_up_silent_clients(listener: socket.socket) -> None:
    """Have the kernel end connections whose other side does not answer, or has not read for SILENT_SECONDS; those that
    a listener accepts inherit it."""
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 60), ("TCP_KEEPINTVL", 15), ("TCP_USER_TIMEOUT", SILENT_SECONDS * 1000)):
        if hasattr(socket, name):
            listener.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def allow_many_files() -> None:
    """Raise the limit of open files to what this process may have: each connection is one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, MOST_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
