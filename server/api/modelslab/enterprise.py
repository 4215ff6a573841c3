"""What the owner of a dedicated server may do; keys need the scope admin."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from pipelines.model import ModelSpec
from schedulers.registry import SCHEDULERS
from server.api.modelslab.model_ids import read_model_id
from server.api.modelslab.visit import Visit
from server.jobs.base import JobState


async def system_details(visit: Visit) -> dict[str, Any]:
    """How much waits, how long, and with how many models it could be drawn."""
    stats = visit.context.service.engine_stats()
    counts = await visit.context.jobs.count()
    return {
        "status": "ok",
        "queue_time": int(stats.oldest_wait_s),
        "queue_num": counts[JobState.QUEUED],
        "model_count": len(_drawing(visit)),
        "loaded_models": list(stats.loaded_models),
    }


async def restart_server(visit: Visit) -> dict[str, Any]:
    """Answers and does nothing: starting processes is for whoever runs the server."""
    return _success("server restarting")


async def update_server(visit: Visit) -> dict[str, Any]:
    """Answers and does nothing, as ``restart_server``."""
    return _success("server updating")


async def clear_cache(visit: Visit) -> dict[str, Any]:
    """Nothing is kept that could be out of date."""
    return _success("Cache cleared successfully")


async def clear_queue(visit: Visit) -> dict[str, Any]:
    """Ends all jobs that wait, of everyone, as errors; their webhooks are told. What is being drawn goes on."""
    number = await visit.context.service.clear_queue()
    return _success("Queue cleared, server is restarting") | {"cleared": number}


async def schedulers_list(visit: Visit) -> dict[str, Any]:
    """The names that ``scheduler`` takes."""
    return {"schedulers": list(SCHEDULERS)}


async def get_all_models(visit: Visit) -> dict[str, Any]:
    """All models that draw; ``load_data`` is so spelt."""
    models = [{"model_id": one.id, "load_data": _loaded_at(one)} for one in _drawing(visit)]
    return {"models": models, "status": "success"}


async def sync_models(visit: Visit) -> dict[str, Any]:
    """Counts the models; new files are found without being asked for."""
    ids = [model.id for model in _drawing(visit)]
    return _success(f"{len(ids)} Models synced successfully") | {"model_list": ids}


async def verify_model(visit: Visit) -> dict[str, Any]:
    """Whether a model is offered. Raises ``UnknownModel``."""
    visit.context.catalog.get(read_model_id(visit))
    return _success("Model exists on server")


def _drawing(visit: Visit) -> list[ModelSpec]:
    """The models of this API: those that only look at pictures are another's."""
    return [model for model in visit.context.catalog.models() if model.tasks]


def _success(text: str) -> dict[str, Any]:
    return {"status": "success", "message": text, "messege": text}


def _loaded_at(model: ModelSpec) -> str:
    """When its weights came, as the API writes dates; "" for a stand-in that was not made yet."""
    try:
        changed = (model.file or model.folder).stat().st_mtime
    except OSError:
        return ""
    return datetime.fromtimestamp(changed, UTC).strftime("%m/%d/%Y %H:%M:%S")
