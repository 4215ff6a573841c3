"""What the diffusers families share: rows in slots, guidance, and the step.

A step is ``denoise``: gather the rows' latents, one forward over their entries, guidance, and one product of every
row with its sampler's matrix. It keeps no state besides the pool, reads nothing back, and writes the pool only at
its very end: a step that failed on the way (out of memory) has not happened.
"""

from __future__ import annotations

import contextlib
import itertools
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pipelines.base import LaneKey, Pipeline, Pixels, Row
from pipelines.block import RowStep, StepBlock
from pipelines.errors import Error, InvalidRequest, NonFinite, OutOfMemory
from pipelines.flags import FiniteFlags
from pipelines.request import ImageRequest
from pipelines.slots import SlotPool
from schedulers.errors import SchedulerError
from schedulers.table import SamplerTable, compile_table
from schedulers.update import advance

#: name -> one tensor per entry, without an entry axis when it belongs to one row, with it inside a forward.
Conditioning = Mapping[str, Tensor]
#: (sample (entries, *shape), timestep (entries,) float32, conditioning) -> output (entries, *shape).
Denoiser = Callable[[Tensor, Tensor, Conditioning], Tensor]

#: Lanes nobody is in keep their tensors up to this number, for the next request of the same size.
IDLE_POOLS = 4
#: Rows decoded together; beyond, a VAE gains nothing and its peak memory grows.
DECODE_ROWS = 4


def denoise(denoiser: Denoiser, dtype: torch.dtype, pool: SlotPool, block: StepBlock) -> None:
    """One step of a lane: advances the slots named by ``block`` by one denoiser call.

    ``dtype`` is what the denoiser's input is cast to, after the input scale; everything else is float32. The number of
    operations launched does not depend on the number of rows, and nothing is read back, so that the whole call can be
    captured in a CUDA graph.
    """
    spread = (-1, *(1,) * len(pool.shape))
    # index_select takes int32, index_copy_ does not.
    slots = block.indices("row_slot").long()
    sample = pool.latents[:, 0].index_select(0, block.indices("entry_slot"))
    sample = (sample * block.floats("input_scale").view(spread)).to(dtype)
    entries = block.indices("entry_conditioning")
    conditioning = {name: value.index_select(0, entries) for name, value in pool.conditioning.items()}
    out = denoiser(sample, block.floats("timestep"), conditioning).float()
    negative = out.index_select(0, block.indices("row_negative"))
    positive = out.index_select(0, block.indices("row_positive"))
    guided = negative + block.floats("guidance").view(spread) * (positive - negative)
    stacked = torch.cat(
        (pool.latents.index_select(0, slots), guided.unsqueeze(1), pool.noise.index_select(0, slots).unsqueeze(1)),
        dim=1,
    )
    scaled = block.floats("norm_scaled") > 0
    moved = advance(stacked, block.matrices, scaled, any_norm_scaled=block.any_norm_scaled)
    finite = moved.isfinite().flatten(1).all(dim=1)
    pool.finite.index_copy_(0, slots, finite)
    pool.latents.index_copy_(0, slots, moved)


class DiffusionRow(Row):
    """A row of a denoiser."""

    def __init__(
        self,
        *,
        request: ImageRequest,
        index: int,
        lane: LaneKey,
        table: SamplerTable,
        positive: Conditioning,
        negative: Conditioning | None,
        warnings: tuple[str, ...],
    ) -> None:
        super().__init__(
            request=request,
            index=index,
            lane=lane,
            calls=table.calls,
            entries=1 if negative is None else 2,
            scheduler=table.scheduler,
            warnings=warnings,
        )
        self.table = table
        #: Conditioning until the row enters a slot.
        self.positive = positive
        self.negative = negative
        self.generator = torch.Generator("cpu").manual_seed(self.seed)
        self.slot: int | None = None
        #: Noise drawn for the coming step, kept until the step has been applied: a retry must not draw again.
        self.drawn: Tensor | None = None

    @property
    def occupied(self) -> int:
        """The slot of a row that has entered."""
        assert self.slot is not None, "the row has not entered its lane"
        return self.slot

    def part(self) -> RowStep:
        """What the next step needs to know of this row."""
        return RowStep(
            slot=self.occupied,
            guidance=self.request.guidance if self.entries == 2 else None,
            timestep=float(self.table.timesteps[self.step]),
            input_scale=float(self.table.input_scale[self.step]),
            matrix=self.table.matrices[self.step],
            norm_scaled=self.table.norm_scaled[self.step],
        )


@contextlib.contextmanager
def translated_memory_errors(device: torch.device) -> Iterator[None]:
    """Turns an allocator's failure into ``OutOfMemory`` and gives cached blocks back."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        # The CPU allocator raises a bare RuntimeError; only its text tells it from a bug.
        known = isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in str(error)
        if not known:
            raise
        if device.type == "cuda":
            torch.cuda.empty_cache()
        raise OutOfMemory("the device has too little memory for this request") from error


class DiffusionPipeline(Pipeline):
    """Base of the diffusers families; a family gives ``encode``, ``denoiser`` and ``decode``."""

    def __init__(
        self,
        *,
        scheduler_config: Mapping[str, Any],
        dtype: torch.dtype,
        device: torch.device,
        slots: int,
        scheduler: str | None,
    ) -> None:
        self.dtype = dtype
        self.device = device
        self.slots = slots
        #: The checkpoint's scheduler_config.json.
        self.scheduler_config = dict(scheduler_config)
        self._scheduler = scheduler or str(scheduler_config["_class_name"])
        self._pools: dict[LaneKey, SlotPool] = {}
        self._flags = FiniteFlags()
        self._alone = itertools.count(1)

    # What a family gives.

    @abstractmethod
    def latent_shape(self, request: ImageRequest) -> tuple[int, ...]:
        """Shape of one row's latents."""

    @abstractmethod
    def encode(
        self, requests: Sequence[ImageRequest]
    ) -> list[tuple[Conditioning, Conditioning | None, tuple[str, ...]] | Error]:
        """Per request positive and negative conditioning (None without guidance) and warnings."""

    @abstractmethod
    def denoiser(self, sample: Tensor, timestep: Tensor, conditioning: Conditioning) -> Tensor:
        """One forward."""

    @abstractmethod
    def decode(self, latents: Tensor) -> Tensor:
        """(rows, *shape) float32 -> (rows, 3, height, width), -1 .. 1."""

    # The contract.

    @torch.inference_mode()
    def prepare(self, requests: Sequence[ImageRequest]) -> list[list[Row] | Error]:
        """See ``Pipeline.prepare``."""
        prepared: list[list[Row] | Error] = []
        for request, encoded in zip(requests, self.encode(requests), strict=True):
            if isinstance(encoded, Error):
                prepared.append(encoded)
                continue
            try:
                prepared.append(self._rows(request, *encoded))
            except SchedulerError as error:
                prepared.append(InvalidRequest(str(error), field="scheduler"))
        return prepared

    def _rows(
        self, request: ImageRequest, positive: Conditioning, negative: Conditioning | None, warnings: tuple[str, ...]
    ) -> list[Row]:
        table = self.table(request)
        text = next(iter(positive.values())).shape[0]
        rows: list[Row] = []
        for index in range(request.samples):
            lane = LaneKey(
                model=request.model,
                shape=self.latent_shape(request),
                text=text,
                alone=next(self._alone) if request.reproducible else 0,
            )
            rows.append(
                DiffusionRow(
                    request=request,
                    index=index,
                    lane=lane,
                    table=table,
                    positive=positive,
                    negative=negative,
                    warnings=warnings + table.warnings,
                )
            )
        return rows

    def table(self, request: ImageRequest) -> SamplerTable:
        """The request's sampler, compiled or looked up."""
        return compile_table(
            request.scheduler or self._scheduler,
            self.scheduler_config,
            request.steps,
            sigmas=request.sigmas.value,
            algorithm_type=request.algorithm_type,
            spacing=request.spacing,
        )

    @torch.inference_mode()
    def enter(self, row: Row) -> None:
        """See ``Pipeline.enter``. Draws, in stock's order for text2img: latents, then one noise per drawing step."""
        assert isinstance(row, DiffusionRow)
        with translated_memory_errors(self.device):
            pool = self._pools.get(row.lane)
            if pool is None:
                pool = SlotPool(1 if row.lane.alone else self.slots, row.lane.shape, self.device)
                self._pools[row.lane] = pool
            slot = pool.take(row.positive, row.negative)
        row.slot = slot
        pool.latents[slot, 0].copy_(self._draw(row) * row.table.init_scale)

    def _draw(self, row: DiffusionRow) -> Tensor:
        # Shaped (1, ...) and drawn on the CPU in float32, as stock does with a list of generators: one seed, one
        # picture, whatever the device and the batch.
        return torch.randn((1, *row.lane.shape), generator=row.generator)[0]

    def leave(self, row: Row) -> None:
        """See ``Pipeline.leave``."""
        assert isinstance(row, DiffusionRow)
        if row.slot is None:
            return
        pool = self._pools[row.lane]
        self._flags.forget(row)
        pool.give(row.slot)
        row.slot = None
        if row.lane.alone:
            del self._pools[row.lane]
        idle = [lane for lane, other in self._pools.items() if other.empty]
        for lane in idle[: max(0, len(idle) - IDLE_POOLS)]:
            del self._pools[lane]

    @torch.inference_mode()
    def step(self, rows: Sequence[Row]) -> list[Row]:
        """See ``Pipeline.step``."""
        moving = [row for row in rows if isinstance(row, DiffusionRow)]
        pool = self._pools[moving[0].lane]
        with translated_memory_errors(self.device):
            self._draw_ahead(pool, moving)
            block = StepBlock(entries=sum(row.entries for row in moving), rows=len(moving), device=self.device)
            block.fill([row.part() for row in moving], scratch=pool.scratch)
            denoise(self.denoiser, self.dtype, pool, block)
        for row in moving:
            row.step += 1
            row.drawn = None
        self._flags.watch([(row, row.occupied) for row in moving], pool.finite)
        self._flags.collect()
        return list(self._flags.failed)

    def _draw_ahead(self, pool: SlotPool, rows: Sequence[DiffusionRow]) -> None:
        drawing = [row for row in rows if row.table.draws[row.step] and row.drawn is None]
        for row in drawing:
            row.drawn = self._draw(row)
        drawn = [(row.occupied, row.drawn) for row in rows if row.drawn is not None]
        if drawn:
            slots = torch.tensor([slot for slot, _ in drawn], device=self.device)
            pool.noise.index_copy_(0, slots, torch.stack([noise for _, noise in drawn]).to(self.device))

    @torch.inference_mode()
    def finish(self, rows: Sequence[Row]) -> list[Pixels | Error]:
        """See ``Pipeline.finish``."""
        done = [row for row in rows if isinstance(row, DiffusionRow)]
        self._flags.collect(wait_for=done)
        results: dict[DiffusionRow, Pixels | Error] = {
            row: NonFinite("the picture became not finite (NaN) while it was drawn")
            for row in done
            if row in self._flags.failed
        }
        good = [row for row in done if row not in results]
        for start in range(0, len(good), DECODE_ROWS):
            part = good[start : start + DECODE_ROWS]
            results.update(zip(part, self._decode_rows(part), strict=True))
        return [results[row] for row in done]

    def _decode_rows(self, rows: Sequence[DiffusionRow]) -> list[Pixels | Error]:
        pool = self._pools[rows[0].lane]
        try:
            with translated_memory_errors(self.device):
                slots = torch.tensor([row.occupied for row in rows], device=self.device)
                images = self.decode(pool.latents[:, 0].index_select(0, slots))
                # Stock's image processor: to 0 .. 1, clamped, rounded to 8 bits.
                levels = (images.float() * 0.5 + 0.5).clamp(0, 1).mul(255).round().to(torch.uint8)
                pixels = levels.permute(0, 2, 3, 1).contiguous().cpu().numpy()
        except OutOfMemory as error:
            if len(rows) == 1:
                return [error]
            half = len(rows) // 2
            return self._decode_rows(rows[:half]) + self._decode_rows(rows[half:])
        return list(pixels)

    def close(self) -> None:
        """See ``Pipeline.close``."""
        self._pools.clear()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
