"""``POST /v1/vision``: a picture is looked at, and described in words, boxes, outlines or lines of text."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from pipelines.errors import Error, InvalidRequest
from pipelines.question import check_model, decide
from server.api.body import read_body
from server.api.deps import authenticate, base_url, check_webhook, offered_key
from server.api.dialect import STATUS, Context, JSONBytes
from server.api.native.vision_call import Call, read_call
from server.api.native.vision_schema import REQUEST_BODY, RESPONSES
from server.inputs import BadInput, StoredInput, UnfetchableInput
from server.jobs.base import Job, JobState
from server.keys import ApiKey


class Vision:
    """The route."""

    def __init__(self, context: Context) -> None:
        self._context = context

    def router(self) -> APIRouter:
        """One path; the body is read by ``read_body``, so FastAPI validates nothing."""
        router = APIRouter()
        router.add_api_route(
            "/v1/vision",
            self.look,
            methods=["POST"],
            response_model=None,
            responses=RESPONSES,
            openapi_extra={"requestBody": REQUEST_BODY},
        )
        return router

    async def look(self, request: Request) -> Response:
        """Looks at a picture: captions, objects, regions, outlines and texts in it, with Florence-2.

        What takes longer than the server waits is answered with 202 and the job's id: ``GET /v1/jobs/{id}`` tells more,
        and has the answer in ``result.answers``.
        """
        until = time.monotonic() + self._context.sync_wait_s
        caller = await authenticate(self._context.keys, offered_key(request))
        call = read_call(await read_body(request))
        job = await self._submit(call, caller, base_url(request, self._context.public_url))
        # However much of the time went into fetching the picture.
        job = await self._context.service.wait(job.id, max(until - time.monotonic(), 0.0))
        return self._answer(job)

    async def _submit(self, call: Call, caller: ApiKey, base: str) -> Job:
        found = self._context.catalog.resolve(call.model)
        # Before anything is fetched for it.
        check_model(found.model)
        check_webhook(self._context.guard, call.webhook)
        picture = await self._store(call.image)
        size = picture.width, picture.height
        decided = decide(call.question, found.model, image=picture.digest, size=size)
        return await self._context.service.submit(
            replace(decided, warnings=(*found.warnings, *decided.warnings)),
            owner=caller.id,
            dialect="native",
            echo={"note": found.model.note},
            base_url=base,
            webhook=call.webhook,
        )

    async def _store(self, source: str) -> StoredInput:
        try:
            return await self._context.inputs.store(source, "image")
        except (BadInput, UnfetchableInput) as error:
            raise InvalidRequest(f"image: {error}", field="image") from None

    def _answer(self, job: Job) -> Response:
        if job.state is JobState.SUCCEEDED:
            return JSONBytes(_answered(job))
        if not job.state.terminal:
            where = f"{job.base_url}/v1/jobs/{job.id}"
            eta_s = round(self._context.service.eta(job), 1)
            body = {"id": job.id, "state": job.state.value, "eta_s": eta_s, "url": where}
            return JSONBytes(body, status_code=202, headers={"Location": where})
        code = "cancelled" if job.state is JobState.CANCELLED else job.error_code or Error.code
        message = job.error_message or f"The job was {job.state.value}."
        return JSONBytes({"id": job.id, "error": {"code": code, "message": message}}, status_code=STATUS.get(code, 500))


def _answered(job: Job) -> dict[str, Any]:
    result = job.result or {}
    return {
        "id": job.id,
        "state": job.state.value,
        "task": job.request["task"],
        "model": job.request["model"],
        "note": job.echo.get("note"),
        "answer": result["answers"][0],
        "seconds": round(result["seconds"], 3),
        "warnings": list(job.warnings),
    }
