"""An executor in this process: one engine on one device."""

from __future__ import annotations

import asyncio
import importlib
import itertools
import logging
import time
from collections.abc import Callable
from dataclasses import replace

from pipelines.base import Pipeline
from pipelines.errors import Error
from pipelines.inputs import ReadInput
from pipelines.model import ModelSpec
from pipelines.registry import FAMILIES
from pipelines.request import ImageRequest
from server.engine.engine import Engine
from server.engine.executors.base import EngineStats, Outcome, Progress
from server.engine.tickets import Ticket
from server.engine.worker import Worker

logger = logging.getLogger(__name__)


class LocalGeneration:
    """A request in the local engine; see ``executors.base.Generation``."""

    def __init__(
        self, engine: Engine, ticket: Ticket, future: asyncio.Future[Outcome], begun: asyncio.Future[bool]
    ) -> None:
        self._engine = engine
        self._ticket = ticket
        self._future = future
        self._begun = begun

    async def outcome(self) -> Outcome:
        """See ``Generation.outcome``; cancelling the caller does not cancel the request."""
        return await asyncio.shield(self._future)

    async def begun(self) -> bool:
        """See ``Generation.begun``."""
        return await asyncio.shield(self._begun)

    def cancel(self) -> None:
        """See ``Generation.cancel``."""
        self._engine.cancel(self._ticket)

    def progress(self) -> Progress:
        """See ``Generation.progress``."""
        return self._engine.outlook.progress(self._ticket)


class LocalExecutor:
    """One engine and its device thread; see ``executors.base.Executor``."""

    def __init__(
        self,
        spec: Callable[[str], ModelSpec],
        *,
        device: str = "auto",
        threads: int = 0,
        max_rows: int = 16,
        max_resident: int = 3,
        read_input: ReadInput | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._spec = spec
        self._read_input = read_input
        self._device = device
        self._threads = threads
        # Twice what one forward takes: an urgent request can enter a full lane and go first.
        self._slots = 2 * max_rows
        self._clock = clock
        self._numbers = itertools.count()
        self.engine = Engine(self._load, max_rows=max_rows, slots=self._slots, max_resident=max_resident, clock=clock)
        self._worker = Worker(self.engine)

    async def start(self) -> None:
        """See ``Executor.start``."""
        self._worker.start()

    async def close(self) -> None:
        """See ``Executor.close``."""
        await asyncio.to_thread(self._worker.close)

    def submit(self, request: ImageRequest, *, deadline: float | None = None) -> LocalGeneration:
        """See ``Executor.submit``."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Outcome] = loop.create_future()
        begun: asyncio.Future[bool] = loop.create_future()

        def begin(admitted: bool) -> None:
            if not begun.done():
                begun.set_result(admitted)

        def resolve(result: Outcome | Error) -> None:
            begin(False)
            if isinstance(result, Error):
                future.set_exception(result)
                # Nobody may be waiting any more; that is no error of its own.
                future.exception()
            else:
                future.set_result(result)

        def tell(call: Callable[..., None], *values: object) -> None:
            try:
                loop.call_soon_threadsafe(call, *values)
            except RuntimeError:
                logger.info("a request moved on after its event loop had been closed")

        ticket = Ticket(
            request,
            number=next(self._numbers),
            arrived=self._clock(),
            deadline=deadline,
            done=lambda result: tell(resolve, result),
            begun=lambda: tell(begin, True),
        )
        self.engine.submit(ticket)
        return LocalGeneration(self.engine, ticket, future, begun)

    def stats(self) -> EngineStats:
        """See ``Executor.stats``."""
        return replace(self.engine.stats, alive=self._worker.alive)

    def _load(self, name: str) -> Pipeline:
        """Runs on the device thread, which is the only one that imports torch."""
        import torch

        from pipelines import demo
        from pipelines.device import pick_device
        from pipelines.quiet import quiet_libraries

        if self._threads:
            torch.set_num_threads(self._threads)
        quiet_libraries()
        spec = self._spec(name)
        if spec.demo is not None:
            demo.ensure(spec.demo, spec.folder.parent)
        module, _, family = FAMILIES[spec.family].partition(":")
        load = getattr(importlib.import_module(module), family).load
        pipeline = load(spec, pick_device(self._device), self._slots, self._read_input)
        assert isinstance(pipeline, Pipeline)
        return pipeline
