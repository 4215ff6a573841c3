"""What is wanted of the device beside drawing: models loaded ahead, a picture looked at."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial

from server.engine.models import ResidentModels

#: Called on the device thread: None once it is done, else why it is not.
Told = Callable[[Exception | None], None]


class Wishes:
    """Handed over from any thread, granted on the device thread in their order."""

    def __init__(self) -> None:
        self._open: deque[tuple[str, Told]] = deque()
        self._errands: deque[tuple[Callable[[], None], Told]] = deque()
        self._tried: list[tuple[Told, Exception | None]] = []

    def add(self, model: str, told: Told) -> None:
        """``model`` is wanted."""
        self._open.append((model, told))

    def run(self, work: Callable[[], None], told: Told) -> None:
        """``work``, which is short, is to be done on the device thread."""
        self._errands.append((work, told))

    def grant(self, models: ResidentModels, busy: Callable[[], set[str]]) -> bool:
        """Does one piece of work, and loads one model that fits without taking a ``busy`` one away.

        One, for rows wait meanwhile; True if anything was tried: there may be more.
        """
        if self._errands:
            work, told = self._errands.popleft()
            self._try(work, told)
            # It may have brought the safety checker onto the device.
            models.make_room(busy())
        if self._open and models.fits(self._open[0][0], busy()):
            model, told = self._open.popleft()
            self._try(partial(models.get, model, busy()), told)
        return bool(self._tried)

    def _try(self, work: Callable[[], object], told: Told) -> None:
        try:
            work()
        except Exception as error:
            self._tried.append((told, error))
        else:
            self._tried.append((told, None))

    def tell(self) -> None:
        """Tells of what was tried; to be called once the engine's snapshot shows it."""
        while self._tried:
            told, error = self._tried.pop()
            told(error)

    def close(self, error: Exception) -> None:
        """Tells everyone who still waits."""
        while self._open:
            self._open.popleft()[1](error)
        while self._errands:
            self._errands.popleft()[1](error)
