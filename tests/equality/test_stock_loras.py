"""LoRAs with parts for text encoders against stock diffusers' ``load_lora_weights`` and ``set_adapters``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines.auxiliary import find_in
from pipelines.base import Pixels
from pipelines.request import ImageRequest, Task
from tests.equality.stock import CLASSES, difference, draw, load_ours

pytest.importorskip("peft", reason="what stock diffusers needs for LoRAs")

#: Family -> the component that is denoised with, and those whose layers files change beside it. Stock diffusers loads
#: no LoRA of Flux' T5.
COMPONENTS = {
    "sd15": ("unet", ("text_encoder",)),
    "sdxl": ("unet", ("text_encoder", "text_encoder_2")),
    "flux": ("transformer", ("text_encoder",)),
}
#: kohya's beginnings of keys, by component.
KOHYA = {"unet": "lora_unet_", "transformer": "lora_unet_", "text_encoder": "lora_te1_", "text_encoder_2": "lora_te2_"}
STACKS: tuple[tuple[tuple[str, float], ...], ...] = (
    (),
    (("peft", 0.8),),
    (("text", -0.7),),
    (("kohya", 0.6), ("peft", 0.5)),
)


@pytest.fixture(scope="module", params=["sd15", "sdxl", "flux"])
def family(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def stock(family: str, demo_folder: Path) -> Any:
    import diffusers

    from pipelines import demo
    from pipelines.quiet import quiet_libraries

    quiet_libraries()
    cls = getattr(diffusers, CLASSES[family][Task.TEXT2IMG])
    extra = {"safety_checker": None} if family == "sd15" else {}
    pipe = cls.from_pretrained(str(demo.ensure(family, demo_folder)), local_files_only=True, **extra)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def folder(family: str, stock: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files "peft" and "kohya" for all components, "text" for text encoders alone."""
    import torch
    from safetensors.torch import save_file

    place = tmp_path_factory.mktemp("loras")
    denoiser, encoders = COMPONENTS[family]
    for number, (name, components) in enumerate(
        {"peft": (denoiser, *encoders), "kohya": (denoiser, *encoders), "text": encoders}.items()
    ):
        tensors: dict[str, Any] = {}
        source = torch.Generator().manual_seed(number)
        for component in components:
            for layer, module in layers(getattr(stock, component)):
                down = torch.randn(4 + number, module.in_features, generator=source) / module.in_features**0.5
                up = torch.randn(module.out_features, 4 + number, generator=source) / 4
                tensors |= named(name, component, layer, down, up)
        save_file(tensors, place / f"{name}.safetensors")
    return place


def layers(network: Any) -> Iterator[tuple[str, Any]]:
    """Attention's, and of text encoders the first layer of each MLP."""
    for name, module in network.named_modules():
        if name.endswith((".to_q", ".to_v", ".q_proj", ".out_proj", ".fc1")):
            # As files have it, whatever transformers calls it.
            yield name if not name.startswith("encoder.") else f"text_model.{name}", module


def named(layout: str, component: str, layer: str, down: Any, up: Any) -> Mapping[str, Any]:
    import torch

    if layout != "kohya":
        return {f"{component}.{layer}.lora_A.weight": down, f"{component}.{layer}.lora_B.weight": up}
    if component == "transformer":
        # Files of Flux that kohya's trainer wrote have the original names, of fused layers: text alone will do.
        return {}
    key = KOHYA[component] + layer.replace(".", "_")
    return {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up, f"{key}.alpha": torch.tensor(len(down) / 2)}


def wish(number: int, family: str, stack: tuple[tuple[str, float], ...]) -> ImageRequest:
    return ImageRequest(
        model=family,
        prompt=f"{number} red cats",
        negative_prompt="a blurry dog",
        width=64,
        height=64,
        steps=4 + number,
        guidance=1.0 + 3 * (number % 2),
        true_cfg=2.0 if family == "flux" else 1.0,
        seed=number,
        loras=stack,
    )


def stocks(pipe: Any, request: ImageRequest, folder: Path) -> Pixels:
    """What stock draws, its adapters loaded and unloaded again."""
    import torch

    for name, _ in request.loras:
        pipe.load_lora_weights(str(folder), weight_name=f"{name}.safetensors", adapter_name=name)
    if request.loras:
        pipe.set_adapters([name for name, _ in request.loras], [strength for _, strength in request.loras])
    images = pipe(
        prompt=request.prompt,
        negative_prompt=request.negative_prompt,
        num_inference_steps=request.steps,
        guidance_scale=request.guidance,
        generator=[torch.Generator("cpu").manual_seed(request.seed)],
        width=request.width,
        height=request.height,
        output_type="np",
        **({"true_cfg_scale": request.true_cfg} if request.true_cfg > 1 else {}),
    ).images
    pipe.unload_lora_weights()
    pixels: Pixels = (images[0] * 255).round().astype(np.uint8)
    return pixels


@pytest.mark.filterwarnings("ignore:__array", "ignore:Already found a `peft_config`")
def test_rows_of_one_lane_are_what_stock_draws_with_the_same_adapters(
    family: str, stock: Any, folder: Path, demo_folder: Path
) -> None:
    ours = load_ours(family, demo_folder / family, find_auxiliary=lambda _, name: find_in(folder, name))
    requests = [wish(number, family, stack) for number, stack in enumerate(STACKS)]
    drawn = draw(ours, requests)
    for request, picture in zip(requests, drawn, strict=True):
        expected = stocks(stock, request, folder)
        assert difference(picture, expected) <= 1, request.loras
        if request.loras:
            assert difference(expected, drawn[0]) > 1
