"""One contract for all job stores; then what only those with a file can promise."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from server.database.connect import Database, upgrade
from server.database.tables import jobs as jobs_table
from server.database.tables import metadata
from server.errors import Unavailable
from server.jobs.base import DuplicateJob, Job, JobState, JobStore, WebhookState
from server.jobs.ids import LIMIT, new_id
from server.jobs.memory import MemoryJobStore
from server.jobs.sql import SqlJobStore

pytestmark = pytest.mark.anyio

BACKENDS: dict[str, Callable[[Path], JobStore]] = {
    "memory": lambda folder: MemoryJobStore(),
    "sql": lambda folder: SqlJobStore(Database(folder / "latentd.db")),
}
RESULT: dict[str, Any] = {"seconds": 1.5, "seeds": [7], "nsfw": [False], "scheduler": "Euler"}


@asynccontextmanager
async def opened(store: JobStore) -> AsyncIterator[JobStore]:
    await store.start()
    try:
        yield store
    finally:
        await store.close()


@pytest.fixture(params=BACKENDS)
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[JobStore]:
    async with opened(BACKENDS[request.param](tmp_path)) as store:
        yield store


def make(job_id: int = 1, **values: Any) -> Job:
    defaults: dict[str, Any] = {"owner": "key_a", "dialect": "modelslab", "request": {"prompt": "a cat"}}
    return Job(id=job_id, created_at=100.0, **(defaults | values))


def sql(folder: Path) -> JobStore:
    return BACKENDS["sql"](folder)


async def test_a_job_comes_back_as_it_was_stored(store: JobStore) -> None:
    job = make(
        LIMIT - 1,
        request={"prompt": "猫\0\ud800", "seed": 2**63 - 1, "guidance": 7.5, "negative_prompt": None},
        echo={"track_id": None, "nested": [1, {"a": True}]},
        outputs=("0-a.png", "1-b.png"),
        warnings=("clamped",),
        base_url="https://example.org",
        webhook="https://example.org/hook?x=1",
        webhook_state=WebhookState.PENDING,
    )
    await store.add(job)
    assert await store.get(job.id) == job


async def test_a_page_holds_the_owners_jobs_newest_first(store: JobStore) -> None:
    for number in range(1, 7):
        await store.add(make(number, owner="key_a" if number != 3 else "key_b"))
    await store.begin(2, now=1.0)

    async def ids(*states: JobState, **values: Any) -> list[int]:
        return [job.id for job in await store.page("key_a", states or tuple(JobState), **{"limit": 9, **values})]

    assert await ids() == [6, 5, 4, 2, 1]
    assert await ids(limit=2) == [6, 5]
    assert await ids(limit=2, before=5) == [4, 2]
    assert await ids(limit=2, skip=3) == [2, 1]
    assert await ids(JobState.RUNNING) == [2]
    assert await ids(before=3) == await ids(before=0) == await ids(before=2**63) == []


@pytest.mark.parametrize("job_id", [0, -1, 2, 2**52, 2**63 - 1, 2**63, 2**64, 10**40])
async def test_unknown_and_huge_ids_are_no_job(store: JobStore, job_id: int) -> None:
    assert await store.get(job_id) is None
    assert await store.begin(job_id, now=1.0) is None
    assert await store.finish(job_id, result=RESULT, warnings=(), now=1.0) is None
    assert await store.fail(job_id, code="x", message="y", now=1.0) is None
    assert await store.cancel(job_id, now=1.0) is None
    await store.set_webhook_state(job_id, WebhookState.FAILED)


async def test_an_id_is_taken_once(store: JobStore) -> None:
    await store.add(make())
    with pytest.raises(DuplicateJob):
        await store.add(make(owner="key_b"))
    assert await store.get(1) == make()


async def test_begin_counts_the_attempt(store: JobStore) -> None:
    await store.add(make())
    expected = make(state=JobState.RUNNING, attempts=1, started_at=101.0)
    assert await store.begin(1, now=101.0) == expected
    assert await store.get(1) == expected
    assert await store.begin(1, now=102.0) is None


async def test_finish_stores_result_and_warnings(store: JobStore) -> None:
    await store.add(make(warnings=("old",)))
    running = await store.begin(1, now=101.0)
    assert running is not None
    finished = await store.finish(1, result=RESULT, warnings=("old", "new"), now=102.0)
    assert finished == replace(
        running, state=JobState.SUCCEEDED, result=RESULT, warnings=("old", "new"), finished_at=102.0
    )
    assert await store.get(1) == finished


async def test_a_queued_job_cannot_finish(store: JobStore) -> None:
    await store.add(make())
    assert await store.finish(1, result=RESULT, warnings=(), now=102.0) is None
    assert await store.get(1) == make()


@pytest.mark.parametrize("begun", [False, True])
async def test_fail_stores_code_and_message(store: JobStore, begun: bool) -> None:
    await store.add(make())
    before = await store.begin(1, now=101.0) if begun else make()
    assert before is not None
    failed = await store.fail(1, code="non_finite", message="NaN in row 0: ü", now=103.0)
    assert failed == replace(
        before, state=JobState.FAILED, error_code="non_finite", error_message="NaN in row 0: ü", finished_at=103.0
    )


@pytest.mark.parametrize("begun", [False, True])
async def test_cancel_ends_a_job(store: JobStore, begun: bool) -> None:
    await store.add(make())
    before = await store.begin(1, now=101.0) if begun else make()
    assert before is not None
    assert await store.cancel(1, now=103.0) == replace(before, state=JobState.CANCELLED, finished_at=103.0)


async def test_terminal_jobs_never_change(store: JobStore) -> None:
    for number, state in enumerate((JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED), start=1):
        job = make(number, state=state, attempts=1)
        await store.add(job)
        assert await store.begin(number, now=1.0) is None
        assert await store.finish(number, result=RESULT, warnings=(), now=1.0) is None
        assert await store.fail(number, code="x", message="y", now=1.0) is None
        assert await store.cancel(number, now=1.0) is None
        assert await store.requeue_running() == 0
        assert await store.get(number) == job


async def test_of_sixteen_begins_one_wins(store: JobStore) -> None:
    await store.add(make())
    begun = await asyncio.gather(*(store.begin(1, now=float(number)) for number in range(16)))
    assert [job.attempts for job in begun if job is not None] == [1]


async def test_queued_jobs_come_oldest_first_then_in_order_of_insertion(store: JobStore) -> None:
    for number, created_at in ((5, 2.0), (3, 1.0), (9, 2.0), (1, 2.0), (2, 3.0)):
        await store.add(replace(make(number), created_at=created_at))
    await store.begin(2, now=4.0)
    assert [job.id for job in await store.queued()] == [3, 5, 9, 1]


async def test_requeued_jobs_keep_their_attempts_and_their_place(store: JobStore) -> None:
    for number in (1, 2, 3):
        await store.add(make(number))
    await store.begin(1, now=101.0)
    await store.begin(3, now=102.0)
    assert await store.requeue_running() == 2
    assert [(job.id, job.attempts, job.started_at) for job in await store.queued()] == [
        (1, 1, None),
        (2, 0, None),
        (3, 1, None),
    ]
    again = await store.begin(1, now=103.0)
    assert again is not None
    assert again.attempts == 2


async def test_a_released_job_is_queued_in_its_place_and_has_its_try_back(store: JobStore) -> None:
    for number in (1, 2):
        await store.add(make(number))
    await store.begin(1, now=101.0)
    assert await store.release(1) == make(1)
    assert await store.release(1) is None
    assert [job.id for job in await store.queued()] == [1, 2]


async def test_undelivered_are_terminal_and_pending(store: JobStore) -> None:
    for number in (1, 2, 3):
        await store.add(make(number, webhook="https://example.org", webhook_state=WebhookState.PENDING))
    await store.add(make(4))
    for number in (3, 4, 2):
        await store.cancel(number, now=101.0)
    assert [job.id for job in await store.undelivered()] == [2, 3]
    await store.set_webhook_state(2, WebhookState.DELIVERED)
    await store.set_webhook_state(3, WebhookState.FAILED)
    assert await store.undelivered() == []
    delivered = await store.get(2)
    assert delivered is not None
    assert delivered.webhook_state is WebhookState.DELIVERED


async def succeed(store: JobStore, job: Job, *, now: float) -> Job:
    await store.add(job)
    await store.begin(job.id, now=now)
    finished = await store.finish(job.id, result=RESULT, warnings=(), now=now)
    assert finished is not None
    return finished


async def test_unfinished_are_queued_and_running(store: JobStore) -> None:
    for number in (1, 2, 3):
        await store.add(make(number))
    await store.begin(2, now=101.0)
    await store.cancel(3, now=101.0)
    assert [job.id for job in await store.unfinished()] == [1, 2]


async def test_finished_are_those_with_pictures_oldest_first(store: JobStore) -> None:
    for number, temporary in ((3, False), (1, True), (2, True)):
        job = make(number, outputs=("0-a.png",), temporary=temporary)
        await succeed(store, replace(job, created_at=100.0 + number), now=200.0 + number)
    await succeed(store, make(4), now=200.0)
    await store.add(make(5, outputs=("0-b.png",)))
    assert [job.id for job in await store.finished(until=300.0, limit=9)] == [1, 2, 3]
    assert [job.id for job in await store.finished(until=202.0, limit=9)] == [1, 2]
    assert [job.id for job in await store.finished(until=300.0, temporary=True, limit=1)] == [1]
    assert [job.id for job in await store.finished(until=150.0, limit=9)] == []


async def test_only_what_succeeded_expires(store: JobStore) -> None:
    finished = await succeed(store, make(1, outputs=("0-a.png",)), now=102.0)
    await store.add(make(2))
    expired = replace(finished, state=JobState.EXPIRED, error_code="expired", error_message="Gone.")
    assert await store.expire(1, message="Gone.") == expired
    assert await store.expire(1, message="Gone.") is None
    assert await store.expire(2, message="Gone.") is None
    assert await store.finished(until=300.0, limit=9) == []


async def test_count_has_every_state(store: JobStore) -> None:
    assert await store.count() == dict.fromkeys(JobState, 0)
    await store.add(make(1))
    await store.add(make(2, owner="key_b"))
    await store.cancel(2, now=101.0)
    nothing = dict.fromkeys(JobState, 0)
    assert await store.count() == nothing | {JobState.QUEUED: 1, JobState.CANCELLED: 1}
    assert await store.count(owner="key_b") == nothing | {JobState.CANCELLED: 1}
    assert await store.count(owner="nobody") == nothing


async def test_ids_are_positive_and_safe_in_javascript() -> None:
    assert all(1 <= new_id() < 2**52 for _ in range(1000))


# What happens in any order

IDS = st.integers(1, 4)


class Lives(RuleBasedStateMachine):
    """Drives a store beside the memory store: both must answer alike, and terminal jobs must stay as they are."""

    folder: Path

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.name = f"{id(self)}.db"
        self.real = self.open()
        self.model = MemoryJobStore()
        self.terminal: dict[int, Job] = {}
        self.now = 0.0

    def open(self) -> JobStore:
        self.database = Database(self.folder / self.name)
        store = SqlJobStore(self.database)
        self.runner.run(store.start())
        return store

    def both(self, method: str, *args: Any, **kwargs: Any) -> Any:
        async def call(store: JobStore) -> Any:
            try:
                return await vars(type(store))[method](store, *args, **kwargs)
            except DuplicateJob:
                return DuplicateJob

        real, model = (self.runner.run(call(store)) for store in (self.real, self.model))
        assert real == model
        return real

    def tick(self) -> float:
        self.now += 1.0
        return self.now

    @rule(job_id=IDS, created_at=st.floats(0, 3), webhook=st.booleans())
    def add(self, job_id: int, created_at: float, webhook: bool) -> None:
        state = WebhookState.PENDING if webhook else WebhookState.NONE
        self.both("add", replace(make(job_id, webhook_state=state), created_at=created_at))

    @rule(job_id=IDS)
    def begin(self, job_id: int) -> None:
        self.both("begin", job_id, now=self.tick())

    @rule(job_id=IDS)
    def release(self, job_id: int) -> None:
        self.both("release", job_id)

    @rule(job_id=IDS)
    def finish(self, job_id: int) -> None:
        self.keep(self.both("finish", job_id, result=RESULT, warnings=("w",), now=self.tick()))

    @rule(job_id=IDS)
    def fail(self, job_id: int) -> None:
        self.keep(self.both("fail", job_id, code="c", message="m", now=self.tick()))

    @rule(job_id=IDS)
    def cancel(self, job_id: int) -> None:
        self.keep(self.both("cancel", job_id, now=self.tick()))

    def keep(self, job: Job | None) -> None:
        if job is not None:
            assert job.id not in self.terminal
            self.terminal[job.id] = job

    @rule(states=st.sets(st.sampled_from(JobState)), limit=st.integers(1, 4), skip=st.integers(0, 2))
    def page(self, states: set[JobState], limit: int, skip: int) -> None:
        for before in (None, 1, 2, 99):
            self.both("page", "key_a", states, limit=limit, before=before, skip=skip)

    @precondition(lambda self: self.now > 2)
    @rule()
    def restart(self) -> None:
        self.runner.run(self.real.close())
        self.real = self.open()
        self.both("requeue_running")

    @invariant()
    def terminal_jobs_stay(self) -> None:
        for job_id, job in self.terminal.items():
            assert self.both("get", job_id) == job

    @invariant()
    def lists_and_counts_agree(self) -> None:
        self.both("queued")
        self.both("undelivered")
        self.both("count")

    def teardown(self) -> None:
        self.runner.run(self.real.close())
        self.runner.close()


def test_any_order_of_calls_keeps_the_contract(tmp_path: Path) -> None:
    Lives.folder = tmp_path
    run_state_machine_as_test(
        Lives,
        settings=settings(
            max_examples=12,
            stateful_step_count=20,
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


# What only a file can promise


async def test_a_restart_finds_every_acknowledged_job(tmp_path: Path) -> None:
    async with opened(sql(tmp_path)) as first:
        await asyncio.gather(*(first.add(make(number)) for number in range(1, 300)))
        await asyncio.gather(*(first.begin(number, now=101.0) for number in range(1, 9)))
    async with opened(sql(tmp_path)) as second:
        assert await second.requeue_running() == 8
        assert [job.id for job in await second.queued()] == list(range(1, 300))


async def test_a_copy_taken_without_closing_holds_every_acknowledged_job(tmp_path: Path) -> None:
    async with opened(sql(tmp_path)) as store:
        await store.add(make())
        copied = sqlite3.connect(tmp_path / "latentd.db")
        assert copied.execute("SELECT id, state FROM jobs").fetchall() == [(1, "queued")]
        copied.close()


async def test_operations_that_arrive_together_share_commits_and_fail_alone(tmp_path: Path) -> None:
    database = Database(tmp_path / "latentd.db")
    commits: list[int] = []

    def count(connection: sa.Connection) -> None:
        commits.append(1)

    async with opened(SqlJobStore(database)) as store:
        sa.event.listen(sa.Engine, "commit", count)
        numbers = [*range(1, 101), *range(1, 101)]
        outcomes = await asyncio.gather(*(store.add(make(n)) for n in numbers), return_exceptions=True)
        sa.event.remove(sa.Engine, "commit", count)
        assert [type(outcome) for outcome in outcomes] == [type(None)] * 100 + [DuplicateJob] * 100
        assert len(await store.queued()) == 100
    assert len(commits) <= 3


async def test_two_processes_may_share_the_file(tmp_path: Path) -> None:
    async with opened(sql(tmp_path)) as one, opened(sql(tmp_path)) as other:
        await one.add(make())
        begun = await asyncio.gather(*(store.begin(1, now=1.0) for store in (one, other) for _ in range(8)))
        assert len([job for job in begun if job is not None]) == 1


async def test_a_caller_who_leaves_disturbs_nobody(tmp_path: Path) -> None:
    async with opened(sql(tmp_path)) as store:
        tasks = [asyncio.create_task(store.add(make(number))) for number in range(1, 51)]
        await asyncio.sleep(0)
        tasks[10].cancel()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(outcome) for outcome in outcomes].count(asyncio.CancelledError) == 1
        assert len(await store.queued()) in (49, 50)


async def test_writes_at_hand_are_finished_by_close(tmp_path: Path) -> None:
    store = sql(tmp_path)
    await store.start()
    adding = [asyncio.create_task(store.add(make(number))) for number in range(1, 601)]
    await asyncio.sleep(0)
    await store.close()
    await asyncio.gather(*adding)
    with pytest.raises(Unavailable):
        await store.add(make(1000))
    async with opened(sql(tmp_path)) as again:
        assert len(await again.queued()) == 600


async def test_a_database_that_cannot_be_written_says_so_and_recovers(tmp_path: Path) -> None:
    """SQLite's own page limit stands in for a full disk."""
    database = Database(tmp_path / "latentd.db")
    async with opened(SqlJobStore(database)) as store:
        await store.add(make(1))
        pages: int = await database.write(lambda c: c.exec_driver_sql("PRAGMA page_count").scalar_one())
        await database.write(lambda c: c.exec_driver_sql(f"PRAGMA max_page_count = {pages + 2}").scalar_one())
        with pytest.raises(Unavailable):
            await store.add(make(2, request={"prompt": "x" * 1_000_000}))
        await store.add(make(3))
        assert [job.id for job in await store.queued()] == [1, 3]


class Panic(BaseException):
    """What libraries written in Rust raise."""


@pytest.mark.parametrize("error", [Panic("broken"), StopIteration()])
async def test_whatever_a_write_raises_the_next_is_written(tmp_path: Path, error: BaseException) -> None:
    database = Database(tmp_path / "latentd.db")

    def fail(connection: sa.Connection) -> int:
        raise error

    await database.start()
    try:
        async with asyncio.timeout(10):
            with pytest.raises(Unavailable):
                await database.write(fail)
            assert await database.write(lambda connection: 1) == 1
    finally:
        await database.close()


async def test_errors_of_the_database_hold_no_values(tmp_path: Path) -> None:
    database = Database(tmp_path / "latentd.db")
    broken = sa.text("INSERT INTO nowhere VALUES (:secret)").bindparams(secret="canary")
    await database.start()
    try:
        with pytest.raises(Unavailable) as written:
            await database.write(lambda connection: connection.execute(broken).rowcount)
        with pytest.raises(Unavailable) as read:
            await database.read(lambda connection: connection.execute(broken).rowcount)
    finally:
        await database.close()
    for error in (written.value, read.value):
        assert "nowhere" in str(error.__cause__)
        assert "canary" not in str(error.__cause__)


async def test_what_is_no_database_is_refused(tmp_path: Path) -> None:
    write_text(tmp_path / "latentd.db", "not a database, and long enough to look at" * 30)
    with pytest.raises(Unavailable, match=r"latentd\.db cannot be opened"):
        await sql(tmp_path).start()


def write_text(file: Path, text: str) -> None:
    file.write_text(text)


async def test_a_newer_database_is_refused(tmp_path: Path) -> None:
    async with opened(sql(tmp_path)) as store:
        await store.add(make())
    with sqlite3.connect(tmp_path / "latentd.db") as newer:
        newer.execute("UPDATE alembic_version SET version_num = '9999'")
    newer.close()
    with pytest.raises(Unavailable, match="written by a newer latentd"):
        await sql(tmp_path).start()


def test_migrations_lead_to_the_tables_in_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    upgrade(tmp_path / "migrated.db")
    upgrade(tmp_path / "migrated.db")
    direct = sa.create_engine(f"sqlite:///{tmp_path}/direct.db")
    metadata.create_all(direct)
    direct.dispose()
    assert schema(tmp_path / "migrated.db") == schema(tmp_path / "direct.db")


def schema(file: Path) -> dict[str, Any]:
    engine = sa.create_engine(f"sqlite:///{file}")
    found = sa.inspect(engine)
    tables = {
        table: (
            [(column["name"], str(column["type"]), column["nullable"]) for column in found.get_columns(table)],
            sorted((str(index["name"]), index["column_names"]) for index in found.get_indexes(table)),
            [unique["column_names"] for unique in found.get_unique_constraints(table)],
        )
        for table in found.get_table_names()
        if table != "alembic_version"
    }
    engine.dispose()
    return tables


@pytest.mark.parametrize(
    ("statement", "index"),
    [
        (sa.select(jobs_table).where(jobs_table.c.id == 1), "sqlite_autoindex_jobs_1"),
        (
            sa.select(jobs_table)
            .where(jobs_table.c.state == "queued")
            .order_by(jobs_table.c.created_at, jobs_table.c.number),
            "jobs_by_state",
        ),
        (sa.select(sa.func.count()).where(jobs_table.c.owner == "a").group_by(jobs_table.c.state), "jobs_by_owner"),
        (
            sa.select(jobs_table)
            .where(jobs_table.c.owner == "a", jobs_table.c.state == "queued", jobs_table.c.number < 9)
            .order_by(jobs_table.c.number.desc()),
            "jobs_by_owner",
        ),
    ],
)
def test_frequent_queries_use_an_index_and_no_sorting(tmp_path: Path, statement: sa.Select[Any], index: str) -> None:
    upgrade(tmp_path / "latentd.db")
    engine = sa.create_engine(f"sqlite:///{tmp_path}/latentd.db")
    text = str(statement.compile(engine, compile_kwargs={"literal_binds": True}))
    with engine.connect() as connection:
        plan = " ".join(str(row) for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {text}"))
    engine.dispose()
    assert index in plan
    assert "TEMP B-TREE" not in plan
