"""The whole server behind an ASGI transport: real stores in a temporary folder, a stub in place of the device."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx2
import pytest
from fastapi import FastAPI

from pipelines.model import Limits, ModelSpec
from pipelines.safety import CheckerFiles
from server.app import Parts, build_app
from server.catalog import Catalog
from server.config import ModelsLabSettings, Settings
from server.engine.executors.stub import StubExecutor

KEY = "canary-0123456789abcdef"
SD15 = ModelSpec(
    id="sd15", family="sd15", aliases=("sd-1.5",), folder=Path("sd15"), demo="sd15", note="A demo model draws."
)
MODELS = (
    SD15,
    replace(SD15, id="flux", family="flux", aliases=("fluxdev",), limits=Limits(multiple=16), note=None, demo=None),
    ModelSpec(
        id="florence-2-base",
        family="florence2",
        aliases=("microsoft/Florence-2-base",),
        folder=Path("florence2"),
        demo="florence2",
        note="A demo model answers.",
        tasks=frozenset(),
    ),
    replace(SD15, id="sdxl-lightning", aliases=(), steps=4, guidance=0.0, width=128, height=128, note=None),
)


@dataclass
class Api:
    """A running server."""

    client: httpx2.AsyncClient
    executor: StubExecutor
    parts: Parts
    app: FastAPI
    key: str = KEY

    async def text2img(self, **fields: Any) -> httpx2.Response:
        """A small picture, with the key in the body."""
        small = {"key": KEY, "model_id": "sd15", "prompt": "a red bridge", "width": 64, "height": 64}
        return await self.client.post("/api/v6/images/text2img", json={**small, **fields})

    async def fetch(self, request_id: object, *, key: str = KEY, wait: float = 0) -> httpx2.Response:
        """By id in the body."""
        body = {"key": key, "request_id": request_id}
        return await self.client.post("/api/v6/images/fetch", json=body, params={"wait": wait})


Serve = Callable[..., AbstractAsyncContextManager[Api]]


@pytest.fixture
def serve(tmp_path: Path) -> Serve:
    """``async with serve(executor=…, sync_wait_s=…) as api``; twice on the same folder is a restart."""

    @asynccontextmanager
    async def serving(
        executor: StubExecutor | None = None,
        modelslab: dict[str, Any] | None = None,
        checker: CheckerFiles | None = None,
        **values: Any,
    ) -> AsyncIterator[Api]:
        settings = Settings(
            **{"data": tmp_path, "api_key": KEY, "max_body_bytes": 300_000, "webhook_delays_s": (), **values},
            modelslab=ModelsLabSettings(**(modelslab or {})),
        )
        executor = executor or StubExecutor()
        started: list[Parts] = []
        catalog = Catalog(MODELS, default="sd15", checker=checker)
        app = build_app(settings, executor=executor, catalog=catalog, on_start=started.append)
        transport = httpx2.ASGITransport(app=app)
        async with (
            app.router.lifespan_context(app),
            httpx2.AsyncClient(transport=transport, base_url="http://images.test") as client,
        ):
            yield Api(client, executor, started[0], app)

    return serving


@pytest.fixture
async def api(serve: Serve) -> AsyncIterator[Api]:
    """A server with the defaults."""
    async with serve() as running:
        yield running
