"""An executor without a device: for tests of everything above it, and for trying the HTTP side alone."""

from __future__ import annotations

import asyncio
import time
import zlib
from collections import deque
from collections.abc import Collection, Iterable

import numpy as np
from numpy.typing import NDArray

from pipelines.errors import Cancelled, DeadlineExceeded
from pipelines.request import ImageRequest, Request
from pipelines.vision import Answer, VisionRequest
from server.engine.executors.base import EngineStats, Generation, Outcome, Picture, Preview, Progress

_SEED_SPACE = 2**63


def paint(prompt: str, seed: int, width: int, height: int) -> NDArray[np.uint8]:
    """A picture that depends on prompt and seed only: (height, width, 3), two crossed gradients."""
    draw = np.random.default_rng([zlib.crc32(prompt.encode("utf-8", "replace")), seed])
    corners = draw.integers(0, 256, size=(2, 3)).astype(np.float32)
    across = np.linspace(0, 1, width, dtype=np.float32)[None, :, None]
    down = np.linspace(0, 1, height, dtype=np.float32)[:, None, None]
    pixels: NDArray[np.float32] = (corners[0] * across + corners[1] * down) / 2
    return pixels.astype(np.uint8)


class _StubGeneration:
    def __init__(self, executor: StubExecutor, request: Request, *, deadline: float | None) -> None:
        self.request = request
        self.deadline = deadline
        self.arrived = time.monotonic()
        self.began: float | None = None
        self.started = asyncio.Event()
        self._executor = executor
        self._work = asyncio.ensure_future(executor.draw(self))
        self._work.add_done_callback(self._end)

    @property
    def ended(self) -> bool:
        return self._work.done()

    async def outcome(self) -> Outcome:
        try:
            return await asyncio.shield(self._work)
        except asyncio.CancelledError:
            if not self._work.cancelled():
                raise
            raise Cancelled("The request was cancelled.") from None

    async def begun(self) -> bool:
        await self.started.wait()
        return self.began is not None

    def cancel(self) -> None:
        self._work.cancel()

    def progress(self) -> Progress:
        return self._executor.measure(self)

    def previews(self) -> tuple[Preview, ...]:
        """The first picture an eighth as large, while it is drawn, as if after one call."""
        if self.began is None or self.ended or not isinstance(self.request, ImageRequest):
            return ()
        request = self.request
        pixels = paint(request.prompt, request.seed, request.width // 8, request.height // 8)
        return (Preview(index=0, step=1, pixels=pixels),)

    def _end(self, work: asyncio.Future[Outcome]) -> None:
        self.started.set()
        if not work.cancelled():
            # Nobody may be waiting any more; that is no error of its own.
            work.exception()


class StubExecutor:
    """Paints at once, or after ``delay_s``, or when released; fails when told to.

    One event loop only. ``requests`` keeps what was handed over, in order, for assertions.
    """

    def __init__(
        self,
        *,
        delay_s: float = 0.0,
        held: bool = False,
        warnings: Iterable[str] = (),
        per_row_s: float = 0.0,
        flags: Collection[str] = (),
    ) -> None:
        #: Prompts whose pictures are flagged where they are checked.
        self.flags = flags
        #: Those for pictures, and those about pictures.
        self.requests: list[ImageRequest] = []
        self.questions: list[VisionRequest] = []
        self._delay_s = delay_s
        self._warnings = tuple(warnings)
        self._per_row_s = per_row_s
        self._failures: deque[Exception] = deque()
        self._gate = asyncio.Event()
        if not held:
            self._gate.set()
        self._open: list[_StubGeneration] = []
        self._arrived = asyncio.Event()
        self._alive = False
        self._steps = 0
        self._loaded: list[str] = []

    async def start(self) -> None:
        self._alive = True

    async def close(self) -> None:
        self._alive = False
        for generation in self._open:
            generation.cancel()

    def submit(self, request: Request, *, deadline: float | None = None) -> Generation:
        generation = _StubGeneration(self, request, deadline=deadline)
        if isinstance(request, ImageRequest):
            self.requests.append(request)
        else:
            assert isinstance(request, VisionRequest)
            self.questions.append(request)
        self._arrived.set()
        self._open = [one for one in self._open if not one.ended]
        self._open.append(generation)
        return generation

    async def preload(self, model: str) -> None:
        await self._gate.wait()
        if self._failures:
            raise self._failures.popleft()
        self._loaded.append(model)

    async def inspect(self, pixels: NDArray[np.uint8]) -> bool:
        """Flags what is red all over."""
        return bool((pixels == (255, 0, 0)).all())

    def stats(self) -> EngineStats:
        now = time.monotonic()
        waiting = [one for one in self._open if not one.ended and one.began is None]
        running = [one for one in self._open if not one.ended and one.began is not None]
        return EngineStats(
            waiting_requests=len(waiting),
            oldest_wait_s=max((now - one.arrived for one in waiting), default=0.0),
            running_rows=sum(one.request.rows for one in running),
            forwards_total=self._steps,
            row_steps_total=self._steps,
            rows_per_forward={1: self._steps} if self._steps else {},
            per_row_s=self._per_row_s,
            loaded_models=tuple(self._loaded),
            heartbeat=now,
            alive=self._alive,
        )

    async def received(self, count: int) -> None:
        """Waits until so many requests were handed over."""
        while len(self.requests) + len(self.questions) < count:
            self._arrived.clear()
            await self._arrived.wait()

    def hold(self) -> None:
        """Requests wait from now on."""
        self._gate.clear()

    def release(self) -> None:
        """Requests that wait, and later ones, are drawn."""
        self._gate.set()

    def fail_next(self, error: Exception) -> None:
        """The next request to be drawn raises ``error``; calls queue up."""
        self._failures.append(error)

    async def draw(self, generation: _StubGeneration) -> Outcome:
        await self._wait(generation)
        generation.began = time.monotonic()
        generation.started.set()
        await asyncio.sleep(self._delay_s)
        if self._failures:
            raise self._failures.popleft()
        self._steps += generation.request.calls
        return self._outcome(generation.request, time.monotonic() - generation.began)

    def _outcome(self, request: Request, seconds: float) -> Outcome:
        if isinstance(request, VisionRequest):
            answer = Answer(text=f"{request.task}: {request.prompt}")
            return Outcome(pictures=(), seconds=seconds, scheduler="", warnings=self._warnings, answers=(answer,))
        assert isinstance(request, ImageRequest)
        flagged = request.safety is not None and request.prompt in self.flags
        seeds = [(request.seed + i) % _SEED_SPACE for i in range(request.samples)]
        return Outcome(
            pictures=tuple(
                Picture(pixels=paint(request.prompt, seed, request.width, request.height), seed=seed, nsfw=flagged)
                for seed in seeds
            ),
            seconds=seconds,
            scheduler=request.scheduler or "EulerDiscreteScheduler",
            warnings=self._warnings,
        )

    async def _wait(self, generation: _StubGeneration) -> None:
        remaining = None if generation.deadline is None else generation.deadline - time.monotonic()
        try:
            async with asyncio.timeout(remaining):
                await self._gate.wait()
                await asyncio.sleep(0)
        except TimeoutError:
            raise DeadlineExceeded("The request's deadline passed before it was drawn.") from None

    def measure(self, generation: _StubGeneration) -> Progress:
        steps = generation.request.calls
        waiting = [one for one in self._open if not one.ended and one.began is None]
        position = waiting.index(generation) if generation in waiting else 0
        return Progress(
            step=steps if generation.ended else 0,
            steps=steps,
            position=position,
            eta_s=0.0 if generation.ended else self._delay_s * (position + 1),
        )
