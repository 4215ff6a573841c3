"""Tells whoever asked for it that a job is terminal, and records what became of that."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping

from server.jobs.base import Job, JobStore, WebhookState
from server.webhooks import Webhooks

logger = logging.getLogger(__name__)


class Notices:
    """Webhooks of jobs; ``bodies`` says by dialect how a job is told."""

    def __init__(self, webhooks: Webhooks, jobs: JobStore, bodies: Mapping[str, Callable[[Job], bytes]]) -> None:
        self._webhooks = webhooks
        self._jobs = jobs
        self._bodies = bodies
        self._records: set[asyncio.Task[None]] = set()

    def send(self, job: Job) -> None:
        """Begins to tell; nothing happens without a webhook."""
        if job.webhook is None:
            return
        try:
            body = self._bodies[job.dialect](job)
        except Exception:
            logger.exception("job %d: no webhook body", job.id)
            return
        record = asyncio.create_task(self._record(job.id, self._webhooks.send(job.webhook, body)))
        self._records.add(record)
        record.add_done_callback(self._records.discard)

    async def close(self) -> None:
        """Stops telling; what was told is recorded first, what was not is told at the next start."""
        await self._webhooks.close()
        await asyncio.gather(*self._records, return_exceptions=True)

    async def _record(self, job_id: int, delivery: asyncio.Task[bool]) -> None:
        await asyncio.wait((delivery,))
        # A delivery that close cancelled stays pending and is begun again at the next start.
        if delivery.cancelled():
            return
        try:
            state = WebhookState.DELIVERED if delivery.result() else WebhookState.FAILED
            await self._jobs.set_webhook_state(job_id, state)
        except Exception:
            logger.exception("job %d: webhook state not stored", job_id)
