"""The jobs that wait for the executor: who is next, who has too many, how many are ahead. No clock, no I/O."""

from __future__ import annotations

import heapq
from collections import Counter

from server.errors import QueueFull


class Backlog:
    """Job ids, most urgent first; a few dozen bytes each.

    As in the lanes, a job of priority p counts as if it had arrived p x ``aging_s`` earlier, so that none starves.

    A place is taken with ``reserve`` before the job is stored and given back with ``free`` when it is terminal, so
    jobs that are being drawn count as well.
    """

    def __init__(self, *, max_jobs: int, max_jobs_per_owner: int, aging_s: float) -> None:
        self._max_jobs = max_jobs
        self._max_jobs_per_owner = max_jobs_per_owner
        self._aging_s = aging_s
        self._heap: list[tuple[float, int, int]] = []
        self._sequences: dict[int, int] = {}
        self._next_sequence = 0
        self._last_taken = -1
        self._places: Counter[str] = Counter()
        self._taken = 0

    def __len__(self) -> int:
        return len(self._sequences)

    def reserve(self, owner: str, *, forced: bool = False) -> None:
        """Takes a place, whatever the limits when ``forced``. Raises ``QueueFull``."""
        if not forced and self._places[owner] >= self._max_jobs_per_owner:
            raise QueueFull(f"Maximum {self._max_jobs_per_owner} queued requests allowed.")
        if not forced and self._taken >= self._max_jobs:
            raise QueueFull(f"The server's queue is full: maximum {self._max_jobs} queued requests allowed.")
        self._places[owner] += 1
        self._taken += 1

    def free(self, owner: str) -> None:
        """Gives a place back."""
        self._places[owner] -= 1
        self._taken -= 1
        if self._places[owner] <= 0:
            del self._places[owner]

    def push(self, job_id: int, *, arrived: float, priority: int = 0) -> None:
        """A job waits from now on; ``arrived`` in seconds."""
        self._sequences[job_id] = self._next_sequence
        heapq.heappush(self._heap, (arrived - self._aging_s * priority, self._next_sequence, job_id))
        self._next_sequence += 1

    def pop(self) -> int | None:
        """Takes the next job; None when nothing waits."""
        while self._heap:
            _, sequence, job_id = heapq.heappop(self._heap)
            if self._sequences.pop(job_id, None) is not None:
                self._last_taken = max(self._last_taken, sequence)
                return job_id
        return None

    def drop(self, job_id: int) -> None:
        """Forgets a waiting job; nothing happens if it does not wait."""
        self._sequences.pop(job_id, None)

    def ahead(self, job_id: int) -> int:
        """About how many waiting jobs go first; 0 for a job that does not wait. Constant time, so not exact."""
        sequence = self._sequences.get(job_id)
        if sequence is None:
            return 0
        return min(max(sequence - self._last_taken - 1, 0), len(self._sequences) - 1)
