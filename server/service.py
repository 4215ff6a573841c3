"""A request's way through the server: stored, drawn, stored again, told; every dialect goes through here."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from pipelines.draft import Decided
from pipelines.errors import Cancelled, DeadlineExceeded, Error
from pipelines.passes import expected_calls
from pipelines.request import ImageRequest, Request
from pipelines.stored import read_request
from server.backlog import Backlog
from server.catalog import Catalog
from server.engine.executors.base import EngineStats, Executor, Generation, Outcome, Preview, Progress
from server.engine.lanes import AGING_S
from server.errors import NotFound, Unavailable
from server.gallery import Gallery
from server.jobs.base import DuplicateJob, Job, JobState, JobStore, WebhookState
from server.jobs.ids import new_id, parse_id
from server.notices import Notices
from server.outputs import Outputs
from server.pace import Pace
from server.patience import Interrupted, Patience
from server.results import describe
from server.webhooks import Webhooks

logger = logging.getLogger(__name__)

#: What a client reads about a failure of ours; the log has the rest.
OPAQUE = "Internal server error. Please try again."

#: A device thread that hangs cannot raise; the service then does, this much after the deadline.
_HUNG_AFTER_S = 5.0


@dataclass(slots=True)
class _Open:
    """What is kept in memory of a job that is not terminal; 10,000 of these must be cheap."""

    owner: str
    priority: int
    #: Set when the job is settled; made by the first who waits.
    settled: asyncio.Event | None = None
    final: Job | None = None


class Service:
    """Submits, draws and answers jobs. One event loop; ``start`` before use, ``close`` at the end.

    At most ``window`` requests are handed to the executor at a time; the others wait here as bare ids.
    """

    def __init__(
        self,
        executor: Executor,
        jobs: JobStore,
        gallery: Gallery,
        webhooks: Webhooks,
        catalog: Catalog,
        webhook_bodies: Mapping[str, Callable[[Job], bytes]],
        *,
        max_queued_jobs: int = 10_000,
        max_queued_jobs_per_key: int = 1_000,
        deadline_s: float = 600.0,
        max_attempts: int = 3,
        forced_safety: str | None = None,
        window: int = 64,
        close_grace_s: float = 10.0,
        retry_pause_s: float = 0.25,
    ) -> None:
        self._executor = executor
        self._jobs = jobs
        self._gallery = gallery
        self._notices = Notices(webhooks, jobs, webhook_bodies)
        self._catalog = catalog
        self._deadline_s = deadline_s
        self._max_attempts = max_attempts
        self._forced_safety = forced_safety
        self._window = window
        self._close_grace_s = close_grace_s
        self._patience = Patience(pause_s=retry_pause_s)
        self._backlog = Backlog(max_jobs=max_queued_jobs, max_jobs_per_owner=max_queued_jobs_per_key, aging_s=AGING_S)
        self._open: dict[int, _Open] = {}
        self._generations: dict[int, Generation] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._accepting = False
        self._started_at = 0.0
        self._pace = Pace()

    # Lifecycle

    async def start(self) -> None:
        """Takes up what the last run left: its jobs in their order, then its untold webhooks."""
        self._started_at = time.time()
        await self._jobs.requeue_running()
        for job in await self._jobs.queued():
            if job.attempts >= self._max_attempts:
                message = f"Started {job.attempts} times without finishing."
                await self._jobs.fail(job.id, code=Error.code, message=message, now=time.time())
            else:
                self._enqueue(job, forced=True)
        for job in await self._jobs.undelivered():
            self._notices.send(job)
        self._accepting = True
        self._pump()

    def drain(self) -> None:
        """Accepts and starts nothing more, and answers everyone who waits with the job as it stands."""
        self._accepting = False
        for entry in self._open.values():
            if entry.settled is not None:
                entry.settled.set()

    async def close(self) -> None:
        """Drains, interrupts what is being drawn, lets what is drawn be stored, then stops the webhooks; fails no job.

        Comes before the executor and the stores are closed: until it returns it may use all of them. The webhooks are
        closed here, because what became of them is still to be stored.
        """
        self.drain()
        self._patience.end()
        for generation in self._generations.values():
            generation.cancel()
        if self._tasks:
            _, hung = await asyncio.wait(self._tasks, timeout=self._close_grace_s)
            for task in hung:
                task.cancel()
            await asyncio.gather(*hung, return_exceptions=True)
        await self._notices.close()
        self._gallery.close()

    # What dialects call

    @property
    def accepting(self) -> bool:
        """New requests are taken."""
        return self._accepting

    def engine_stats(self) -> EngineStats:
        """The executor's snapshot."""
        return self._executor.stats()

    async def submit(
        self,
        completed: Decided,
        *,
        owner: str,
        dialect: str,
        echo: dict[str, Any],
        base_url: str,
        webhook: str | None = None,
        outputs: Outputs = Outputs(),
    ) -> Job:
        """Stores the job and queues it; it can be fetched, also after a crash, once this returns.

        Raises ``QueueFull`` when the key or the server has as many unfinished jobs as allowed, ``Unavailable`` while
        the server starts or drains, and once the device thread has died.
        """
        if not (self._accepting and self._executor.stats().alive):
            raise Unavailable("Service temporarily unavailable. Please try again.")
        self._backlog.reserve(owner)
        try:
            job = await self._add(completed, owner, dialect, echo, base_url, webhook, outputs)
        except BaseException:
            self._backlog.free(owner)
            raise
        self._enqueue(job)
        self._pump()
        return job

    async def wait(self, job_id: int, seconds: float) -> Job:
        """The job once it is terminal, or as it stands after ``seconds``. Raises ``NotFound``."""
        entry = self._open.get(job_id)
        if entry is not None and seconds > 0 and self._accepting:
            if entry.settled is None:
                entry.settled = asyncio.Event()
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await entry.settled.wait()
            if entry.final is not None:
                return entry.final
        if (job := await self._jobs.get(job_id)) is None:
            raise NotFound("Request not found")
        return job

    async def get(self, job_id: object, owner: str) -> Job | None:
        """The owner's job. Unknown, foreign and malformed ids make the same look-up and the same answer."""
        job = await self._jobs.get(parse_id(job_id))
        return job if job is not None and job.owner == owner else None

    async def cancel(self, job_id: object, owner: str) -> Job | None:
        """Ends the owner's job at the next step; None as in ``get``; a terminal job stays as it is."""
        job = await self.get(job_id, owner)
        if job is None or job.state.terminal:
            return job
        cancelled = await self._jobs.cancel(job.id, now=time.time())
        self._settle(job.id, cancelled)
        return cancelled or await self._jobs.get(job.id)

    async def clear_queue(self) -> int:
        """Ends every job that has not begun as an error, whoever's it is, and tells their webhooks; how many."""
        # Together, for they share commits: ten thousand of their own would take longer than callers wait.
        finals = await asyncio.gather(*(self._clear(job.id) for job in await self._jobs.queued()))
        return sum(final is not None for final in finals)

    def eta(self, job: Job) -> float:
        """Seconds until the job is expected to be done, at least 1."""
        if (generation := self._generations.get(job.id)) is not None:
            return max(1.0, generation.progress().eta_s)
        if job.id not in self._open:
            return 1.0
        front = max((one.progress().eta_s for one in self._generations.values()), default=0.0)
        own = expected_calls(read_request(job.request)) * self._executor.stats().per_row_s
        return max(1.0, front + self._backlog.ahead(job.id) * self._pace.seconds + own)

    def progress(self, job: Job) -> Progress:
        """Where the job stands; of one that the executor does not have, what the request says. Cheap."""
        if (generation := self._generations.get(job.id)) is not None:
            return generation.progress()
        calls = expected_calls(read_request(job.request))
        waits = job.id in self._open
        return Progress(
            step=calls if job.state is JobState.SUCCEEDED else 0,
            steps=calls,
            position=self._executor.stats().waiting_requests + self._backlog.ahead(job.id) if waits else 0,
            eta_s=0.0 if job.state.terminal else self.eta(job),
        )

    def previews(self, job: Job) -> tuple[Preview, ...]:
        """Of a job that is being drawn; asking is watching, see ``Generation.previews``."""
        return () if (one := self._generations.get(job.id)) is None else one.previews()

    # Queue

    async def _add(
        self,
        completed: Decided,
        owner: str,
        dialect: str,
        echo: dict[str, Any],
        base_url: str,
        webhook: str | None,
        outputs: Outputs,
    ) -> Job:
        request = completed.request
        while True:
            job = Job(
                id=new_id(),
                owner=owner,
                dialect=dialect,
                request=request.to_json(),
                echo=echo,
                outputs=outputs.new_names(request.pictures),
                warnings=completed.warnings,
                base_url=base_url,
                webhook=webhook,
                webhook_state=WebhookState.PENDING if webhook else WebhookState.NONE,
                created_at=time.time(),
                temporary=outputs.temporary,
            )
            with suppress(DuplicateJob):
                await self._jobs.add(job)
                return job

    def _enqueue(self, job: Job, *, forced: bool = False) -> None:
        if forced:
            self._backlog.reserve(job.owner, forced=True)
        priority = int(job.request.get("priority", 0))
        self._open[job.id] = _Open(owner=job.owner, priority=priority)
        self._backlog.push(job.id, arrived=job.created_at, priority=priority)

    def _pump(self) -> None:
        """Starts jobs until the window is full; what a dead device thread cannot draw stays queued."""
        while self._accepting and len(self._tasks) < self._window and self._executor.stats().alive:
            job_id = self._backlog.pop()
            if job_id is None:
                return
            task = asyncio.create_task(self._run(job_id), name=f"job-{job_id}")
            self._tasks.add(task)
            task.add_done_callback(self._retire)

    def _retire(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._pump()

    def _settle(self, job_id: int, final: Job | None) -> None:
        """Ends the job's drawing, frees its place, wakes who waits; who made it terminal passes it: it is told once."""
        if (generation := self._generations.pop(job_id, None)) is not None:
            generation.cancel()
        if (entry := self._open.pop(job_id, None)) is not None:
            self._backlog.drop(job_id)
            self._backlog.free(entry.owner)
            entry.final = final
            if entry.settled is not None:
                entry.settled.set()
        if final is not None:
            self._notices.send(final)

    # One job

    async def _run(self, job_id: int) -> None:
        """Generate, store, finish, notify: the boundary of a job, where whatever fails fails this job alone."""
        final: Job | None = None
        try:
            job = await self._patience.insist(lambda: self._jobs.get(job_id))
            if job is not None and job.state is JobState.QUEUED:
                final = await self._draw(job)
        except Interrupted:
            logger.info("job %d: interrupted, drawn again at the next start", job_id)
            await self._release(job_id)
        except asyncio.CancelledError:
            logger.warning("job %d: did not end in time, drawn again at the next start", job_id)
            await self._release(job_id)
            raise
        except Error as error:
            final = await self._fail(job_id, error.code, str(error))
        except Exception:
            logger.exception("job %d failed", job_id)
            final = await self._fail(job_id, Error.code, OPAQUE)
        finally:
            self._settle(job_id, final)

    async def _draw(self, job: Job) -> Job | None:
        request: Request = read_request(job.request)
        if isinstance(request, ImageRequest):
            # Jobs of the last run, and whatever else slipped through.
            request = replace(request, safety=request.safety or self._forced_safety)
        self._catalog.get(request.model)
        outcome = await self._generate(job, request)
        result = describe(request, outcome)
        await self._gallery.keep(job, outcome)
        warnings = (*job.warnings, *outcome.warnings)
        finished = await self._patience.insist(
            lambda: self._jobs.finish(job.id, result=result, warnings=warnings, now=time.time())
        )
        if finished is None:
            # Cancelled while it was being stored: nobody will ask for these files.
            await self._gallery.discard(job)
        self._pace.finished(time.monotonic(), waiting=len(self._backlog) > 0)
        return finished

    async def _generate(self, job: Job, request: Request) -> Outcome:
        if self._patience.ended or not self._executor.stats().alive:
            raise Interrupted
        # A job of the last run had no chance while the server was down.
        remaining = max(job.created_at, self._started_at) + self._deadline_s - time.time()
        generation = self._executor.submit(request, deadline=time.monotonic() + remaining)
        self._generations[job.id] = generation
        if job.id not in self._open:
            generation.cancel()
        try:
            async with asyncio.timeout(max(remaining, 0.0) + _HUNG_AFTER_S):
                # Only a job that reached the device has had a try: what waits beside one that brings the process
                # down is not to blame. None means that it was cancelled meanwhile, which the outcome will say.
                if await generation.begun() and await self._begin(job.id) is None:
                    generation.cancel()
                return await generation.outcome()
        except TimeoutError:
            raise DeadlineExceeded(f"Not finished within {self._deadline_s:g} seconds.") from None
        except Cancelled:
            if self._patience.ended:
                raise Interrupted from None
            raise
        finally:
            # It stays until the job is settled: who asks meanwhile is told of the last step, not of the first.
            generation.cancel()

    # Its state

    async def _clear(self, job_id: int) -> Job | None:
        final = await self._jobs.fail(job_id, code="cleared", message="The queue was cleared.", now=time.time())
        self._settle(job_id, final)
        return final

    async def _begin(self, job_id: int) -> Job | None:
        return await self._patience.insist(lambda: self._jobs.begin(job_id, now=time.time()))

    async def _fail(self, job_id: int, code: str, message: str) -> Job | None:
        try:
            return await self._patience.insist(
                lambda: self._jobs.fail(job_id, code=code, message=message, now=time.time())
            )
        except Exception:
            # The store is out of order; the job stays as it is and is drawn again at the next start.
            logger.exception("job %d could not be marked as failed", job_id)
            return None

    async def _release(self, job_id: int) -> None:
        try:
            await self._jobs.release(job_id)
        except Exception:
            # It is drawn again all the same, as one that was running when the process ended.
            logger.exception("job %d: its try could not be taken back", job_id)
