"""Finished pictures made larger, tile by tile, so that the rows of other lanes never wait for a whole picture."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from math import ceil
from typing import Self

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pipelines.base import ImageRow, LaneKey, Pipeline, Pixels, Row, of_kind
from pipelines.errors import Error, InvalidRequest, NonFinite, OutOfMemory
from pipelines.esrgan import Enlarger, load_enlarger
from pipelines.host import Host
from pipelines.inputs import ReadInput
from pipelines.model import ModelSpec
from pipelines.request import ImageRequest, Request
from pipelines.step import translated_memory_errors
from pipelines.tiles import Window, windows
from pipelines.upscalers import BAND_PIXELS, MARGIN, PREFIX, TILE, TILES

#: Lanczos looks so many pixels far, of the coarser side.
REACH = 3


class UpscaleRow(ImageRow):
    """One picture on its way to ``request.width`` x ``request.height``: tiles through the network, then Lanczos."""

    def __init__(
        self, request: ImageRequest, lane: LaneKey, pixels: Pixels, factor: int | None, warnings: tuple[str, ...]
    ) -> None:
        self.factor = factor or 1
        height, width = (side * self.factor for side in pixels.shape[:2])
        wanted = request.height, request.width
        #: Tiles of each step, then the bands (from row, to row) of the steps behind them.
        self.batches = _batches(list(windows(*lane.size, lane.shape[0], MARGIN))) if factor else []
        self.bands = _bands(*wanted) if (height, width) != wanted else []
        calls = len(self.batches) + len(self.bands)
        # A picture that is as large as it should be takes a step that does nothing.
        super().__init__(request=request, index=0, lane=lane, calls=max(calls, 1), entries=1, warnings=warnings)
        self.pixels = pixels
        #: Once it has entered, on the device: uint8 (3, height, width), padded to what the network takes, before and
        #: after.
        self.small: Tensor | None = None
        self.large: Tensor | None = None
        self.finite: Tensor | None = None
        #: On the host: what the bands are made of, and they.
        self.source: Image.Image | None = None
        self.result: Pixels | None = None


class Upscaler(Pipeline):
    """One network, or Lanczos where its weights are not here. Each picture is a lane of its own."""

    def __init__(
        self,
        network: Enlarger | None,
        read: ReadInput | None,
        device: torch.device,
        *,
        tile: int = TILE,
        warnings: tuple[str, ...] = (),
    ) -> None:
        self.network = network
        self._read = read
        self._device = device
        self._tile = tile
        self._warnings = warnings
        self._alone = itertools.count(1)

    @classmethod
    def load(cls, spec: ModelSpec, host: Host) -> Self:
        """From ``spec.file``; BrokenCheckpoint says how it is wrong."""
        if spec.file is None:
            name = spec.id.removeprefix(PREFIX)
            warning = f"The weights of upscaler {name} are not here: the picture was enlarged with Lanczos."
            return cls(None, host.read_input, host.device, warnings=(warning,))
        network = load_enlarger(spec.file, spec.id, dtype=upscaling_dtype(host.device), device=host.device)
        return cls(network, host.read_input, host.device)

    def prepare(self, requests: Sequence[Request]) -> list[list[Row] | Error]:
        """See ``Pipeline.prepare``."""
        prepared: list[list[Row] | Error] = []
        for request in of_kind(requests, ImageRequest):
            try:
                prepared.append([self._row(request)])
            except Error as error:
                prepared.append(error)
        return prepared

    def _row(self, request: ImageRequest) -> UpscaleRow:
        if self._read is None or request.image is None:
            raise InvalidRequest(f"model {request.model} needs an image", field="image")
        pixels = self._read(request.image)
        multiple, factor = (1, None) if self.network is None else (self.network.multiple, self.network.factor)
        height, width = (ceil(side / multiple) * multiple for side in pixels.shape[:2])
        lane = LaneKey(
            model=request.model,
            shape=(self._tile, min(self._tile, height), min(self._tile, width)),
            size=(height, width),
            text=0,
            # The tiles of one picture fill a step.
            alone=next(self._alone),
        )
        return UpscaleRow(request, lane, pixels, factor, self._warnings)

    @torch.inference_mode()
    def enter(self, row: Row) -> None:
        """See ``Pipeline.enter``."""
        assert isinstance(row, UpscaleRow)
        if not row.batches:
            return
        height, width = row.lane.size
        more = height - row.pixels.shape[0], width - row.pixels.shape[1]
        padded = np.pad(row.pixels, ((0, more[0]), (0, more[1]), (0, 0)), mode="reflect")
        with translated_memory_errors(self._device):
            row.small = torch.from_numpy(padded).to(self._device).permute(2, 0, 1)
            sides = height * row.factor, width * row.factor
            row.large = torch.empty((3, *sides), dtype=torch.uint8, device=self._device)
            row.finite = torch.ones((), dtype=torch.bool, device=self._device)

    def leave(self, row: Row) -> None:
        """See ``Pipeline.leave``."""
        assert isinstance(row, UpscaleRow)
        row.small = row.large = row.finite = row.source = row.result = None

    @torch.inference_mode()
    def step(self, rows: Sequence[Row]) -> list[Row]:
        """See ``Pipeline.step``."""
        for row in rows:
            assert isinstance(row, UpscaleRow)
            if row.step < len(row.batches):
                self._enlarge_tiles(row, row.batches[row.step])
            elif row.bands:
                self._resize_band(row, *row.bands[row.step - len(row.batches)])
            row.step += 1
        return []

    def _enlarge_tiles(self, row: UpscaleRow, tiles: Sequence[Window]) -> None:
        assert row.small is not None and row.large is not None and row.finite is not None
        seen = [
            row.small[:, one.rows.start : one.rows.end, one.columns.start : one.columns.end].contiguous()
            for one in tiles
        ]
        enlarged = self._enlarge(torch.stack(seen).float() / 255)
        row.finite &= enlarged.isfinite().all()
        levels = (enlarged.clamp(0, 1) * 255).round().to(torch.uint8)
        for one, picture in zip(tiles, levels, strict=True):
            _put(row.large, picture, one, row.factor)

    def _enlarge(self, pixels: Tensor) -> Tensor:
        """(rows, 3, height, width) float32 0 .. 1 through the network; what does not fit goes in smaller parts."""
        assert self.network is not None
        try:
            with translated_memory_errors(self._device):
                dtype = next(self.network.parameters()).dtype
                large: Tensor = self.network(pixels.to(dtype, memory_format=torch.channels_last))
                return large.float()
        except OutOfMemory:
            if len(pixels) > 1:
                return torch.cat([self._enlarge(one[None]) for one in pixels])
            # A multiple of 8 is one of every network's ``multiple``.
            tile = max(pixels.shape[-2:]) // 16 * 8
            if tile <= 2 * MARGIN:
                raise
        return self._enlarge_in(pixels, tile)

    def _enlarge_in(self, pixels: Tensor, tile: int) -> Tensor:
        assert self.network is not None
        factor = self.network.factor
        height, width = pixels.shape[-2:]
        large = torch.empty((1, 3, height * factor, width * factor), device=pixels.device)
        for one in windows(height, width, tile, MARGIN):
            part = pixels[:, :, one.rows.start : one.rows.end, one.columns.start : one.columns.end]
            _put(large[0], self._enlarge(part)[0], one, factor)
        return large

    def _resize_band(self, row: UpscaleRow, start: int, end: int) -> None:
        if row.source is None:
            row.source = Image.fromarray(row.pixels if row.large is None else _on_host(row))
            # Only bands are left to do.
            row.small = row.large = None
        if row.result is None:
            row.result = np.empty((row.request.height, row.request.width, 3), dtype=np.uint8)
        row.result[start:end] = resize_rows(row.source, (row.request.width, row.request.height), start, end)

    def finish(self, rows: Sequence[Row]) -> list[Pixels | Error]:
        """See ``Pipeline.finish``."""
        return [self._finished(row) for row in rows]

    def _finished(self, row: Row) -> Pixels | Error:
        assert isinstance(row, UpscaleRow)
        if row.finite is not None and not bool(row.finite):
            return NonFinite("the picture became not finite (NaN) while it was enlarged")
        if row.result is not None:
            return row.result
        return row.pixels if row.large is None else _on_host(row)

    def close(self) -> None:
        """See ``Pipeline.close``."""
        self.network = None
        if self._device.type == "cuda":
            torch.cuda.empty_cache()


def upscaling_dtype(device: torch.device) -> torch.dtype:
    """Half precision is finer than 8 bits; bfloat16 is not."""
    return torch.float16 if device.type == "cuda" else torch.float32


def resize_rows(source: Image.Image, size: tuple[int, int], start: int, end: int) -> Pixels:
    """Rows ``start`` to ``end`` of ``source`` resized with Lanczos to ``size``, first its width and then its height.

    They are those of the whole resized picture: as much beside them is resized as the filter reaches. The order is
    fixed, because overshoots are cut off in between and Pillow alone takes the cheaper order of each part.
    """
    width, height = size
    scale = source.height / height
    reach = ceil(REACH * max(1.0, scale))
    top = max(int(start * scale) - reach, 0)
    bottom = min(ceil(end * scale) + reach, source.height)
    wide = source.resize((width, bottom - top), Image.Resampling.LANCZOS, box=(0, top, source.width, bottom))
    box = (0, start * scale - top, width, min(end * scale - top, bottom - top))
    return np.asarray(wide.resize((width, end - start), Image.Resampling.LANCZOS, box=box))


def _put(large: Tensor, picture: Tensor, window: Window, factor: int) -> None:
    """Copies the part of an enlarged tile that is kept to its place."""
    rows, columns = window.rows, window.columns
    kept = picture[
        :,
        (rows.kept_start - rows.start) * factor : (rows.kept_end - rows.start) * factor,
        (columns.kept_start - columns.start) * factor : (columns.kept_end - columns.start) * factor,
    ]
    large[
        :,
        rows.kept_start * factor : rows.kept_end * factor,
        columns.kept_start * factor : columns.kept_end * factor,
    ] = kept


def _on_host(row: UpscaleRow) -> Pixels:
    """What the network made, without the padding."""
    assert row.large is not None
    height, width = (side * row.factor for side in row.pixels.shape[:2])
    return row.large[:, :height, :width].permute(1, 2, 0).contiguous().cpu().numpy()


def _batches(tiles: list[Window]) -> list[list[Window]]:
    return [tiles[start : start + TILES] for start in range(0, len(tiles), TILES)]


def _bands(height: int, width: int) -> list[tuple[int, int]]:
    rows = max(BAND_PIXELS // width, 1)
    return [(start, min(start + rows, height)) for start in range(0, height, rows)]
