"""The whole engine: drawn pictures and pictures of clients through upscalers that lie in a folder."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from pipelines.auxiliary import find_auxiliary
from pipelines.base import Pixels
from pipelines.errors import BrokenCheckpoint, Cancelled
from pipelines.model import ModelSpec
from pipelines.request import ImageRequest
from pipelines.upscalers import Upscaling
from server.catalog import Catalog
from server.catalog.upscalers import Upscalers
from server.engine.executors.local import LocalExecutor
from tests.equality.stock import difference, picture, read_input
from tests.unit.pipelines.upscalers import Tensors, rrdb, run_rrdb, write

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def executor_of(sd15_folder: Path, data: Path) -> AsyncIterator[LocalExecutor]:
    models = [ModelSpec(id="sd15", family="sd15", folder=sd15_folder)]
    catalog = Catalog(models, upscalers=Upscalers(partial(find_auxiliary, data)))
    executor = LocalExecutor(catalog.get, device="cpu", read_input=read_input)
    await executor.start()
    try:
        yield executor
    finally:
        await executor.close()


def wish(seed: int, *, upscale: int = 1, samples: int = 1, steps: int = 4) -> ImageRequest:
    return ImageRequest(
        model="sd15",
        prompt="a red cat",
        width=64,
        height=64,
        steps=steps,
        guidance=7.5,
        seed=seed,
        samples=samples,
        upscale=upscale,
    )


def enlarged(tensors: Tensors, pixels: Pixels, run: Callable[..., torch.Tensor]) -> Pixels:
    x = torch.from_numpy(pixels.astype(np.float32) / 255).permute(2, 0, 1)[None]
    return (run(tensors, x)[0].clamp(0, 1) * 255).round().permute(1, 2, 0).numpy().astype(np.uint8)


async def test_drawn_pictures_are_enlarged_by_the_best_upscaler_in_the_folder(
    sd15_folder: Path, tmp_path: Path
) -> None:
    async with executor_of(sd15_folder, tmp_path) as executor:
        plain = await executor.submit(wish(1, samples=2)).outcome()
        without = await executor.submit(wish(1, upscale=2, samples=2)).outcome()
        tensors = rrdb(fold=2)
        write(tensors, tmp_path / "upscalers", "RealESRGAN_x2plus")
        generations = [executor.submit(wish(1, upscale=2, samples=2)), executor.submit(wish(5, steps=9))]
        found, neighbour = [await one.outcome() for one in generations]
        progress = generations[0].progress()
    assert without.warnings[-1].endswith("RealESRGAN_x2plus are not here: the picture was enlarged with Lanczos.")
    assert [one.pixels.shape for one in without.pictures] == [(128, 128, 3)] * 2
    assert found.warnings == plain.warnings == neighbour.warnings
    assert found.scheduler == plain.scheduler != ""
    assert [one.seed for one in found.pictures] == [1, 2]
    for drawn, large in zip(plain.pictures, found.pictures, strict=True):
        expected = enlarged(tensors, drawn.pixels, partial(run_rrdb, fold=2))
        # A level more or less before is a little more than one behind.
        assert difference(large.pixels, expected) <= 3
    assert progress.step == progress.steps


async def test_a_clients_picture_is_enlarged_without_any_model_being_loaded(sd15_folder: Path, tmp_path: Path) -> None:
    tensors = rrdb()
    write(tensors, tmp_path / "upscalers", "mine")
    request = Upscaling(upscaler="upscaler:mine", image="picture-3", size=(64, 64), factor=4).request()
    async with executor_of(sd15_folder, tmp_path) as executor:
        outcome = await executor.submit(request).outcome()
        assert executor.engine.models.names == ("upscaler:mine",)
    assert difference(outcome.pictures[0].pixels, enlarged(tensors, picture(3), run_rrdb)) <= 1


async def test_a_file_that_is_no_upscaler_fails_what_asks_for_it_by_name(sd15_folder: Path, tmp_path: Path) -> None:
    write({"lora_unet.alpha": torch.ones(1)}, tmp_path / "upscalers", "RealESRGAN_x2plus")
    async with executor_of(sd15_folder, tmp_path) as executor:
        with pytest.raises(BrokenCheckpoint, match="RealESRGAN_x2plus"):
            await executor.submit(wish(1, upscale=2)).outcome()
        assert (await executor.submit(wish(1)).outcome()).pictures


async def test_an_upscaling_can_be_cancelled(sd15_folder: Path, tmp_path: Path) -> None:
    request = Upscaling(upscaler="upscaler:2x", image="picture-3", size=(64, 64), factor=100).request()
    async with executor_of(sd15_folder, tmp_path) as executor:
        generation = executor.submit(request)
        assert await generation.begun()
        generation.cancel()
        with pytest.raises(Cancelled):
            await generation.outcome()
