"""LoRAs: a lane in which every row may have another one, against none at all and against one lane for each.

``python -m bench.options``, on the SD1.5 demo checkpoint: 16 rows with guidance, 8 adapters of rank 16 over all of the
attention. Lanes of one adapter are drawn without any, as if its weights were merged in for nothing.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import save_file

from bench.rows import draw
from pipelines import demo
from pipelines.auxiliary import find_in
from pipelines.diffusion import DiffusionPipeline
from pipelines.host import Host
from pipelines.model import ModelSpec
from pipelines.quiet import quiet_libraries
from pipelines.request import ImageRequest
from pipelines.sd15 import StableDiffusion15

SIDES = (64, 256)
STEPS = 10
ROWS = 16
ADAPTERS = 8
RANK = 16
#: Of each lane in turn, so that a busy machine is busy for all of them.
ROUNDS = 5


def request(number: int, side: int) -> ImageRequest:
    """The adapters in turn."""
    return ImageRequest(
        model="sd15",
        prompt=f"a red cat number {number}",
        negative_prompt="blurry",
        width=side,
        height=side,
        steps=STEPS,
        guidance=7.5,
        seed=number,
        scheduler="EulerDiscreteScheduler",
        loras=((f"lora{number % ADAPTERS}", 0.8),),
    )


def write_adapters(network: torch.nn.Module, folder: Path) -> None:
    """Random ones."""
    for number in range(ADAPTERS):
        tensors = {}
        for name, layer in network.named_modules():
            if isinstance(layer, torch.nn.Linear) and ".attn" in name:
                tensors[f"unet.{name}.lora_A.weight"] = torch.randn(RANK, layer.in_features)
                tensors[f"unet.{name}.lora_B.weight"] = torch.randn(layer.out_features, RANK) / 100
        save_file(tensors, folder / f"lora{number}.safetensors")


def seconds(pipeline: DiffusionPipeline, lanes: Sequence[Sequence[ImageRequest]]) -> float:
    """To draw the lanes one after another."""
    began = time.perf_counter()
    for lane in lanes:
        draw(pipeline, lane)
    return time.perf_counter() - began


def measure(checkpoint: Path, *, device: str = "cpu", sides: Sequence[int] = SIDES) -> None:
    """Prints the table; ``sides`` in pixels."""
    print("  px   no LoRA   mixed   one lane per LoRA   mixed / none   mixed / per LoRA   (images/s, medians)")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        spec = ModelSpec(id="sd15", family="sd15", folder=checkpoint)
        host = Host(device=torch.device(device), slots=ROWS, find_auxiliary=lambda _, one: find_in(folder, one))
        pipeline = StableDiffusion15.load(spec, host)
        write_adapters(pipeline.network, folder)
        for side in sides:
            mixed = [request(number, side) for number in range(ROWS)]
            plain = [replace(one, loras=()) for one in mixed]
            lanes = ([plain], [mixed], [plain[number::ADAPTERS] for number in range(ADAPTERS)])
            time_all = partial(map, partial(seconds, pipeline), lanes)
            list(time_all())
            rounds = [list(time_all()) for _ in range(ROUNDS)]
            none, both, each = (statistics.median(taken) for taken in zip(*rounds, strict=True))
            rates = f"{ROWS / none:7.1f} {ROWS / both:7.1f} {ROWS / each:19.1f}"
            print(f"{side:4d}   {rates} {none / both:14.2f} {each / both:18.2f}")


def main() -> None:
    quiet_libraries()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {ROWS} rows, {STEPS} steps, guidance on")
    with tempfile.TemporaryDirectory() as folder:
        measure(demo.ensure("sd15", Path(folder)))


if __name__ == "__main__":
    main()
