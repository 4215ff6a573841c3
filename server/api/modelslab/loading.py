"""Models brought to the device before they are drawn with."""

from __future__ import annotations

from typing import Any

from pipelines.errors import InvalidRequest
from server.api.modelslab.visit import Visit

_NAME_LIMIT = 1_000

#: Body of ``model_reload``.
RELOAD_SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["model_id"],
    "properties": {"model_id": {"type": "string", "description": "Model id or alias."}},
}


async def reload(visit: Visit) -> dict[str, Any]:
    """Loads a model: ``success`` when it is there, ``processing`` when that takes longer than a call may."""
    name = visit.fields.text("model_id", limit=_NAME_LIMIT)
    if name is None:
        raise InvalidRequest("model_id is required", field="model_id")
    model = visit.context.catalog.resolve(name).model.id
    loaded = await visit.context.preloads.load(model, visit.context.sync_wait_s)
    text = "model loaded" if loaded else "model load started"
    status = "success" if loaded else "processing"
    return {"status": status, "message": text, "messege": text, "model_id": model}
