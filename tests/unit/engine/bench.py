"""An engine for tests."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pipelines.base import Pipeline, Row
from pipelines.errors import BrokenCheckpoint, Error
from pipelines.request import ImageRequest, Request
from pipelines.safety import Check, refuse_unchecked
from pipelines.stub import StubPipeline
from pipelines.vision import VisionRequest, VisionTask
from server.engine.engine import Engine
from server.engine.executors.base import Outcome
from server.engine.models import Beside, Budget
from server.engine.tickets import Ticket


class Bench:
    """An engine over stub pipelines with a clock of its own: a step takes a second and a hundredth per row."""

    def __init__(
        self,
        *,
        max_rows: int = 8,
        slots: int = 16,
        max_resident: int = 2,
        fits: int = 1000,
        budget: int | None = None,
        weigh: Callable[[str], int] = lambda name: 0,
        check: Check = refuse_unchecked,
        beside: Sequence[Beside] = (),
    ) -> None:
        self.now = 0.0
        self.pipelines: dict[str, StubPipeline] = {}
        self.loads: list[str] = []
        self.stamps: dict[str, int] = {}
        self.broken: set[str] = set()
        self.fits = fits
        self.results: dict[int, Outcome | Error] = {}
        self.engine = Engine(
            self.load,
            max_rows=max_rows,
            slots=slots,
            max_resident=max_resident,
            budget=lambda: Budget(together=budget, alone=budget),
            stamp=lambda name: self.stamps.get(name),
            weigh=weigh,
            check=check,
            beside=beside,
            clock=lambda: self.now,
        )
        self.submitted = 0

    def load(self, name: str) -> Pipeline:
        if name in self.broken:
            raise BrokenCheckpoint(f"model {name}: unet is missing")
        self.loads.append(name)
        self.pipelines[name] = StubPipeline(fits=self.fits, before_step=self.tick)
        return self.pipelines[name]

    def tick(self, rows: Sequence[Row]) -> None:
        self.now += 1.0 + 0.01 * len(rows)

    def submit(self, *, deadline: float | None = None, **changes: object) -> Ticket:
        values: dict[str, object] = dict(
            model="a", prompt="a cat", width=64, height=64, steps=4, guidance=7.5, seed=self.submitted
        )
        return self.hand_over(ImageRequest(**{**values, **changes}), deadline)  # type: ignore[arg-type]

    def ask(self, prompt: str = "", *, beams: int = 3) -> Ticket:
        task = VisionTask.CAPTION
        return self.hand_over(VisionRequest(model="v", task=task, prompt=prompt, image="digest", beams=beams))

    def hand_over(self, request: Request, deadline: float | None = None) -> Ticket:
        number = self.submitted
        self.submitted += 1

        def done(result: Outcome | Error) -> None:
            assert number not in self.results, "a request must end once"
            self.results[number] = result

        ticket = Ticket(request, number=number, arrived=self.now, deadline=deadline, done=done)
        self.engine.submit(ticket)
        return ticket

    def run(self, turns: int | None = None) -> int:
        """Turns the engine, at most so often; returns how often something was stepped."""
        steps = 0
        while turns is None or steps < turns:
            if not self.engine.turn():
                break
            steps += 1
            assert steps < 10_000
        return steps

    def error(self, number: int) -> Error:
        result = self.results[number]
        assert isinstance(result, Error)
        return result

    def outcome(self, number: int) -> Outcome:
        result = self.results[number]
        assert isinstance(result, Outcome), result
        return result
