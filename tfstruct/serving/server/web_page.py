"""The page of a server for people, at `/`: its files, which are sent with leave to load nothing from elsewhere."""

import importlib.resources

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

_TYPES = {"index.html": "text/html", "page.css": "text/css", "page.js": "text/javascript"}
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {"Content-Security-Policy": _POLICY, "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"}


def routes() -> list[Route]:
    """Returns the routes of the page and of what it loads."""
    folder = importlib.resources.files("tfstruct.serving.server") / "page"
    return [
        _route("/" if name == "index.html" else f"/page/{name}", (folder / name).read_bytes(), kind)
        for name, kind in _TYPES.items()
    ]


def _route(path: str, content: bytes, kind: str) -> Route:
    async def answer(request: Request) -> Response:
        return Response(content, media_type=kind, headers=_HEADERS)

    return Route(path, answer, methods=["GET"])
