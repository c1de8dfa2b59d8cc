"""Connections that take their time: clients that do not finish a request, do not read, or are gone without a word.

uvicorn itself waits for a request's head for ever, takes one of any size, and holds as many connections as there are
file descriptors.
"""

import asyncio
import json
import resource
import socket
import sys
from http import HTTPStatus
from typing import Any, cast

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from octavo.serve.errors import ApiError

HEAD_SECONDS = 30  # for a client to send a request's head, and the rest of a body that nobody reads
IDLE_SECONDS = 75  # a connection is kept for a next request; longer than clients keep theirs, so that they close first
SILENT_SECONDS = 120  # until a client that does not read, or is gone, is given up
MOST_CONNECTIONS = 8192
MOST_HEAD_BYTES = 65536
MOST_PIPELINED = 16  # requests of a connection that wait for the answer before theirs, while more are read
MOST_FILES = 65536


class Connection(HttpToolsProtocol):
    """uvicorn's, with an end to waiting. Its timer runs while the client owes something that nobody reads."""

    _late: asyncio.TimerHandle | None = None
    _head_bytes: int | None = None  # of a head that is on its way
    _data = b""  # that is being read
    _again = b""  # what is to be read anew
    _asks_for_other = False  # whether a request would change to another protocol
    _answered: Any = None  # the request that is being answered: not the last one where clients send several at once

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait, or refuse one too many."""
        super().connection_made(transport)
        if len(self.connections) > MOST_CONNECTIONS:
            self._refuse(503, "too many connections: try again in a moment", "overloaded")
        else:
            self._watch()

    def data_received(self, data: bytes) -> None:
        """Take in what came, and look whether a request is complete by now."""
        self._data = data
        while unread := self._data:
            self._again = b""
            super().data_received(unread)
            self._data = self._again
        if self._head_bytes is not None:
            self._head_bytes += len(data)
            if self._head_bytes > MOST_HEAD_BYTES:
                self._refuse(431, f"the headers are longer than {MOST_HEAD_BYTES} bytes", "headers_too_large")
        self._watch()

    def on_message_begin(self) -> None:
        """A head begins."""
        super().on_message_begin()
        self._head_bytes = 0

    def on_headers_complete(self) -> None:
        """A head is there."""
        self._head_bytes = None
        self._asks_for_other = self.parser.should_upgrade() and self.parser.get_method() != b"CONNECT"
        if self._asks_for_other:
            return
        super().on_headers_complete()
        if 0 < len(self.pipeline) <= MOST_PIPELINED:
            self.flow.resume_reading()  # uvicorn stops reading here, and would not see that the client leaves

    def on_message_complete(self) -> None:
        """A request is there; but one that asks for another protocol is read anew."""
        if not self._asks_for_other:
            super().on_message_complete()

    def _unsupported_upgrade_warning(self) -> None:
        """Read a request as if it did not ask for another protocol. Java's HTTP client asks for HTTP/2 with each, and
        the parser has stopped before the body: it takes what follows for the other protocol."""
        error = sys.exception()  # uvicorn calls this where it handles the parser's
        if not (self._asks_for_other and isinstance(error, httptools.HttpParserUpgrade)):
            return
        if len(self.pipeline) > MOST_PIPELINED:  # each takes a copy of all that follows
            self.transport.close()
            return
        version = self.parser.get_http_version().encode()
        head = b"%s %s HTTP/%s\r\n" % (self.parser.get_method(), self.url, version)
        head += b"".join(b"%s: %s\r\n" % header for header in self.headers if header[0] != b"upgrade")
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn has it
        self._again = head + b"\r\n" + self._data[error.args[0] :]

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no HTTP."""
        self._refuse(400, msg, "invalid_http")

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no more."""
        # uvicorn tells only the last request that came, which may be one that was to be answered next
        if self._answered is not None and not self._answered.response_complete:
            self._answered.disconnected = True
            self._answered.message_event.set()
        super().connection_lost(exc)
        self._stop_watching()

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:
        self._answered = cycle
        super()._start_asgi_task(cycle, app)

    def _refuse(self, status: int, message: str, code: str) -> None:
        """Answer outside of the application, and close."""
        error = ApiError(status, message, code=code)
        content = json.dumps(error.body).encode()
        self.transport.write(
            f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\nContent-Type: application/json\r\n"
            f"Retry-After: 5\r\nConnection: close\r\nContent-Length: {len(content)}\r\n\r\n".encode()
            + content
        )
        self.transport.close()

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
