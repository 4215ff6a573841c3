"""Every family and option in the precision of a GPU: nothing in a picture's way may expect 32 bits.

On the CPU in bfloat16, and on a CUDA device (``-m gpu``) in whatever is right for it. A picture is not compared bit by
bit: what it should be near to is the one drawn in 32 bits on the CPU.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines.auxiliary import AuxiliaryKind, find_auxiliary
from pipelines.model import ModelSpec, Offload
from pipelines.request import ImageRequest, Request
from pipelines.safety import CheckerFiles
from pipelines.vision import Answer, VisionRequest, VisionTask
from server.catalog.upscalers import Upscalers
from server.engine.executors.base import Outcome
from server.engine.executors.local import LocalExecutor
from tests.equality.stock import read_input

pytestmark = pytest.mark.anyio

#: Grey levels, on average: more than 16 bits change, less than a wrong picture differs by. Flux rounds its timesteps,
#: as stock does, which the small networks amplify.
NEAR = {"flux": 24.0}
NEAR_OTHERS = 6.0
FAMILIES = {
    "sd15": "sd15",
    "sd15-inpaint": "sd15",
    "sdxl": "sdxl",
    "flux": "flux",
    "flux-fill": "flux",
    "florence2": "florence2",
}
#: Device and dtype.
PLACES = [
    pytest.param("cpu", "bfloat16", id="cpu"),
    pytest.param("cuda", "auto", id="cuda", marks=pytest.mark.gpu),
]
ADAPTER = {"ip_adapter": "ip-adapter_sd15", "ip_adapter_image": "picture-2", "ip_adapter_scale": 0.8}
PAINT = {"image": "picture-1", "mask": "mask-1", "strength": 0.8}

QUESTIONS = (VisionTask.CAPTION, VisionTask.OBJECT_DETECTION, VisionTask.OCR_WITH_REGION)


def wish(model: str, **changes: Any) -> ImageRequest:
    values: dict[str, Any] = {"prompt": "a (red:1.3) cat", "width": 64, "height": 64, "steps": 4, "seed": 3}
    return ImageRequest(**{"model": model, "guidance": 5.0, **values, **changes})


WISHES: dict[str, Request] = {
    **{f"{model} text2img": wish(model) for model in ("sd15", "sdxl", "flux")},
    **{f"{model} img2img": wish(model, image="picture-1", strength=0.6) for model in ("sd15", "sdxl", "flux")},
    **{f"{model} inpaint": wish(model, **PAINT) for model in FAMILIES if model != "florence2"},
    "lora": wish("sd15", loras=(("tone", 0.8),)),
    "lora beside none": wish("sd15", samples=2, loras=(("tone", -0.5),)),
    "inversion": wish("sd15", prompt="a mood cat", embeddings=("mood",)),
    "ip-adapter": wish("sd15", **ADAPTER),
    "ip-adapter sdxl": wish("sdxl", **{**ADAPTER, "ip_adapter": "ip-adapter-plus_sdxl_vit-h"}),
    "vae": wish("sd15", vae="plain"),
    "clip_skip": wish("sdxl", clip_skip=3),
    "true cfg": wish("flux", true_cfg=2.0, negative_prompt="ugly"),
    "highres": wish("sd15", width=128, height=96, highres=(64, 48)),
    "upscale": wish("sd15", upscale=2),
    "safety": wish("sd15", safety="blur"),
    "own sampler": wish("sd15", scheduler="ScoreSdeVeScheduler"),
    "reproducible": wish("sd15", reproducible=True),
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, sd15_folder: Path) -> Path:
    """A LoRA, a textual inversion and a VAE."""
    import torch
    from safetensors.torch import save_file

    folder = tmp_path_factory.mktemp("data")
    for kind in AuxiliaryKind:
        (folder / kind.value).mkdir()
    down, up = torch.full((4, 16, 3, 3), 0.02), torch.ones(4, 4, 1, 1)
    tensors = {"lora_unet_conv_out.lora_down.weight": down, "lora_unet_conv_out.lora_up.weight": up}
    save_file(tensors, folder / "loras" / "tone.safetensors")
    width = json.loads((sd15_folder / "text_encoder" / "config.json").read_text())["hidden_size"]
    save_file({"mood": torch.linspace(-1, 1, 2 * width).view(2, width)}, folder / "embeddings" / "mood.safetensors")
    shutil.copytree(sd15_folder / "vae", folder / "vaes" / "plain")
    return folder


@asynccontextmanager
async def executor_on(
    device: str, dtype: str, demo_folder: Path, data: Path, offload: Offload = Offload.NONE
) -> AsyncIterator[LocalExecutor]:
    import torch

    from pipelines import demo

    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    upscalers = Upscalers()

    def spec(name: str) -> ModelSpec:
        if name not in FAMILIES:
            return upscalers.get(name)
        return ModelSpec(id=name, family=FAMILIES[name], folder=demo.ensure(name, demo_folder), dtype=dtype)

    executor = LocalExecutor(
        spec,
        device=device,
        max_resident=len(FAMILIES),
        offload=offload,
        read_input=read_input,
        find_auxiliary=demo.finding_stand_ins(partial(find_auxiliary, data), demo_folder),
        checker_files=lambda: CheckerFiles(folder=demo_folder / "sd15"),
    )
    await executor.start()
    try:
        yield executor
    finally:
        await executor.close()


async def outcomes(executor: LocalExecutor) -> dict[str, Outcome]:
    """All at once, so that rows of one model share lanes."""
    running = {name: executor.submit(request) for name, request in WISHES.items()}
    return {name: await one.outcome() for name, one in running.items()}


def far(rough: dict[str, Outcome], exact: dict[str, Outcome]) -> dict[str, float]:
    """What is further away than it may be, with its distance."""
    found: dict[str, float] = {}
    for name, request in WISHES.items():
        near = NEAR.get(FAMILIES[request.model], NEAR_OTHERS)
        for ours, theirs in zip(rough[name].pictures, exact[name].pictures, strict=True):
            levels = float(np.abs(ours.pixels.astype(float) - theirs.pixels).mean())
            if levels > near:
                found[name] = round(levels, 1)
    return found


@pytest.mark.parametrize(("device", "dtype"), PLACES)
async def test_every_option_draws_in_16_bits_what_it_draws_in_32(
    device: str, dtype: str, demo_folder: Path, data: Path
) -> None:
    async with executor_on("cpu", "float32", demo_folder, data) as executor:
        exact = await outcomes(executor)
    async with executor_on(device, dtype, demo_folder, data) as executor:
        rough = await outcomes(executor)
    assert far(rough, exact) == {}


@pytest.mark.parametrize(("device", "dtype"), PLACES)
async def test_florence_answers_in_16_bits(device: str, dtype: str, demo_folder: Path, data: Path) -> None:
    asked = [VisionRequest(model="florence2", task=task, image="picture-1", beams=2) for task in QUESTIONS]
    async with executor_on(device, dtype, demo_folder, data) as executor:
        running = [executor.submit(one) for one in asked]
        answers = [await one.outcome() for one in running]
    assert all(isinstance(answer.answers[0], Answer) for answer in answers)


@pytest.mark.gpu
@pytest.mark.parametrize("offload", [mode for mode in Offload if mode is not Offload.NONE])
async def test_offloaded_models_draw_what_resident_ones_draw(offload: Offload, demo_folder: Path, data: Path) -> None:
    async with executor_on("cuda", "auto", demo_folder, data) as executor:
        resident = await outcomes(executor)
    async with executor_on("cuda", "auto", demo_folder, data, offload) as executor:
        moved = await outcomes(executor)
    assert far(moved, resident) == {}
