"""Models that somebody wants loaded before anything is drawn with them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from server.engine.models import ResidentModels

#: Called on the device thread: None once the model is loaded, else why it is not.
Told = Callable[[Exception | None], None]


class Wishes:
    """Handed over from any thread, granted on the device thread in their order."""

    def __init__(self) -> None:
        self._open: deque[tuple[str, Told]] = deque()
        self._tried: list[tuple[Told, Exception | None]] = []

    def add(self, model: str, told: Told) -> None:
        """``model`` is wanted."""
        self._open.append((model, told))

    def grant(self, models: ResidentModels, busy: Callable[[], set[str]]) -> bool:
        """Loads what fits without taking a ``busy`` model away; whether anything was tried."""
        while self._open and models.fits(self._open[0][0], busy()):
            model, told = self._open.popleft()
            try:
                models.get(model, busy())
            except Exception as error:
                self._tried.append((told, error))
            else:
                self._tried.append((told, None))
        return bool(self._tried)

    def tell(self) -> None:
        """Tells of what was tried; to be called once the engine's snapshot shows it."""
        while self._tried:
            told, error = self._tried.pop()
            told(error)

    def close(self, error: Exception) -> None:
        """Tells everyone who still waits."""
        while self._open:
            self._open.popleft()[1](error)
