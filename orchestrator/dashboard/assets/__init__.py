"""The files that a browser loads, from the package: no build, no network.

Invariant: only files of this folder are answered, each by its name, none by a path.
"""

from __future__ import annotations

import functools
import gzip
import hashlib
from importlib.resources import files
from typing import Final

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

_TYPES: Final = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
    "txt": "text/plain; charset=utf-8",
}

#: Of plotly.js what the charts draw (ops/plotly.mjs), packed; named by version: browsers keep it.
_PACKED: Final = "plotly-4.1.1.min.js"


def asset_route() -> Route:
    """The address of the files."""
    return Route("/assets/{name}", _asset)


async def page(request: Request) -> Response:
    """The one document; its scripts show what the address names."""
    return _answer(request, "page.html", "no-cache")


async def _asset(request: Request) -> Response:
    name = request.path_params["name"]
    if name == _PACKED:
        return _plotly(request)
    if name == "page.html" or name not in _names():
        raise HTTPException(404, "there is no such file")
    return _answer(request, name, "no-cache")


def _plotly(request: Request) -> Response:
    packed, _ = _content(f"{_PACKED}.gz")
    headers = {"cache-control": "public, max-age=31536000, immutable", "vary": "accept-encoding"}
    if "gzip" in request.headers.get("accept-encoding", ""):
        headers["content-encoding"] = "gzip"
        return Response(packed, headers=headers, media_type=_TYPES["js"])
    return Response(gzip.decompress(packed), headers=headers, media_type=_TYPES["js"])


def _answer(request: Request, name: str, caching: str) -> Response:
    content, digest = _content(name)
    headers = {"cache-control": caching, "etag": f'"{digest}"'}
    if request.headers.get("if-none-match") == headers["etag"]:
        return Response(status_code=304, headers=headers)
    return Response(content, headers=headers, media_type=_TYPES[name.rpartition(".")[2]])


@functools.cache
def _names() -> frozenset[str]:
    """The files that have a type; not this module."""
    found = (each.name for each in files(__name__).iterdir() if each.is_file())
    return frozenset(name for name in found if name.rpartition(".")[2] in _TYPES)


@functools.cache
def _content(name: str) -> tuple[bytes, str]:
    content = files(__name__).joinpath(name).read_bytes()
    return content, hashlib.sha256(content).hexdigest()[:16]
