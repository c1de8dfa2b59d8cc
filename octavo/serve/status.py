"""How the server is: alive, ready, and in figures."""

from collections.abc import Mapping

from fastapi import FastAPI
from starlette.responses import Response

from octavo.engine.core import Closed
from octavo.engine.engine import Engine
from octavo.serve.errors import Json
from octavo.serve.lifecycle import Lifecycle
from octavo.serve.metrics import Metrics

STATUS_PATHS = ("/health", "/ready", "/metrics")


def add_status(app: FastAPI, engines: Mapping[str, Engine], lifecycle: Lifecycle, metrics: Metrics) -> None:
    """Answer STATUS_PATHS."""

    async def health() -> Json:
        if any(engine.closed for engine in engines.values()):
            raise Closed("the engine broke down")
        return {"status": "ok"}

    async def ready() -> Json:
        lifecycle.check()
        return await health()

    def figures() -> Response:
        content, kind = metrics.page()
        return Response(content, media_type=kind)

    for path, answer in zip(STATUS_PATHS, (health, ready, figures), strict=True):
        app.add_api_route(path, answer, methods=["GET", "HEAD"], response_model=None)
