"""A job as the native API shows it; ``SCHEMA`` says the same for /openapi.json."""

from __future__ import annotations

from typing import Any

from server.engine.executors.base import Progress
from server.jobs.base import Job, JobState
from server.storage.names import url_path


def job_body(job: Job, progress: Progress) -> dict[str, Any]:
    """Everything its owner may know."""
    return {"id": job.id, **standing(job, progress), **_facts(job)}


def standing(job: Job, progress: Progress) -> dict[str, Any]:
    """What changes while it waits and runs; ``queue_position`` counts the requests before it."""
    known = not job.state.terminal or job.state is JobState.SUCCEEDED
    return {
        "state": job.state.value,
        "step": progress.step if known else None,
        "steps": progress.steps,
        "queue_position": progress.position if job.state is JobState.QUEUED else None,
        "eta_s": 0.0 if job.state.terminal else round(progress.eta_s, 2),
    }


def webhook(job: Job) -> dict[str, Any]:
    """What a receiver is told when the job is terminal."""
    return {"id": job.id, "state": job.state.value, **_facts(job)}


def _facts(job: Job) -> dict[str, Any]:
    succeeded = job.state is JobState.SUCCEEDED
    failed = job.state in (JobState.FAILED, JobState.EXPIRED)
    return {
        "dialect": job.dialect,
        "created_at": job.created_at,
        "started_at": job.started_at,
        "finished_at": job.finished_at,
        "outputs": [job.base_url + url_path(name) for name in job.outputs] if succeeded else [],
        "result": job.result,
        "warnings": list(job.warnings),
        "error": {"code": job.error_code, "message": job.error_message} if failed else None,
        "webhook_status": job.webhook_state.value,
        "request": job.request,
    }


def _nullable(kind: str, description: str) -> dict[str, Any]:
    return {"type": [kind, "null"], "description": description}


#: Of ``job_body``.
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "id": {"type": "integer"},
        "state": {"type": "string", "enum": [state.value for state in JobState]},
        "step": _nullable("integer", "Network calls made, over all pictures; null where the job did not succeed."),
        "steps": {"type": "integer", "description": "Network calls in all, as far as known."},
        "queue_position": _nullable("integer", "Requests before this one, about; null once it does not wait."),
        "eta_s": {"type": "number", "description": "Seconds until it is expected to be done."},
        "dialect": {"type": "string", "description": "The API it was submitted to."},
        "created_at": {"type": "number", "description": "Unix seconds, as the two that follow."},
        "started_at": _nullable("number", "When it was begun last."),
        "finished_at": _nullable("number", "When it ended."),
        "outputs": {"type": "array", "items": {"type": "string", "format": "uri"}},
        "result": _nullable("object", "Seconds, seeds and flags of a job that succeeded; of a question the answers."),
        "warnings": {"type": "array", "items": {"type": "string"}},
        "error": _nullable("object", "code and message of a job that failed."),
        "webhook_status": {"type": "string", "enum": ["", "pending", "delivered", "failed"]},
        "request": {"type": "object", "description": "What is drawn, every value decided."},
    },
}
