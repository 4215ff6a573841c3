"""What a step of a lane takes, learned from the steps it has taken."""

from __future__ import annotations

from collections import deque

#: Weight of the newest measurement in what is expected of the next step.
NEWEST = 0.2
#: Measurements of one number of entries that are kept, and how many it takes to decide by them.
KEPT = 16
ENOUGH = 5


class StepCosts:
    """Seconds per forward of one group by its number of entries. Pure: it is told times, it takes none."""

    def __init__(self) -> None:
        self._recent: dict[int, deque[float]] = {}
        self._expected: dict[int, float] = {}
        #: Seconds of device time per row and call, whatever the number of rows was; None before the first step.
        self.per_row: float | None = None

    def observe(self, *, entries: int, rows: int, seconds: float) -> None:
        """A forward took so long."""
        # A coarse clock may see no time pass at all.
        seconds = max(seconds, 1e-9)
        self._recent.setdefault(entries, deque(maxlen=KEPT)).append(seconds)
        before = self._expected.get(entries, seconds)
        self._expected[entries] = before + NEWEST * (seconds - before)
        share = seconds / rows
        self.per_row = share if self.per_row is None else self.per_row + NEWEST * (share - self.per_row)

    def expect(self, entries: int, default: float) -> float:
        """Seconds of the next forward with so many entries, from the nearest number seen; ``default`` before any."""
        if not self._expected:
            return default
        return self._expected[min(self._expected, key=lambda seen: (abs(seen - entries), seen))]

    def gain(self, parts: list[int]) -> float | None:
        """How much faster one forward over all parts is than one forward per part; None while that is unknown.

        Only what was measured often counts, by its fastest times: whatever else the machine does only adds to a
        measurement, and a guess between two noisy ones would be wrong in both directions.
        """
        together = self._fastest(sum(parts))
        alone = [self._fastest(part) for part in parts]
        if together is None or None in alone:
            return None
        return sum(seconds for seconds in alone if seconds is not None) / together

    def _fastest(self, entries: int) -> float | None:
        recent = self._recent.get(entries, ())
        return min(recent) if len(recent) >= ENOUGH else None
