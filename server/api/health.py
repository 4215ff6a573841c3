"""What monitors and orchestrators ask, and the pages about the API itself."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import HTMLResponse, PlainTextResponse, Response

from server.api.deps import authenticate, offered_key
from server.api.dialect import Context, JSONBytes
from server.metrics import CONTENT_TYPE, Metrics

#: A device thread with work that has not turned for this long hangs; loading a model is the longest turn.
_HEARTBEAT_LIMIT_S = 600.0

#: The query, and a key in it, goes on to /openapi.json inside the browser and is never written into the page.
_DOCS = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>latentd API</title>
<link rel="stylesheet" href="https://cdn.jsdelivr.net/npm/swagger-ui-dist@5/swagger-ui.css"></head>
<body><div id="ui"></div>
<script src="https://cdn.jsdelivr.net/npm/swagger-ui-dist@5/swagger-ui-bundle.js"></script>
<script>SwaggerUIBundle({url: "/openapi.json" + location.search, dom_id: "#ui"})</script>
</body></html>
"""


class Health:
    """Routes that are nobody's dialect."""

    def __init__(
        self, context: Context, metrics: Metrics, *, version: str, public_docs: bool, public_metrics: bool
    ) -> None:
        self._context = context
        self._metrics = metrics
        self._version = version
        self._public_docs = public_docs
        self._public_metrics = public_metrics

    def router(self) -> APIRouter:
        """``/``, ``/health``, ``/ready``, ``/up`` are open; the others need any key unless made public."""
        router = APIRouter(tags=["health"])
        routes: dict[str, Callable[..., Awaitable[Response]]] = {
            "/": self.root,
            "/health": self.health,
            "/ready": self.ready,
            "/up": self.up,
            "/metrics": self.metrics,
            "/docs": self.docs,
            "/openapi.json": self.openapi,
        }
        for path, endpoint in routes.items():
            router.add_api_route(path, endpoint, methods=["GET", "HEAD"], response_model=None, include_in_schema=False)
        return router

    async def root(self) -> Response:
        """For probes that know no other path."""
        return JSONBytes({"name": "latentd", "version": self._version, "docs": "/docs", "health": "/health"})

    async def up(self) -> Response:
        """AI Server's probe."""
        return PlainTextResponse("OK")

    async def health(self) -> Response:
        """Alive, and what it draws with."""
        models = [
            {"id": model.id, "family": model.family, "demo": model.demo is not None, "note": model.note}
            for model in self._context.catalog.models()
        ]
        return JSONBytes({"status": "ok", "version": self._version, "models": models})

    async def ready(self) -> Response:
        """200 while requests are taken and drawn; 503 with the reason otherwise."""
        reason = self._find_fault()
        if reason is not None:
            return JSONBytes({"ready": False, "reason": reason}, status_code=503)
        return JSONBytes({"ready": True})

    async def metrics(self, request: Request) -> Response:
        """Prometheus text."""
        if not self._public_metrics:
            await self._require_any_key(request)
        counts: Mapping[str, int] = {
            state.value: number for state, number in (await self._context.jobs.count()).items()
        }
        return Response(self._metrics.render(counts), media_type=CONTENT_TYPE)

    async def docs(self, request: Request) -> Response:
        """Swagger UI."""
        if not self._public_docs:
            await self._require_any_key(request)
        return HTMLResponse(_DOCS)

    async def openapi(self, request: Request) -> Response:
        """The schema of all dialects."""
        if not self._public_docs:
            await self._require_any_key(request)
        app: FastAPI = request.app
        schema: dict[str, Any] = app.openapi()
        return JSONBytes(schema)

    async def _require_any_key(self, request: Request) -> None:
        await authenticate(self._context.keys, offered_key(request), scope=None)

    def _find_fault(self) -> str | None:
        if not self._context.service.accepting:
            return "not accepting requests"
        fault = self._context.safety_rules().fault
        if fault is not None:
            return str(fault)
        stats = self._context.service.engine_stats()
        if not stats.alive:
            return "the device thread does not run"
        busy = stats.running_rows or stats.waiting_requests
        if busy and time.monotonic() - stats.heartbeat > _HEARTBEAT_LIMIT_S:
            return "the device thread hangs"
        return None
