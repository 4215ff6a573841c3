"""A request on its way through the engine."""

from __future__ import annotations

from collections.abc import Callable

from pipelines.base import Row
from pipelines.errors import Error
from pipelines.request import Request
from pipelines.vision import Answer
from server.engine.executors.base import Outcome, Picture


class Ticket:
    """One submitted request. Written by the device thread only, except ``cancelled``, which any thread may set."""

    def __init__(
        self,
        request: Request,
        *,
        number: int,
        arrived: float,
        deadline: float | None,
        done: Callable[[Outcome | Error], None],
        begun: Callable[[], None] = lambda: None,
    ) -> None:
        self.request = request
        #: Order of submission.
        self.number = number
        #: time.monotonic() at submission.
        self.arrived = arrived
        self.deadline = deadline
        self.cancelled = False
        self.rows: tuple[Row, ...] = ()
        self.started_at: float | None = None
        self._done = done
        self._begun = begun
        self._results: dict[int, Picture | Answer] = {}
        self._ended = False

    @property
    def ended(self) -> bool:
        """``done`` was called."""
        return self._ended

    @property
    def calls(self) -> int:
        """Denoiser calls of all rows; before they are known, the steps asked for."""
        return sum(row.calls for row in self.rows) or self.request.calls

    @property
    def applied(self) -> int:
        """Denoiser calls already applied."""
        return sum(row.step for row in self.rows)

    def begin(self, now: float) -> None:
        """A row of it is admitted; counts the first time."""
        if self.started_at is None:
            self.started_at = now
            self._begun()

    def add(self, index: int, result: Picture | Answer) -> bool:
        """Keeps a finished row's result; True when it was the last one missing."""
        self._results[index] = result
        return len(self._results) == self.request.rows

    def succeed(self, *, scheduler: str, now: float) -> None:
        """Delivers all results, in order."""
        results = [self._results[index] for index in range(self.request.rows)]
        warnings = tuple(dict.fromkeys(text for row in self.rows for text in row.warnings))
        started = self.arrived if self.started_at is None else self.started_at
        self._end(
            Outcome(
                pictures=tuple(one for one in results if isinstance(one, Picture)),
                seconds=now - started,
                scheduler=scheduler,
                warnings=warnings,
                answers=tuple(one for one in results if isinstance(one, Answer)),
            )
        )

    def fail(self, error: Error) -> None:
        """Delivers why there are none."""
        self._end(error)

    def _end(self, result: Outcome | Error) -> None:
        if not self._ended:
            self._ended = True
            self._done(result)
