"""An executor in this process: one engine on one device."""

from __future__ import annotations

import asyncio
import importlib
import itertools
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

from pipelines.auxiliary import FindAuxiliary, find_nothing
from pipelines.base import Pipeline, Pixels
from pipelines.draft import SafetyRules
from pipelines.errors import Error, InvalidRequest
from pipelines.extras import Extras
from pipelines.inputs import ReadInput
from pipelines.lora_memory import MAX_BYTES, LoraMemory
from pipelines.model import ModelSpec, Offload
from pipelines.registry import FAMILIES, HELPERS
from pipelines.request import Request
from pipelines.safety import CheckerFiles
from pipelines.shared import SharedComponents
from pipelines.weight_file import WeightFile
from server.engine.checker import ResidentChecker
from server.engine.engine import INTERNAL, Engine
from server.engine.executors.base import EngineStats, Outcome, Preview, Progress
from server.engine.models import Budget
from server.engine.tickets import Ticket
from server.engine.wishes import Told
from server.engine.worker import Worker

logger = logging.getLogger(__name__)


#: Bytes beside the weights for the context, the latents and the activations of one picture; an estimate.
ONE_PICTURE = 1_500_000_000
#: Share of the budget for weights that LoRAs nobody is using may keep.
LORA_SHARE = 8


class LocalGeneration:
    """A request in the local engine; see ``executors.base.Generation``."""

    def __init__(
        self, engine: Engine, ticket: Ticket, future: asyncio.Future[Outcome], begun: asyncio.Future[bool]
    ) -> None:
        self._engine = engine
        self._ticket = ticket
        self._future = future
        self._begun = begun

    async def outcome(self) -> Outcome:
        """See ``Generation.outcome``; cancelling the caller does not cancel the request."""
        return await asyncio.shield(self._future)

    async def begun(self) -> bool:
        """See ``Generation.begun``."""
        return await asyncio.shield(self._begun)

    def cancel(self) -> None:
        """See ``Generation.cancel``."""
        self._engine.cancel(self._ticket)

    def progress(self) -> Progress:
        """See ``Generation.progress``."""
        return self._engine.outlook.progress(self._ticket)

    def previews(self) -> tuple[Preview, ...]:
        """See ``Generation.previews``."""
        self._engine.previews.watch(self._ticket)
        return self._ticket.previews


class LocalExecutor:
    """One engine and its device thread; see ``executors.base.Executor``."""

    def __init__(
        self,
        spec: Callable[[str], ModelSpec],
        *,
        device: str = "auto",
        threads: int = 0,
        max_rows: int = 16,
        max_resident: int = 4,
        budget_gb: float | None = None,
        offload: Offload = Offload.NONE,
        read_input: ReadInput | None = None,
        find_auxiliary: FindAuxiliary = find_nothing,
        checker_files: Callable[[], CheckerFiles | None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._catalog = spec
        self._budget_gb = budget_gb
        self._offload = offload
        self._read_input = read_input
        self._find_auxiliary = find_auxiliary
        self.checker = ResidentChecker(checker_files, device)
        self._shared = SharedComponents()
        self._lora_memory = LoraMemory(self._most_for_loras)
        self._extras = Extras()
        self._device = device
        self._threads = threads
        # Twice what one forward takes: an urgent request can enter a full lane and go first.
        self._slots = 2 * max_rows
        self._clock = clock
        self._numbers = itertools.count()
        self.engine = Engine(
            self._load,
            max_rows=max_rows,
            slots=self._slots,
            max_resident=max_resident,
            budget=self._budget,
            weigh=self._weigh,
            stamp=self._spec,
            check=self.checker.check,
            clock=clock,
            beside=[self.checker, self._extras],
        )
        self._worker = Worker(self.engine)

    async def start(self) -> None:
        """See ``Executor.start``."""
        self._worker.start()

    async def close(self) -> None:
        """See ``Executor.close``."""
        await asyncio.to_thread(self._worker.close)

    def submit(self, request: Request, *, deadline: float | None = None) -> LocalGeneration:
        """See ``Executor.submit``."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Outcome] = loop.create_future()
        begun: asyncio.Future[bool] = loop.create_future()

        def begin(admitted: bool) -> None:
            if not begun.done():
                begun.set_result(admitted)

        def resolve(result: Outcome | Error) -> None:
            begin(False)
            if isinstance(result, Error):
                future.set_exception(result)
                # Nobody may be waiting any more; that is no error of its own.
                future.exception()
            else:
                future.set_result(result)

        def tell(call: Callable[..., None], *values: object) -> None:
            try:
                loop.call_soon_threadsafe(call, *values)
            except RuntimeError:
                logger.info("a request moved on after its event loop had been closed")

        ticket = Ticket(
            request,
            number=next(self._numbers),
            arrived=self._clock(),
            deadline=deadline,
            done=lambda result: tell(resolve, result),
            begun=lambda: tell(begin, True),
        )
        self.engine.submit(ticket)
        return LocalGeneration(self.engine, ticket, future, begun)

    async def preload(self, model: str) -> None:
        """See ``Executor.preload``."""
        await self._ask(lambda told: self.engine.wishes.add(model, told))

    async def inspect(self, pixels: Pixels) -> bool:
        """See ``Executor.inspect``."""
        flags: list[bool] = []

        def look() -> None:
            # What would replace it is not shown.
            checked = self.checker.check([pixels], [SafetyRules.type])[0]
            if isinstance(checked, Error):
                raise checked
            flags.append(checked.flagged)

        await self._ask(lambda told: self.engine.wishes.run(look, told))
        return flags[0]

    async def _ask(self, add: Callable[[Told], None]) -> None:
        """Waits for a wish. Raises what it ended with."""
        if not self._worker.alive:
            raise Error(INTERNAL)
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()

        def resolve(error: Exception | None) -> None:
            if future.done():
                return
            if error is None:
                future.set_result(None)
            else:
                future.set_exception(error)

        def tell(error: Exception | None) -> None:
            with suppress(RuntimeError):
                # Raised where the event loop was closed meanwhile: nobody is left to be told.
                loop.call_soon_threadsafe(resolve, error)

        add(tell)
        self.engine.wake.set()
        await future

    def stats(self) -> EngineStats:
        """See ``Executor.stats``."""
        return replace(self.engine.stats, alive=self._worker.alive)

    def _spec(self, name: str) -> ModelSpec:
        spec = self._catalog(name)
        return replace(spec, offload=self._offload) if spec.offload is Offload.NONE else spec

    def _budget(self) -> Budget:
        """What weights may take, less what LoRAs take at the moment.

        A model that is there alone brings its own LoRAs: for it there is no need to subtract any.
        """
        budget = self._budget_for_all()
        return replace(budget, together=budget.together and budget.together - self._lora_memory.bytes)

    def _most_for_loras(self) -> int:
        together = self._budget_for_all().together
        return MAX_BYTES if together is None else min(MAX_BYTES, together // LORA_SHARE)

    def _budget_for_all(self) -> Budget:
        """What the setting says; else on a GPU four fifths, the rest being for latents, activations and libraries.

        A model alone may take all but the little that one picture needs: Flux without its encoders on a 24 GB card.
        """
        import torch

        from pipelines.device import pick_device

        if self._budget_gb is not None:
            most = int(self._budget_gb * 1e9)
            return Budget(together=most, alone=most)
        device = pick_device(self._device)
        if device.type != "cuda":
            return Budget()
        total = torch.cuda.get_device_properties(device).total_memory
        return Budget(together=total * 4 // 5, alone=total - ONE_PICTURE)

    def _weigh(self, name: str) -> int:
        """Bytes of weights that stay on the device, from the files' headers."""
        from pipelines.checkpoint import Checkpoint
        from pipelines.device import pick_device, pick_dtype
        from pipelines.placement import resident_components

        spec = self._made(name)
        device = pick_device(self._device)
        if spec.family in HELPERS:
            # A network of one file, in 16 bits.
            return 0 if spec.file is None else WeightFile.open(spec.file, name).weight_bytes(2)
        checkpoint = Checkpoint.open(spec, dtype=pick_dtype(spec.dtype, device), device=device)
        # What is no checkpoint at all must not cost the loaded models their place.
        checkpoint.read_json(checkpoint.index)
        sizes = checkpoint.component_bytes()
        resident = resident_components(spec.offload)
        # Whole parts take turns: the largest needs room.
        return sum(sizes[name] for name in sizes if name in resident) or max(sizes.values(), default=0)

    def _read(self, name: str) -> Pixels:
        """See ``pipelines.inputs.ReadInput``: what an earlier pass has drawn, or what came with a request."""
        carried = self.engine.carried.get(name)
        if carried is not None:
            return carried
        if self._read_input is None:
            raise InvalidRequest("this engine has no input pictures")
        return self._read_input(name)

    def _made(self, name: str) -> ModelSpec:
        """The model, its demo checkpoint made if it is one and not there yet."""
        from pipelines import demo

        spec = self._spec(name)
        if spec.demo is not None:
            demo.ensure(spec.demo, spec.folder.parent)
        return spec

    def _load(self, name: str) -> Pipeline:
        """Runs on the device thread, which is the only one that imports torch."""
        import torch

        from pipelines import demo
        from pipelines.device import pick_device
        from pipelines.host import Host
        from pipelines.quiet import quiet_libraries

        if self._threads:
            torch.set_num_threads(self._threads)
        quiet_libraries()
        spec = self._made(name)
        module, _, family = (FAMILIES | HELPERS)[spec.family].partition(":")
        find = self._find_auxiliary
        host = Host(
            device=pick_device(self._device),
            slots=self._slots,
            read_input=self._read,
            find_auxiliary=find if spec.demo is None else demo.finding_stand_ins(find, spec.folder.parent),
            shared=self._shared,
            lora_memory=self._lora_memory,
            extras=self._extras,
        )
        pipeline = getattr(importlib.import_module(module), family).load(spec, host)
        assert isinstance(pipeline, Pipeline)
        return pipeline
