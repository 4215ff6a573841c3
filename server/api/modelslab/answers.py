"""A job as the answer to a call: ``success``, ``processing``, or the error it ended with."""

from __future__ import annotations

import asyncio
from typing import NoReturn

from fastapi.responses import Response

from pipelines.errors import Error, InvalidRequest
from server.api.dialect import STATUS, JSONBytes, extra_headers, status_of
from server.api.modelslab import render
from server.api.modelslab.schemas import Options
from server.api.modelslab.visit import NAME, Visit
from server.errors import NotFound, QueueFull
from server.jobs.base import Job, JobState
from server.storage.encoded import read_encoded

#: A fetch is held no longer than this: clients give up on a call after 20 s.
_MAX_FETCH_WAIT_S = 10.0


async def fetch(visit: Visit) -> Response:
    """The result of an earlier call, by ``request_id`` in the path or the body; ``wait`` holds it for some seconds."""
    request_id: object = visit.path.get("request_id") or visit.fields.raw("request_id", "id")
    if request_id is None:
        raise InvalidRequest("request_id is required", field="request_id")
    job = await visit.context.service.get(request_id, visit.caller.id)
    # Another API's job that left no pictures has nothing to show here.
    if job is None or not (job.outputs or job.dialect == NAME):
        _refuse_unknown()
    patience = min(max(visit.fields.number("wait") or 0.0, 0.0), _MAX_FETCH_WAIT_S)
    if patience and not job.state.terminal:
        job = await visit.context.service.wait(job.id, patience)
    return await answer(visit, job, failed_status=visit.options.failed_status)


async def answer(visit: Visit, job: Job, *, failed_status: str) -> Response:
    """The job as it stands; ``failed_status`` is the word for one that did not succeed."""
    if job.state is JobState.SUCCEEDED:
        return JSONBytes(render.success(job) | await _inline(visit, job))
    if not job.state.terminal:
        return JSONBytes(render.processing(job, visit.context.service.eta(job)))
    # Not 200: the SDKs that know no failure stop polling at a status they do not expect.
    code = "cancelled" if job.state is JobState.CANCELLED else job.error_code or ""
    status = 200 if visit.options.legacy_http_200 else STATUS.get(code, 500)
    return JSONBytes(render.failure(job, failed_status), status_code=status)


def refused(error: Error, options: Options, **more: object) -> Response:
    """A call that became no job; ``more`` goes into the body."""
    headers = extra_headers(error)
    if isinstance(error, QueueFull):
        headers |= render.rate_limit_headers(error)
    status = 200 if options.legacy_http_200 else status_of(error)
    return JSONBytes(render.refusal(error) | more, status_code=status, headers=headers)


async def _inline(visit: Visit, job: Job) -> dict[str, list[str]]:
    """What replaces the links where the answer is to hold the text itself."""
    if visit.options.base64_mode == "url" or not (job.outputs and job.echo.get("base64")):
        return {}
    texts = await asyncio.gather(*(read_encoded(visit.context.images, name) for name in job.outputs))
    # What has been deleted since the job was read is left out.
    return {"output": [text.decode("ascii") for text in texts if text is not None]}


def _refuse_unknown() -> NoReturn:
    raise NotFound("Request not found")
