"""Jobs in a dictionary: for tests, and for servers that may forget."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Any

from server.jobs.base import DuplicateJob, Job, JobState, WebhookState


class MemoryJobStore:
    """Nothing is awaited inside a method, so each one is atomic on the event loop."""

    def __init__(self) -> None:
        self._jobs: dict[int, Job] = {}

    async def start(self) -> None:
        """There is nothing to open."""

    async def close(self) -> None:
        """There is nothing to close."""

    async def add(self, job: Job) -> None:
        """Stores a new job. Raises ``DuplicateJob`` if the id is taken."""
        if job.id in self._jobs:
            raise DuplicateJob(job.id)
        self._jobs[job.id] = job

    async def get(self, job_id: int) -> Job | None:
        """The job as it stands."""
        return self._jobs.get(job_id)

    async def begin(self, job_id: int, *, now: float) -> Job | None:
        """QUEUED -> RUNNING, one more attempt; None if the job is no longer queued."""
        job = self._jobs.get(job_id)
        attempts = job.attempts + 1 if job else 0
        return self._change(job_id, JobState.QUEUED, to=JobState.RUNNING, attempts=attempts, started_at=now)

    async def release(self, job_id: int) -> Job | None:
        """RUNNING -> QUEUED, the attempt taken back; None if the job is not running."""
        job = self._jobs.get(job_id)
        attempts = job.attempts - 1 if job else 0
        return self._change(job_id, JobState.RUNNING, to=JobState.QUEUED, attempts=attempts, started_at=None)

    async def finish(self, job_id: int, *, result: dict[str, Any], warnings: tuple[str, ...], now: float) -> Job | None:
        """RUNNING -> SUCCEEDED; None if the job is not running."""
        return self._change(
            job_id, JobState.RUNNING, to=JobState.SUCCEEDED, result=result, warnings=warnings, finished_at=now
        )

    async def fail(self, job_id: int, *, code: str, message: str, now: float) -> Job | None:
        """QUEUED or RUNNING -> FAILED; None if the job is already terminal."""
        return self._change(
            job_id,
            JobState.QUEUED,
            JobState.RUNNING,
            to=JobState.FAILED,
            error_code=code,
            error_message=message,
            finished_at=now,
        )

    async def cancel(self, job_id: int, *, now: float) -> Job | None:
        """QUEUED or RUNNING -> CANCELLED; None if the job is already terminal."""
        return self._change(job_id, JobState.QUEUED, JobState.RUNNING, to=JobState.CANCELLED, finished_at=now)

    async def expire(self, job_id: int, *, message: str) -> Job | None:
        """SUCCEEDED -> EXPIRED; None if the job is in another state."""
        return self._change(
            job_id, JobState.SUCCEEDED, to=JobState.EXPIRED, error_code="expired", error_message=message
        )

    async def requeue_running(self) -> int:
        """Every RUNNING job -> QUEUED; returns how many."""
        running = [job.id for job in self._jobs.values() if job.state is JobState.RUNNING]
        for job_id in running:
            self._change(job_id, JobState.RUNNING, to=JobState.QUEUED, started_at=None)
        return len(running)

    async def queued(self) -> list[Job]:
        """All QUEUED jobs, oldest first."""
        # Dictionaries keep the order of insertion and sorting is stable.
        return sorted((j for j in self._jobs.values() if j.state is JobState.QUEUED), key=lambda job: job.created_at)

    async def unfinished(self) -> list[Job]:
        """All QUEUED and RUNNING jobs, oldest first."""
        return sorted((j for j in self._jobs.values() if not j.state.terminal), key=lambda job: job.created_at)

    async def finished(self, *, until: float, temporary: bool = False, limit: int) -> list[Job]:
        """SUCCEEDED jobs with pictures that ended by then, oldest first; see ``JobStore.finished``."""
        found = [
            job
            for job in self._jobs.values()
            if job.state is JobState.SUCCEEDED and (job.finished_at or 0.0) <= until
            if job.outputs and job.temporary >= temporary
        ]
        return sorted(found, key=lambda job: job.created_at)[:limit]

    async def set_webhook_state(self, job_id: int, state: WebhookState) -> None:
        """Records what became of the webhook."""
        if job := self._jobs.get(job_id):
            self._jobs[job_id] = replace(job, webhook_state=state)

    async def undelivered(self) -> list[Job]:
        """Terminal jobs whose webhook is PENDING, oldest first."""
        jobs = (j for j in self._jobs.values() if j.state.terminal and j.webhook_state is WebhookState.PENDING)
        return sorted(jobs, key=lambda job: job.created_at)

    async def count(self, *, owner: str | None = None) -> dict[JobState, int]:
        """Jobs by state; every state is a key."""
        counts = dict.fromkeys(JobState, 0)
        for job in self._jobs.values():
            if owner is None or job.owner == owner:
                counts[job.state] += 1
        return counts

    async def page(
        self, owner: str, states: Collection[JobState], *, limit: int, before: int | None = None, skip: int = 0
    ) -> list[Job]:
        """The owner's jobs in these states, the last stored first; see ``JobStore.page``."""
        own = [job for job in self._jobs.values() if job.owner == owner]
        if before is not None:
            place = next((index for index, job in enumerate(own) if job.id == before), 0)
            own = own[:place]
        found = [job for job in reversed(own) if job.state in states]
        return found[skip : skip + limit]

    def _change(self, job_id: int, *allowed: JobState, to: JobState, **values: Any) -> Job | None:
        job = self._jobs.get(job_id)
        if job is None or job.state not in allowed:
            return None
        self._jobs[job_id] = replace(job, state=to, **values)
        return self._jobs[job_id]
