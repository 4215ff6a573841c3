"""One SQLite file: readers in parallel, one writer whose commits are shared.

Statements run in threads of the database's own, on SQLAlchemy's plain engine: a whole batch of writes is one hop to a
thread and back, where the asynchronous engine makes one per statement (and needs greenlet and aiosqlite besides).
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.util import CommandError

from server.errors import Unavailable

T = TypeVar("T")

logger = logging.getLogger(__name__)

#: Runs statements and returns what the caller needs of their rows; on a thread, so it touches nothing else.
Operation = Callable[[sa.Connection], T]

MIGRATIONS = Path(__file__).parent / "migrations"

#: Operations in one commit; bounds how long the first of them waits.
MAX_BATCH = 256
#: Fewer than SQLAlchemy's five pooled connections, so that the writer never waits for one.
READERS = 4


@dataclass(frozen=True, kw_only=True)
class _Write:
    """An operation and who waits for it."""

    operation: Operation[Any]
    done: asyncio.Future[Any]


@dataclass(frozen=True, kw_only=True)
class _Open:
    """What exists between start and close."""

    engine: sa.Engine
    readers: ThreadPoolExecutor
    writer: ThreadPoolExecutor
    #: None ends the writing.
    queue: asyncio.Queue[_Write | None]
    writing: asyncio.Task[None]


class Database:
    """Shared by the stores; the first ``start`` opens it, the last ``close`` closes it."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self._users = 0
        self._changing = asyncio.Lock()
        self._open: _Open | None = None

    async def start(self) -> None:
        """Opens the file and brings its schema up to date. Raises ``Unavailable`` if that cannot be done."""
        async with self._changing:
            if self._users == 0:
                await asyncio.to_thread(upgrade, self.file)
                engine = _engine(self.file)
                queue: asyncio.Queue[_Write | None] = asyncio.Queue()
                writer = ThreadPoolExecutor(1, thread_name_prefix="database-writer")
                self._open = _Open(
                    engine=engine,
                    readers=ThreadPoolExecutor(READERS, thread_name_prefix="database-reader"),
                    writer=writer,
                    queue=queue,
                    writing=asyncio.create_task(_write_batches(engine, writer, queue), name="database writer"),
                )
            self._users += 1

    async def close(self) -> None:
        """The last user's call finishes the writes at hand, then closes the connections."""
        async with self._changing:
            self._users -= 1
            if self._users == 0 and self._open is not None:
                # First nothing new, then the queued writes, then the threads, then the connections they used.
                closing, self._open = self._open, None
                closing.queue.put_nowait(None)
                await closing.writing
                await asyncio.to_thread(closing.readers.shutdown)
                closing.writer.shutdown()
                closing.engine.dispose()

    async def read(self, operation: Operation[T]) -> T:
        """The result of an operation that changes nothing and sees everything committed so far."""
        opened = self._opened()
        return await asyncio.get_running_loop().run_in_executor(opened.readers, _read, opened.engine, operation)

    async def write(self, operation: Operation[T]) -> T:
        """Runs the operation and returns its result after the commit.

        Operations that arrive while a commit is being written to disk share the next one (14,374 rows/s instead of
        381, reliability.md 3.4). Each runs in a savepoint: one that raises is undone alone. Raises what the operation
        raised, or ``Unavailable`` when the commit failed.
        """
        done: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._opened().queue.put_nowait(_Write(operation=operation, done=done))
        return await done

    def _opened(self) -> _Open:
        if self._open is None:
            raise Unavailable("The database is closed")
        return self._open


async def _write_batches(engine: sa.Engine, thread: ThreadPoolExecutor, queue: asyncio.Queue[_Write | None]) -> None:
    """Gathers, commits, answers; None is the last thing that is ever put."""
    ended = False
    while not ended:
        arrived = [await queue.get()]
        # One turn of the loop: submits that came in together get their chance to queue.
        await asyncio.sleep(0)
        while len(arrived) < MAX_BATCH and not queue.empty():
            arrived.append(queue.get_nowait())
        ended = arrived[-1] is None
        # Who was cancelled while queueing wants nothing any more.
        batch = [write for write in arrived if write is not None and not write.done.done()]
        await _write_batch(engine, thread, batch)


async def _write_batch(engine: sa.Engine, thread: ThreadPoolExecutor, batch: list[_Write]) -> None:
    """A boundary: whatever comes of one batch, the next is written."""
    operations = [write.operation for write in batch]
    try:
        outcomes = await asyncio.get_running_loop().run_in_executor(thread, _commit, engine, operations)
        for write, (result, failure) in zip(batch, outcomes, strict=True):
            _answer(write, result, failure)
    except asyncio.CancelledError:
        raise
    except BaseException as error:
        # Not only Exception: what an operation raises on the thread is no reason for this loop to end.
        logger.exception("a batch of %d writes failed", len(batch))
        for write in batch:
            _answer(write, None, _unavailable(error))


def _answer(write: _Write, result: Any, failure: Exception | None) -> None:
    if write.done.done():
        return  # Cancelled during the commit; the change stands.
    if failure is None:
        write.done.set_result(result)
    else:
        write.done.set_exception(failure)


def _read(engine: sa.Engine, operation: Operation[T]) -> T:
    try:
        with engine.connect() as connection:
            return operation(connection)
    except sa.exc.OperationalError as error:
        raise Unavailable("The server cannot read its database") from error


def _commit(engine: sa.Engine, operations: list[Operation[Any]]) -> list[tuple[Any, Exception | None]]:
    """Runs all in one transaction: for each its result or what it raised, and for all the same when nothing counts."""
    try:
        with engine.connect() as connection:
            connection.execution_options(latentd_writes=True)
            with connection.begin():
                return [_run(connection, operation) for operation in operations]
    except Exception as error:
        return [(None, _unavailable(error))] * len(operations)


def _unavailable(cause: BaseException) -> Unavailable:
    unavailable = Unavailable("The server cannot write to its database")
    unavailable.__cause__ = cause
    return unavailable


def _run(connection: sa.Connection, operation: Operation[Any]) -> tuple[Any, Exception | None]:
    try:
        with connection.begin_nested():
            return operation(connection), None
    except sa.exc.OperationalError:
        # A full disk or a lost file may have ended the whole transaction: nothing of the batch may count.
        raise
    except Exception as error:
        return None, error


def _engine(file: Path, **execution_options: bool) -> sa.Engine:
    """SQLite as a server wants it, with transactions that begin where SQLAlchemy says so."""
    engine = sa.create_engine(
        sa.URL.create("sqlite", database=str(file)),
        execution_options=execution_options,
        # Errors are logged, and parameters are prompts, webhooks with their secrets, hashes of keys.
        hide_parameters=True,
    )

    @sa.event.listens_for(engine, "connect")
    def set_up(connection: sqlite3.Connection, _: object) -> None:
        # Otherwise the driver begins transactions on its own, too late for savepoints and schema changes.
        connection.isolation_level = None
        cursor = connection.cursor()
        cursor.execute("PRAGMA busy_timeout = 5000")
        cursor.execute("PRAGMA journal_mode = WAL")
        # A committed job survives a power cut; NORMAL would lose the last ones.
        cursor.execute("PRAGMA synchronous = FULL")
        cursor.execute("PRAGMA foreign_keys = ON")
        cursor.close()

    @sa.event.listens_for(engine, "begin")
    def begin(connection: sa.Connection) -> None:
        # A writer takes the lock at once: upgrading a read lock later fails without waiting for busy_timeout.
        writes = connection.get_execution_options().get("latentd_writes", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine


def upgrade(file: Path) -> None:
    """Brings the file's schema up to date, in one transaction; blocks. Raises ``Unavailable``."""
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    engine = _engine(file, latentd_writes=True)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with engine.begin() as connection:
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
    except CommandError as error:
        raise Unavailable(f"The database {file.name} was written by a newer latentd") from error
    except (sa.exc.DatabaseError, OSError) as error:
        raise Unavailable(f"The database {file.name} cannot be opened") from error
    finally:
        engine.dispose()
