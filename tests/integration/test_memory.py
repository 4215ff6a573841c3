"""Models take turns within a budget of weights, and leave nothing behind."""

from __future__ import annotations

import ctypes
import gc
from pathlib import Path

import pytest

from pipelines import demo
from pipelines.model import ModelSpec
from pipelines.request import ImageRequest
from server.engine.executors.local import LocalExecutor

pytestmark = pytest.mark.anyio

SWITCHES = 50


def resident_bytes() -> int:
    """What the kernel counts for this process, after what can be given back has been."""
    gc.collect()
    # glibc keeps freed memory for itself; what it would give back is no growth.
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def wish(model: str) -> ImageRequest:
    return ImageRequest(model=model, prompt="a cat", width=64, height=64, steps=2, guidance=7.5, seed=1)


@pytest.mark.slow
async def test_two_models_that_do_not_fit_together_take_turns_without_growth(demo_folder: Path) -> None:
    loads: list[str] = []

    def spec(name: str) -> ModelSpec:
        return ModelSpec(id=name, family=name, folder=demo.ensure(name, demo_folder))

    # The demo SDXL has 4.5 MB of weights, SD1.5 3.7: either fits, both do not.
    executor = LocalExecutor(spec, device="cpu", budget_gb=0.006)
    load = executor.engine.models.load

    def counted(name: str) -> object:
        loads.append(name)
        return load(name)

    executor.engine.models.load = counted  # type: ignore[assignment]
    await executor.start()
    try:
        first = {name: (await executor.submit(wish(name)).outcome()).pictures[0].pixels for name in ("sd15", "sdxl")}
        for _ in range(10):
            for name in ("sd15", "sdxl"):
                await executor.submit(wish(name)).outcome()
        loads.clear()
        before = resident_bytes()
        for number in range(SWITCHES):
            name = ("sd15", "sdxl")[number % 2]
            pixels = (await executor.submit(wish(name)).outcome()).pictures[0].pixels
            assert abs(pixels.astype(int) - first[name].astype(int)).max() <= 1
            assert executor.engine.models.names == (name,)
        assert loads == ["sd15", "sdxl"] * (SWITCHES // 2)
        assert abs(resident_bytes() / before - 1) <= 0.05
    finally:
        await executor.close()


async def test_the_budget_counts_what_the_files_headers_say(demo_folder: Path) -> None:
    def spec(name: str) -> ModelSpec:
        return ModelSpec(id=name, family="sd15", folder=demo.ensure("sd15", demo_folder))

    executor = LocalExecutor(spec, device="cpu", budget_gb=0.001)
    await executor.start()
    try:
        with pytest.raises(Exception, match=r"model sd15 needs 0\.00 GB .* room \(vram_budget_gb\) for 0\.00"):
            await executor.submit(wish("sd15")).outcome()
    finally:
        await executor.close()
