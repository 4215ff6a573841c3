"""The contract of a family: what the engine may ask of a loaded model.

Everything here is called on the one device-owning thread.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from pipelines.errors import Error, InvalidRequest
from pipelines.request import ImageRequest, Request
from pipelines.vision import Answer

#: uint8, (height, width, 3), RGB.
Pixels = NDArray[np.uint8]
#: What a finished row is.
Finished = Pixels | Answer

R = TypeVar("R", bound=Request)


@dataclass(frozen=True, kw_only=True)
class LaneKey:
    """Rows with equal keys can share one denoiser forward."""

    model: str
    #: Latent shape of one row, without the row axis.
    shape: tuple[int, ...]
    #: (height, width) in pixels: packed latents of different shapes can be equally long.
    size: tuple[int, int] = (0, 0)
    #: Length of the text axis; text is never padded to join a lane.
    text: int
    #: 0, or a number of the row's own when it must be drawn without neighbours.
    alone: int = 0

    @property
    def group(self) -> LaneKey:
        """The lanes that cost the same and share their device time: this one with and without ``alone``."""
        return replace(self, alone=0) if self.alone else self


class Row:
    """One result in flight; families add what they need by subclassing."""

    def __init__(
        self,
        *,
        request: Request,
        index: int,
        lane: LaneKey,
        calls: int,
        entries: int,
        scheduler: str = "",
        warnings: tuple[str, ...] = (),
    ) -> None:
        self.request = request
        #: Which of the request's samples this is.
        self.index = index
        self.lane = lane
        #: Denoiser calls in all, and those already applied.
        self.calls = calls
        self.step = 0
        #: Denoiser inputs per call: two with guidance, one without.
        self.entries = entries
        #: Registry name of the noise scheduler that draws; empty where there is none.
        self.scheduler = scheduler
        #: What is done otherwise than asked.
        self.warnings = warnings

    @property
    def remaining(self) -> int:
        """Denoiser calls still to come."""
        return self.calls - self.step

    @property
    def seed(self) -> int:
        """What is drawn depends on it; 0 where nothing is."""
        return 0

    @property
    def safety(self) -> str | None:
        """See ``ImageRequest.safety``."""
        return None


class ImageRow(Row):
    """One image in flight."""

    request: ImageRequest

    @property
    def seed(self) -> int:
        """Image i of a request uses seed + i."""
        return (self.request.seed + self.index) % 2**63

    @property
    def safety(self) -> str | None:
        """See ``Row.safety``."""
        return self.request.safety


class Glimpse(ABC):
    """Small pictures of what rows are becoming: begun before a step, developed after it."""

    #: Those that can be shown.
    rows: tuple[Row, ...]

    @abstractmethod
    def develop(self) -> None:
        """Begins to make the pictures, right after the step of the rows has been applied."""

    @abstractmethod
    def pixels(self) -> list[Pixels] | None:
        """One per row, in order; None: they are not there yet. Never waits."""


class Pipeline(ABC):
    """A loaded model that moves rows."""

    @abstractmethod
    def prepare(self, requests: Sequence[Request]) -> list[list[Row] | Error]:
        """Conditions requests, texts encoded together: per request its rows in order, or why it cannot be drawn."""

    @abstractmethod
    def enter(self, row: Row) -> None:
        """Gives the row device state and draws its first noise; at most ``slots`` rows of a lane are in at a time."""

    @abstractmethod
    def leave(self, row: Row) -> None:
        """Takes the row's device state away. Idempotent."""

    @abstractmethod
    def step(self, rows: Sequence[Row]) -> list[Row]:
        """Advances rows of one lane by one call each.

        Returns rows, of this step or of the one or two before it, whose latents are no longer finite.
        Raises ``OutOfMemory`` with no row advanced and nothing drawn anew when it is tried again.
        """

    def glimpse(self, rows: Sequence[Row]) -> Glimpse | None:
        """Pictures of rows of one lane that are about to be stepped; None where there are none to be seen."""
        return None

    @abstractmethod
    def finish(self, rows: Sequence[Row]) -> Sequence[Finished | Error]:
        """Decodes rows of one lane that have no call left; per row its pixels or answer, or why there are none."""

    @abstractmethod
    def close(self) -> None:
        """Gives the model's memory back."""


def of_kind(requests: Sequence[Request], kind: type[R]) -> list[R]:
    """The requests, if all are of the kind that a model takes; InvalidRequest otherwise."""
    found = [request for request in requests if isinstance(request, kind)]
    if len(found) != len(requests):
        # A stored job whose model has become another one meanwhile.
        raise InvalidRequest(f"model {requests[0].model} does not take such requests", field="model")
    return found
