"""Generate, store, finish, notify; queues, restarts and closing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from pipelines.draft import Completed, Decided
from pipelines.errors import NonFinite
from pipelines.model import ModelSpec
from pipelines.request import ImageRequest
from pipelines.vision import VisionRequest, VisionTask
from server.backlog import Backlog
from server.catalog import Catalog
from server.engine.executors.stub import StubExecutor
from server.errors import NotFound, QueueFull, Unavailable
from server.gallery import Gallery
from server.jobs.base import Job, JobState, WebhookState
from server.jobs.memory import MemoryJobStore
from server.net import Guard
from server.service import OPAQUE, Service
from server.storage.local import LocalImageStore
from server.webhooks import Webhooks

pytestmark = pytest.mark.anyio

MODEL = ModelSpec(id="sd15", family="sd15", folder=Path("sd15"))
REQUEST = ImageRequest(model="sd15", prompt="a red bridge", width=64, height=64, steps=2, guidance=5.0, seed=7)
#: Longer than any test, so that only an event ends a wait.
PATIENT = 30.0


class FailingStore(MemoryJobStore):
    """Cannot make the changes named in ``out``."""

    def __init__(self) -> None:
        super().__init__()
        self.out: set[str] = set()
        self.refused = asyncio.Event()

    def check(self, change: str) -> None:
        if change in self.out:
            self.refused.set()
            raise Unavailable("The server cannot write to its database")

    async def begin(self, job_id: int, *, now: float) -> Job | None:
        self.check("begin")
        return await super().begin(job_id, now=now)

    async def finish(self, job_id: int, *, result: dict[str, Any], warnings: tuple[str, ...], now: float) -> Job | None:
        self.check("finish")
        return await super().finish(job_id, result=result, warnings=warnings, now=now)

    async def fail(self, job_id: int, *, code: str, message: str, now: float) -> Job | None:
        self.check("fail")
        return await super().fail(job_id, code=code, message=message, now=now)

    async def release(self, job_id: int) -> Job | None:
        self.check("release")
        return await super().release(job_id)


class StuckImages(LocalImageStore):
    """Stores nothing in any test's time."""

    async def put(self, name: str, data: bytes) -> None:
        await asyncio.sleep(2 * PATIENT)


class HalfBrokenImages(LocalImageStore):
    """Stores the first picture of a job, a little late, and no other."""

    async def put(self, name: str, data: bytes) -> None:
        if not name.startswith("0-"):
            raise Unavailable("The server cannot store images")
        await asyncio.sleep(0.02)
        await super().put(name, data)


@dataclass
class World:
    """A service and what it works with."""

    folder: Path
    executor: StubExecutor = field(default_factory=StubExecutor)
    jobs: MemoryJobStore = field(default_factory=MemoryJobStore)
    image_store: type[LocalImageStore] = LocalImageStore

    @property
    def images(self) -> LocalImageStore:
        return self.image_store(self.folder / "images")

    def service(self, **limits: float) -> Service:
        # Nothing listens on port 9, and the list of private hosts lets it be tried.
        webhooks = Webhooks(Guard(["127.0.0.1"]), timeout_s=1.0, delays_s=())
        bodies = {"test": lambda job: str(job.id).encode()}
        return Service(self.executor, self.jobs, Gallery(self.images), webhooks, Catalog([MODEL]), bodies, **limits)  # type: ignore[arg-type]

    @asynccontextmanager
    async def running(self, **limits: float) -> AsyncIterator[Service]:
        await self.images.start()
        await self.executor.start()
        service = self.service(**limits)
        await service.start()
        try:
            yield service
        finally:
            await service.close()
            await self.executor.close()


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


async def submit(service: Service, *, owner: str = "me", webhook: str | None = None, **changes: object) -> Job:
    request = ImageRequest.from_json({**REQUEST.to_json(), **changes})
    return await service.submit(
        Completed(request=request, warnings=("said at submit.",)),
        owner=owner,
        dialect="test",
        echo={"track_id": 5},
        base_url="http://here",
        webhook=webhook,
    )


async def test_a_job_is_drawn_stored_and_finished(world: World) -> None:
    world.executor = StubExecutor(warnings=["said by the engine."])
    async with world.running() as service:
        job = await service.wait((await submit(service, samples=2)).id, PATIENT)
        files = [await world.images.get(name) for name in job.outputs]
    assert job.state is JobState.SUCCEEDED
    assert job.result is not None
    assert (job.result["seeds"], job.result["nsfw"]) == ([7, 8], [False, False])
    assert job.warnings == ("said at submit.", "said by the engine.")
    assert job.echo == {"track_id": 5}
    assert all(file is not None and file.path.read_bytes()[1:4] == b"PNG" for file in files)


async def test_a_question_is_answered_and_leaves_no_files(world: World) -> None:
    request = VisionRequest(model="sd15", task=VisionTask.PHRASE_GROUNDING, prompt="a red bridge", image="0" * 64)
    async with world.running() as service:
        job = await service.submit(
            Decided(request=request, warnings=("said at submit.",)),
            owner="me",
            dialect="test",
            echo={},
            base_url="http://here",
        )
        assert service.eta(job) >= 1
        job = await service.wait(job.id, PATIENT)
    assert world.executor.questions == [request]
    assert (job.state, job.outputs, job.warnings) == (JobState.SUCCEEDED, (), ("said at submit.",))
    assert job.result is not None
    assert job.result["answers"] == [{"text": "phrase_grounding: a red bridge"}]


async def test_a_job_is_stored_before_its_id_is_known(world: World) -> None:
    world.executor.hold()
    async with world.running() as service:
        job = await submit(service)
        assert await world.jobs.get(job.id) is not None
        assert (await service.wait(job.id, 0)).id == job.id


async def test_waiting_ends_with_the_job_or_with_patience(world: World) -> None:
    world.executor.hold()
    async with world.running() as service:
        job = await submit(service)
        assert not (await service.wait(job.id, 0.01)).state.terminal
        waiting = [asyncio.create_task(service.wait(job.id, PATIENT)) for _ in range(3)]
        await asyncio.sleep(0)
        world.executor.release()
        assert {(await one).state for one in waiting} == {JobState.SUCCEEDED}
        assert (await service.wait(job.id, PATIENT)).state is JobState.SUCCEEDED
        with pytest.raises(NotFound):
            await service.wait(1, PATIENT)


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (NonFinite("Latents became NaN."), "non_finite", "Latents became NaN."),
        (RuntimeError("/secret/path exploded"), "internal", OPAQUE),
    ],
)
async def test_a_failure_fails_one_job_with_a_safe_text(
    world: World, error: Exception, code: str, message: str
) -> None:
    world.executor.fail_next(error)
    async with world.running() as service:
        failed = await service.wait((await submit(service)).id, PATIENT)
        fine = await service.wait((await submit(service)).id, PATIENT)
    assert (failed.state, failed.error_code, failed.error_message) == (JobState.FAILED, code, message)
    assert fine.state is JobState.SUCCEEDED


async def test_a_model_that_is_gone_fails_the_job(world: World) -> None:
    async with world.running() as service:
        job = await service.wait((await submit(service, model="gone")).id, PATIENT)
    assert (job.error_code, job.error_message) == ("unknown_model", "Model not found: gone")


async def test_the_deadline_fails_a_job_that_hangs(world: World) -> None:
    world.executor.hold()
    async with world.running(deadline_s=0.01) as service:
        job = await service.wait((await submit(service)).id, PATIENT)
    assert (job.state, job.error_code) == (JobState.FAILED, "deadline_exceeded")


async def test_foreign_unknown_and_malformed_ids_look_the_same(world: World) -> None:
    async with world.running() as service:
        job = await submit(service)
        assert await service.get(str(job.id), "me") is not None
        others = ["other", "me", "me", "me", "me", "me", "me", "me", "me", "me"]
        ids = [job.id, job.id + 1, "", "x", -1, 2**80, "9" * 5000, job.id + 0.5, 1e300, float("nan")]
        assert [await service.get(one, owner) for one, owner in zip(ids, others, strict=True)] == [None] * 10


async def test_ids_are_known_however_they_are_spelled(world: World) -> None:
    async with world.running() as service:
        job = await submit(service)
        for spelling in (str(job.id), f" {job.id}\n", float(job.id)):
            found = await service.get(spelling, "me")
            assert found is not None and found.id == job.id


async def test_queues_are_bounded_per_key_and_in_all(world: World) -> None:
    world.executor.hold()
    async with world.running(max_queued_jobs=3, max_queued_jobs_per_key=2) as service:
        first = await submit(service)
        await submit(service)
        with pytest.raises(QueueFull, match="Maximum 2 queued"):
            await submit(service)
        await submit(service, owner="other")
        with pytest.raises(QueueFull, match="server's queue is full"):
            await submit(service, owner="third")
        await service.cancel(first.id, "me")
        await submit(service)


async def test_only_a_window_of_jobs_reaches_the_executor(world: World) -> None:
    world.executor.hold()
    async with world.running(window=2) as service:
        jobs = [await submit(service, seed=seed) for seed in range(6)]
        await submit(service, seed=99, priority=1)
        await world.executor.received(2)
        assert len(world.executor.requests) == 2
        assert service.eta(jobs[-1]) >= 1
        world.executor.release()
        for job in jobs:
            assert (await service.wait(job.id, PATIENT)).state is JobState.SUCCEEDED
    assert [request.seed for request in world.executor.requests] == [0, 1, 99, 2, 3, 4, 5]


async def test_cancelling_ends_waiting_and_running_jobs(world: World) -> None:
    world.executor.hold()
    async with world.running(window=1) as service:
        running, waiting = await submit(service), await submit(service)
        await world.executor.received(1)
        assert await service.cancel(waiting.id, "other") is None
        for job in (waiting, running):
            cancelled = await service.cancel(job.id, "me")
            assert cancelled is not None and cancelled.state is JobState.CANCELLED
        world.executor.release()
        last = await service.wait((await submit(service)).id, PATIENT)
        assert last.state is JobState.SUCCEEDED
    assert len(world.executor.requests) == 2


async def test_closing_leaves_jobs_for_the_next_start(world: World) -> None:
    world.executor.hold()
    async with world.running(window=1) as service:
        jobs = [await submit(service, seed=seed) for seed in range(3)]
        waiter = asyncio.create_task(service.wait(jobs[0].id, PATIENT))
        await asyncio.sleep(0)
    assert not (await waiter).state.terminal
    with pytest.raises(Unavailable):
        await submit(service)
    world.executor = StubExecutor()
    async with world.running(window=1) as again:
        done = [await again.wait(job.id, PATIENT) for job in jobs]
    assert [job.state for job in done] == [JobState.SUCCEEDED] * 3
    assert [request.seed for request in world.executor.requests] == [0, 1, 2]


async def test_a_job_that_was_started_too_often_fails(world: World) -> None:
    world.executor = StubExecutor(held=True)
    async with world.running() as service:
        job = await submit(service)
    for _ in range(2):  # as if the process had died twice while it drew this one
        await world.jobs.begin(job.id, now=1.0)
        await world.jobs.requeue_running()
    async with world.running(max_attempts=2) as service:
        failed = await service.wait(job.id, PATIENT)
    assert (failed.state, failed.attempts) == (JobState.FAILED, 2)


@pytest.mark.parametrize("change", ["begin", "finish"])
async def test_a_drawn_picture_outlives_an_outage_of_the_database(world: World, change: str) -> None:
    world.jobs = store = FailingStore()
    store.out.add(change)
    async with world.running(retry_pause_s=0.001) as service:
        job = await submit(service)
        await store.refused.wait()
        assert not (await service.wait(job.id, 0.02)).state.terminal
        store.out.clear()
        done = await service.wait(job.id, PATIENT)
    assert (done.state, done.attempts, len(world.executor.requests)) == (JobState.SUCCEEDED, 1, 1)


async def test_a_failure_is_stored_once_the_database_can(world: World) -> None:
    world.jobs = store = FailingStore()
    store.out.add("fail")
    world.executor.fail_next(NonFinite("Latents became NaN."))
    async with world.running(retry_pause_s=0.001) as service:
        job = await submit(service)
        await store.refused.wait()
        store.out.clear()
        assert (await service.wait(job.id, PATIENT)).error_code == "non_finite"


async def test_closing_in_an_outage_leaves_the_job_to_be_drawn_again(world: World) -> None:
    world.jobs = store = FailingStore()
    store.out |= {"finish", "release"}
    async with world.running(retry_pause_s=PATIENT) as service:
        job = await submit(service)
        await store.refused.wait()
    store.out.clear()
    async with world.running() as service:
        assert (await service.wait(job.id, PATIENT)).state is JobState.SUCCEEDED
    assert len(world.executor.requests) == 2


async def test_a_dead_device_thread_takes_no_jobs_and_fails_none(world: World) -> None:
    world.executor.hold()
    async with world.running(window=2) as service:
        handed, unseen, waiting = [await submit(service, seed=seed) for seed in range(3)]
        # Its generation is not made before the loop's next turn: it counts as not handed over.
        await world.executor.close()
        with pytest.raises(Unavailable):
            await submit(service)
        await asyncio.sleep(0.02)
        for job in (handed, unseen, waiting):
            left = await world.jobs.get(job.id)
            assert left is not None and left.state is JobState.QUEUED
    assert world.executor.requests == []


async def test_waiting_while_draining_is_answered_at_once(world: World) -> None:
    world.executor.hold()
    async with world.running() as service:
        job = await submit(service)
        service.drain()
        async with asyncio.timeout(PATIENT / 10):
            assert not (await service.wait(job.id, PATIENT)).state.terminal


async def test_the_estimate_for_a_waiting_job_holds_its_own_cost(world: World) -> None:
    world.executor = StubExecutor(held=True, per_row_s=2.0)
    async with world.running(window=1) as service:
        await submit(service)
        last = await submit(service, steps=10, samples=3)
        await world.executor.received(1)
        assert service.eta(last) >= 60.0


async def test_while_pictures_are_stored_nothing_is_left_to_draw(world: World) -> None:
    world.image_store = StuckImages
    async with world.running(close_grace_s=0.05) as service:
        job = await submit(service)
        for _ in range(500):
            if service.progress(job).step:
                break
            await asyncio.sleep(0.01)
        # Drawn, and handed to the image store.
        await asyncio.sleep(0.05)
        progress = service.progress(job)
        assert (progress.step, progress.position) == (progress.steps, 0)
        assert service.eta(job) == 1.0


async def test_a_job_whose_task_hangs_at_the_end_gets_its_try_back(world: World) -> None:
    world.image_store = StuckImages
    async with world.running(close_grace_s=0.01) as service:
        job = await submit(service)
        await running(world, job.id)
    left = await world.jobs.get(job.id)
    assert left is not None
    assert (left.state, left.attempts) == (JobState.QUEUED, 0)


async def test_a_job_that_fails_leaves_no_files(world: World) -> None:
    world.image_store = HalfBrokenImages
    async with world.running() as service:
        job = await service.wait((await submit(service, samples=2)).id, PATIENT)
    assert (job.state, job.error_code) == (JobState.FAILED, "unavailable")
    assert [path for path in (world.folder / "images").rglob("*") if path.is_file()] == []


async def test_only_a_job_that_reached_the_device_has_had_a_try(world: World) -> None:
    world.executor = StubExecutor(held=True)
    async with world.running() as service:
        waiting = await submit(service)
        await world.executor.received(1)
        assert await world.jobs.get(waiting.id) == waiting
    world.executor = StubExecutor(delay_s=PATIENT)
    async with world.running() as service:
        drawn = await running(world, waiting.id)
        assert (drawn.state, drawn.attempts) == (JobState.RUNNING, 1)


async def test_closing_takes_the_try_back(world: World) -> None:
    world.executor = StubExecutor(delay_s=PATIENT)
    for _ in range(3):
        async with world.running(max_attempts=1) as service:
            if not world.executor.requests:
                job = await submit(service)
            await running(world, job.id)
    left = await world.jobs.get(job.id)
    assert left is not None
    assert (left.state, left.attempts, left.started_at) == (JobState.QUEUED, 0, None)


async def running(world: World, job_id: int) -> Job:
    """The job, once it is being drawn."""
    for _ in range(1000):
        job = await world.jobs.get(job_id)
        if job is not None and job.state is JobState.RUNNING:
            return job
        await asyncio.sleep(0.005)
    raise AssertionError("the job was not begun")


async def test_a_webhooks_outcome_is_stored(world: World) -> None:
    async with world.running() as service:
        job = await submit(service, webhook="http://127.0.0.1:9/hook")
        assert job.webhook_state is WebhookState.PENDING
        assert (await service.wait(job.id, PATIENT)).state is JobState.SUCCEEDED
        for _ in range(1000):
            if not await world.jobs.undelivered():
                break
            await asyncio.sleep(0.01)
        told = await world.jobs.get(job.id)
    assert told is not None and told.webhook_state is WebhookState.FAILED


async def test_nothing_is_accepted_while_draining(world: World) -> None:
    async with world.running() as service:
        service.drain()
        assert not service.accepting
        with pytest.raises(Unavailable):
            await submit(service)


def test_the_backlog_counts_who_is_ahead() -> None:
    backlog = Backlog(max_jobs=10, max_jobs_per_owner=10, aging_s=10.0)
    for job_id in (11, 12, 13):
        backlog.push(job_id, arrived=0.0)
    assert [backlog.ahead(job_id) for job_id in (11, 12, 13)] == [0, 1, 2]
    backlog.drop(12)
    assert [backlog.pop(), backlog.ahead(13), backlog.pop(), backlog.pop()] == [11, 0, 13, None]


def test_in_the_backlog_priority_is_worth_so_many_seconds_and_no_more() -> None:
    backlog = Backlog(max_jobs=10, max_jobs_per_owner=10, aging_s=10.0)
    backlog.push(11, arrived=100.0)
    backlog.push(12, arrived=105.0, priority=1)
    backlog.push(13, arrived=115.0, priority=1)
    assert [backlog.pop() for _ in range(3)] == [12, 11, 13]
