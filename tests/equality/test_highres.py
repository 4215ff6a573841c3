"""``highres_fix`` is two stock calls: text2img at the small size, Lanczos, img2img at the asked size with 0.55."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipelines import demo
from pipelines.base import Pixels
from pipelines.demo.vae import noisy
from pipelines.model import ModelSpec
from pipelines.quiet import quiet_libraries
from pipelines.request import ImageRequest, Task
from server.engine.executors.local import LocalExecutor
from tests.equality.stock import CLASSES, difference

pytestmark = pytest.mark.anyio

FIRST, ASKED = (64, 48), (128, 96)


def wish(family: str, number: int, **changes: Any) -> ImageRequest:
    values: dict[str, Any] = {
        "model": family,
        "prompt": f"a red cat and {number} dogs",
        "negative_prompt": "blurry",
        "width": ASKED[0],
        "height": ASKED[1],
        "steps": 6 + number,
        "guidance": 4.0,
        "seed": 50 + number,
        "highres": FIRST,
    }
    return ImageRequest(**(values | changes))


def load_stock(family: str, folder: Path) -> tuple[Any, Any]:
    """For text2img and for img2img."""
    import diffusers

    extra = {"safety_checker": None} if family == "sd15" else {}
    pipes: list[Any] = []
    for task in (Task.TEXT2IMG, Task.IMG2IMG):
        cls = getattr(diffusers, CLASSES[family][task])
        pipes.append(cls.from_pretrained(str(folder), local_files_only=True, **extra))
        pipes[-1].set_progress_bar_config(disable=True)
    return pipes[0], pipes[1]


def draw_stock(first: Any, second: Any, request: ImageRequest, sample: int) -> Pixels:
    """What users write; the second call has a generator of its own."""
    import torch

    calls: dict[str, Any] = {
        "prompt": request.prompt,
        "negative_prompt": request.negative_prompt,
        "num_inference_steps": request.steps,
        "guidance_scale": request.guidance,
    }
    seed = [torch.Generator("cpu").manual_seed(request.seed + sample) for _ in range(2)]
    small = first(**calls, width=FIRST[0], height=FIRST[1], generator=[seed[0]]).images[0]
    if request.model == "flux":
        calls |= {"width": ASKED[0], "height": ASKED[1]}
    large = small.resize(ASKED, Image.Resampling.LANCZOS)
    return np.asarray(second(**calls, image=large, strength=0.55, generator=[seed[1]]).images[0])


@pytest.mark.filterwarnings("ignore:__array")
@pytest.mark.parametrize("family", ["sd15", "sdxl", "flux"])
async def test_two_passes_among_other_rows_are_two_stock_calls(family: str, tmp_path: Path) -> None:
    quiet_libraries()
    folder = demo.ensure(family, tmp_path)
    noisy(folder)
    requests = [wish(family, 0), wish(family, 1, samples=2), wish(family, 2, highres=None), wish(family, 3)]
    executor = LocalExecutor(lambda name: ModelSpec(id=name, family=name, folder=folder), device="cpu")
    generations = [executor.submit(request) for request in requests]
    await executor.start()
    drawn = [(await one.outcome()).pictures for one in generations]
    stats = executor.stats()
    await executor.close()
    assert max(stats.rows_per_forward) in (4, 5), "passes share forwards"
    first, second = load_stock(family, folder)
    for number, sample in ((0, 0), (1, 1), (3, 0)):
        theirs = draw_stock(first, second, requests[number], sample)
        assert theirs.std() > 5, "a flat picture would prove nothing"
        assert difference(drawn[number][sample].pixels, theirs) <= 1
