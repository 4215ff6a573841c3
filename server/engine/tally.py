"""What an engine has done since it started."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Tally:
    """Counts, as ``EngineStats`` shows them."""

    rows_per_forward: Counter[int] = field(default_factory=Counter)
    #: Forwards, and rows on their way in, that the memory was too small for.
    memory_errors: int = 0
    non_finite: int = 0

    def stepped(self, rows: int) -> None:
        """A forward of so many rows."""
        self.rows_per_forward[rows] += 1

    def totals(self) -> dict[str, Any]:
        """By the names of ``EngineStats``' fields."""
        return {
            "forwards_total": self.rows_per_forward.total(),
            "row_steps_total": sum(rows * forwards for rows, forwards in self.rows_per_forward.items()),
            "rows_per_forward": dict(self.rows_per_forward),
            "out_of_memory_total": self.memory_errors,
            "non_finite_rows_total": self.non_finite,
        }
