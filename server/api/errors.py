"""The outermost layer: every error, whoever raised it, leaves in the shape of the dialect that owns the path."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pipelines.errors import Error, InvalidRequest
from server.api.dialect import Dialect, MethodNotAllowed, render_plain
from server.errors import BadBody, BodyTooLarge, NotFound
from server.metrics import Metrics
from server.service import OPAQUE

logger = logging.getLogger(__name__)


class Owners:
    """Which dialect owns a path."""

    def __init__(self, dialects: Sequence[Dialect]) -> None:
        # Stable: of two equal prefixes the earlier dialect's stays first.
        pairs = [(prefix, dialect) for dialect in dialects for prefix in dialect.prefixes]
        self._pairs = sorted(pairs, key=lambda pair: -len(pair[0]))

    def of(self, path: str) -> Dialect | None:
        """None for a path of nobody's."""
        return next((dialect for prefix, dialect in self._pairs if path.startswith(prefix)), None)

    def render_error(self, path: str, error: Error) -> Response:
        """The error as the owner of the path says it."""
        owner = self.of(path)
        return render_plain(error) if owner is None else owner.render_error(error)


def install(app: FastAPI, owners: Owners, metrics: Metrics, *, max_body_bytes: int) -> None:
    """Puts the layer around the app; nothing of FastAPI's or Starlette's own error bodies is left."""

    async def render(request: Request, error: Exception) -> Response:
        return owners.render_error(request.scope["path"], _translate(error))

    for kind in (Error, HTTPException, RequestValidationError):
        app.add_exception_handler(kind, render)
    app.add_middleware(Edge, owners=owners, metrics=metrics, max_body_bytes=max_body_bytes)


def _translate(error: Exception) -> Error:
    if isinstance(error, Error):
        return error
    if isinstance(error, RequestValidationError):
        return InvalidRequest(str(error.errors()[0]["msg"]))
    assert isinstance(error, HTTPException)
    if error.status_code == 404:
        return NotFound("Not found")
    if error.status_code == 405:
        return MethodNotAllowed((error.headers or {}).get("Allow", ""))
    return BadBody(str(error.detail)) if error.status_code < 500 else Error(OPAQUE)


class Edge:
    """Normalises the path, bounds the body while it streams in, counts answers, renders what nobody caught."""

    def __init__(self, app: ASGIApp, *, owners: Owners, metrics: Metrics, max_body_bytes: int) -> None:
        self._app = app
        self._owners = owners
        self._metrics = metrics
        self._max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path = scope["path"] = _normal_path(scope["path"])
        owner = self._owners.of(path)
        started = False

        async def send_counted(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                self._metrics.count_answer("none" if owner is None else owner.name, message["status"])
            await send(message)

        try:
            _check_length(scope, self._max_body_bytes)
            await self._app(scope, _bounded(receive, self._max_body_bytes), send_counted)
        except ClientDisconnect:
            # Nobody is left to answer.
            return
        except Exception as error:
            if started:
                raise
            known = error if isinstance(error, Error) else Error(OPAQUE)
            if known is not error:
                logger.exception("%s %s failed", scope["method"], path)
            await self._owners.render_error(path, known)(scope, receive, send_counted)


def _normal_path(path: str) -> str:
    """Without the trailing slash that some SDKs append, and without scheme and host of an absolute-form target."""
    if path.startswith(("http://", "https://")):
        path = "/" + path.split("/", 3)[3] if path.count("/") >= 3 else "/"
    return path.rstrip("/") or "/"


def _check_length(scope: Scope, limit: int) -> None:
    for name, value in scope["headers"]:
        if name == b"content-length" and value.isdigit() and int(value) > limit:
            raise _too_large(limit)


def _bounded(receive: Receive, limit: int) -> Receive:
    read = 0

    async def receive_bounded() -> Message:
        nonlocal read
        message = await receive()
        read += len(message.get("body", b""))
        if read > limit:
            raise _too_large(limit)
        return message

    return receive_bounded


def _too_large(limit: int) -> BodyTooLarge:
    return BodyTooLarge(f"The request body is larger than {limit} bytes.")
