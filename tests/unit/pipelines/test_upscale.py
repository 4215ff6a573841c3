"""Pictures made larger: tile by tile what the network makes of the whole, then Lanczos to the asked size."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pipelines.base import Pixels
from pipelines.errors import Error, InvalidRequest, NonFinite, OutOfMemory
from pipelines.esrgan import Enlarger, load_enlarger
from pipelines.host import Host
from pipelines.model import ModelSpec
from pipelines.request import ImageRequest
from pipelines.upscale import Upscaler, UpscaleRow, resize_rows
from pipelines.upscalers import Upscaling
from tests.equality.stock import difference
from tests.unit.pipelines.upscalers import Tensors, compact, rrdb, run_compact, run_rrdb, write

CPU = torch.device("cpu")


def picture(height: int, width: int) -> Pixels:
    """Waves and noise, so that a shifted or seamed tile is seen."""
    down, across = np.mgrid[0:height, 0:width]
    waves = np.stack([np.sin(across / 5 + down / (7 + n)) for n in range(3)], axis=-1)
    noise = np.random.default_rng(5).normal(0, 0.2, size=(height, width, 3))
    return ((waves * 0.3 + noise + 0.5).clip(0, 1) * 255).astype(np.uint8)


def load(tensors: Tensors, folder: Path) -> Enlarger:
    return load_enlarger(write(tensors, folder, "tiny"), "tiny", dtype=torch.float32, device=CPU)


def wish(pixels: Pixels, factor: int = 4, **changes: Any) -> ImageRequest:
    size = pixels.shape[1], pixels.shape[0]
    return Upscaling(upscaler="upscaler:tiny", image="it", size=size, factor=factor, **changes).request()


def resized(source: Pixels, width: int, height: int) -> Pixels:
    """Side by side."""
    wide = Image.fromarray(source).resize((width, source.shape[0]), Image.Resampling.LANCZOS)
    return np.asarray(wide.resize((width, height), Image.Resampling.LANCZOS))


def prepared(upscaler: Upscaler, request: ImageRequest) -> UpscaleRow:
    (rows,) = upscaler.prepare([request])
    assert isinstance(rows, list) and isinstance(rows[0], UpscaleRow)
    return rows[0]


def upscaled(upscaler: Upscaler, request: ImageRequest) -> Pixels | Error:
    row = prepared(upscaler, request)
    upscaler.enter(row)
    while row.remaining:
        assert upscaler.step([row]) == []
    (result,) = upscaler.finish([row])
    upscaler.leave(row)
    assert isinstance(result, np.ndarray | Error)
    return result


def pixels_of(result: Pixels | Error) -> Pixels:
    assert isinstance(result, np.ndarray), result
    return result


def whole(run: Callable[[torch.Tensor], torch.Tensor], pixels: Pixels) -> Pixels:
    """The network's answer to the whole picture at once."""
    x = torch.from_numpy(pixels.astype(np.float32) / 255).permute(2, 0, 1)[None]
    return (run(x)[0].clamp(0, 1) * 255).round().permute(1, 2, 0).numpy().astype(np.uint8)


@pytest.mark.parametrize("size", [(150, 97), (33, 211), (20, 20)])
def test_tiles_make_what_the_network_makes_of_the_whole(size: tuple[int, int], tmp_path: Path) -> None:
    tensors, pixels = rrdb(), picture(*size)
    upscaler = Upscaler(load(tensors, tmp_path), lambda name: pixels, CPU, tile=96)
    found = pixels_of(upscaled(upscaler, wish(pixels)))
    expected = whole(lambda x: run_rrdb(tensors, x), pixels)
    assert expected.std() > 5, "a flat picture would prove nothing"
    assert found.shape == (4 * size[0], 4 * size[1], 3)
    assert difference(found, expected) <= 1


def test_a_folding_network_takes_odd_sizes(tmp_path: Path) -> None:
    tensors, pixels = rrdb(fold=2), picture(101, 133)
    upscaler = Upscaler(load(tensors, tmp_path), lambda name: pixels, CPU, tile=96)
    found = pixels_of(upscaled(upscaler, wish(pixels, 2)))
    padded = np.pad(pixels, ((0, 1), (0, 1), (0, 0)), mode="reflect")
    expected = whole(lambda x: run_rrdb(tensors, x, fold=2), padded)[:202, :266]
    assert difference(found, expected) <= 1


@pytest.mark.parametrize("factor", [2, 3, 6])
def test_other_factors_are_resized_from_the_networks_picture_as_a_whole(factor: int, tmp_path: Path) -> None:
    tensors, pixels = compact(), picture(60, 75)
    upscaler = Upscaler(load(tensors, tmp_path), lambda name: pixels, CPU)
    found = pixels_of(upscaled(upscaler, wish(pixels, factor)))
    large = whole(lambda x: run_compact(tensors, x), pixels)
    assert difference(found, resized(large, 75 * factor, 60 * factor)) <= 1


@pytest.mark.parametrize("size", [(200, 300), (77, 130), (431, 45)])
@pytest.mark.parametrize("rows", [1, 50, 64])
def test_rows_resized_by_themselves_are_those_of_the_whole(size: tuple[int, int], rows: int) -> None:
    source = picture(120, 90)
    image = Image.fromarray(source)
    parts = [resize_rows(image, size, start, min(start + rows, size[1])) for start in range(0, size[1], rows)]
    assert difference(np.concatenate(parts), resized(source, *size)) <= 1


def test_without_weights_it_is_lanczos_and_says_so() -> None:
    pixels = picture(40, 50)
    spec = ModelSpec(id="upscaler:tiny", family="upscaler", folder=Path())
    upscaler = Upscaler.load(spec, Host(device=CPU, slots=1, read_input=lambda name: pixels))
    found = pixels_of(upscaled(upscaler, wish(pixels, 3)))
    assert np.array_equal(found, resized(pixels, 150, 120))
    assert prepared(upscaler, wish(pixels, 3)).warnings == (
        "The weights of upscaler tiny are not here: the picture was enlarged with Lanczos.",
    )


class Short(torch.nn.Module):
    """A network whose device has memory for so many pixels."""

    def __init__(self, network: Enlarger, fits: int) -> None:
        super().__init__()
        self.network, self.fits = network, fits
        self.factor, self.multiple = network.factor, network.multiple
        self.seen: list[tuple[int, ...]] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.shape[0] * x.shape[2] * x.shape[3] > self.fits:
            raise torch.OutOfMemoryError
        self.seen.append(tuple(x.shape))
        enlarged: torch.Tensor = self.network(x)
        return enlarged


def test_tiles_that_do_not_fit_the_memory_go_in_smaller_ones(tmp_path: Path) -> None:
    tensors, pixels = rrdb(), picture(190, 170)
    short = Short(load(tensors, tmp_path), fits=100 * 100)
    found = pixels_of(upscaled(Upscaler(short, lambda name: pixels, CPU), wish(pixels)))  # type: ignore[arg-type]
    assert difference(found, whole(lambda x: run_rrdb(tensors, x), pixels)) <= 1
    assert len(short.seen) > 4


def test_a_tile_that_fits_in_no_size_fails_and_no_step_is_counted(tmp_path: Path) -> None:
    pixels = picture(190, 170)
    short = Short(load(rrdb(), tmp_path), fits=10)
    upscaler = Upscaler(short, lambda name: pixels, CPU)  # type: ignore[arg-type]
    row = prepared(upscaler, wish(pixels))
    upscaler.enter(row)
    with pytest.raises(OutOfMemory):
        upscaler.step([row])
    assert row.step == 0


def test_a_picture_that_is_not_finite_fails(tmp_path: Path) -> None:
    tensors, pixels = rrdb(), picture(30, 30)
    tensors["conv_last.bias"][1] = float("nan")
    assert isinstance(upscaled(Upscaler(load(tensors, tmp_path), lambda name: pixels, CPU), wish(pixels)), NonFinite)


def test_an_input_that_is_gone_fails_its_request_alone(tmp_path: Path) -> None:
    pixels = picture(30, 30)

    def read(name: str) -> Pixels:
        if name == "gone":
            raise InvalidRequest("the input picture is gone")
        return pixels

    upscaler = Upscaler(load(rrdb(), tmp_path), read, CPU)
    good = wish(pixels)
    first, second = upscaler.prepare([Upscaling(upscaler="u", image="gone", size=(30, 30), factor=2).request(), good])
    assert isinstance(first, InvalidRequest)
    assert isinstance(second, list)


@pytest.mark.parametrize(("height", "width"), [(64, 64), (300, 300), (512, 512), (1000, 700)])
def test_the_expected_calls_are_those_of_a_network_of_four_times(height: int, width: int, tmp_path: Path) -> None:
    pixels = picture(height, width)
    upscaler = Upscaler(load(compact(), tmp_path), lambda name: pixels, CPU)
    assert prepared(upscaler, wish(pixels, 2)).calls == wish(pixels, 2).calls
