"""Models loaded ahead: several may ask for one, and nobody has to wait for it."""

from __future__ import annotations

import asyncio

from server.engine.executors.base import Executor


class Preloads:
    """One event loop; ``close`` before the executor is closed."""

    def __init__(self, executor: Executor) -> None:
        self._executor = executor
        self._loading: dict[str, asyncio.Task[None]] = {}

    async def load(self, model: str, seconds: float) -> bool:
        """Whether the model, an id, is loaded after at most ``seconds``; it goes on loading if not.

        Raises what loading it raised.
        """
        if model in self._executor.stats().loaded_models:
            return True
        task = self._loading.get(model)
        if task is None:
            task = self._loading[model] = asyncio.create_task(self._executor.preload(model), name=f"preload {model}")
            task.add_done_callback(lambda done: self._forget(model, done))
        await asyncio.wait((task,), timeout=seconds)
        if task.done():
            task.result()
        return task.done()

    async def close(self) -> None:
        """Stops waiting for what is loading."""
        tasks = list(self._loading.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _forget(self, model: str, task: asyncio.Task[None]) -> None:
        del self._loading[model]
        if not task.cancelled():
            # Nobody may be waiting any more; the next request for the model is told.
            task.exception()
