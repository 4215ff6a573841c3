"""How fast jobs come out while others wait."""

from __future__ import annotations

#: Weight of the newest interval in the mean.
_WEIGHT = 0.2


class Pace:
    """The mean time between two finished jobs. No clock: ``now`` is an argument, in seconds."""

    def __init__(self) -> None:
        #: Seconds from one finished job to the next; a guess before two have been seen.
        self.seconds = 1.0
        self._last: float | None = None

    def finished(self, now: float, *, waiting: bool) -> None:
        """A job is done; the interval before it counts where another was waiting."""
        if self._last is not None and waiting:
            self.seconds += _WEIGHT * (now - self._last - self.seconds)
        self._last = now
