"""Models brought to the device before they are drawn with."""

from __future__ import annotations

from typing import Any

from server.api.modelslab.model_ids import read_model_id
from server.api.modelslab.visit import Visit


async def reload(visit: Visit) -> dict[str, Any]:
    """Loads a model: ``success`` when it is there, ``processing`` when that takes longer than a call may."""
    model = visit.context.catalog.resolve(read_model_id(visit)).model.id
    loaded = await visit.context.preloads.load(model, visit.context.sync_wait_s)
    text = "model loaded" if loaded else "model load started"
    status = "success" if loaded else "processing"
    return {"status": status, "message": text, "messege": text, "model_id": model}
