"""What the diffusers families share: rows in slots, what they start from, their steps, and their pixels."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, ParamSpec, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from pipelines.adapting import Adapted, Adapting
from pipelines.auxiliary import FindAuxiliary, find_nothing
from pipelines.base import LaneKey, Pixels, Row, of_kind
from pipelines.block import BlockRing, StepBlock
from pipelines.colours import Colours, learn
from pipelines.draws import DRAWS, Draw, Kind
from pipelines.errors import Error, InvalidRequest, NonFinite, OutOfMemory
from pipelines.extras import Extras
from pipelines.family import Family
from pipelines.flags import AHEAD, FiniteFlags
from pipelines.glimpse import LatentGlimpse, shares
from pipelines.images import Posterior, Sources
from pipelines.inputs import ReadInput
from pipelines.ip_adapters import ImagePrompt, IpAdapters
from pipelines.lora import Loras
from pipelines.placement import Part, Placement
from pipelines.prompt import Embedding, EmbeddingCache, Wording, encode_texts
from pipelines.request import ImageRequest, Request, Task
from pipelines.rows import DiffusionRow, Encoded
from pipelines.shared import SharedComponents
from pipelines.slots import SlotPool
from pipelines.step import denoise, translated_memory_errors
from pipelines.vae import Vae
from pipelines.vaes import Vaes
from schedulers.errors import SchedulerError
from schedulers.table import SamplerTable, compile_table

P = ParamSpec("P")
T = TypeVar("T")

#: Lanes nobody is in keep their tensors up to this number, for the next request of the same size.
IDLE_POOLS = 4
#: Pixels beyond which a picture is decoded in tiles: its activations would be larger than the weights of SDXL. Seams of
#: tiles are blended by diffusers, but not invisible; smaller pictures are decoded whole, as stock does.
TILE_PIXELS = 2048 * 2048
#: Rows decoded together; beyond, a VAE gains nothing and its peak memory grows.
DECODE_ROWS = 4
#: What a client reads when latents are sound, and their picture is not.
NOT_DECODED = "the picture became not finite (NaN) when it was decoded: its VAE may need 32 bits"


class DiffusionPipeline(Family):
    """Base of the diffusers families: moves rows, with what a ``Family`` gives."""

    def __init__(
        self,
        *,
        scheduler_config: Mapping[str, Any],
        scheduler: str | None,
        kind: Kind,
        dtype: torch.dtype,
        placement: Placement,
        vaes: Vaes,
        slots: int,
        read_input: ReadInput | None = None,
        adapting: Adapting,
        find_auxiliary: FindAuxiliary = find_nothing,
        components: SharedComponents | None = None,
        extras: Extras,
    ) -> None:
        self.dtype = dtype
        self.placement = placement
        self.device = placement.device
        self.vaes = vaes
        #: Pixels per latent, on a side.
        self.factor = vaes.own.factor
        self.slots = slots
        self.kind = kind
        #: The checkpoint's scheduler_config.json.
        self.scheduler_config = dict(scheduler_config)
        self._scheduler = scheduler or str(scheduler_config["_class_name"])
        self.sources = Sources(read_input)
        self._adapting = adapting
        self._find_auxiliary = find_auxiliary
        self._components = components
        self._extras = extras
        #: From the first request that asks for a picture as a prompt: until then the denoiser is untouched.
        self.adapters: IpAdapters | None = None
        self.pools: dict[LaneKey, SlotPool] = {}
        self.cache = EmbeddingCache()
        self._flags = FiniteFlags()
        self._colours: WeakKeyDictionary[Vae, Colours] = WeakKeyDictionary()
        self._blocks = BlockRing(self.device, depth=AHEAD + 2)
        self._alone = itertools.count(1)

    def table(self, request: ImageRequest) -> SamplerTable:
        """The request's sampler, compiled or looked up."""
        return self._compile(request)

    def _compile(self, request: ImageRequest, **options: Any) -> SamplerTable:
        return compile_table(
            request.scheduler or self._scheduler,
            self.scheduler_config,
            request.steps,
            sigmas=request.sigmas.value,
            algorithm_type=request.algorithm_type,
            spacing=request.spacing,
            **options,
        )

    def _posterior(self, vae: Vae, image: Tensor) -> Posterior:
        with self.placement.using(Part.VAE):
            return vae.encode(image[None].to(self.device))

    # The contract.

    @torch.inference_mode()
    def prepare(self, requests: Sequence[Request]) -> list[list[Row] | Error]:
        """See ``Pipeline.prepare``."""
        wanted = of_kind(requests, ImageRequest)
        with translated_memory_errors(self.device):
            adapted = [_tried(self._adapting.adapt, request, self) for request in wanted]
            sound = [(one, how) for one, how in zip(wanted, adapted, strict=True) if isinstance(how, Adapted)]
            encoded = iter(self._encode(sound))
            return [
                how if isinstance(how, Error) else _tried(self._rows, request, how, next(encoded))
                for request, how in zip(wanted, adapted, strict=True)
            ]

    def _encode(self, requests: Sequence[tuple[ImageRequest, Adapted]]) -> list[Encoded]:
        """Texts of all requests together; those of reproducible ones each by itself and kept apart."""
        embeddings: dict[bool, dict[Wording, Embedding]] = {}
        for alone in (False, True):
            together = [(one, how.reading) for one, how in requests if one.reproducible is alone]
            wordings = [wording for one, reading in together for wording in self.wordings(one, reading)]
            embeddings[alone] = encode_texts(wordings, self._read, self.cache, alone=alone)
        return [self.condition(one, how.reading, embeddings[one.reproducible]) for one, how in requests]

    def embed(self, wording: Wording, request: ImageRequest) -> Embedding:
        """One text, as the request's own are embedded."""
        return encode_texts([wording], self._read, self.cache, alone=request.reproducible)[wording]

    def _read(self, wordings: Sequence[Wording], clip_skip: int) -> list[Embedding]:
        with self.placement.using(Part.ENCODERS):
            return self.read_texts(wordings, clip_skip)

    def _rows(self, request: ImageRequest, adapted: Adapted, encoded: Encoded) -> list[Row]:
        draws = DRAWS.get((self.kind, request.task, request.strength >= 1 or request.task is Task.TEXT2IMG))
        if draws is None:
            raise InvalidRequest(f"model {request.model} only inpaints: it needs an image and a mask", field="image")
        table = self.table(request)
        vae = self.vaes.get(request.vae)
        source = self.sources.source(request, partial(self._posterior, vae), vae.key)
        picture = self._picture(request, guided=encoded.negative is not None)
        lanes = [
            LaneKey(
                model=request.model,
                shape=self.lane_shape(request),
                size=(request.height, request.width),
                text=next(iter(encoded.positive.values())).shape[0],
                alone=next(self._alone) if request.reproducible else 0,
            )
            for _ in range(request.samples)
        ]
        return [
            DiffusionRow(
                request=request,
                index=index,
                lane=lane,
                table=table,
                encoded=encoded,
                draws=draws,
                source=source,
                stack=adapted.stack,
                vae=vae,
                picture=picture,
                warnings=adapted.warnings,
            )
            for index, lane in enumerate(lanes)
        ]

    @property
    def loras(self) -> Loras | None:
        """None until the first row that has one."""
        return self._adapting.loras

    def _picture(self, request: ImageRequest, *, guided: bool) -> ImagePrompt | None:
        if request.ip_adapter is None:
            return None
        if self.adapters is None:
            self.adapters = IpAdapters(
                self.network,
                dtype=self.dtype,
                placement=self.placement,
                find=self._find_auxiliary,
                read=self.sources.pixels,
                shared=self._components,
                extras=self._extras,
            )
        return self.adapters.prompt(request, guided=guided)

    @torch.inference_mode()
    def enter(self, row: Row) -> None:
        """See ``Pipeline.enter``."""
        assert isinstance(row, DiffusionRow)
        with translated_memory_errors(self.device):
            pool = self.pools.get(row.lane)
            if pool is None:
                capacity = 1 if row.lane.alone else self.slots
                pool = SlotPool(capacity, row.lane.shape, self.device, channel_axis=self.channel_axis)
                self.pools[row.lane] = pool
            try:
                row.slot = pool.take(row.encoded.positive, row.encoded.negative)
                if row.stack is not None and self.loras is not None:
                    row.lora = self.loras.bank.take(row.stack)
                if row.picture is not None and self.adapters is not None:
                    row.adapter = self.adapters.take(row.picture)
                self._begin(row, pool)
            except BaseException:
                self.leave(row)
                raise

    def _begin(self, row: DiffusionRow, pool: SlotPool) -> None:
        """Makes the first draws, in stock's order, and puts what the row starts from into its slot."""
        slot = row.occupied
        drawn = {draw: row.draw(self.latent_shape(row.request)) for draw in row.draws}
        noise = self.pack(drawn[Draw.NOISE])
        source, row.source = row.source, None
        if source is None:
            pool.latents[slot, 0].copy_(noise * row.table.init_scale)
            return
        clean: Tensor | None = None
        if Draw.IMAGE in drawn:
            clean = self.pack(row.vae.scale(source.image.sample(drawn[Draw.IMAGE])))
        if clean is None or (self.kind is not Kind.FILL and self._from_pure_noise(row)):
            pool.latents[slot, 0].copy_(noise * row.table.init_scale)
        else:
            pool.latents[slot, 0].copy_(row.table.start[0] * clean + row.table.start[1] * noise.to(clean.device))
        if source.mask is None or source.masked is None:
            return
        if self.kind is Kind.BLEND:
            assert clean is not None
            row.blends = True
            pool.set_reference(slot, clean=clean, noise=noise, mask=self.pack_mask(source.mask))
        else:
            masked = row.vae.scale(source.masked.sample(drawn[Draw.MASKED]))
            pool.set_extra(slot, self.extra_channels(source.mask.to(masked.device), masked))

    def _from_pure_noise(self, row: DiffusionRow) -> bool:
        """Stable Diffusion's inpainting at strength 1 forgets the picture; img2img mixes a trace of it in."""
        return row.request.task is Task.INPAINT and row.request.strength >= 1

    def leave(self, row: Row) -> None:
        """See ``Pipeline.leave``."""
        assert isinstance(row, DiffusionRow)
        self._flags.forget(row)
        if row.slot is not None:
            self.pools[row.lane].give(row.slot)
            row.slot = None
        if self.loras is not None:
            self.loras.bank.give(row.lora)
            row.lora = 0
        if self.adapters is not None:
            self.adapters.give(row.adapter)
            row.adapter = (0, 0)
        if row.lane.alone:
            self.pools.pop(row.lane, None)
        idle = [lane for lane, pool in self.pools.items() if pool.empty]
        for lane in idle[: max(0, len(idle) - IDLE_POOLS)]:
            del self.pools[lane]

    @torch.inference_mode()
    def step(self, rows: Sequence[Row]) -> list[Row]:
        """See ``Pipeline.step``."""
        moving = [row for row in rows if isinstance(row, DiffusionRow)]
        lane = moving[0].lane
        pool = self.pools[lane]
        with translated_memory_errors(self.device):
            self._draw_ahead(pool, moving)
            block = self._blocks.next(entries=sum(row.entries for row in moving), rows=len(moving))
            block.fill([row.part() for row in moving], scratch=pool.scratch)
            with self.placement.using(Part.DENOISER), self._laid_over(block):
                denoise(self.denoiser(lane), self.dtype, pool, block)
        for row in moving:
            row.step += 1
            row.drawn = None
        self._flags.watch([(row, row.occupied) for row in moving], pool.finite)
        self._flags.collect()
        return list(self._flags.failed)

    @torch.inference_mode()
    def glimpse(self, rows: Sequence[Row]) -> LatentGlimpse | None:
        """See ``Pipeline.glimpse``."""
        seen = [row for row in rows if isinstance(row, DiffusionRow) and shares(row.table, row.step) is not None]
        if not seen:
            return None
        lane = seen[0].lane
        colours = [self._colours_of(row.vae) for row in seen]
        return LatentGlimpse(seen, self.pools[lane], colours, lambda latents: self.unpack(latents[None], lane)[0])

    def _colours_of(self, vae: Vae) -> Colours:
        """Learnt at the first look."""
        found = self._colours.get(vae)
        if found is None:
            with translated_memory_errors(self.device), self.placement.using(Part.VAE):
                found = self._colours[vae] = learn(vae, self.device)
        return found

    @contextlib.contextmanager
    def _laid_over(self, block: StepBlock) -> Iterator[None]:
        """The rows' LoRAs and pictures are in place inside."""
        with contextlib.ExitStack() as laid:
            if self.loras is not None and block.any_lora:
                laid.enter_context(self.loras.bank.using(block.indices("entry_lora"), only=block.only_lora))
            if self.adapters is not None and block.any_adapter:
                scales = block.floats("entry_adapter_scale")
                laid.enter_context(self.adapters.bank.using(block.indices("entry_adapter"), scales))
            yield

    def _draw_ahead(self, pool: SlotPool, rows: Sequence[DiffusionRow]) -> None:
        for row in rows:
            if row.table.draws[row.step] and row.drawn is None:
                row.drawn = row.draw(row.lane.shape)
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
        by_vae: dict[Vae, list[DiffusionRow]] = {}
        for row in done:
            if row not in results:
                by_vae.setdefault(row.vae, []).append(row)
        # Alone to the last pixel: a decoder's last bits depend on its batch.
        together = 1 if done and done[0].lane.alone else DECODE_ROWS
        for good in by_vae.values():
            for start in range(0, len(good), together):
                part = good[start : start + together]
                results.update(zip(part, self._decode_rows(part), strict=True))
        return [results[row] for row in done]

    def _decode_rows(self, rows: Sequence[DiffusionRow], *, tiled: bool = False) -> list[Pixels | Error]:
        """Rows of one lane and one VAE."""
        lane = rows[0].lane
        pool = self.pools[lane]
        tiled = tiled or lane.size[0] * lane.size[1] > TILE_PIXELS
        try:
            with translated_memory_errors(self.device):
                slots = torch.tensor([row.occupied for row in rows], device=self.device)
                with self.placement.using(Part.VAE):
                    latents = self.unpack(pool.latents[:, 0].index_select(0, slots), lane)
                    images = rows[0].vae.decode(latents, tiled=tiled)
                # Stock's image processor: to 0 .. 1, clamped, rounded to 8 bits.
                images = images.float()
                # As in a step, by a sum: VAEs overflow in 16 bits, and requests bring VAEs of their own.
                finite = images.flatten(1).sum(dim=1).isfinite().tolist()
                levels = (images * 0.5 + 0.5).clamp(0, 1).mul(255).round().to(torch.uint8)
                pixels = levels.permute(0, 2, 3, 1).contiguous().cpu().numpy()
        except OutOfMemory as error:
            if len(rows) == 1:
                # Better a picture with faint seams than none.
                return [error] if tiled else self._decode_rows(rows, tiled=True)
            half = len(rows) // 2
            return self._decode_rows(rows[:half], tiled=tiled) + self._decode_rows(rows[half:], tiled=tiled)
        return [one if sound else NonFinite(NOT_DECODED) for one, sound in zip(pixels, finite, strict=True)]

    def close(self) -> None:
        """See ``Pipeline.close``."""
        self.pools.clear()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


def _tried(call: Callable[P, T], *arguments: P.args, **options: P.kwargs) -> T | Error:
    """What the call gives, or what is wrong with the one request that it is for."""
    try:
        return call(*arguments, **options)
    except SchedulerError as error:
        return InvalidRequest(str(error), field="scheduler")
    except OutOfMemory:
        raise
    except Error as error:
        return error
