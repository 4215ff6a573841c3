"""Calls that may come only so often."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable

from server.errors import QueueFull

_WINDOW_S = 60.0


class Throttle:
    """Counts the calls of the last minute, by caller: one number for each, so as many as there are keys."""

    def __init__(self, *, per_minute: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_minute = per_minute
        self._clock = clock
        self._calls: dict[str, deque[float]] = {}

    def admit(self, caller: str) -> None:
        """One more call. Raises ``QueueFull``, which says when the next one may come."""
        now = self._clock()
        calls = self._calls.setdefault(caller, deque())
        while calls and calls[0] <= now - _WINDOW_S:
            calls.popleft()
        if len(calls) >= self._per_minute:
            wait_s = max(math.ceil(calls[0] + _WINDOW_S - now), 1)
            raise QueueFull(
                f"Rate limit exceeded. Maximum {self._per_minute} requests per minute.", retry_after_s=wait_s
            )
        calls.append(now)
