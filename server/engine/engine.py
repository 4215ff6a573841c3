"""The loop that keeps a device busy: admit, choose a lane, step it, retire.

Everything in ``Engine`` runs on the one device-owning thread, except ``submit`` and ``cancel`` and the reading of
``stats`` and ``outlook``.
"""

from __future__ import annotations

import bisect
import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import replace
from weakref import WeakValueDictionary

from pipelines.base import Finished, LaneKey, Pipeline, Pixels, Row
from pipelines.errors import Cancelled, DeadlineExceeded, Error, NonFinite, OutOfMemory
from pipelines.safety import Check, Checked, refuse_unchecked
from pipelines.vision import Answer
from server.engine.executors.base import EngineStats
from server.engine.lanes import AGING_S, Choice, Lanes
from server.engine.models import Beside, Budget, ResidentModels, Weigh
from server.engine.outlook import Outlook
from server.engine.previews import Previews
from server.engine.tally import Tally
from server.engine.tickets import Pass, Ticket, tickets_of
from server.engine.wishes import Wishes

logger = logging.getLogger(__name__)

#: Requests conditioned together; more would keep the running rows waiting for too long.
PREPARE_REQUESTS = 16
#: What a client reads about a fault of ours; the log has the rest.
INTERNAL = "Internal server error. Please try again."


class Engine:
    """Moves requests through lanes. ``turn`` is the loop's body."""

    def __init__(
        self,
        load: Callable[[str], Pipeline],
        *,
        max_rows: int,
        slots: int,
        max_resident: int,
        budget: Callable[[], Budget] = Budget,
        weigh: Weigh = lambda name: 0,
        stamp: Callable[[str], object] = lambda name: None,
        check: Check = refuse_unchecked,
        clock: Callable[[], float] = time.monotonic,
        beside: Sequence[Beside] = (),
    ) -> None:
        self.models = ResidentModels(
            load, limit=max_resident, budget=budget, weigh=weigh, stamp=stamp, clock=clock, beside=beside
        )
        self._lanes = Lanes(max_rows=max_rows)
        self._slots = slots
        self._check = check
        self._clock = clock
        self._inbox: deque[Ticket] = deque()
        #: What is wanted on the device; ``wake`` is to be set after one is added.
        self.wishes = Wishes()
        self.previews = Previews(clock)
        #: Set when there may be something to do.
        self.wake = threading.Event()
        #: Not yet conditioned, most urgent first.
        self._waiting: list[Pass] = []
        #: Conditioned rows without a slot, in order.
        self._ready: list[tuple[Pass, Row]] = []
        #: Rows in lanes by number.
        self._running: dict[int, tuple[Pass, Row]] = {}
        #: Pictures that passes start from, by name, for as long as their passes need them.
        self.carried: WeakValueDictionary[str, Pixels] = WeakValueDictionary()
        self._numbers: dict[Row, int] = {}
        self._next_number = 0
        self._in_group: Counter[LaneKey] = Counter()
        self._last_step_end: float | None = None
        #: A row had no room: nobody tries again before another one has left.
        self._crowded = False
        self._tally = Tally()
        self.outlook = Outlook()
        self.stats = EngineStats()

    # From any thread.

    def submit(self, ticket: Ticket) -> None:
        """Hands a request over."""
        self._inbox.append(ticket)
        self.wake.set()

    def cancel(self, ticket: Ticket) -> None:
        """Asks for a request to end at the next step boundary."""
        ticket.cancelled = True
        self.wake.set()

    # On the device thread.

    def turn(self) -> bool:
        """One turn: admits, grants a wish, steps one lane, retires; False when there was nothing to do."""
        self._receive()
        self._drop_ended()
        self._admit()
        if granted := self.wishes.grant(self.models, self._busy):
            self._last_step_end = None
        choice = self._lanes.choose()
        if choice is not None:
            self._step(choice)
            self._retire()
        else:
            self._last_step_end = None
        self.previews.collect()
        self._publish()
        self.wishes.tell()
        return granted or choice is not None

    def close(self, error: Error | None = None) -> None:
        """Ends everything that is open, as cancelled unless ``error`` says otherwise, and unloads the models."""
        self._receive()
        for ticket in self._open():
            self._fail(ticket, error or Cancelled("the server is shutting down"))
        self.wishes.close(error or Cancelled("the server is shutting down"))
        self.models.close()
        self._publish()

    def _open(self) -> list[Ticket]:
        begun = [one for one, _ in (*self._ready, *self._running.values())]
        return list(dict.fromkeys(one.ticket for one in (*self._waiting, *begun)))

    def _receive(self) -> None:
        while self._inbox:
            self._wait(self._inbox.popleft().first_pass())

    def _wait(self, one: Pass) -> None:
        if one.picture is not None:
            self.carried[one.name] = one.picture
        bisect.insort(self._waiting, one, key=_urgency)

    def _drop_ended(self) -> None:
        """Cancels and deadlines act here: at a step boundary."""
        now = self._clock()
        for ticket in self._open():
            if ticket.cancelled:
                self._fail(ticket, Cancelled("the request was cancelled"))
            elif ticket.deadline is not None and now >= ticket.deadline:
                self._fail(ticket, DeadlineExceeded("the request was not finished before its deadline"))

    # Admission.

    def _admit(self) -> None:
        self._enter_ready()
        while candidates := self._candidates():
            busy = self._busy()
            model = candidates[0].request.model
            if not self.models.fits(model, busy):
                # Nobody younger goes first, or the models in use would never become idle.
                return
            same = [one for one in candidates if one.request.model == model][:PREPARE_REQUESTS]
            self._waiting = [one for one in self._waiting if one not in same]
            try:
                pipeline = self.models.get(model, busy)
            except Exception as error:
                self._fail_all(tickets_of(same), error, "model %s cannot be loaded", model)
                continue
            self._prepare(pipeline, same)
            self._enter_ready()

    def _busy(self) -> set[str]:
        """Models that draw, or whose rows wait for a place."""
        return {row.lane.model for _, row in (*self._running.values(), *self._ready)}

    def _candidates(self) -> list[Pass]:
        """Who is worth conditioning: rows that wait for a slot hold back requests of their size, if not more urgent."""
        first: dict[Hashable, tuple[float, int]] = {}
        for one, _ in self._ready:
            shape = _shape(one)
            first[shape] = min(first.get(shape, _urgency(one)), _urgency(one))
        return [one for one in self._waiting if _shape(one) not in first or _urgency(one) < first[_shape(one)]]

    def _prepare(self, pipeline: Pipeline, passes: Sequence[Pass]) -> None:
        self._last_step_end = None
        try:
            prepared = pipeline.prepare([one.request for one in passes])
        except Exception as error:
            if len(passes) > 1:
                # One of them is to blame, or all were too many: the others must not fail with it.
                half = len(passes) // 2
                self._prepare(pipeline, passes[:half])
                self._prepare(pipeline, passes[half:])
            else:
                model = passes[0].request.model
                self._fail_all(tickets_of(passes), error, "a request of model %s cannot be prepared", model)
            return
        # Adapters and VAEs may have come onto the device for them.
        self.models.make_room(self._busy() | {passes[0].request.model})
        for one, rows in zip(passes, prepared, strict=True):
            if isinstance(rows, Error):
                self._fail(one.ticket, rows)
            elif not one.ticket.ended:
                one.ticket.take(one, rows)
                self._ready += [(one, row) for row in rows]
        self._ready.sort(key=lambda pair: _urgency(pair[0]))

    def _enter_ready(self) -> None:
        held: list[tuple[Pass, Row]] = []
        for one, row in self._ready:
            if one.ticket.ended:
                continue
            if self._crowded or self._in_group[row.lane.group] >= self._slots:
                held.append((one, row))
                continue
            try:
                self.models.loaded(row.lane.model).enter(row)
            except Exception as error:
                if not (isinstance(error, OutOfMemory) and self._running):
                    self._fail_all([one.ticket], error, "a row of lane %s cannot enter", row.lane)
                    continue
                self._tally.memory_errors += 1
                self._crowded = True
                held.append((one, row))
            else:
                self._join(one, row)
        self._ready = held

    def _join(self, one: Pass, row: Row) -> None:
        self._last_step_end = None
        one.ticket.begin(self._clock())
        number = self._next_number
        self._next_number += 1
        self._running[number] = (one, row)
        self._numbers[row] = number
        self._in_group[row.lane.group] += 1
        self._lanes.join(
            number,
            group=row.lane.group,
            lane=row.lane,
            priority=one.request.priority,
            arrived=one.ticket.arrived,
            entries=row.entries,
            remaining=row.remaining,
        )

    # Stepping.

    def _step(self, choice: Choice) -> None:
        pairs = [self._running[number] for number in choice.rows]
        rows = [row for _, row in pairs]
        pipeline = self.models.loaded(rows[0].lane.model)
        if watched := self.previews.begin(pipeline, pairs):
            self._last_step_end = None
        began = self._clock()
        try:
            failed = pipeline.step(rows)
        except OutOfMemory as error:
            self._tally.memory_errors += 1
            self._last_step_end = None
            half = self._lanes.halve(choice)
            logger.warning("%d rows of lane %s do not fit the memory; trying %d", len(rows), choice.lane, half)
            if half == 0:
                self._fail(self._running[choice.rows[0]][0].ticket, error)
            return
        except Exception as error:
            tickets = tickets_of(one for one, _ in pairs)
            self._fail_all(tickets, error, "a step of %d rows of lane %s failed", len(rows), choice.lane)
            return
        now = self._clock()
        # On a device that runs behind the host a step's own duration is the launching only; between the ends of
        # consecutive steps, with nothing else done between them, lies what the device needed.
        self._lanes.stepped(choice, seconds=now - (self._last_step_end or began))
        self._last_step_end = None if watched else now
        self.previews.develop(watched)
        self._tally.stepped(len(rows))
        for row in failed:
            self._tally.non_finite += 1
            if row in self._numbers:
                ticket = self._running[self._numbers[row]][0].ticket
                self._fail(ticket, NonFinite("the picture became not finite (NaN) while it was drawn"))

    def _retire(self) -> None:
        done: dict[LaneKey, list[tuple[Pass, Row]]] = {}
        for one, row in self._running.values():
            if row.remaining == 0:
                done.setdefault(row.lane, []).append((one, row))
        for lane, pairs in done.items():
            self._finish(self.models.loaded(lane.model), pairs)
        if done:
            # Decoding is no part of a step.
            self._last_step_end = None

    def _finish(self, pipeline: Pipeline, pairs: Sequence[tuple[Pass, Row]]) -> None:
        try:
            results = pipeline.finish([row for _, row in pairs])
        except Exception as error:
            self._fail_all(tickets_of(one for one, _ in pairs), error, "%d rows cannot be decoded", len(pairs))
            return
        for (one, row), result in zip(pairs, self._checked([row for _, row in pairs], results), strict=True):
            if isinstance(result, Error):
                self._tally.non_finite += isinstance(result, NonFinite)
                self._fail(one.ticket, result)
            elif not one.ticket.ended:
                self._remove(row)
                self._go_on(one, row, result)

    def _go_on(self, done: Pass, row: Row, result: Checked | Answer) -> None:
        """A row is done: its picture is what the next pass starts from, or a result."""
        following = done.ticket.go_on(done, row, result)
        if following is not None:
            self._wait(following)
        elif done.ticket.complete:
            done.ticket.succeed(self._clock())

    def _checked(self, rows: Sequence[Row], results: Sequence[Finished | Error]) -> list[Checked | Answer | Error]:
        """Shows the checker what is to be checked; what it cannot look at fails."""
        checked: dict[Row, Checked | Answer | Error] = {}
        asked: dict[Row, tuple[Pixels, str]] = {}
        for row, result in zip(rows, results, strict=True):
            if isinstance(result, Answer | Error):
                checked[row] = result
            elif row.safety is None:
                checked[row] = Checked(pixels=result, flagged=False)
            else:
                asked[row] = (result, row.safety)
        if asked:
            pictures, replacements = zip(*asked.values(), strict=True)
            try:
                checked.update(zip(asked, self._check(pictures, replacements), strict=True))
            except Exception as error:
                told = _told(error, "%d pictures cannot be checked", len(asked))
                checked.update(dict.fromkeys(asked, told))
            # The checker may have come onto the device just now.
            self.models.make_room(self._busy())
        return [checked[row] for row in rows]

    # Endings.

    def _remove(self, row: Row) -> None:
        number = self._numbers.pop(row, None)
        if number is None:
            return
        del self._running[number]
        self._crowded = False
        self._lanes.leave(number)
        self._in_group[row.lane.group] -= 1
        if not self._in_group[row.lane.group]:
            del self._in_group[row.lane.group]
        self.models.loaded(row.lane.model).leave(row)

    def _fail(self, ticket: Ticket, error: Error) -> None:
        """Ends one request; its neighbours do not notice."""
        for row in ticket.rows:
            self._remove(row)
        self._waiting = [one for one in self._waiting if one.ticket is not ticket]
        self._ready = [pair for pair in self._ready if pair[0].ticket is not ticket]
        ticket.fail(error)

    def _fail_all(self, tickets: Iterable[Ticket], error: Exception, message: str, *values: object) -> None:
        told = _told(error, message, *values)
        for ticket in tickets:
            self._fail(ticket, told)

    # For other threads.

    def _publish(self) -> None:
        now = self._clock()
        passes = tickets_of([*self._waiting, *(one for one, _ in self._ready)])
        waiting = [ticket for ticket in passes if ticket.started_at is None]
        self.outlook = Outlook.of(self._lanes, [row for _, row in self._running.values()], waiting, before=self.outlook)
        self.stats = replace(
            self.stats,
            waiting_requests=len(waiting),
            oldest_wait_s=max((now - ticket.arrived for ticket in waiting), default=0.0),
            running_rows=len(self._running),
            **self._tally.totals(),
            per_row_s=self.outlook.per_row_s,
            loaded_models=self.models.names,
            heartbeat=now,
        )


def _told(error: Exception, message: str, *values: object) -> Error:
    """A boundary: what is not of our error tree is logged, and told to nobody in its own words."""
    if isinstance(error, Error):
        return error
    logger.error(message, *values, exc_info=error)
    return Error(INTERNAL)


def _shape(one: Pass) -> Hashable:
    """Requests that differ in it go into different groups of lanes."""
    return one.request.model, one.request.shape


def _urgency(one: Pass) -> tuple[float, int]:
    return one.ticket.arrived - AGING_S * one.request.priority, one.ticket.number
