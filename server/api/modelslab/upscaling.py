"""Pictures made larger: the option of what draws, and an endpoint that does nothing else."""

from __future__ import annotations

import time
from dataclasses import replace

import orjson
from fastapi.responses import Response

from pipelines.complete import choose_safety
from pipelines.draft import Completed
from pipelines.finishing import choose_upscale
from pipelines.request import Task
from pipelines.upscalers import MAX_FACTOR, PREFIX, Upscaling
from server.api.deps import check_webhook
from server.api.dialect import JSONBytes
from server.api.modelslab.coerce import Fields, as_flag
from server.api.modelslab.drawing import EDITING, submit
from server.api.modelslab.pictures import store_pictures
from server.api.modelslab.schemas import Call, read_call
from server.api.modelslab.visit import Visit

#: The documented one, and the documented factor.
_UPSCALER, _SCALE = "realesr-general-x4v3", 3
#: Not done, and named in the answer.
_FACES = "face_enhance"

SCHEMA = {
    "type": "object",
    "required": ["init_image"],
    "properties": {
        "key": {"type": "string", "description": "API key; a header or the query may hold it instead."},
        "init_image": {"type": "string", "description": "URL, data URI or base64 of a PNG, JPEG or WebP."},
        "model_id": {"type": "string", "description": "Name of an upscaler.", "default": _UPSCALER},
        "scale": {"type": "integer", "default": _SCALE, "minimum": 1, "maximum": MAX_FACTOR},
        _FACES: {"type": "boolean", "description": "Accepted; not applied."},
        "webhook": {"type": "string", "description": "URL that is told when the picture is done."},
        "track_id": {"type": "string", "description": "Comes back in answers and in the webhook."},
    },
}


async def super_resolution(visit: Visit) -> Response:
    """Makes a picture larger, without drawing anything; answers as ``text2img``."""
    until = time.monotonic() + visit.context.sync_wait_s
    call = read_call(visit.fields, visit.options, Task.IMG2IMG)
    scale = visit.fields.integer("scale")
    check_webhook(visit.context.guard, call.webhook)
    # Before anything is fetched for it; the name is a file's, and looked up among those that are there.
    upscaler = visit.context.catalog.get(f"{PREFIX}{call.model or _UPSCALER}").id
    stored = await store_pictures(visit.context.inputs, Task.IMG2IMG, call.pictures)
    call = replace(call, draft=replace(call.draft, **stored))
    completed = _complete(visit, call, upscaler, _SCALE if scale is None else scale)
    return await submit(visit, call, completed, EDITING, until=until)


async def super_resolution_v3(visit: Visit) -> Response:
    """As ``super_resolution``; ``output`` is the link itself, as the old version and dedicated servers answer."""
    response = await super_resolution(visit)
    body = orjson.loads(response.body)
    if body["status"] != "success":
        return response
    return JSONBytes(body | {"output": body["output"][0]})


def _complete(visit: Visit, call: Call, upscaler: str, scale: int) -> Completed:
    draft, fields = call.draft, visit.fields
    assert draft.image is not None and draft.image_size is not None
    warnings: list[str] = []
    upscaling = Upscaling(
        upscaler=upscaler,
        image=draft.image,
        size=draft.image_size,
        factor=choose_upscale(scale, draft.image_size, warnings, name="scale"),
        safety=choose_safety(draft, visit.context.safety_rules(), warnings),
    )
    unapplied = [*([_FACES] if _asks_for_faces(fields) else []), *call.unapplied]
    if unapplied:
        warnings.append(f"Not applied: {', '.join(unapplied)}.")
    return Completed(request=upscaling.request(), warnings=tuple(warnings))


def _asks_for_faces(fields: Fields) -> bool:
    value = fields.raw(_FACES)
    return value is not None and as_flag(value) is not False
