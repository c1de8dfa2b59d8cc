"""The chat page: the files in web/, as they are."""

from pathlib import Path

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import FileResponse, Response

_WEB = Path(__file__).parent / "web"
# The types are spelled out: with `nosniff` a wrong entry in a machine's MIME table would block the page.
_TYPES = {".html": "text/html", ".js": "text/javascript", ".css": "text/css"}
_FILES = {f"/web/{file.name}": file for file in sorted(_WEB.iterdir()) if file.suffix in _TYPES}
_FILES["/"] = _FILES.pop("/web/index.html")

# what a browser fetches before it knows an API key; none of it tells anything about the server
PAGE_PATHS = frozenset(_FILES)


def add_page(app: FastAPI) -> None:
    """Serve the chat page at / and its parts under /web."""
    for path in _FILES:
        app.add_api_route(path, _file, methods=["GET", "HEAD"], response_model=None, include_in_schema=False)


async def _file(request: Request) -> Response:
    file = _FILES[request.scope["path"]]
    return FileResponse(file, media_type=_TYPES[file.suffix], headers={"Cache-Control": "no-cache"})
