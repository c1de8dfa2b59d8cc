"""Where a server is in its life: loading its models, serving, or finishing what it has begun before it stops."""

from collections.abc import Collection

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from octavo.serve.errors import ApiError

RETRY_SECONDS = 5  # a client is told to wait: OpenAI's clients give up where it is above 120


class Lifecycle:
    """Whether new work is taken, and how much is under way. Read by the event loop; any thread may begin the drain."""

    def __init__(self) -> None:
        self.draining = False
        self.under_way = 0

    def check(self) -> None:
        """Raise ApiError 503 where no new work is taken."""
        if self.draining:
            raise not_now("the server is shutting down", "shutting_down")


class Drain:
    """ASGI middleware: counts requests, and refuses new ones while the server finishes. `open_paths` are always
    answered, and never waited for."""

    def __init__(self, app: ASGIApp, lifecycle: Lifecycle, open_paths: Collection[str]) -> None:
        self._app, self._lifecycle, self._open = app, lifecycle, frozenset(open_paths)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse with 503 or pass on."""
        if scope["type"] != "http" or scope["path"] in self._open:
            await self._app(scope, receive, send)
            return
        try:
            self._lifecycle.check()
        except ApiError as error:
            await JSONResponse(error.body, error.status, error.headers)(scope, receive, send)
            return
        self._lifecycle.under_way += 1
        try:
            await self._app(scope, receive, send)
        finally:
            self._lifecycle.under_way -= 1


async def loading(scope: Scope, receive: Receive, send: Send) -> None:
    """What answers until the models are there: the process lives, and is not ready."""
    if scope["type"] != "http":
        raise RuntimeError(f"there are no {scope['type']} connections here")
    if scope["path"] == "/health":
        await JSONResponse({"status": "loading"})(scope, receive, send)
        return
    error = not_now("the models are being loaded: try again in a moment", "loading")
    await JSONResponse(error.body, error.status, error.headers)(scope, receive, send)


def not_now(message: str, code: str) -> ApiError:
    """503, and when to come again."""
    return ApiError(503, message, code=code, headers={"Retry-After": str(RETRY_SECONDS)})
