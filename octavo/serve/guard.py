"""Who may come in: with API keys those that have one, without keys callers of this machine.

Every path is closed but a short public list, so that a route that somebody adds is closed too.

Without keys, listening on 127.0.0.1 is not enough. A web page can send a request to any address (so a foreign Origin is
refused), and can make its own name point to 127.0.0.1 after it was loaded (so a Host that is not this machine is
refused). With keys neither tells anything: a page does not have the key, and no browser lets it send an Authorization
header elsewhere without a leave that this server never gives (CORS is off). So Host may be what a proxy makes of it.
"""

import ipaddress
import re
from collections.abc import Collection

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from octavo.serve.errors import ApiError
from octavo.serve.keys import Keys

SECURITY_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
PROBES = ("/health", "/ready")  # for whoever watches over the process, who has no key
_HOST = re.compile(r"(?P<name>[A-Za-z0-9.-]+|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?")


class Guard:
    """ASGI middleware: checks keys, or Host and Origin; adds the security headers to every answer.

    A request that comes in has state["tenant"]: whose it is, for the prefix cache.
    """

    def __init__(self, app: ASGIApp, keys: Keys | None = None, public: Collection[str] = PROBES) -> None:
        """public: paths that need no key, exactly as routes are matched."""
        self._app, self._keys, self._public = app, keys or Keys(), frozenset(public)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse with 401 or 403, or pass on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in SECURITY_HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        try:
            scope.setdefault("state", {})["tenant"] = self._check(scope)
        except ApiError as error:
            await JSONResponse(error.body, error.status, error.headers)(scope, receive, send_guarded)
        else:
            await self._app(scope, receive, send_guarded)

    def _check(self, scope: Scope) -> str:
        if not self._keys:
            check_caller(scope["method"], Headers(scope=scope))
            return ""
        if scope["path"] in self._public:
            return ""
        return self._keys.tenant([value for name, value in scope["headers"] if name == b"authorization"])


def check_caller(method: str, headers: Headers) -> None:
    """Raise ApiError 403 unless Host names this machine and, where a request may change something, Origin is ours."""
    hosts = headers.getlist("host")
    match = _HOST.fullmatch(hosts[0]) if len(hosts) == 1 else None
    if match is None or not is_loopback(match["name"].strip("[]")):
        named = ", ".join(hosts)[:100]
        message = (
            f"this server has no API key, so it answers only under localhost and 127.0.0.1, not {named!r}: "
            "start it with --api-key for others"
        )
        raise ApiError(403, message, code="foreign_host")
    origins = headers.getlist("origin")
    ours = (f"http://{hosts[0]}".lower(), f"https://{hosts[0]}".lower())
    if method not in ("GET", "HEAD") and any(origin.lower() not in ours for origin in origins):
        raise ApiError(403, "this server does not answer web pages of other origins", code="foreign_origin")


def is_loopback(name: str) -> bool:
    """Whether a host name or address means this machine and nothing else."""
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return name.lower() == "localhost"
