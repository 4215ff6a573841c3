"""Pictures of requests that somebody is watching, made between steps and no more often than anyone can look."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from pipelines.base import Glimpse, Pipeline, Row
from pipelines.request import ImageRequest
from server.engine.executors.base import Preview
from server.engine.tickets import Pass, Ticket

logger = logging.getLogger(__name__)

#: Seconds between two previews of one picture, at least.
EVERY_S = 1.0
#: Seconds for which one look at a ticket counts as watching it.
WATCH_S = 3.0


@dataclass(frozen=True, kw_only=True)
class Watched:
    """Pictures of one step, not there yet."""

    glimpse: Glimpse
    #: The passes of ``glimpse.rows``, in order, and the calls applied to the rows.
    passes: tuple[Pass, ...]
    steps: tuple[int, ...]


class Previews:
    """``watch`` is for any thread, the rest for the device thread. Costs one comparison while nobody watches."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._watched_until = float("-inf")
        self._coming: list[Watched] = []

    def watch(self, ticket: Ticket) -> None:
        """Somebody looks at the ticket now, and will again within ``WATCH_S``."""
        ticket.watched_until = self._watched_until = self._clock() + WATCH_S

    def begin(self, pipeline: Pipeline, pairs: Sequence[tuple[Pass, Row]]) -> Watched | None:
        """Before a step of these rows: what of them is to be shown; None if nothing is."""
        now = self._clock()
        if now >= self._watched_until:
            return None
        due = {row: one for one, row in pairs if row.remaining > 1 and _is_due(one, row, now)}
        try:
            glimpse = pipeline.glimpse(list(due)) if due else None
        except Exception as error:
            _give_up(error, ((one, row) for row, one in due.items()))
            return None
        if glimpse is None:
            return None
        passes = tuple(due[row] for row in glimpse.rows)
        for one, row in zip(passes, glimpse.rows, strict=True):
            one.ticket.shown_at[one.sample + row.index] = now
        return Watched(glimpse=glimpse, passes=passes, steps=tuple(row.step + 1 for row in glimpse.rows))

    def develop(self, watched: Watched | None) -> None:
        """After the step, if it was applied."""
        if watched is None:
            return
        try:
            watched.glimpse.develop()
        except Exception as error:
            _give_up(error, zip(watched.passes, watched.glimpse.rows, strict=True))
            return
        self._coming.append(watched)

    def collect(self) -> None:
        """Hands over what has arrived."""
        while self._coming and (pixels := self._coming[0].glimpse.pixels()) is not None:
            arrived = self._coming.pop(0)
            told = zip(arrived.passes, arrived.glimpse.rows, arrived.steps, pixels, strict=True)
            for one, row, step, picture in told:
                index = one.sample + row.index
                one.ticket.show(Preview(index=index, step=step, pixels=picture))


def _is_due(one: Pass, row: Row, now: float) -> bool:
    ticket = one.ticket
    request = ticket.request
    if not isinstance(request, ImageRequest) or request.safety is not None:
        # What is to be checked is shown to nobody before.
        return False
    return ticket.watched_until > now >= ticket.shown_at.get(one.sample + row.index, float("-inf")) + EVERY_S


def _give_up(error: Exception, pairs: Iterable[tuple[Pass, Row]]) -> None:
    """A picture to look at meanwhile is worth no failure: its request goes on, and is not tried again."""
    logger.error("no preview can be made", exc_info=error)
    for one, row in pairs:
        one.ticket.shown_at[one.sample + row.index] = float("inf")
