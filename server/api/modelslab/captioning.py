"""``caption``: a picture is described in words, by Florence-2."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

from fastapi.responses import Response

from pipelines.question import Question, check_model, decide
from pipelines.vision import VisionTask
from server.api.deps import check_webhook
from server.api.modelslab.answers import answer
from server.api.modelslab.drawing import EDITING
from server.api.modelslab.pictures import store_picture
from server.api.modelslab.render import shown_pictures
from server.api.modelslab.schemas import PICTURE, read_picture
from server.api.modelslab.visit import NAME, Visit
from server.jobs.base import Job

_PICTURE = "init_image"
_NAME_LIMIT = 1_000
_URL_LIMIT = 4_096
#: ``length`` -> what is asked.
_TASKS: Mapping[str, VisionTask] = MappingProxyType(
    {
        "short": VisionTask.CAPTION,
        "normal": VisionTask.DETAILED_CAPTION,
        "long": VisionTask.MORE_DETAILED_CAPTION,
    }
)
#: The documented default.
_LENGTH = "normal"

CAPTION_SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": [_PICTURE],
    "properties": {
        "key": {"type": "string", "description": "API key; a header or the query may hold it instead."},
        _PICTURE: {"type": "string", "description": f"What to describe: {PICTURE}"},
        "length": {"type": "string", "description": "How much is said.", "enum": [*_TASKS], "default": _LENGTH},
        "model_id": {"type": "string", "description": "Left out: as the server is set."},
        "base64": {"type": "string", "description": "Accepted; an image is recognised in any form."},
        "instant_response": {"type": "string", "description": "yes: answer at once with status processing."},
        "webhook": {"type": "string", "description": "URL that is told the caption."},
        "track_id": {"type": "string", "description": "Comes back in answers and in the webhook."},
    },
}


@dataclass(frozen=True, kw_only=True)
class _Call:
    """A call, read."""

    #: URL, data URI or base64.
    source: str
    length: str
    #: As the client wrote it; None = as the server is set.
    model: str | None
    webhook: str | None
    #: Answer at once instead of waiting for the text.
    instant: bool
    #: What answers repeat.
    echo: dict[str, Any]
    warnings: tuple[str, ...]


async def caption(visit: Visit) -> Response:
    """Describes a picture; answers ``success`` with the text in ``output``, or ``processing`` when it takes longer."""
    until = time.monotonic() + visit.context.sync_wait_s
    job = await _submit(visit, call := _read(visit))
    if not call.instant:
        # However much of the time went into fetching the picture.
        job = await visit.context.service.wait(job.id, max(until - time.monotonic(), 0.0))
    return await answer(visit, job, failed_status="error")


async def _submit(visit: Visit, call: _Call) -> Job:
    context = visit.context
    check_webhook(context.guard, call.webhook)
    found = context.catalog.resolve_captioner() if call.model is None else context.catalog.resolve(call.model)
    # Before anything is fetched for it.
    check_model(found.model)
    picture = await store_picture(context.inputs, _PICTURE, call.source, "image")
    size = picture.width, picture.height
    decided = decide(Question(task=_TASKS[call.length]), found.model, image=picture.digest, size=size)
    return await context.service.submit(
        replace(decided, warnings=(*found.warnings, *decided.warnings, *call.warnings)),
        owner=visit.caller.id,
        dialect=NAME,
        echo={**call.echo, "model_note": found.model.note},
        base_url=visit.base_url,
        webhook=call.webhook,
    )


def _read(visit: Visit) -> _Call:
    fields = visit.fields
    source = read_picture(fields, _PICTURE)
    length, warnings = _read_length(visit)
    instant = fields.flag("instant_response") or False
    return _Call(
        source=source,
        length=length,
        model=fields.choice("model_id", limit=_NAME_LIMIT),
        webhook=fields.choice("webhook", limit=_URL_LIMIT),
        instant=instant,
        echo={
            "track_id": fields.scalar("track_id", limit=_NAME_LIMIT),
            "family": EDITING.family,
            "pictures": shown_pictures({_PICTURE: source}),
            "length": length,
            "instant_response": "yes" if instant else "no",
            "base64": "yes" if fields.flag("base64") else "no",
        },
        warnings=warnings,
    )


def _read_length(visit: Visit) -> tuple[str, tuple[str, ...]]:
    """The length, and what is to be said about it."""
    value = visit.fields.raw("length")
    if value is None:
        return _LENGTH, ()
    word = str(value)[:_NAME_LIMIT].strip().lower()
    if word in _TASKS:
        return word, ()
    return _LENGTH, (f"Unknown length {word[:60]!r}: {_LENGTH} is used; there are {', '.join(_TASKS)}.",)
