"""The chat page: the files in web/, as they are."""

from pathlib import Path

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import FileResponse, Response

_WEB = Path(__file__).parent / "web"
# The types are spelled out: with `nosniff` a wrong entry in a machine's MIME table would block the page.
_FILES = {
    "/": ("index.html", "text/html"),
    "/chat.js": ("chat.js", "text/javascript"),
    "/chat.css": ("chat.css", "text/css"),
}


PATHS = tuple(_FILES)


def add_page(app: FastAPI) -> None:
    """Serve the chat page at /."""
    for path in _FILES:
        app.add_api_route(path, _file, methods=["GET", "HEAD"], response_model=None, include_in_schema=False)


async def _file(request: Request) -> Response:
    name, kind = _FILES[request.scope["path"]]
    return FileResponse(_WEB / name, media_type=kind, headers={"Cache-Control": "no-cache"})
