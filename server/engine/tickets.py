"""A request on its way through the engine."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from pipelines.base import Pixels, Row
from pipelines.errors import Error
from pipelines.passes import expected_calls, passes
from pipelines.request import ImageRequest, Request
from pipelines.safety import Checked
from pipelines.vision import Answer
from server.engine.executors.base import Outcome, Picture, Preview


class Ticket:
    """One submitted request. Written by the device thread only, except what says otherwise."""

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
        #: Any thread may set it.
        self.cancelled = False
        #: Of all passes that have begun.
        self.rows: tuple[Row, ...] = ()
        self.started_at: float | None = None
        #: Somebody wants previews until then; any thread may set it.
        self.watched_until = float("-inf")
        #: When each image was shown last, by its index.
        self.shown_at: dict[int, float] = {}
        #: The newest of each image; replaced whole, so that any thread may read it.
        self.previews: tuple[Preview, ...] = ()
        self._passes = passes(request)
        #: Denoiser calls of the rows that are not there yet.
        self.calls_to_come = expected_calls(request)
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
        """Denoiser calls of all rows in all passes; of those not there yet, as expected."""
        return sum(row.calls for row in self.rows) + self.calls_to_come

    @property
    def applied(self) -> int:
        """Denoiser calls already applied."""
        return sum(row.step for row in self.rows)

    def first_pass(self) -> Pass:
        """Where its way begins."""
        return Pass(ticket=self, request=self._passes[0])

    def take(self, one: Pass, rows: Sequence[Row]) -> None:
        """A pass of it has become rows."""
        self.rows += tuple(rows)
        self.calls_to_come -= one.request.calls

    def begin(self, now: float) -> None:
        """A row of it is admitted; counts the first time."""
        if self.started_at is None:
            self.started_at = now
            self._begun()

    def show(self, preview: Preview) -> None:
        """In place of an older one of the same image."""
        others = {one.index: one for one in self.previews}
        self.previews = tuple({**others, preview.index: preview}.values())

    def go_on(self, done: Pass, row: Row, result: Checked | Answer) -> Pass | None:
        """The next pass of a row that is done; after the last one its result is kept."""
        sample = done.sample + row.index
        if isinstance(result, Answer):
            self._results[sample] = result
            return None
        flagged = done.flagged or result.flagged
        stage = done.stage + 1
        if stage == len(self._passes):
            self._results[sample] = Picture(pixels=result.pixels, seed=row.seed, nsfw=flagged)
            return None
        following = self._passes[stage]
        assert isinstance(following, ImageRequest)
        name = f"{self.number}.{stage}.{sample}"
        return Pass(
            ticket=self,
            request=replace(following, image=name, samples=1, seed=row.seed),
            stage=stage,
            sample=sample,
            flagged=flagged,
            name=name,
            picture=result.pixels,
        )

    @property
    def complete(self) -> bool:
        """No result is missing."""
        return len(self._results) == self.request.rows

    def succeed(self, now: float) -> None:
        """Delivers all results, in order."""
        results = [self._results[index] for index in range(self.request.rows)]
        warnings = tuple(dict.fromkeys(text for row in self.rows for text in row.warnings))
        started = self.arrived if self.started_at is None else self.started_at
        self._end(
            Outcome(
                pictures=tuple(one for one in results if isinstance(one, Picture)),
                seconds=now - started,
                scheduler=self.rows[0].scheduler,
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


@dataclass(frozen=True, kw_only=True, eq=False)
class Pass:
    """A stretch of a ticket's way: one request to one pipeline. The first makes all samples, later ones one each."""

    ticket: Ticket
    request: Request
    stage: int = 0
    #: The sample that its first row makes.
    sample: int = 0
    #: The safety checker has replaced the picture in an earlier pass.
    flagged: bool = False
    #: The picture that it starts from, and the name by which the pipeline asks for it; the pass keeps it in memory.
    name: str = ""
    picture: Pixels | None = None


def tickets_of(passes: Iterable[Pass]) -> list[Ticket]:
    """Each once, in order."""
    return list(dict.fromkeys(one.ticket for one in passes))
