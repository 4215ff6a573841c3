"""The endpoints: each reads a call, asks the service, renders what comes back."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import NoReturn

from fastapi import APIRouter, Request
from fastapi.responses import Response

from pipelines.complete import check_task, complete
from pipelines.draft import Completed
from pipelines.errors import InvalidRequest
from pipelines.request import Task
from server.api.deps import authenticate, base_url, offered_key
from server.api.dialect import STATUS, Context, JSONBytes
from server.api.modelslab import render
from server.api.modelslab.body import read_fields
from server.api.modelslab.coerce import Fields
from server.api.modelslab.pictures import store_pictures
from server.api.modelslab.schemas import Call, Options, documented_defaults, json_schema, read_call
from server.catalog import Resolved
from server.errors import NotFound, RefusedAddress
from server.jobs.base import Job, JobState
from server.keys import ApiKey

NAME = "modelslab"

#: A fetch is held no longer than this: clients give up on a call after 20 s.
_MAX_FETCH_WAIT_S = 10.0


class Routes:
    """``/api/v6/images``."""

    def __init__(self, context: Context, options: Options) -> None:
        self._context = context
        self._options = options

    def router(self) -> APIRouter:
        """All paths; bodies are read by ``read_fields``, so FastAPI validates nothing."""
        router = APIRouter(prefix="/api/v6/images", tags=["ModelsLab"])
        for task, draw in ((Task.TEXT2IMG, self.text2img), (Task.IMG2IMG, self.img2img), (Task.INPAINT, self.inpaint)):
            body = {"requestBody": {"content": {"application/json": {"schema": json_schema(task)}}}}
            router.add_api_route(f"/{task}", draw, methods=["POST"], response_model=None, openapi_extra=body)
        router.add_api_route("/fetch", self.fetch, methods=["POST"], response_model=None)
        for method in ("POST", "GET"):
            router.add_api_route("/fetch/{request_id}", self.fetch_by_path, methods=[method], response_model=None)
        return router

    async def text2img(self, request: Request) -> Response:
        """Draws images from a prompt; answers ``success``, or ``processing`` when it takes longer."""
        return await self._draw(request, Task.TEXT2IMG)

    async def img2img(self, request: Request) -> Response:
        """Draws images from a prompt and an image; answers as ``text2img``."""
        return await self._draw(request, Task.IMG2IMG)

    async def inpaint(self, request: Request) -> Response:
        """Repaints an image where a mask is white; answers as ``text2img``."""
        return await self._draw(request, Task.INPAINT)

    async def fetch(self, request: Request) -> Response:
        """The result of an earlier call, by ``request_id`` in the body."""
        fields = await read_fields(request)
        caller = await self._authenticate(request, fields)
        request_id = fields.raw("request_id", "id")
        if request_id is None:
            raise InvalidRequest("request_id is required", field="request_id")
        return await self._fetch(request_id, caller, fields)

    async def fetch_by_path(self, request: Request, request_id: str) -> Response:
        """The result of an earlier call, by id in the path."""
        fields = await read_fields(request)
        caller = await self._authenticate(request, fields)
        return await self._fetch(request_id, caller, fields)

    async def _draw(self, request: Request, task: Task) -> Response:
        until = time.monotonic() + self._context.sync_wait_s
        fields = await read_fields(request)
        caller = await self._authenticate(request, fields)
        call = read_call(fields, self._options, task)
        self._check_webhook(call.webhook)
        job = await self._submit(call, caller, base_url(request, self._context.public_url))
        if not call.instant:
            # Clients wait for an answer, however much of the time went into fetching their pictures.
            job = await self._context.service.wait(job.id, max(until - time.monotonic(), 0.0))
        return self._answer(job, failed_status="error")

    async def _authenticate(self, request: Request, fields: Fields) -> ApiKey:
        return await authenticate(self._context.keys, offered_key(request, fields.raw("key")))

    def _check_webhook(self, url: str | None) -> None:
        if url is None:
            return
        try:
            self._context.guard.check_url(url)
        except RefusedAddress as error:
            raise InvalidRequest(f"webhook: {error}", field="webhook") from None

    async def _submit(self, call: Call, caller: ApiKey, base: str) -> Job:
        found = self._context.catalog.resolve(call.model)
        model = found.model
        # Before anything is fetched for it.
        check_task(call.task, model)
        stored = await store_pictures(self._context.inputs, call.task, call.pictures)
        draft = replace(call.draft, **stored)
        return await self._context.service.submit(
            self._complete(replace(call, draft=draft), found),
            owner=caller.id,
            dialect=NAME,
            echo=render.make_echo(
                track_id=call.track_id,
                instant=call.instant,
                note=model.note,
                pictures=call.pictures,
                safety_type=self._context.safety.replacement(draft),
            ),
            base_url=base,
            webhook=call.webhook,
        )

    def _complete(self, call: Call, found: Resolved) -> Completed:
        defaults = documented_defaults(self._options)
        completed = complete(
            call.draft,
            found.model,
            defaults,
            reproducible=self._context.reproducible,
            safety=self._context.safety_rules(),
        )
        unapplied = (f"Not applied: {', '.join(call.unapplied)}.",) if call.unapplied else ()
        return replace(completed, warnings=(*found.warnings, *completed.warnings, *unapplied))

    async def _fetch(self, request_id: object, caller: ApiKey, fields: Fields) -> Response:
        job = await self._context.service.get(request_id, caller.id)
        # A job without pictures is none of this API's.
        if job is None or not job.outputs:
            _refuse_unknown()
        patience = min(max(fields.number("wait") or 0.0, 0.0), _MAX_FETCH_WAIT_S)
        if patience and not job.state.terminal:
            job = await self._context.service.wait(job.id, patience)
        return self._answer(job, failed_status=self._options.failed_status)

    def _answer(self, job: Job, *, failed_status: str) -> Response:
        if job.state is JobState.SUCCEEDED:
            return JSONBytes(render.success(job))
        if not job.state.terminal:
            return JSONBytes(render.processing(job, self._context.service.eta(job)))
        # Not 200: the SDKs that know no failure stop polling at a status they do not expect.
        code = "cancelled" if job.state is JobState.CANCELLED else job.error_code or ""
        status = 200 if self._options.legacy_http_200 else STATUS.get(code, 500)
        return JSONBytes(render.failure(job, failed_status), status_code=status)


def _refuse_unknown() -> NoReturn:
    raise NotFound("Request not found")
