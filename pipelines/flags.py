"""Whether rows are still finite, known without stopping the device."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pipelines.base import Row

#: Steps the host may be ahead of the device. Two keep the launch queue filled; more would only delay joins and
#: cancels, and make measured step times meaningless.
AHEAD = 2


@dataclass(frozen=True, slots=True)
class _Snapshot:
    #: Rows of one step with the slots they were in.
    rows: tuple[tuple[Row, int], ...]
    #: (slots,) bool, on the host once ``event`` has happened.
    flags: Tensor
    #: Recorded behind the copy; None on the CPU, where the copy has happened.
    event: torch.cuda.Event | None


class FiniteFlags:
    """Copies of a pool's ``finite`` vector, one per step, looked at when they have arrived."""

    def __init__(self) -> None:
        self._snapshots: deque[_Snapshot] = deque()
        #: Rows found not finite and not yet forgotten.
        self.failed: set[Row] = set()

    def watch(self, rows: Sequence[tuple[Row, int]], finite: Tensor) -> None:
        """Starts copying the flags of rows that have just been stepped in these slots."""
        if finite.device.type != "cuda":
            self._snapshots.append(_Snapshot(tuple(rows), finite.clone(), None))
            return
        host = torch.empty(finite.shape, dtype=torch.bool, pin_memory=True)
        host.copy_(finite, non_blocking=True)
        event = torch.cuda.Event()
        event.record()
        self._snapshots.append(_Snapshot(tuple(rows), host, event))

    def collect(self, wait_for: Iterable[Row] = ()) -> None:
        """Adds to ``failed`` what has arrived; waits for every snapshot that holds one of ``wait_for``."""
        wanted = set(wait_for)
        while self._snapshots:
            oldest = self._snapshots[0]
            if oldest.event is not None and not oldest.event.query():
                late = len(self._snapshots) > AHEAD
                if not late and not any(row in wanted for one in self._snapshots for row, _ in one.rows):
                    return
                oldest.event.synchronize()
            self._snapshots.popleft()
            flags = oldest.flags.tolist()
            self.failed.update(row for row, slot in oldest.rows if not flags[slot])

    def forget(self, row: Row) -> None:
        """The row leaves its slot: what is still on its way says nothing about it any more."""
        self.failed.discard(row)
        self._snapshots = deque(
            _Snapshot(tuple(pair for pair in one.rows if pair[0] is not row), one.flags, one.event)
            for one in self._snapshots
        )
