"""What the step engine costs and what it gains, on the demo checkpoint: ``python -m bench.engine``.

Prints, as medians of one run in which the things compared take turns (machines are noisy):

- the cost around the forward per step at 1, 4 and 16 rows of mixed samplers, with guidance;
- the time to compile each scheduler's table;
- images per second at 1, 4 and 16 concurrent requests against stock pipeline calls in a loop, at 64 and 256 px.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from bench.rows import around_forward, draw
from pipelines import demo
from pipelines.host import Host
from pipelines.model import ModelSpec
from pipelines.quiet import quiet_libraries
from pipelines.request import ImageRequest
from pipelines.sd15 import StableDiffusion15
from schedulers.registry import SCHEDULERS
from schedulers.table import _compile, compile_table

ROWS = (1, 4, 16)
STEPS = 20
SAMPLERS = (
    "EulerDiscreteScheduler",
    "DPMSolverMultistepScheduler",
    "DDIMScheduler",
    "UniPCMultistepScheduler",
    "EulerAncestralDiscreteScheduler",
    "LMSDiscreteScheduler",
    "DEISMultistepScheduler",
    "DPMSolverSinglestepScheduler",
)


def request(number: int, *, side: int, scheduler: str | None = None) -> ImageRequest:
    return ImageRequest(
        model="sd15",
        prompt=f"a red cat number {number}",
        negative_prompt="blurry",
        width=side,
        height=side,
        steps=STEPS,
        guidance=7.5,
        seed=number,
        scheduler=scheduler,
    )


def compile_times(config: dict[str, Any]) -> dict[str, float]:
    """Milliseconds per scheduler at 20 steps; the second compilation of each, imports being done."""
    times = {}
    for name in SCHEDULERS:
        compile_table(name, config, STEPS + 1)
        _compile.cache_clear()
        began = time.perf_counter()
        compile_table(name, config, STEPS)
        times[name] = 1e3 * (time.perf_counter() - began)
    return times


def against_stock(pipeline: StableDiffusion15, stock: Any, count: int, side: int, rounds: int) -> tuple[float, float]:
    """Images per second of ours and of stock calls in a loop, taking turns."""
    requests = [request(number, side=side) for number in range(count)]

    def ours() -> None:
        draw(pipeline, requests)

    def loop() -> None:
        for one in requests:
            generator = torch.Generator("cpu").manual_seed(one.seed)
            stock(
                one.prompt,
                negative_prompt=one.negative_prompt,
                width=side,
                height=side,
                num_inference_steps=STEPS,
                guidance_scale=one.guidance,
                generator=generator,
                output_type="np",
            )

    seconds: tuple[list[float], list[float]] = ([], [])
    sides: tuple[Callable[[], None], Callable[[], None]] = (ours, loop)
    for _ in range(rounds + 1):
        for times, run in zip(seconds, sides, strict=True):
            began = time.perf_counter()
            run()
            times.append(time.perf_counter() - began)
    ours_s, loop_s = (statistics.median(times[1:]) for times in seconds)
    return count / ours_s, count / loop_s


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="turns of each side per comparison")
    rounds = parser.parse_args().rounds
    quiet_libraries()
    with tempfile.TemporaryDirectory() as folder:
        measure(demo.ensure("sd15", Path(folder)), rounds)


def measure(
    checkpoint: Path, rounds: int, *, device: str = "cpu", sides: Sequence[int] = (64, 256), cost_side: int = 64
) -> None:
    """Prints the three tables; ``sides`` in pixels, ``cost_side`` those of the first one."""
    from diffusers import StableDiffusionPipeline

    spec = ModelSpec(id="sd15", family="sd15", folder=checkpoint)
    pipeline = StableDiffusion15.load(spec, Host(device=torch.device(device), slots=2 * max(ROWS)))
    stock = StableDiffusionPipeline.from_pretrained(
        str(checkpoint), local_files_only=True, safety_checker=None, dtype=pipeline.dtype
    ).to(device)
    stock.set_progress_bar_config(disable=True)
    where = torch.cuda.get_device_name() if device == "cuda" else f"{torch.get_num_threads()} threads"
    print(f"torch {torch.__version__}, {where}, {pipeline.dtype}, {STEPS} steps, guidance on\n")

    print(f"cost around the forward, {cost_side} px, mixed samplers\nrows   around ms   forward ms")
    for count in ROWS:
        requests = [request(n, side=cost_side, scheduler=SAMPLERS[n % len(SAMPLERS)]) for n in range(count)]
        around, forward = around_forward(pipeline, pipeline.unet, requests)
        print(f"{count:4d}   {around:9.3f}   {forward:10.2f}")

    print(f"\ncompiling a table of {STEPS} steps, ms")
    for name, milliseconds in compile_times(pipeline.scheduler_config).items():
        print(f"{name:34s} {milliseconds:7.1f}")

    print("\nimages/s\n  px   concurrent     ours    stock loop   ratio")
    for side in sides:
        for count in ROWS:
            ours, loop = against_stock(pipeline, stock, count, side, rounds if side <= 64 else max(1, rounds // 2))
            print(f"{side:4d}   {count:10d}   {ours:6.2f}   {loop:11.2f}   {ours / loop:5.2f}")


if __name__ == "__main__":
    main()
