"""ModelsLab as a dialect."""

from __future__ import annotations

from typing import Literal

import orjson
from fastapi import APIRouter
from fastapi.responses import Response

from pipelines.errors import Error
from server.api.dialect import Context
from server.api.modelslab import render
from server.api.modelslab.answers import refused
from server.api.modelslab.routes import make_router
from server.api.modelslab.schemas import Options
from server.api.modelslab.visit import NAME
from server.jobs.base import Job


class ModelsLab:
    """The ModelsLab v6 image API, https://docs.modelslab.com/image-generation."""

    name = NAME
    #: The last one until another dialect claims it: an unknown path under /api is most likely meant for ModelsLab.
    prefixes = ("/api/v", "/api/wallet_balance", "/api/subscribed_products", "/api")

    def __init__(
        self,
        *,
        failed_status: Literal["error", "failed"] = Options.failed_status,
        legacy_http_200: bool = Options.legacy_http_200,
        max_steps: int = Options.max_steps,
        strict_sizes: bool = Options.strict_sizes,
        clip_skip_default: int = Options.clip_skip_default,
        base64_mode: Literal["url", "inline"] = Options.base64_mode,
    ) -> None:
        self._options = Options(
            failed_status=failed_status,
            legacy_http_200=legacy_http_200,
            max_steps=max_steps,
            strict_sizes=strict_sizes,
            clip_skip_default=clip_skip_default,
            base64_mode=base64_mode,
        )

    def router(self, context: Context) -> APIRouter:
        """Its routes."""
        return make_router(context, self._options)

    def render_error(self, error: Error) -> Response:
        """``status: error`` with ``message`` and its misspelt twin."""
        return refused(error, self._options)

    def webhook_body(self, job: Job) -> bytes:
        """``success`` or ``failed``."""
        return orjson.dumps(render.webhook(job))
