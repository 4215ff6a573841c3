"""A caller's own jobs, of whatever API: list, look, listen, cancel."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response, StreamingResponse

from pipelines.errors import InvalidRequest
from server.api.deps import authenticate, offered_key
from server.api.dialect import Context, JSONBytes
from server.api.native import events
from server.api.native.render import SCHEMA, job_body
from server.api.native.repeat import BODY, repeat
from server.errors import NotFound
from server.jobs.base import Job, JobState
from server.jobs.ids import parse_id

_PAGE = 20
_LARGEST_PAGE = 100

_ANSWER: dict[int | str, Any] = {200: {"content": {"application/json": {"schema": SCHEMA}}}}
_LIST = {
    "type": "object",
    "properties": {
        "jobs": {"type": "array", "items": SCHEMA},
        "next_cursor": {"type": ["integer", "null"], "description": "cursor of the next page; null: there is none."},
    },
}


def _parameter(name: str, schema: dict[str, Any], description: str) -> dict[str, Any]:
    return {"name": name, "in": "query", "required": False, "schema": schema, "description": description}


_PARAMETERS = [
    _parameter("state", {"type": "string"}, f"One or several, with commas: {', '.join(JobState)}. Left out: all."),
    _parameter("limit", {"type": "integer", "minimum": 1, "maximum": _LARGEST_PAGE, "default": _PAGE}, "Jobs a page."),
    _parameter("cursor", {"type": "integer"}, "next_cursor of the page before."),
]


_WATCHED = [_parameter("previews", {"type": "boolean", "default": False}, "Pictures on the way.")]
_FLAGS = {"": False, "0": False, "false": False, "no": False, "1": True, "true": True, "yes": True}


class Jobs:
    """``/v1/jobs``."""

    def __init__(self, context: Context) -> None:
        self._context = context

    def router(self) -> APIRouter:
        """All paths. Foreign jobs are as unknown as those that never were."""
        router = APIRouter(prefix="/v1/jobs")
        listed: dict[int | str, Any] = {200: {"content": {"application/json": {"schema": _LIST}}}}
        told: dict[int | str, Any] = {200: {"content": {events.MEDIA_TYPE: {}}}}
        more = {"parameters": _PARAMETERS}
        body = {"requestBody": {"content": {"application/json": {"schema": BODY}}}}
        router.add_api_route(
            "", self.repeat, methods=["POST"], response_model=None, responses=_ANSWER, openapi_extra=body
        )
        router.add_api_route("", self.list, methods=["GET"], response_model=None, responses=listed, openapi_extra=more)
        router.add_api_route("/{job_id}", self.read, methods=["GET"], response_model=None, responses=_ANSWER)
        router.add_api_route("/{job_id}", self.cancel, methods=["DELETE"], response_model=None, responses=_ANSWER)
        watched = {"parameters": _WATCHED}
        router.add_api_route(
            "/{job_id}/events",
            self.listen,
            methods=["GET"],
            response_model=None,
            responses=told,
            openapi_extra=watched,
        )
        return router

    async def list(self, request: Request) -> Response:
        """The caller's jobs, newest first."""
        caller = await authenticate(self._context.keys, offered_key(request))
        query = request.query_params
        limit = _limit(query.get("limit", ""))
        jobs = await self._context.jobs.page(
            caller.id, _states(query.get("state", "")), limit=limit, before=_cursor(query.get("cursor", ""))
        )
        following = jobs[-1].id if len(jobs) == limit else None
        return JSONBytes({"jobs": [self._body(job) for job in jobs], "next_cursor": following})

    async def repeat(self, request: Request) -> Response:
        """Draws a request again that was decided before, as ``request`` of a job shows it; answers the new job."""
        caller = await authenticate(self._context.keys, offered_key(request))
        return JSONBytes(self._body(await repeat(self._context, caller, request)))

    async def read(self, request: Request, job_id: str) -> Response:
        """One job: state, step of steps, place in the queue, seconds to go, and what became of it."""
        return JSONBytes(self._body(await self._find(request, job_id)))

    async def listen(self, request: Request, job_id: str) -> Response:
        """Server-sent events: ``progress`` as the job goes on, then ``result``. Nobody needs to listen to the end.

        With ``previews=1`` also ``preview``: ``index`` of the image, ``step``, and ``image``, a small JPEG as data URI:
        what the model takes the picture for at that step, at most once a second, in approximate colours. Pictures that
        the safety checker is to look at are not shown before.
        """
        job = await self._find(request, job_id)
        previews = _flag("previews", request.query_params.get("previews", ""))
        # Proxies of nginx's kind would keep the events back.
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        return StreamingResponse(
            events.tell(self._context.service, job, previews=previews), media_type=events.MEDIA_TYPE, headers=headers
        )

    async def cancel(self, request: Request, job_id: str) -> Response:
        """Ends a waiting job at once and a running one at its next step; what has ended stays as it is."""
        caller = await authenticate(self._context.keys, offered_key(request))
        job = await self._context.service.cancel(job_id, caller.id)
        if job is None:
            raise NotFound("Job not found")
        return JSONBytes(self._body(job))

    async def _find(self, request: Request, job_id: str) -> Job:
        caller = await authenticate(self._context.keys, offered_key(request))
        job = await self._context.service.get(job_id, caller.id)
        if job is None:
            raise NotFound("Job not found")
        return job

    def _body(self, job: Job) -> dict[str, Any]:
        return job_body(job, self._context.service.progress(job))


def _states(text: str) -> list[JobState]:
    names = [part.strip().lower() for part in text.split(",") if part.strip()]
    unknown = [name for name in names if name not in {*JobState}]
    if unknown:
        known = ", ".join(JobState)
        raise InvalidRequest(f"Unknown state {unknown[0][:50]!r}: there are {known}.", field="state")
    return [state for state in JobState if state in names] or list(JobState)


def _limit(text: str) -> int:
    if not text:
        return _PAGE
    if not (text.isascii() and text.isdigit() and len(text) < 10 and int(text) >= 1):
        raise InvalidRequest("limit must be a number, at least 1", field="limit")
    return min(int(text), _LARGEST_PAGE)


def _flag(name: str, text: str) -> bool:
    flag = _FLAGS.get(text.strip().lower())
    if flag is None:
        raise InvalidRequest(f"{name} must be true or false", field=name)
    return flag


def _cursor(text: str) -> int | None:
    if not text:
        return None
    job_id = parse_id(text)
    if not job_id:
        raise InvalidRequest("cursor must be the next_cursor of another page", field="cursor")
    return job_id
