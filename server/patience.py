"""What the database cannot do for the moment is tried again, until the server closes."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TypeVar

from server.errors import Unavailable

T = TypeVar("T")

logger = logging.getLogger(__name__)

#: Longest pause between two tries.
_LONGEST_PAUSE_S = 10.0


class Interrupted(Exception):
    """The server closes or cannot draw any more: the job is left to be drawn at the next start."""


class Patience:
    """Repeats accesses to a store, with growing pauses."""

    def __init__(self, *, pause_s: float) -> None:
        self._pause_s = pause_s
        self._ended = asyncio.Event()

    @property
    def ended(self) -> bool:
        """``end`` was called."""
        return self._ended.is_set()

    def end(self) -> None:
        """From now on every access is tried once."""
        self._ended.set()

    async def insist(self, access: Callable[[], Awaitable[T]]) -> T:
        """The access's result, once there is one. Raises ``Interrupted`` when that is not before ``end``.

        What the store refuses for another reason than ``Unavailable`` is raised at once.
        """
        pause_s = self._pause_s
        while True:
            try:
                return await access()
            except Unavailable as error:
                if self.ended:
                    raise Interrupted from error
                logger.warning("%s; next try in %g s", error, pause_s)
            with suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await self._ended.wait()
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
