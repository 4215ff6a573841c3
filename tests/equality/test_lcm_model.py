"""A model that is a LoRA over a base: drawn as stock draws it, over the base's own modules."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines import demo
from pipelines.base import Pixels
from pipelines.demo.sdxl import LCM_LORA
from pipelines.errors import BrokenCheckpoint
from pipelines.model import ModelSpec
from pipelines.request import ImageRequest
from tests.equality.stock import difference, draw

WISH = ImageRequest(
    model="sdxl-lcm",
    prompt="a red cat",
    width=64,
    height=64,
    steps=4,
    guidance=1.0,
    seed=3,
    scheduler="LCMScheduler",
)


@pytest.fixture(scope="module")
def folder(demo_folder: Path) -> Path:
    from pipelines.quiet import quiet_libraries

    quiet_libraries()
    return demo.ensure("sdxl-lcm", demo_folder)


@pytest.fixture(scope="module")
def pair(folder: Path) -> tuple[Any, Any]:
    """The base and the LoRA over it, as one engine loads them."""
    import torch

    from pipelines.host import Host
    from pipelines.sdxl import StableDiffusionXL
    from pipelines.shared import SharedComponents

    host = Host(device=torch.device("cpu"), slots=8, shared=SharedComponents())
    base = ModelSpec(id="sdxl", family="sdxl", folder=folder)
    model = replace(base, id="sdxl-lcm", loras=(folder / LCM_LORA,))
    return StableDiffusionXL.load(base, host), StableDiffusionXL.load(model, host)


def stocks(folder: Path) -> Pixels:
    import diffusers
    import torch

    pipe = diffusers.StableDiffusionXLPipeline.from_pretrained(str(folder), local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = diffusers.LCMScheduler.from_config(pipe.scheduler.config)
    pipe.load_lora_weights(str(folder), weight_name=LCM_LORA)
    images = pipe(
        prompt=WISH.prompt,
        num_inference_steps=WISH.steps,
        guidance_scale=WISH.guidance,
        generator=[torch.Generator("cpu").manual_seed(WISH.seed)],
        width=WISH.width,
        height=WISH.height,
        output_type="np",
    ).images
    pixels: Pixels = (images[0] * 255).round().astype(np.uint8)
    return pixels


@pytest.mark.filterwarnings("ignore:__array")
def test_it_draws_what_stock_draws_and_the_base_stays_the_base(pair: tuple[Any, Any], folder: Path) -> None:
    pytest.importorskip("peft", reason="what stock diffusers needs for LoRAs")
    base, model = pair
    assert base.network is model.network
    (before,) = draw(base, [WISH])
    (drawn,) = draw(model, [WISH])
    assert difference(drawn, stocks(folder)) <= 1
    assert difference(drawn, before) > 1
    # Not nearly, but to the bit.
    assert difference(draw(base, [WISH])[0], before) == 0
    assert model.loras.bank.users == 0


def test_loras_of_a_request_come_on_top(folder: Path) -> None:
    import torch

    from pipelines.auxiliary import find_in
    from pipelines.host import Host
    from pipelines.sdxl import StableDiffusionXL

    host = Host(device=torch.device("cpu"), slots=8, find_auxiliary=lambda _, name: find_in(folder, name))
    model = StableDiffusionXL.load(
        ModelSpec(id="sdxl-lcm", family="sdxl", folder=folder, loras=(folder / LCM_LORA,)), host
    )
    (rows,) = model.prepare([replace(WISH, loras=((LCM_LORA, -0.5),))])
    assert isinstance(rows, list)
    stack: Any = rows[0].stack  # type: ignore[attr-defined]
    assert [strength for _, strength in stack.parts] == [1.0, -0.5]


def test_a_lora_that_does_not_fit_is_the_models_fault(folder: Path, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    from pipelines.host import Host
    from pipelines.sdxl import StableDiffusionXL

    save_file({"lora_unet_x.lora_down.weight": torch.ones(1, 1), "lora_unet_x.lora_up.weight": torch.ones(1, 1)},
              tmp_path / "a.safetensors")  # fmt: skip
    spec = ModelSpec(id="sdxl-lcm", family="sdxl", folder=folder, loras=(tmp_path / "a.safetensors",))
    (refused,) = StableDiffusionXL.load(spec, Host(device=torch.device("cpu"), slots=8)).prepare([WISH])
    assert isinstance(refused, BrokenCheckpoint)
    assert str(refused) == "model sdxl-lcm: LoRA a is not for sdxl-lcm, which has no layer x"
