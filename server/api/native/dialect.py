"""The native API as a dialect."""

from __future__ import annotations

import orjson
from fastapi import APIRouter
from fastapi.responses import Response

from pipelines.errors import Error
from server.api.dialect import Context, render_plain
from server.api.native.jobs import Jobs
from server.api.native.render import webhook
from server.api.native.vision import Vision
from server.jobs.base import Job


class Native:
    """``/v1/jobs`` and ``/v1/vision``; keys travel in a header (``key``, Bearer, ``X-API-Key``) or in the query."""

    name = "native"
    prefixes = ("/v1/jobs", "/v1/vision")

    def router(self, context: Context) -> APIRouter:
        """Its routes."""
        router = APIRouter(tags=["latentd"])
        router.include_router(Jobs(context).router())
        router.include_router(Vision(context).router())
        return router

    def render_error(self, error: Error) -> Response:
        """``{"error": {"code", "message"}}``."""
        return render_plain(error)

    def webhook_body(self, job: Job) -> bytes:
        """The job."""
        return orjson.dumps(webhook(job))
