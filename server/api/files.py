"""Finished pictures by name; the name is the permission, so no key is asked for."""

from __future__ import annotations

from fastapi import APIRouter
from fastapi.responses import FileResponse, Response

from server.api.dialect import render_plain
from server.errors import NotFound
from server.storage.base import ImageStore

#: Even a file that is no picture can do nothing in a browser.
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "default-src 'none'; sandbox",
    "Cross-Origin-Resource-Policy": "cross-origin",
    # Names are random and never used for other bytes.
    "Cache-Control": "public, max-age=31536000, immutable",
}


class Files:
    """``/generations/{name}``."""

    def __init__(self, images: ImageStore) -> None:
        self._images = images

    def router(self) -> APIRouter:
        """One route."""
        router = APIRouter(tags=["files"])
        path = "/generations/{name}"
        router.add_api_route(path, self.read, methods=["GET"], response_model=None)
        router.add_api_route(path, self.read, methods=["HEAD"], response_model=None, include_in_schema=False)
        return router

    async def read(self, name: str) -> Response:
        """A finished picture; 404 also for one that is still being drawn."""
        stored = await self._images.get(name)
        if stored is None:
            missing = render_plain(NotFound("No such file"))
            # Clients poll the links of the future: this answer will change.
            missing.headers["Cache-Control"] = "no-store"
            return missing
        return FileResponse(
            stored.path,
            media_type=stored.media_type,
            headers=_HEADERS,
            filename=name,
            content_disposition_type="inline",
        )
