"""``model_id`` of the calls that are about one model."""

from __future__ import annotations

from typing import Any

from pipelines.errors import InvalidRequest
from server.api.modelslab.visit import Visit

_LIMIT = 1_000

#: Body of such a call.
MODEL_SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["model_id"],
    "properties": {"model_id": {"type": "string", "description": "Model id or alias."}},
}


def read_model_id(visit: Visit) -> str:
    """As the client wrote it. Raises ``InvalidRequest`` where there is none."""
    name = visit.fields.text("model_id", limit=_LIMIT)
    if name is None:
        raise InvalidRequest("model_id is required", field="model_id")
    return name
