"""Which rows go into the next forward.

A pure structure: no clock, no I/O, no torch; what has been measured is told to it. Two rules:

*Between groups* device time is shared. A group is the lanes of one model and shape (its shared lane, and the lanes of
single rows that must be drawn without neighbours). Each group pays for the seconds its steps take, and the one that has
paid least goes next. A group that (re)appears starts level with what is being served, so that neither an idle past
nor a busy one counts. A group whose most urgent row has priority p pays 2**-p of the price; every price is finite, so
none starves.

*Within a group* the lane of the most urgent row goes, with as many rows as the cap allows, in order of urgency. A row
of priority p counts as if it had arrived p x ``AGING_S`` seconds earlier: the order of two rows never changes, rows of
equal urgency stay first in, first out, and a row is only overtaken by those that arrive soon after it, so that none
starves. Where measured step times say that a shared forward gains next to nothing (a large image fills the device by
itself), rows go one at a time instead, first the one that would be done first, unless many wait.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass, field

from server.engine.costs import StepCosts

#: Seconds of waiting that weigh as much as one step of priority.
AGING_S = 10.0
#: A shared forward must be so much faster than single ones to be worth everybody's longer latency …
WORTHWHILE = 1.1
#: … unless so many rows wait that a few per cent of throughput shorten the queue more.
DEEP = 8
#: Forwards at a lowered cap after which one row more is tried; twice as many after every further failure.
RECOVER = 200
#: Groups whose caps and costs are remembered while nobody is in them.
REMEMBERED = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """The next forward."""

    group: Hashable
    lane: Hashable
    #: Row numbers, most urgent first.
    rows: tuple[int, ...]


@dataclass(kw_only=True, slots=True)
class _Row:
    number: int
    group: Hashable
    lane: Hashable
    priority: int
    #: When it would have arrived with priority 0.
    arrived: float
    entries: int
    remaining: int

    @property
    def urgency(self) -> tuple[float, int]:
        """Smaller goes first."""
        return self.arrived, self.number


@dataclass(kw_only=True, slots=True)
class _Group:
    cap: int
    costs: StepCosts = field(default_factory=StepCosts)
    #: Forwards at the cap since it was lowered, and how many of them let it rise.
    clean: int = 0
    patience: int = RECOVER
    #: Seconds paid, comparable between groups.
    paid: float = 0.0
    rows: dict[int, _Row] = field(default_factory=dict)

    @property
    def priority(self) -> int:
        return max(row.priority for row in self.rows.values())

    @property
    def most_urgent(self) -> _Row:
        return min(self.rows.values(), key=lambda row: row.urgency)


class Lanes:
    """Rows by lane. Row numbers are given in order of arrival and never reused."""

    def __init__(self, *, max_rows: int) -> None:
        self._max_rows = max_rows
        self._groups: OrderedDict[Hashable, _Group] = OrderedDict()
        self._rows: dict[int, _Row] = {}
        #: What the group served last had paid before: the virtual time of start-time fair queueing (Goyal et al. 1996).
        self._level = 0.0

    def __len__(self) -> int:
        return len(self._rows)

    def join(
        self,
        number: int,
        *,
        group: Hashable,
        lane: Hashable,
        priority: int,
        arrived: float,
        entries: int,
        remaining: int,
    ) -> None:
        """A row may be stepped from now on. ``arrived`` in seconds, ``remaining`` in calls."""
        state = self._groups.get(group)
        if state is None:
            state = self._groups[group] = _Group(cap=self._max_rows)
        if not state.rows:
            state.paid = max(state.paid, self._level)
        row = _Row(
            number=number,
            group=group,
            lane=lane,
            priority=priority,
            arrived=arrived - AGING_S * priority,
            entries=entries,
            remaining=remaining,
        )
        state.rows[number] = row
        self._rows[number] = row
        self._groups.move_to_end(group)
        self._forget()

    def leave(self, number: int) -> None:
        """The row is done, failed or cancelled. Idempotent."""
        row = self._rows.pop(number, None)
        if row is not None:
            del self._groups[row.group].rows[number]

    def choose(self) -> Choice | None:
        """The next forward; None when no row waits. Changes nothing: ``stepped`` does."""
        busy = self.busy
        if not busy:
            return None
        group = min(busy, key=lambda one: (self._groups[one].paid, self._groups[one].most_urgent.urgency))
        state = self._groups[group]
        lane = state.most_urgent.lane
        rows = sorted((row for row in state.rows.values() if row.lane == lane), key=lambda row: row.urgency)
        return Choice(group=group, lane=lane, rows=tuple(row.number for row in _pick(state, rows)))

    def stepped(self, choice: Choice, *, seconds: float) -> None:
        """The forward has been applied and took so long."""
        state = self._groups[choice.group]
        rows = [self._rows[number] for number in choice.rows]
        state.costs.observe(entries=sum(row.entries for row in rows), rows=len(rows), seconds=seconds)
        self._level = max(self._level, state.paid)
        state.paid += seconds * 2.0 ** -max(-8, min(8, state.priority))
        for row in rows:
            row.remaining -= 1
        if state.cap < self._max_rows and len(rows) == state.cap:
            state.clean += 1
            if state.clean >= state.patience:
                state.cap, state.clean = state.cap + 1, 0

    def halve(self, choice: Choice) -> int:
        """The forward did not fit the memory: the cap becomes half of what was tried; returns it, 0 after one row.

        The cap rises again, row by row: what was short of memory may have been something else on the device.
        """
        half = len(choice.rows) // 2
        # A row that must be alone says nothing about how many fit together.
        if choice.lane == choice.group:
            state = self._groups[choice.group]
            state.cap, state.clean, state.patience = max(1, half), 0, 2 * state.patience
        return half

    def cap(self, group: Hashable) -> int:
        """Rows per forward."""
        state = self._groups.get(group)
        return self._max_rows if state is None else state.cap

    def costs(self, group: Hashable) -> StepCosts:
        """What is known of a busy group's steps."""
        return self._groups[group].costs

    def entries(self, group: Hashable) -> list[int]:
        """Entries of each row in a busy group."""
        return [row.entries for row in self._groups[group].rows.values()]

    @property
    def busy(self) -> list[Hashable]:
        """Groups with rows."""
        return [group for group, state in self._groups.items() if state.rows]

    def _forget(self) -> None:
        idle = [group for group, state in self._groups.items() if not state.rows]
        for group in idle[: max(0, len(idle) - REMEMBERED)]:
            del self._groups[group]


def _pick(state: _Group, rows: list[_Row]) -> list[_Row]:
    """The rows of one lane, in order of urgency, that share the next forward."""
    together = rows[: state.cap]
    if len(together) < 2 or len(rows) >= DEEP:
        return together
    gain = state.costs.gain([row.entries for row in together])
    if gain is None or gain >= WORTHWHILE:
        return together

    def done_at(row: _Row) -> tuple[float, int]:
        # As if it had the device for itself from its arrival on: serving a row only brings this nearer, so that one
        # begun is carried on, and those that arrive late enough never overtake it.
        return row.arrived + row.remaining * state.costs.expect(row.entries, 0.0), row.number

    return [min(rows, key=done_at)]
