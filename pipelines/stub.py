"""A pipeline without a network: for the engine's tests, and to see what the engine costs by itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from pipelines.base import Finished, Glimpse, ImageRow, LaneKey, Pipeline, Pixels, Row
from pipelines.errors import Error, OutOfMemory
from pipelines.request import ImageRequest, Request
from pipelines.vision import Answer, VisionRequest


class StubPipeline(Pipeline):
    """Counts calls instead of denoising; a finished row is a picture of one colour, made from its seed.

    Where a picture is asked about, the answer is the question.

    What a test wants to go wrong it says beforehand: ``fits`` rows per forward, ``room`` for rows at all, ``poison``
    seeds that stop being finite at their second call, ``refuse`` prompts that cannot be prepared, and ``before_step``,
    which may raise.
    """

    def __init__(self, *, fits: int = 1000, before_step: Callable[[Sequence[Row]], None] | None = None) -> None:
        self.fits = fits
        self.room = 1000
        self.before_step = before_step
        self.poison: set[int] = set()
        self.refuse: dict[str, Error] = {}
        #: Requests, in the order in which they were prepared.
        self.prepared: list[Request] = []
        #: Seeds of the rows of every forward; 0 for a row without one.
        self.forwards: list[tuple[int, ...]] = []
        self.inside: set[Row] = set()
        self.glimpses: list[StubGlimpse] = []
        self.closed = False
        self._alone = 0

    def prepare(self, requests: Sequence[Request]) -> list[list[Row] | Error]:
        """See ``Pipeline.prepare``."""
        self.prepared += requests
        prepared: list[list[Row] | Error] = []
        for request in requests:
            if isinstance(request, ImageRequest):
                prepared.append(self.refuse.get(request.prompt) or self._rows(request))
            else:
                lane = LaneKey(model=request.model, shape=request.shape, text=0)
                prepared.append([Row(request=request, index=0, lane=lane, calls=request.calls, entries=1)])
        return prepared

    def _rows(self, request: ImageRequest) -> list[Row]:
        rows: list[Row] = []
        for index in range(request.samples):
            self._alone += request.reproducible
            lane = LaneKey(
                model=request.model,
                shape=(request.height, request.width),
                text=77,
                alone=self._alone if request.reproducible else 0,
            )
            entries = 2 if request.guidance > 1 else 1
            calls = request.calls // request.samples
            rows.append(
                ImageRow(request=request, index=index, lane=lane, calls=calls, entries=entries, scheduler="Stub")
            )
        return rows

    def enter(self, row: Row) -> None:
        """See ``Pipeline.enter``."""
        if len(self.inside) >= self.room:
            raise OutOfMemory("the device has too little memory for this request")
        self.inside.add(row)

    def leave(self, row: Row) -> None:
        """See ``Pipeline.leave``."""
        self.inside.discard(row)

    def step(self, rows: Sequence[Row]) -> list[Row]:
        """See ``Pipeline.step``."""
        if self.before_step is not None:
            self.before_step(rows)
        if len(rows) > self.fits:
            raise OutOfMemory("the device has too little memory for this request")
        self.forwards.append(tuple(row.seed for row in rows))
        for row in rows:
            row.step += 1
        return [row for row in rows if row.seed in self.poison and row.step >= 2]

    def glimpse(self, rows: Sequence[Row]) -> StubGlimpse:
        """See ``Pipeline.glimpse``; every one that was begun is kept in ``glimpses``."""
        self.glimpses.append(StubGlimpse(rows))
        return self.glimpses[-1]

    def finish(self, rows: Sequence[Row]) -> list[Finished | Error]:
        """See ``Pipeline.finish``."""
        return [_finished(row) for row in rows]

    def close(self) -> None:
        """See ``Pipeline.close``."""
        self.closed = True


class StubGlimpse(Glimpse):
    """Pictures of 8 x 8 pixels in the rows' colours; they are there once ``arrived`` says so."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows = tuple(rows)
        self.developed = False
        self.arrived = True

    def develop(self) -> None:
        """See ``Glimpse.develop``."""
        self.developed = True

    def pixels(self) -> list[Pixels] | None:
        """See ``Glimpse.pixels``."""
        return [np.full((8, 8, 3), row.seed % 251, dtype=np.uint8) for row in self.rows] if self.arrived else None


def _finished(row: Row) -> Finished:
    if isinstance(row, ImageRow):
        return np.full((row.request.height, row.request.width, 3), row.seed % 251, dtype=np.uint8)
    assert isinstance(row.request, VisionRequest)
    return Answer(text=f"{row.request.task}: {row.request.prompt}")
