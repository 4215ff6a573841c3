"""Jobs in a database: SQLAlchemy Core, so that another database is another URL."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import fields
from typing import Any

import sqlalchemy as sa

from server.database.connect import Database
from server.database.tables import jobs
from server.jobs.base import DuplicateJob, Job, JobState, WebhookState

#: SQLite's and PostgreSQL's integers end here; a larger id is unknown, not an error of the driver.
_ID_LIMIT = 2**63

_NAMES = [field.name for field in fields(Job)]
_COLUMNS = [jobs.c[name] for name in _NAMES]
_OLDEST_FIRST = (jobs.c.created_at, jobs.c.number)
_TERMINAL = [state.value for state in JobState if state.terminal]


class SqlJobStore:
    """A change of state is one guarded UPDATE: of two that compete, one finds the row and the other nothing."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def start(self) -> None:
        """Opens the database and brings its schema up to date."""
        await self._database.start()

    async def close(self) -> None:
        """Finishes what is being written and closes."""
        await self._database.close()

    async def add(self, job: Job) -> None:
        """Stores a new job. Raises ``DuplicateJob`` if the id is taken."""
        statement = sa.insert(jobs).values(_values(job))
        try:
            await self._database.write(lambda connection: connection.execute(statement).rowcount)
        except sa.exc.IntegrityError as error:
            raise DuplicateJob(job.id) from error

    async def get(self, job_id: int) -> Job | None:
        """The job as it stands."""
        found = await self._select(jobs.c.id == job_id) if _possible(job_id) else []
        return found[0] if found else None

    async def begin(self, job_id: int, *, now: float) -> Job | None:
        """QUEUED -> RUNNING, one more attempt; None if the job is no longer queued."""
        return await self._change(
            job_id, JobState.QUEUED, to=JobState.RUNNING, attempts=jobs.c.attempts + 1, started_at=now
        )

    async def finish(self, job_id: int, *, result: dict[str, Any], warnings: tuple[str, ...], now: float) -> Job | None:
        """RUNNING -> SUCCEEDED; None if the job is not running."""
        return await self._change(
            job_id, JobState.RUNNING, to=JobState.SUCCEEDED, result=result, warnings=list(warnings), finished_at=now
        )

    async def fail(self, job_id: int, *, code: str, message: str, now: float) -> Job | None:
        """QUEUED or RUNNING -> FAILED; None if the job is already terminal."""
        return await self._change(
            job_id,
            JobState.QUEUED,
            JobState.RUNNING,
            to=JobState.FAILED,
            error_code=code,
            error_message=_storable(message),
            finished_at=now,
        )

    async def cancel(self, job_id: int, *, now: float) -> Job | None:
        """QUEUED or RUNNING -> CANCELLED; None if the job is already terminal."""
        return await self._change(job_id, JobState.QUEUED, JobState.RUNNING, to=JobState.CANCELLED, finished_at=now)

    async def release(self, job_id: int) -> Job | None:
        """RUNNING -> QUEUED, the attempt taken back; None if the job is not running."""
        return await self._change(
            job_id, JobState.RUNNING, to=JobState.QUEUED, attempts=jobs.c.attempts - 1, started_at=None
        )

    async def expire(self, job_id: int, *, message: str) -> Job | None:
        """SUCCEEDED -> EXPIRED; None if the job is in another state."""
        return await self._change(
            job_id, JobState.SUCCEEDED, to=JobState.EXPIRED, error_code="expired", error_message=message
        )

    async def requeue_running(self) -> int:
        """Every RUNNING job -> QUEUED; returns how many."""
        statement = (
            sa.update(jobs)
            .where(jobs.c.state == JobState.RUNNING.value)
            .values(state=JobState.QUEUED.value, started_at=None)
        )

        return await self._database.write(lambda connection: connection.execute(statement).rowcount)

    async def queued(self) -> list[Job]:
        """All QUEUED jobs, oldest first."""
        return await self._select(jobs.c.state == JobState.QUEUED.value)

    async def unfinished(self) -> list[Job]:
        """All QUEUED and RUNNING jobs, oldest first."""
        return await self._select(jobs.c.state.in_([JobState.QUEUED.value, JobState.RUNNING.value]))

    async def finished(self, *, until: float, temporary: bool = False, limit: int) -> list[Job]:
        """SUCCEEDED jobs with pictures that ended by then, oldest first; see ``JobStore.finished``."""
        conditions = [jobs.c.state == JobState.SUCCEEDED.value, jobs.c.finished_at <= until]
        conditions.append(sa.cast(jobs.c.outputs, sa.Text) != "[]")
        # Nothing has ended before it was stored, and by this the index is ordered.
        conditions.append(jobs.c.created_at <= until)
        if temporary:
            conditions.append(jobs.c.temporary == sa.true())
        return await self._select(*conditions, limit=limit)

    async def set_webhook_state(self, job_id: int, state: WebhookState) -> None:
        """Records what became of the webhook."""
        if _possible(job_id):
            statement = sa.update(jobs).where(jobs.c.id == job_id).values(webhook_state=state.value)
            await self._database.write(lambda connection: connection.execute(statement).rowcount)

    async def undelivered(self) -> list[Job]:
        """Terminal jobs whose webhook is PENDING, oldest first."""
        return await self._select(jobs.c.webhook_state == WebhookState.PENDING.value, jobs.c.state.in_(_TERMINAL))

    async def count(self, *, owner: str | None = None) -> dict[JobState, int]:
        """Jobs by state; every state is a key."""
        statement = sa.select(jobs.c.state, sa.func.count()).group_by(jobs.c.state)
        if owner is not None:
            statement = statement.where(jobs.c.owner == owner)
        rows = await self._database.read(lambda connection: connection.execute(statement).all())
        found = {JobState(state): number for state, number in rows}
        return {state: found.get(state, 0) for state in JobState}

    async def page(
        self, owner: str, states: Collection[JobState], *, limit: int, before: int | None = None, skip: int = 0
    ) -> list[Job]:
        """The owner's jobs in these states, the last stored first; see ``JobStore.page``."""
        own = jobs.c.owner == owner
        conditions = [own]
        if before is not None:
            if not _possible(before):
                return []
            place = sa.select(jobs.c.number).where(own, jobs.c.id == before).scalar_subquery()
            conditions.append(jobs.c.number < place)
        # One state at a time: the index then holds them in this order, and no long history is sorted.
        statements = [
            sa.select(jobs.c.number, *_COLUMNS)
            .where(*conditions, jobs.c.state == state.value)
            .order_by(jobs.c.number.desc())
            .limit(skip + limit)
            for state in states
        ]

        def find(connection: sa.Connection) -> list[sa.Row[Any]]:
            return [row for statement in statements for row in connection.execute(statement)]

        rows = sorted(await self._database.read(find), key=lambda row: -row.number)[skip : skip + limit]
        return [_job(row) for row in rows]

    async def _select(self, *conditions: sa.ColumnElement[bool], limit: int | None = None) -> list[Job]:
        statement = sa.select(*_COLUMNS).where(*conditions).order_by(*_OLDEST_FIRST).limit(limit)
        return await self._database.read(lambda connection: [_job(row) for row in connection.execute(statement)])

    async def _change(self, job_id: int, *allowed: JobState, to: JobState, **values: Any) -> Job | None:
        if not _possible(job_id):
            return None
        statement = (
            sa.update(jobs)
            .where(jobs.c.id == job_id, jobs.c.state.in_([state.value for state in allowed]))
            .values(state=to.value, **values)
            .returning(*_COLUMNS)
        )

        def change(connection: sa.Connection) -> Job | None:
            row = connection.execute(statement).one_or_none()
            return _job(row) if row is not None else None

        return await self._database.write(change)


def _possible(job_id: int) -> bool:
    return 0 < job_id < _ID_LIMIT


def _storable(text: str) -> str:
    # JSON bodies may hold lone surrogates; UTF-8, and so the database, may not.
    return text.encode("utf-8", "replace").decode("utf-8")


def _values(job: Job) -> dict[str, Any]:
    """A row; shallow, so that the request is not copied."""
    values = dict(vars(job))
    text = {key: _storable(value) for key, value in values.items() if isinstance(value, str)}
    return values | text | {"outputs": list(job.outputs), "warnings": list(job.warnings)}


def _job(row: sa.Row[Any]) -> Job:
    values = {name: row._mapping[name] for name in _NAMES}
    return Job(
        **{
            **values,
            "state": JobState(values["state"]),
            "outputs": tuple(values["outputs"]),
            "warnings": tuple(values["warnings"]),
            "webhook_state": WebhookState(values["webhook_state"]),
        }
    )
