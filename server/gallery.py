"""Pictures of jobs: encoded on threads of their own, stored all or none, and taken away again."""

from __future__ import annotations

import asyncio
import logging
from concurrent.futures import ThreadPoolExecutor

from server.engine.executors.base import Outcome, Picture
from server.jobs.base import Job
from server.parameters import texts
from server.storage.base import ImageStore
from server.storage.formats import Encoding, encode
from server.storage.names import extension

logger = logging.getLogger(__name__)


class Gallery:
    """What the service stores of an outcome. ``close`` at the end; nothing to start."""

    def __init__(self, images: ImageStore, *, encoders: int = 2, quality: int = 92, parameters: bool = True) -> None:
        self._images = images
        self._quality = quality
        #: Pictures say inside what was asked for.
        self._parameters = parameters
        self._encoders = ThreadPoolExecutor(max_workers=encoders, thread_name_prefix="encode")

    async def keep(self, job: Job, outcome: Outcome) -> None:
        """Stores every picture or, when one cannot be stored, none: a job that fails leaves no files."""
        keeping = (
            self._put(job, name, picture, outcome.scheduler)
            for name, picture in zip(job.outputs, outcome.pictures, strict=True)
        )
        failures = [one for one in await asyncio.gather(*keeping, return_exceptions=True) if one is not None]
        if failures:
            await self.discard(job)
            raise failures[0]

    async def discard(self, job: Job) -> None:
        """Takes the job's files away; what cannot be removed is logged and left over."""
        for error in await asyncio.gather(*map(self._images.delete, job.outputs), return_exceptions=True):
            if error is not None:
                logger.warning("job %d: a file is left over: %s", job.id, error)

    def close(self) -> None:
        """Waits for what is being encoded."""
        self._encoders.shutdown()

    async def _put(self, job: Job, name: str, picture: Picture, scheduler: str) -> None:
        text = texts(job.request, job_id=job.id, seed=picture.seed, scheduler=scheduler) if self._parameters else {}
        encoding = Encoding(extension=extension(name), quality=self._quality, text=text)
        data = await asyncio.get_running_loop().run_in_executor(self._encoders, encode, picture.pixels, encoding)
        await self._images.put(name, data)
