"""What is stored of a finished job beside its files."""

from __future__ import annotations

from typing import Any

from pipelines.request import ImageRequest, Request
from server.engine.executors.base import Outcome


def describe(request: Request, outcome: Outcome) -> dict[str, Any]:
    """``Job.result``. Raises ``RuntimeError`` when the engine delivered less or more than was asked for."""
    results = (outcome.answers, outcome.pictures)
    wanted = (request.rows - request.pictures, request.pictures)
    if tuple(map(len, results)) != wanted:
        raise RuntimeError(f"{len(results[0])} answers and {len(results[1])} pictures, wanted {wanted}")
    if not isinstance(request, ImageRequest):
        return {"seconds": outcome.seconds, "answers": [answer.to_json() for answer in outcome.answers]}
    return {
        "seconds": outcome.seconds,
        "seeds": [picture.seed for picture in outcome.pictures],
        "nsfw": [picture.nsfw for picture in outcome.pictures],
        "scheduler": outcome.scheduler,
        "safety": request.safety,
    }
