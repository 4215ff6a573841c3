"""Finished pictures by name; the name is the permission, so no key is asked for."""

from __future__ import annotations

from collections.abc import Iterator

from fastapi import APIRouter, Request
from fastapi.responses import Response, StreamingResponse

from server.api.conditional import Version, find_range
from server.api.dialect import render_plain
from server.errors import NotFound
from server.storage.base import ImageStore, StoredImage
from server.storage.encoded import read_encoded
from server.storage.names import TEMPORARY, sources

#: Even a file that is no picture can do nothing in a browser.
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "default-src 'none'; sandbox",
    "Cross-Origin-Resource-Policy": "cross-origin",
}
#: Names are random and never used for other bytes.
_CACHED = {"Cache-Control": "public, max-age=31536000, immutable"}
#: Nobody needs to keep for long what is deleted here within a day.
_CACHED_BRIEFLY = {"Cache-Control": "public, max-age=3600"}
_CHUNK = 256 * 1024


class Files:
    """``/generations/{name}`` and ``/temp/{name}``; a name that ends in ``.base64`` is the picture as text."""

    def __init__(self, images: ImageStore) -> None:
        self._images = images

    def router(self) -> APIRouter:
        """Two routes."""
        router = APIRouter(tags=["files"])
        for path, endpoint in (("/generations/{name}", self.read), ("/temp/{name}", self.read_temporary)):
            router.add_api_route(path, endpoint, methods=["GET"], response_model=None)
            router.add_api_route(path, endpoint, methods=["HEAD"], response_model=None, include_in_schema=False)
        return router

    async def read(self, request: Request, name: str) -> Response:
        """A finished picture; 404 also for one that is still being drawn."""
        return await self._read(request, name, _CACHED)

    async def read_temporary(self, request: Request, name: str) -> Response:
        """A finished picture that is deleted after a day."""
        return await self._read(request, TEMPORARY + name, _CACHED_BRIEFLY)

    async def _read(self, request: Request, name: str, cached: dict[str, str]) -> Response:
        headers = {**_HEADERS, **cached, "Content-Disposition": f'inline; filename="{name.rpartition("/")[2]}"'}
        if (stored := await self._images.get(name)) is not None:
            return _answer_picture(request, stored, headers)
        for source in sources(name):
            if (stored := await self._images.get(source)) is not None:
                return await self._answer_text(request, source, stored, headers)
        missing = render_plain(NotFound("No such file"))
        # Clients poll the links of the future: this answer will change.
        missing.headers["Cache-Control"] = "no-store"
        return missing

    async def _answer_text(self, request: Request, name: str, stored: StoredImage, headers: dict[str, str]) -> Response:
        version = _version(stored, "-base64")
        headers |= version.headers()
        if version.is_known(request.headers):
            return Response(status_code=304, headers=headers)
        text = await read_encoded(self._images, name)
        if text is None:
            return render_plain(NotFound("No such file"))
        return Response(text, media_type="text/plain", headers=headers)


def _answer_picture(request: Request, stored: StoredImage, headers: dict[str, str]) -> Response:
    version = _version(stored)
    headers |= {**version.headers(), "Accept-Ranges": "bytes"}
    if version.is_known(request.headers):
        return Response(status_code=304, headers=headers)
    # Ranges are for GET alone (RFC 9110, 14.2).
    ranged = request.method == "GET" and version.is_range_valid(request.headers)
    part = find_range(request.headers, stored.size) if ranged else None
    if part is None:
        headers["Content-Length"] = str(stored.size)
        if request.method == "HEAD":
            return Response(headers=headers, media_type=stored.media_type)
        return StreamingResponse(_chunks(stored, range(stored.size)), headers=headers, media_type=stored.media_type)
    if not part:
        del headers["Content-Disposition"]
        return Response(status_code=416, headers={**headers, "Content-Range": f"bytes */{stored.size}"})
    headers |= {
        "Content-Range": f"bytes {part.start}-{part.stop - 1}/{stored.size}",
        "Content-Length": str(len(part)),
    }
    return StreamingResponse(_chunks(stored, part), status_code=206, headers=headers, media_type=stored.media_type)


def _version(stored: StoredImage, suffix: str = "") -> Version:
    return Version(etag=f'"{stored.modified:.6f}-{stored.size}{suffix}"', modified=stored.modified)


def _chunks(stored: StoredImage, part: range) -> Iterator[bytes]:
    """Runs on threads of Starlette's."""
    with stored.path.open("rb") as file:
        file.seek(part.start)
        left = len(part)
        while left and (chunk := file.read(min(_CHUNK, left))):
            left -= len(chunk)
            yield chunk
