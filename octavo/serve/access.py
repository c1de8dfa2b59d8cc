"""What is noted of every request: an id, how long it took, its count, and, where it is asked for, a line in the log."""

import logging
import re
import time
import uuid

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from octavo.serve.metrics import Metrics

logger = logging.getLogger(__name__)
_SAFE_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")


class AccessLog:
    """ASGI middleware: state["request_id"] and state["began"] (time.perf_counter) of a request, headers of its answer.

    A line names the route's template, not the path: that is the client's text, line breaks and all.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, log: bool = False) -> None:
        self._app, self._metrics, self._log = app, metrics, log
        if log:
            logger.setLevel(logging.INFO)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on, and note what came of it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, request_id, status, size = time.perf_counter(), id_of(scope), 0, 0
        scope.setdefault("state", {}).update(request_id=request_id, began=began)

        async def send_noted(message: Message) -> None:
            nonlocal status, size
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = request_id
                headers["openai-processing-ms"] = str(round((time.perf_counter() - began) * 1000))
            else:
                size += len(message.get("body", b""))
            await send(message)

        try:
            await self._app(scope, receive, send_noted)
        except Exception:
            status = status or 500  # which is answered outside of every middleware
            raise
        finally:
            route = getattr(scope.get("route"), "path", "unmatched")
            self._metrics.answered(scope["method"], route, status)
            if self._log:
                client = (scope.get("client") or ("-",))[0]
                seconds = time.perf_counter() - began
                logger.info(
                    "%s %s %s %d %d bytes %.3f s %s", client, scope["method"], route, status, size, seconds, request_id
                )


def id_of(scope: Scope) -> str:
    """A client's own name for its request where that is short and plain, else one of ours."""
    given = [value for name, value in scope["headers"] if name == b"x-request-id"]
    if len(given) == 1 and _SAFE_ID.fullmatch(given[0]):
        return str(given[0], "ascii")
    return f"req_{uuid.uuid4().hex}"
