"""The contract of a job store: a job is on disk before its id is answered."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol


class JobState(StrEnum):
    """A job's life; from SUCCEEDED on it is terminal, and what is terminal never changes again, except to EXPIRED."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    #: Succeeded once; its pictures have been deleted since.
    EXPIRED = "expired"

    @property
    def terminal(self) -> bool:
        """Nothing follows."""
        return self not in (JobState.QUEUED, JobState.RUNNING)


class WebhookState(StrEnum):
    """Whether the caller has been told; the values are what ModelsLab's ``webhook_status`` says."""

    #: No webhook was asked for.
    NONE = ""
    PENDING = "pending"
    DELIVERED = "delivered"
    FAILED = "failed"


@dataclass(frozen=True, kw_only=True)
class Job:
    """A stored request."""

    #: Random, 1 .. 2**52 - 1: safe in JavaScript, hard to guess, unique.
    id: int
    #: ``ApiKey.id`` of the caller.
    owner: str
    #: Name in ``server.api.DIALECTS``; decides how the webhook body looks.
    dialect: str
    state: JobState = JobState.QUEUED
    #: ``Request.to_json()``; the seed is decided before the job is stored, so a re-run draws the same.
    request: dict[str, Any]
    #: What the dialect wants back when it renders (track_id, options echoed in meta …); plain JSON.
    echo: dict[str, Any] = field(default_factory=dict)
    #: Names in the image store, one per sample, fixed at submit; none where nothing is drawn.
    outputs: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    #: Absolute base of the URLs in answers, as seen by the caller at submit; no trailing slash.
    base_url: str = ""
    webhook: str | None = None
    webhook_state: WebhookState = WebhookState.NONE
    #: Times it was started; a job that was started three times and never finished fails.
    attempts: int = 0
    #: Unix seconds.
    created_at: float
    started_at: float | None = None
    finished_at: float | None = None
    #: Set when SUCCEEDED: {"seconds": float, "seeds": [int], "nsfw": [bool], "scheduler": str} of
    #: pictures, {"seconds": float, "answers": [{…}]} of questions about one; see ``server.results``.
    result: dict[str, Any] | None = None
    error_code: str | None = None
    error_message: str | None = None
    #: Its pictures are kept for a day, whatever the settings say of others.
    temporary: bool = False


class JobStore(Protocol):
    """Every method returns after its change is durable."""

    async def start(self) -> None:
        """Opens the database and brings its schema up to date."""

    async def close(self) -> None:
        """Finishes what is being written and closes."""

    async def add(self, job: Job) -> None:
        """Stores a new job. Raises ``DuplicateJob`` if the id is taken."""

    async def get(self, job_id: int) -> Job | None:
        """The job as it stands."""

    async def begin(self, job_id: int, *, now: float) -> Job | None:
        """QUEUED -> RUNNING, one more attempt; None if the job is no longer queued."""

    async def finish(self, job_id: int, *, result: dict[str, Any], warnings: tuple[str, ...], now: float) -> Job | None:
        """RUNNING -> SUCCEEDED; None if the job is already terminal."""

    async def fail(self, job_id: int, *, code: str, message: str, now: float) -> Job | None:
        """QUEUED or RUNNING -> FAILED; None if the job is already terminal."""

    async def cancel(self, job_id: int, *, now: float) -> Job | None:
        """QUEUED or RUNNING -> CANCELLED; None if the job is already terminal."""

    async def expire(self, job_id: int, *, message: str) -> Job | None:
        """SUCCEEDED -> EXPIRED, error_code "expired"; ``finished_at`` stays. None if the job is in another state."""

    async def release(self, job_id: int) -> Job | None:
        """RUNNING -> QUEUED, the attempt taken back: the server closes, and the job is not to blame. None otherwise."""

    async def requeue_running(self) -> int:
        """After a restart: every RUNNING job -> QUEUED; returns how many. Call before ``begin`` is ever called."""

    async def queued(self) -> list[Job]:
        """All QUEUED jobs, oldest first (by created_at, then by order of insertion)."""

    async def unfinished(self) -> list[Job]:
        """All QUEUED and RUNNING jobs, oldest first."""

    async def finished(self, *, until: float, temporary: bool = False, limit: int) -> list[Job]:
        """SUCCEEDED jobs with pictures that ended at this Unix time or before, oldest first, at most ``limit``.

        ``temporary``: only those whose pictures are.
        """

    async def set_webhook_state(self, job_id: int, state: WebhookState) -> None:
        """Records what became of the webhook."""

    async def undelivered(self) -> list[Job]:
        """Terminal jobs whose webhook is PENDING, oldest first."""

    async def count(self, *, owner: str | None = None) -> dict[JobState, int]:
        """Jobs by state; every state is a key."""

    async def page(
        self, owner: str, states: Collection[JobState], *, limit: int, before: int | None = None, skip: int = 0
    ) -> list[Job]:
        """The owner's jobs in these states, the last stored first, at most ``limit`` after the first ``skip``.

        ``before``: only what was stored before this job; nothing where it is not the owner's.
        """


class DuplicateJob(Exception):
    """The random id is taken; the caller draws another."""
