"""When requests will be done, as far as measured step times tell."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from pipelines.base import LaneKey, Row
from server.engine.executors.base import Progress
from server.engine.lanes import Lanes
from server.engine.tickets import Ticket

#: Seconds per call and row before anything has been measured.
UNKNOWN_S = 0.05


@dataclass(frozen=True, kw_only=True)
class Outlook:
    """A snapshot that the device thread leaves after each turn, for other threads to read."""

    #: By group: seconds from one step of a row to its next, the other groups' steps between them included.
    step_s: dict[LaneKey, float] = field(default_factory=dict)
    #: Device seconds per row and call, over all lanes.
    per_row_s: float = UNKNOWN_S
    #: Device seconds that the rows in lanes still need.
    running_s: float = 0.0
    #: Number of a waiting ticket -> (how many are before it, calls of those).
    ahead: dict[int, tuple[int, int]] = field(default_factory=dict)

    @classmethod
    def of(cls, lanes: Lanes, running: Sequence[Row], waiting: Sequence[Ticket], *, before: Outlook) -> Outlook:
        """From the engine's state at the end of a turn; an idle engine keeps what it has measured ``before``."""
        step: dict[LaneKey, float] = {}
        shares: list[float] = []
        for group in {row.lane.group for row in running}:
            costs = lanes.costs(group)
            parts = lanes.entries(group)
            # Above the cap, a row's turn comes only every so many forwards.
            forwards = -(-len(parts) // lanes.cap(group))
            step[group] = costs.expect(sum(parts) // forwards, UNKNOWN_S) * forwards
            if costs.per_row is not None:
                shares.append(costs.per_row)
        turn = sum(step.values())
        per_row = sum(shares) / len(shares) if shares else before.per_row_s
        ahead: dict[int, tuple[int, int]] = {}
        calls = 0
        for position, ticket in enumerate(waiting):
            ahead[ticket.number] = (position, calls)
            calls += ticket.calls
        return cls(
            step_s=dict.fromkeys(step, turn),
            per_row_s=per_row,
            running_s=sum(row.remaining for row in running) * per_row,
            ahead=ahead,
        )

    def progress(self, ticket: Ticket) -> Progress:
        """Where a request stands."""
        calls, applied = ticket.calls, ticket.applied
        position, calls_ahead = self.ahead.get(ticket.number, (0, 0))
        if ticket.ended:
            eta = 0.0
        elif ticket.started_at is None:
            eta = self.running_s + (calls_ahead + calls) * self.per_row_s
        else:
            steps = (row.remaining * self.step_s.get(row.lane.group, UNKNOWN_S) for row in ticket.rows)
            eta = max(steps, default=0.0) + ticket.calls_to_come * self.per_row_s
        return Progress(step=applied, steps=calls, position=position, eta_s=eta)
