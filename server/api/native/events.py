"""A job told as it goes on: server-sent events (WHATWG HTML, 9.2)."""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import AsyncIterator
from typing import Any

import orjson

from server.api.native.render import job_body, standing
from server.engine.executors.base import Preview
from server.jobs.base import Job
from server.service import Service
from server.storage.formats import Encoding, encode

MEDIA_TYPE = "text/event-stream"

#: Seconds between two looks at a job that goes on; its end is told at once.
_LOOK_S = 0.5
#: Proxies end connections on which nothing is said for a minute, some sooner.
_HEARTBEAT_S = 15.0
_PREVIEW = Encoding(extension="jpg", quality=85)


async def tell(service: Service, job: Job, *, previews: bool = False) -> AsyncIterator[bytes]:
    """``progress`` whenever there is some, then ``result``, the whole job, and the end.

    ``previews``: between them ``preview`` for each image that is being drawn, at most one a second.
    A server that shuts down ends the stream without a result; browsers connect again by themselves.
    """
    told: dict[str, Any] = {}
    told_at = time.monotonic()
    shown: dict[int, Preview] = {}
    while not job.state.terminal:
        now = standing(job, service.progress(job))
        if now != told:
            told, told_at = now, time.monotonic()
            yield _event("progress", now)
        elif time.monotonic() - told_at >= _HEARTBEAT_S:
            told_at = time.monotonic()
            yield b": still here\n\n"
        for one in service.previews(job) if previews else ():
            if shown.get(one.index) is not one:
                shown[one.index], told_at = one, time.monotonic()
                yield _event("preview", await asyncio.to_thread(_preview_body, one))
        if not service.accepting:
            return
        job = await service.wait(job.id, _LOOK_S)
    yield _event("result", job_body(job, service.progress(job)))


def _preview_body(one: Preview) -> dict[str, Any]:
    image = base64.b64encode(encode(one.pixels, _PREVIEW)).decode("ascii")
    return {"index": one.index, "step": one.step, "image": f"data:image/jpeg;base64,{image}"}


def _event(name: str, data: dict[str, Any]) -> bytes:
    # JSON escapes line breaks, so the data is one line.
    return b"event: %s\ndata: %s\n\n" % (name.encode(), orjson.dumps(data))
