"""Per family: what a step takes solo and with 8 rows, and how much of it lies outside the forward.

``python -m bench.families``, on the demo checkpoints at 64 px; rows of all three tasks, samplers mixed.
"""

from __future__ import annotations

import importlib
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.rows import around_forward
from pipelines import demo
from pipelines.base import Pixels
from pipelines.host import Host
from pipelines.model import ModelSpec
from pipelines.quiet import quiet_libraries
from pipelines.registry import FAMILIES, LOOKING
from pipelines.request import ImageRequest

SIDE = 64
STEPS = 20
ROWS = (1, 8)
SAMPLERS = ("EulerDiscreteScheduler", "DPMSolverMultistepScheduler", "UniPCMultistepScheduler")


def read_input(name: str) -> Pixels:
    """A ramp, or a mask over its middle."""
    pixels = np.zeros((SIDE, SIDE, 3), dtype=np.uint8)
    if name == "mask":
        pixels[16:48, 16:48] = 255
    else:
        pixels[:] = np.linspace(0, 255, SIDE, dtype=np.uint8)[:, None, None]
    return pixels


def request(family: str, number: int) -> ImageRequest:
    """Text to image, image to image, inpaint, in turn."""
    inputs: tuple[dict[str, Any], ...] = (
        {},
        {"image": "image", "strength": 0.9},
        {"image": "image", "mask": "mask", "strength": 0.9},
    )
    return ImageRequest(
        model=family,
        prompt=f"a red cat number {number}",
        negative_prompt="blurry",
        width=SIDE,
        height=SIDE,
        steps=STEPS,
        guidance=7.5,
        true_cfg=2.0 if family == "flux" else 1.0,
        seed=number,
        scheduler=SAMPLERS[number % len(SAMPLERS)],
        **inputs[number % 3],
    )


def load(family: str, folder: Path) -> Any:
    module, _, cls = FAMILIES[family].partition(":")
    spec = ModelSpec(id=family, family=family, folder=demo.ensure(family, folder))
    host = Host(device=torch.device("cpu"), slots=2 * max(ROWS), read_input=read_input)
    return getattr(importlib.import_module(module), cls).load(spec, host)


def main() -> None:
    quiet_libraries()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {SIDE} px, {STEPS} steps, guidance on")
    print("family   rows   step ms   outside the forward ms   share")
    with tempfile.TemporaryDirectory() as folder:
        for family in (name for name in FAMILIES if name not in LOOKING):
            pipeline = load(family, Path(folder))
            network = pipeline.transformer if family == "flux" else pipeline.unet
            for count in ROWS:
                around, forward = around_forward(pipeline, network, [request(family, n) for n in range(count)])
                share = around / (around + forward)
                print(f"{family:6s}   {count:4d}   {around + forward:7.2f}   {around:22.3f}   {share:5.1%}")


if __name__ == "__main__":
    main()
