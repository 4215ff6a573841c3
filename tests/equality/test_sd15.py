"""Our pictures are stock diffusers' pictures: SD1.5 text2img, every scheduler whose stock pipeline is right.

Stock is what users write: the pipeline loaded from the folder, and ``Cls.from_config(pipe.scheduler.config, …)``. All
of ours are drawn together, as rows of shared forwards, each of stock's alone. Nothing here comes from ``schedulers``.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from pipelines.base import Pixels, Row
from pipelines.request import ImageRequest, Sigmas

if TYPE_CHECKING:
    from pipelines.sd15 import StableDiffusion15

STEPS = 8
KARRAS = {"use_karras_sigmas": True}

#: (public name, overrides users give to from_config, what a request says for the same).
CASES: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("DDPMScheduler", {}, {}),
    ("DDIMScheduler", {}, {}),
    ("PNDMScheduler", {}, {}),
    ("LMSDiscreteScheduler", {}, {}),
    ("LMSDiscreteScheduler", KARRAS, {"sigmas": Sigmas.KARRAS}),
    ("EulerDiscreteScheduler", {}, {}),
    ("EulerDiscreteScheduler", KARRAS, {"sigmas": Sigmas.KARRAS}),
    ("EulerDiscreteScheduler", {"use_exponential_sigmas": True}, {"sigmas": Sigmas.EXPONENTIAL}),
    ("EulerDiscreteScheduler", {"use_beta_sigmas": True}, {"sigmas": Sigmas.BETA}),
    ("EulerDiscreteScheduler", {"timestep_spacing": "trailing"}, {"spacing": "trailing"}),
    ("EulerDiscreteScheduler", {"timestep_spacing": "leading"}, {"spacing": "leading"}),
    ("EulerAncestralDiscreteScheduler", {}, {}),
    ("DPMSolverMultistepScheduler", {}, {}),
    ("DPMSolverMultistepScheduler", KARRAS, {"sigmas": Sigmas.KARRAS}),
    ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}, {"algorithm_type": "sde-dpmsolver++"}),
    (
        "DPMSolverMultistepScheduler",
        {"algorithm_type": "sde-dpmsolver++", "use_karras_sigmas": True},
        {"algorithm_type": "dpmsolver+++", "sigmas": Sigmas.KARRAS},
    ),
    ("DPMSolverMultistepScheduler", {"use_exponential_sigmas": True}, {"sigmas": Sigmas.EXPONENTIAL}),
    ("HeunDiscreteScheduler", {}, {}),
    ("HeunDiscreteScheduler", KARRAS, {"sigmas": Sigmas.KARRAS}),
    ("KDPM2DiscreteScheduler", {}, {}),
    ("KDPM2DiscreteScheduler", KARRAS, {"sigmas": Sigmas.KARRAS}),
    ("DPMSolverSinglestepScheduler", {}, {}),
    ("DPMSolverSinglestepScheduler", KARRAS, {"sigmas": Sigmas.KARRAS}),
    ("DPMSolverSinglestepScheduler", {"algorithm_type": "sde-dpmsolver++"}, {"algorithm_type": "sde-dpmsolver++"}),
    ("KDPM2AncestralDiscreteScheduler", {}, {}),
    ("UniPCMultistepScheduler", {}, {}),
    ("UniPCMultistepScheduler", KARRAS, {"sigmas": Sigmas.KARRAS}),
    ("DEISMultistepScheduler", {}, {}),
    ("DEISMultistepScheduler", KARRAS, {"sigmas": Sigmas.KARRAS}),
    ("LCMScheduler", {}, {}),
]


def wish(number: int, **changes: Any) -> ImageRequest:
    """Prompts, negatives, guidance and steps differ from case to case."""
    values: dict[str, Any] = {
        "model": "sd15",
        "prompt": f"a red cat and {number} dogs",
        "negative_prompt": "blurry" if number % 2 else None,
        "width": 64,
        "height": 64,
        "steps": STEPS + number % 3,
        "guidance": 1.0 + number % 4 * 2.5,
        "seed": 1000 + number,
    }
    return ImageRequest(**{**values, **changes})


def stock_pixels(pipe: Any, request: ImageRequest, name: str, overrides: dict[str, Any], base: Any) -> Pixels:
    import diffusers
    import torch

    pipe.scheduler = getattr(diffusers, name).from_config(base, **overrides)
    images = pipe(
        request.prompt,
        negative_prompt=request.negative_prompt,
        width=request.width,
        height=request.height,
        num_inference_steps=request.steps,
        guidance_scale=request.guidance,
        generator=[torch.Generator("cpu").manual_seed(request.seed)],
        output_type="np",
    ).images
    pixels: Pixels = (images[0] * 255).round().astype(np.uint8)
    return pixels


def drawn_together(pipeline: StableDiffusion15, requests: list[ImageRequest]) -> list[Pixels]:
    rows: list[Row] = []
    for prepared in pipeline.prepare(requests):
        assert isinstance(prepared, list), prepared
        assert not any(row.warnings for row in prepared), prepared[0].warnings
        rows += prepared
    for row in rows:
        pipeline.enter(row)
    while moving := [row for row in rows if row.remaining]:
        assert not pipeline.step(moving)
    results = pipeline.finish(rows)
    for row in rows:
        pipeline.leave(row)
    return [pixels for pixels in results if isinstance(pixels, np.ndarray)]


@pytest.fixture(scope="module")
def stock(sd15_folder: Path) -> Any:
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(str(sd15_folder), local_files_only=True, safety_checker=None)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def ours(sd15: StableDiffusion15) -> list[Pixels]:
    """Every case, all in one lane."""
    return drawn_together(sd15, [wish(number, scheduler=name, **said) for number, (name, _, said) in enumerate(CASES)])


@pytest.fixture(scope="module")
def base(stock: Any) -> Any:
    return stock.scheduler.config


@pytest.mark.filterwarnings("ignore:__array")
@pytest.mark.parametrize("number", range(len(CASES)), ids=[f"{name}-{said}" for name, _, said in CASES])
def test_a_row_among_others_is_stocks_picture(number: int, ours: list[Pixels], stock: Any, base: Any) -> None:
    name, overrides, _ = CASES[number]
    theirs = stock_pixels(stock, wish(number), name, overrides, base)
    assert theirs.std() > 5, "a flat picture would prove nothing"
    assert np.abs(ours[number].astype(int) - theirs.astype(int)).max() <= 1


@pytest.mark.filterwarnings("ignore:__array")
def test_a_request_without_a_scheduler_is_drawn_by_the_checkpoints(
    sd15: StableDiffusion15, stock: Any, base: Any
) -> None:
    theirs = stock_pixels(stock, wish(3), "PNDMScheduler", {}, base)
    assert np.abs(drawn_together(sd15, [wish(3)])[0].astype(int) - theirs.astype(int)).max() <= 1


def test_samples_are_stocks_pictures_of_consecutive_seeds(sd15: StableDiffusion15) -> None:
    three = drawn_together(sd15, [wish(1, samples=3, seed=70, steps=4)])
    single = [drawn_together(sd15, [wish(1, seed=seed, steps=4)])[0] for seed in (70, 71, 72)]
    assert all(np.abs(a.astype(int) - b.astype(int)).max() <= 1 for a, b in zip(three, single, strict=True))
    assert np.abs(three[0].astype(int) - three[1].astype(int)).max() > 10
