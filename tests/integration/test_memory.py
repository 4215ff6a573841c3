"""Models take turns within a budget of weights, and leave nothing behind."""

from __future__ import annotations

import ctypes
import gc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipelines import demo
from pipelines.auxiliary import find_in
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


def write_lora(file: Path, number: int) -> None:
    """Random: rank, layers, numbers; of the UNet and of the text encoder."""
    import torch
    from safetensors.torch import save_file

    source = torch.Generator().manual_seed(number)
    rank = int(torch.randint(1, 33, (), generator=source))
    shapes = {
        "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q": (16, 16),
        "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_v": (32, 32),
        "lora_unet_conv_out": (4, 16, 3, 3),
        "lora_te_text_model_encoder_layers_0_mlp_fc1": (64, 32),
        "lora_te_text_model_encoder_layers_11_self_attn_v_proj": (32, 32),
    }
    tensors = {}
    for key, (outputs, inputs, *kernel) in shapes.items():
        if torch.rand((), generator=source) < 0.7 or "fc1" in key:
            tensors[f"{key}.lora_down.weight"] = torch.randn(rank, inputs, *kernel, generator=source)
            tensors[f"{key}.lora_up.weight"] = torch.randn(outputs, rank, *[1] * len(kernel), generator=source) / 8
    save_file(tensors, file)


async def test_what_loras_take_is_not_there_for_models(demo_folder: Path, tmp_path: Path) -> None:
    def spec(name: str) -> ModelSpec:
        return ModelSpec(id=name, family=name, folder=demo.ensure(name, demo_folder))

    async def resident(budget_gb: float | None, *loras: tuple[str, float]) -> tuple[tuple[str, ...], int]:
        executor = LocalExecutor(
            spec, device="cpu", budget_gb=budget_gb, find_auxiliary=lambda _, name: find_in(tmp_path, name)
        )
        await executor.start()
        try:
            await executor.submit(replace(wish("sd15"), loras=loras)).outcome()
            await executor.submit(wish("sdxl")).outcome()
            return executor.engine.models.names, executor.engine.models.weight
        finally:
            await executor.close()

    write_lora(tmp_path / "a.safetensors", 1)
    both, weight = await resident(None, ("a", 1.0))
    just_enough = weight / 1e9 + 1e-9
    assert await resident(just_enough) == (both, weight)
    assert (await resident(just_enough, ("a", 1.0)))[0] == ("sdxl",) != both


@pytest.mark.slow
async def test_a_hundred_loras_leave_base_pictures_and_memory_as_they_were(demo_folder: Path, tmp_path: Path) -> None:
    def spec(name: str) -> ModelSpec:
        return ModelSpec(id=name, family=name, folder=demo.ensure(name, demo_folder))

    executor = LocalExecutor(spec, device="cpu", find_auxiliary=lambda _, name: find_in(tmp_path, name))
    await executor.start()
    try:
        base = (await executor.submit(wish("sd15")).outcome()).pictures[0].pixels
        before = 0
        for number in range(130):
            write_lora(tmp_path / f"{number}.safetensors", number)
            asked = replace(wish("sd15"), prompt=f"cat {number % 10}", loras=((str(number), 1.0),))
            drawn = await executor.submit(asked).outcome()
            assert abs(drawn.pictures[0].pixels.astype(int) - base.astype(int)).max() > 1
            (tmp_path / f"{number}.safetensors").unlink()
            if number == 29:
                before = resident_bytes()
        assert abs(resident_bytes() / before - 1) <= 0.05
        assert np.array_equal((await executor.submit(wish("sd15")).outcome()).pictures[0].pixels, base)
    finally:
        await executor.close()
