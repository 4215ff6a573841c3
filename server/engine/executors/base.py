"""The contract of an executor: where requests become pictures and answers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from pipelines.request import Request
from pipelines.vision import Answer


@dataclass(frozen=True, kw_only=True)
class Picture:
    """One finished image."""

    #: uint8, (height, width, 3), RGB.
    pixels: NDArray[np.uint8]
    seed: int
    nsfw: bool = False


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a request became; as many pictures or answers as it has rows, in order."""

    pictures: tuple[Picture, ...]
    #: Seconds from the first admission of a row to the last decoded image.
    seconds: float
    #: Registry name of the scheduler that drew.
    scheduler: str
    #: What was done otherwise than asked, one sentence each.
    warnings: tuple[str, ...] = ()
    answers: tuple[Answer, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Preview:
    """What an image of a request is becoming: the picture that the model predicted, in its latents' resolution."""

    #: Of the request's images.
    index: int
    #: Calls of its present pass that were applied.
    step: int
    #: uint8, (height, width, 3), RGB; the colours are approximate.
    pixels: NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Where a request stands, summed over its rows."""

    #: Denoiser calls applied, and in all.
    step: int
    steps: int
    #: Requests that were handed over earlier and have not started; 0 once this one runs.
    position: int
    #: Seconds until the last image is expected; from measured step times.
    eta_s: float


@dataclass(frozen=True, kw_only=True)
class EngineStats:
    """A snapshot for metrics; totals count from the start of the process."""

    waiting_requests: int = 0
    oldest_wait_s: float = 0.0
    running_rows: int = 0
    forwards_total: int = 0
    #: Row steps applied; divided by forwards_total this is the mean number of rows per forward.
    row_steps_total: int = 0
    #: forwards by number of rows in them.
    rows_per_forward: dict[int, int] = field(default_factory=dict)
    out_of_memory_total: int = 0
    non_finite_rows_total: int = 0
    #: Device seconds per row and denoiser call, as last measured; a guess before anything has been.
    per_row_s: float = 0.0
    loaded_models: tuple[str, ...] = ()
    #: time.monotonic() of the device thread's last turn; health compares it with now.
    heartbeat: float = 0.0
    #: The device thread runs.
    alive: bool = True


class Generation(Protocol):
    """One request handed to an executor."""

    async def outcome(self) -> Outcome:
        """Waits for the pictures; raises a ``pipelines.errors.Error`` when the request failed as a whole."""

    async def begun(self) -> bool:
        """Waits until a row of the request is admitted to the device; False if the request ended before that."""

    def cancel(self) -> None:
        """Ends the request at the next step boundary; ``outcome`` then raises ``Cancelled``. Idempotent."""

    def progress(self) -> Progress:
        """Where it stands; cheap, from any thread."""

    def previews(self) -> tuple[Preview, ...]:
        """The newest of each image of which there is one. They are made while somebody asks every few seconds."""


class Executor(Protocol):
    """Runs engines. ``submit`` may be called from the event loop; it never blocks."""

    async def start(self) -> None:
        """Starts the device thread; loads nothing yet."""

    async def close(self) -> None:
        """Finishes no further step; every open generation's ``outcome`` raises ``Cancelled``."""

    def submit(self, request: Request, *, deadline: float | None = None) -> Generation:
        """Queues a request. ``deadline`` is a ``time.monotonic()`` value; a row not finished by then fails."""

    async def preload(self, model: str) -> None:
        """Loads a model, by id, as soon as that takes none away that is in use; returns when it is there.

        Raises what loading raised: a ``pipelines.errors.Error``, or worse.
        """

    async def inspect(self, pixels: NDArray[np.uint8]) -> bool:
        """Whether the safety checker flags a picture, (height, width, 3) RGB, that need not be one of ours.

        Raises a ``pipelines.errors.Error`` when there is no checker or it cannot look.
        """

    def stats(self) -> EngineStats:
        """A snapshot; cheap, from any thread."""
