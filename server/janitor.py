"""Deletes what was kept long enough: pictures by age and for want of room, and input pictures that nobody needs."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import suppress
from typing import Any

from server.gallery import Gallery
from server.inputs import Inputs
from server.jobs.base import Job, JobStore
from server.storage.base import ImageStore

logger = logging.getLogger(__name__)

EXPIRED = "The images of this request have expired and were deleted."

#: Seconds that temporary pictures are kept.
TEMPORARY_S = 24 * 3600.0
_DAY_S = 24 * 3600.0
#: Temporary files that no job answers for go this much later, so that a job always expires with its files.
_SLACK_S = 3600.0
_PAGE = 200
_DIGEST = re.compile(r"[0-9a-f]{64}")


class Janitor:
    """Sweeps when it is started and then every ``every_s`` seconds, in a task of its own.

    0 days or gigabytes mean without end. Pictures go with the oldest job first; the job then says that it has expired.
    Input pictures go when they have not been sent or used for ``input_retention_days``, unless an unfinished job needs
    them.
    """

    def __init__(
        self,
        jobs: JobStore,
        images: ImageStore,
        gallery: Gallery,
        inputs: Inputs,
        *,
        retention_days: float = 0.0,
        max_storage_gb: float = 0.0,
        input_retention_days: float = 1.0,
        every_s: float = 600.0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._jobs = jobs
        self._images = images
        self._gallery = gallery
        self._inputs = inputs
        self._retention_s = retention_days * _DAY_S
        self._max_bytes = max_storage_gb * 1e9
        self._input_retention_s = input_retention_days * _DAY_S
        self._every_s = every_s
        self._clock = clock
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begins the first sweep and returns."""
        self._task = asyncio.create_task(self._run(), name="janitor")

    async def close(self) -> None:
        """Ends between two files; what is left is for the next start."""
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task

    async def sweep(self) -> None:
        """All there is to delete now; whatever goes wrong with one kind keeps no other from its turn."""
        for stage in (self._sweep_temporary, self._sweep_old, self._make_room, self._sweep_inputs):
            try:
                await stage(self._clock())
            except Exception:
                logger.exception("%s failed, tried again in %g s", stage.__name__.strip("_"), self._every_s)

    async def _run(self) -> None:
        while True:
            await self.sweep()
            await asyncio.sleep(self._every_s)

    async def _sweep_temporary(self, now: float) -> None:
        async for job in self._finished(now - TEMPORARY_S, temporary=True):
            await self._expire(job)
        for name in await self._images.temporary(before=now - TEMPORARY_S - _SLACK_S):
            await self._images.delete(name)

    async def _sweep_old(self, now: float) -> None:
        if self._retention_s:
            async for job in self._finished(now - self._retention_s):
                await self._expire(job)

    async def _make_room(self, now: float) -> None:
        if not self._max_bytes:
            return
        used = await self._images.used_bytes()
        if used <= self._max_bytes:
            return
        async for job in self._finished(now):
            used -= await self._size(job)
            await self._expire(job)
            if used <= self._max_bytes:
                return

    async def _sweep_inputs(self, now: float) -> None:
        if self._input_retention_s:
            # Asked before the ages are looked at: what a job needs that is stored from now on is young.
            needed = {digest for job in await self._jobs.unfinished() for digest in _digests(job.request.values())}
            await self._inputs.sweep(before=now - self._input_retention_s, needed=needed)

    async def _finished(self, until: float, *, temporary: bool = False) -> AsyncIterator[Job]:
        """Each is to be expired before the next is asked for, or the pages do not end."""
        while page := await self._jobs.finished(until=until, temporary=temporary, limit=_PAGE):
            for job in page:
                yield job

    async def _size(self, job: Job) -> int:
        stored = [await self._images.get(name) for name in job.outputs]
        return sum(image.size for image in stored if image is not None)

    async def _expire(self, job: Job) -> None:
        # Files first: after a crash in between the job is found again.
        await self._gallery.discard(job)
        await self._jobs.expire(job.id, message=EXPIRED)


def _digests(values: Iterable[Any]) -> set[str]:
    """Whatever looks like the name of an input, however deep: no kind of input is to be forgotten here."""
    found: set[str] = set()
    for value in values:
        if isinstance(value, dict):
            found |= _digests(value.values())
        elif isinstance(value, list | tuple):
            found |= _digests(value)
        elif isinstance(value, str) and _DIGEST.fullmatch(value):
            found.add(value)
    return found
