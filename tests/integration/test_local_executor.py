"""The whole engine over the real SD1.5 pipeline, on its own thread."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines.auxiliary import find_in
from pipelines.base import Pixels
from pipelines.errors import BrokenCheckpoint, Cancelled, InvalidRequest
from pipelines.model import ModelSpec
from pipelines.request import ImageRequest, Sigmas
from server.engine.executors.base import Outcome
from server.engine.executors.local import LocalExecutor, LocalGeneration

pytestmark = pytest.mark.anyio

#: 16 requests: 8 schedulers, steps 5 to 40, guidance 1 to 9, half with negative prompts.
SCHEDULERS = (
    "EulerDiscreteScheduler",
    "PNDMScheduler",
    "HeunDiscreteScheduler",
    "DPMSolverMultistepScheduler",
    "EulerAncestralDiscreteScheduler",
    "UniPCMultistepScheduler",
    "DDIMScheduler",
    "LMSDiscreteScheduler",
)
STEPS = (5, 40, 12, 7, 9, 30, 6, 18, 25, 8, 10, 5, 14, 20, 33, 11)


def wish(**changes: Any) -> ImageRequest:
    values: dict[str, Any] = {
        "model": "sd15",
        "prompt": "a red cat",
        "width": 64,
        "height": 64,
        "steps": 5,
        "guidance": 7.5,
        "seed": 1,
    }
    return ImageRequest(**{**values, **changes})


def mixed() -> list[ImageRequest]:
    return [
        wish(
            prompt=f"{number} dogs in the sun",
            negative_prompt="ugly" if number % 2 else None,
            steps=steps,
            guidance=1.0 + number % 9,
            seed=number,
            scheduler=SCHEDULERS[number % len(SCHEDULERS)],
            sigmas=Sigmas.KARRAS if number == 8 else Sigmas.DEFAULT,
        )
        for number, steps in enumerate(STEPS)
    ]


def calls_of(request: ImageRequest) -> int:
    """Denoiser calls, by the field's knowledge: PNDM repeats its second step, Heun evaluates twice but at the end."""
    extra = {"PNDMScheduler": 1, "HeunDiscreteScheduler": request.steps - 1}
    return request.steps + extra.get(request.scheduler or "", 0)


class Forwards:
    """Counts forwards of the real UNet with a hook on the module; says how many entries each had."""

    def __init__(self) -> None:
        self.entries: list[int] = []

    def watch(self, executor: LocalExecutor, on_forward: Callable[[int], object] | None = None) -> None:
        load = executor.engine.models.load

        def loading(name: str) -> Any:
            pipeline: Any = load(name)

            def hook(module: Any, inputs: tuple[Any, ...]) -> None:
                self.entries.append(len(inputs[0]))
                if on_forward is not None:
                    on_forward(len(self.entries))

            pipeline.unet.register_forward_pre_hook(hook)
            return pipeline

        executor.engine.models.load = loading


@asynccontextmanager
async def executor_of(folder: Path, *, start: bool = True, **options: Any) -> AsyncIterator[LocalExecutor]:
    def spec(name: str) -> ModelSpec:
        return ModelSpec(id=name, family="sd15", folder=folder if name == "sd15" else folder / "nothing here")

    executor = LocalExecutor(spec, device="cpu", **options)
    if start:
        await executor.start()
    try:
        yield executor
    finally:
        await executor.close()


def pixels_of(outcome: Outcome) -> Pixels:
    return outcome.pictures[0].pixels


def difference(one: Pixels, other: Pixels) -> int:
    return int(np.abs(one.astype(int) - other.astype(int)).max())


async def test_sixteen_mixed_requests_take_as_many_forwards_as_the_longest_and_keep_their_pictures(
    sd15_folder: Path,
) -> None:
    requests = mixed()
    forwards = Forwards()
    async with executor_of(sd15_folder, start=False) as executor:
        forwards.watch(executor)
        generations = [executor.submit(request) for request in requests]
        await executor.start()
        together = [pixels_of(await one.outcome()) for one in generations]
        assert len(forwards.entries) == max(calls_of(request) for request in requests) == 41
        alone = [pixels_of(await executor.submit(request).outcome()) for request in requests]
    assert max(difference(*pair) for pair in zip(together, alone, strict=True)) <= 1
    assert min(difference(together[0], other) for other in together[1:]) > 10


async def test_a_short_request_that_arrives_late_is_done_within_six_steps_of_a_long_one(sd15_folder: Path) -> None:
    forwards = Forwards()
    arrived_at: list[int] = []
    short: list[LocalGeneration] = []
    done_at: list[int] = []
    loop = asyncio.get_running_loop()
    arrived = asyncio.Event()

    async with executor_of(sd15_folder) as executor:

        def submit() -> None:
            short.append(executor.submit(wish(steps=4, seed=2, scheduler="EulerDiscreteScheduler")))
            arrived_at.append(len(forwards.entries))
            arrived.set()

        forwards.watch(executor, lambda count: loop.call_soon_threadsafe(submit) if count == 10 else None)
        long = executor.submit(wish(steps=40, scheduler="EulerDiscreteScheduler"))
        await arrived.wait()
        await short[0].outcome()
        done_at.append(len(forwards.entries))
        assert long.progress().step < 40
        await long.outcome()
    assert done_at[0] - arrived_at[0] <= 6 + 1  # the step under way at arrival is nobody's fault
    assert len(forwards.entries) == 40


async def test_a_reproducible_request_is_bit_equal_with_and_without_neighbours(sd15_folder: Path) -> None:
    wanted = wish(steps=12, seed=9, scheduler="EulerAncestralDiscreteScheduler", reproducible=True)
    async with executor_of(sd15_folder) as executor:
        alone = await executor.submit(wanted).outcome()
        neighbours = [executor.submit(request) for request in mixed()[:6]]
        among = await executor.submit(wanted).outcome()
        for one in neighbours:
            await one.outcome()
    assert np.array_equal(pixels_of(alone), pixels_of(among))


async def test_progress_moves_and_ends_at_all_calls(sd15_folder: Path) -> None:
    forwards = Forwards()
    async with executor_of(sd15_folder) as executor:
        generation = executor.submit(wish(steps=6, scheduler="HeunDiscreteScheduler"))
        forwards.watch(executor)
        await generation.outcome()
        assert (generation.progress().step, generation.progress().steps) == (11, 11)
        assert await generation.begun()
        assert executor.stats().alive


async def test_a_cancelled_request_raises_cancelled(sd15_folder: Path) -> None:
    async with executor_of(sd15_folder) as executor:
        generation = executor.submit(wish(steps=150))
        generation.cancel()
        with pytest.raises(Cancelled):
            await generation.outcome()


async def test_a_model_without_weights_fails_its_request_and_the_next_one_is_drawn(sd15_folder: Path) -> None:
    async with executor_of(sd15_folder) as executor:
        with pytest.raises(BrokenCheckpoint, match=r"model other: model_index\.json is missing"):
            await executor.submit(wish(model="other")).outcome()
        assert (await executor.submit(wish()).outcome()).pictures


async def test_closing_ends_what_is_open(sd15_folder: Path) -> None:
    async with executor_of(sd15_folder) as executor:
        generation = executor.submit(wish(steps=150, width=128, height=128))
    with pytest.raises(Cancelled):
        await generation.outcome()
    assert not executor.stats().alive


async def test_warnings_of_the_sampler_come_with_the_pictures(sd15_folder: Path) -> None:
    async with executor_of(sd15_folder) as executor:
        outcome = await executor.submit(wish(scheduler="DDIMInverseScheduler")).outcome()
    assert outcome.scheduler == "DDIMScheduler"
    assert any("DDIM" in warning for warning in outcome.warnings)


async def test_a_lora_that_is_copied_in_is_used_by_the_next_request(sd15_folder: Path, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    key = "lora_unet_conv_out"
    asked = wish(loras=(("night", 2.0),))
    async with executor_of(sd15_folder, find_auxiliary=lambda _, name: find_in(tmp_path, name)) as executor:
        plain = await executor.submit(wish()).outcome()
        with pytest.raises(InvalidRequest, match="LoRA not found: night"):
            await executor.submit(asked).outcome()
        down, up = torch.full((4, 16, 3, 3), 0.02), torch.ones(4, 4, 1, 1)
        tensors = {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up}
        save_file(tensors | {"bundle_emb.moon": torch.ones(1)}, tmp_path / "night.safetensors")
        changed, again = [executor.submit(request) for request in (asked, wish())]
        outcome = await changed.outcome()
        assert difference(pixels_of(outcome), pixels_of(plain)) > 10
        assert outcome.warnings == ("LoRA night: its textual inversions were not used.",)
        assert difference(pixels_of(await again.outcome()), pixels_of(plain)) <= 1


async def test_a_model_can_be_loaded_before_it_draws(sd15_folder: Path) -> None:
    async with executor_of(sd15_folder) as executor:
        await executor.preload("sd15")
        assert executor.stats().loaded_models == ("sd15",)
        with pytest.raises(BrokenCheckpoint):
            await executor.preload("nothing")
