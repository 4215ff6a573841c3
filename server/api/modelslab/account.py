"""What clients ask about themselves: how much waits, what was made, and what it would cost elsewhere."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from server.api.modelslab import render
from server.api.modelslab.visit import Visit
from server.jobs.base import Job, JobState

_LARGEST_PAGE = 30
_LAST_PAGE = 100_000
#: So that no client believes it could not pay.
_BALANCE = 1_000_000.0


async def request_count(visit: Visit) -> dict[str, Any]:
    """How many of the caller's requests are not done."""
    counts = await visit.context.jobs.count(owner=visit.caller.id)
    number = sum(count for state, count in counts.items() if not state.terminal)
    return {"status": "success", "processing_count": number, **_said(f"{number} requests are processing")}


async def system_load(visit: Visit) -> dict[str, Any]:
    """How many requests wait, of anyone's, and for how many seconds the oldest one has."""
    counts = await visit.context.jobs.count()
    oldest = visit.context.service.engine_stats().oldest_wait_s
    return {"queue_num": counts[JobState.QUEUED], "queue_time": int(oldest), "status": "ok"}


async def assets_generated(visit: Visit) -> dict[str, Any]:
    """The caller's finished requests, newest first; of what is not drawn here there is none."""
    kind = visit.fields.text("type", limit=100) or "image"
    per_page = min(max(visit.fields.integer("per_page") or _LARGEST_PAGE, 1), _LARGEST_PAGE)
    page = min(max(visit.fields.integer("page") or 1, 1), _LAST_PAGE)
    jobs: list[Job] = []
    total = 0
    if kind == "image":
        owner, states = visit.caller.id, (JobState.SUCCEEDED,)
        total = (await visit.context.jobs.count(owner=owner))[JobState.SUCCEEDED]
        jobs = await visit.context.jobs.page(owner, states, limit=per_page, skip=(page - 1) * per_page)
    pages = -(-total // per_page)
    pagination = {"total": total, "per_page": per_page, "current_page": page, "page": page, "last_page": max(pages, 1)}
    return {
        "status": "success",
        "type": kind,
        "data": [_asset(job) for job in jobs if job.outputs],
        "pagination": pagination,
    }


async def clear_cache(visit: Visit) -> dict[str, Any]:
    """Nothing is kept that could be out of date: files are looked at whenever they are used."""
    return {"status": "success", **_said("Cache cleared")}


async def wallet_balance(visit: Visit) -> dict[str, Any]:
    """A stub: this server charges nothing."""
    return {"status": "success", "data": {"balance": _BALANCE, "currency": "USD"}, **_said("Nothing is charged here")}


async def subscribed_products(visit: Visit) -> dict[str, Any]:
    """A stub: there is nothing to subscribe to."""
    return {"status": "success", "data": [], **_said("Nothing is charged here")}


def _asset(job: Job) -> dict[str, Any]:
    links = render.output_links(job)
    return {
        "id": job.id,
        "request_id": job.id,
        "status": "success",
        "model_id": job.request.get("model"),
        "prompt": job.request.get("prompt"),
        "output": links,
        "proxy_links": links,
        "created_at": datetime.fromtimestamp(job.created_at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
    }


def _said(text: str) -> dict[str, str]:
    return {"message": text, "messege": text}
