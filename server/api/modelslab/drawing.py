"""The endpoints that draw: each reads a call, submits it, answers the job."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from fastapi.responses import Response

from pipelines.complete import check_task
from pipelines.draft import Completed
from pipelines.request import Task
from server.api.deps import check_webhook
from server.api.modelslab import render
from server.api.modelslab.adapters import fit_adapter
from server.api.modelslab.answers import answer
from server.api.modelslab.pictures import store_pictures
from server.api.modelslab.schemas import Call, documented_defaults, read_call
from server.api.modelslab.segments import SEGMENTS
from server.api.modelslab.visit import NAME, Visit
from server.catalog import Catalog, Resolved
from server.jobs.base import Job


@dataclass(frozen=True, kw_only=True)
class Style:
    """In what a family of endpoints differs."""

    #: The part of ``fetch_result`` that names it.
    family: str
    #: Draws for calls that name no model.
    choose: Callable[[Catalog], Resolved]
    #: Fields of ``Defaults`` that this family documents otherwise.
    defaults: dict[str, Any] = field(default_factory=dict)


IMAGES = Style(family="images", choose=lambda catalog: catalog.resolve())
REALTIME = Style(family="realtime", choose=lambda catalog: catalog.resolve(realtime=True))
EDITING = Style(
    family="image_editing",
    choose=lambda catalog: catalog.resolve_editor(),
    defaults={"steps": 30, "guidance": 5.0, "max_guidance": 5.0},
)


async def draw(visit: Visit, *, task: Task, style: Style) -> Response:
    """Draws; answers ``success``, or ``processing`` when it takes longer."""
    until = time.monotonic() + visit.context.sync_wait_s
    call = read_call(visit.fields, visit.options, task)
    check_webhook(visit.context.guard, call.webhook)
    found = choose_model(visit, call.model, style)
    # Before anything is fetched for it.
    check_task(task, found.model)
    call = fit_adapter(call, found.model.family)
    stored = await store_pictures(visit.context.inputs, task, call.pictures)
    call = replace(call, draft=replace(call.draft, **stored))
    completed = complete_call(visit, call, found, style)
    return await submit(visit, call, completed, style, until=until, note=found.model.note)


def choose_model(visit: Visit, name: str | None, style: Style) -> Resolved:
    """The one named, else the one of the path, else the family's. Raises ``UnknownModel``."""
    name = name or SEGMENTS.get(visit.path.get("segment", ""))
    return style.choose(visit.context.catalog) if name is None else visit.context.catalog.resolve(name)


async def submit(
    visit: Visit, call: Call, completed: Completed, style: Style, *, until: float, note: str | None = None
) -> Response:
    """Makes the call a job and answers it, as far as it got ``until`` then, in ``time.monotonic()`` seconds."""
    job = await _add(visit, call, completed, style, note)
    if not call.instant:
        # Clients wait for an answer, however much of the time went into fetching their pictures.
        job = await visit.context.service.wait(job.id, max(until - time.monotonic(), 0.0))
    return await answer(visit, job, failed_status="error")


async def _add(visit: Visit, call: Call, completed: Completed, style: Style, note: str | None) -> Job:
    context = visit.context
    return await context.service.submit(
        completed,
        owner=visit.caller.id,
        dialect=NAME,
        echo=render.make_echo(
            track_id=call.track_id,
            instant=call.instant,
            note=note,
            pictures=call.pictures,
            safety_type=context.safety.replacement(call.draft),
            family=style.family,
            base64=call.base64,
            full_url=call.full_url,
            enhanced=completed.enhanced,
            style=completed.style,
        ),
        base_url=visit.base_url,
        webhook=call.webhook,
        outputs=call.outputs,
    )


def complete_call(visit: Visit, call: Call, found: Resolved, style: Style) -> Completed:
    """The call's draft with every value decided, and what is to be said about that."""
    defaults = replace(documented_defaults(visit.options), **style.defaults)
    completed = visit.context.complete(call.draft, found.model, defaults)
    unapplied = (f"Not applied: {', '.join(call.unapplied)}.",) if call.unapplied else ()
    return replace(completed, warnings=(*found.warnings, *completed.warnings, *unapplied))
