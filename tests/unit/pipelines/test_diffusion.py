"""Rows in slots and the step, on the demo checkpoint and on a denoiser that can be told to fail."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from pipelines.base import LaneKey, Pixels, Row
from pipelines.errors import Error, InvalidRequest, NonFinite, OutOfMemory
from pipelines.request import ImageRequest

if TYPE_CHECKING:
    import torch

    from pipelines.sd15 import StableDiffusion15


def wish(**changes: Any) -> ImageRequest:
    values: dict[str, Any] = {
        "model": "sd15",
        "prompt": "a red cat",
        "width": 64,
        "height": 64,
        "steps": 4,
        "guidance": 7.5,
        "seed": 1,
        "scheduler": "EulerAncestralDiscreteScheduler",
    }
    return ImageRequest(**{**values, **changes})


def entered(pipeline: StableDiffusion15, *requests: ImageRequest) -> list[Row]:
    rows: list[Row] = []
    for prepared in pipeline.prepare(requests):
        assert isinstance(prepared, list), prepared
        rows += prepared
    for row in rows:
        pipeline.enter(row)
    return rows


def finished(pipeline: StableDiffusion15, rows: list[Row]) -> list[Pixels | Error]:
    while moving := [row for row in rows if row.remaining]:
        pipeline.step(moving)
    results = pipeline.finish(rows)
    for row in rows:
        pipeline.leave(row)
    return results


def difference(one: Pixels | Error, other: Pixels | Error) -> int:
    assert isinstance(one, np.ndarray) and isinstance(other, np.ndarray)
    return int(np.abs(one.astype(int) - other.astype(int)).max())


@pytest.fixture
def faulty(sd15: StableDiffusion15, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """What the next forwards do: None = the real thing, an exception = raise it, a function = change the output."""
    plan: list[Any] = []
    real = sd15.denoiser(LaneKey(model="sd15", shape=(), text=77))

    def forward(*inputs: Any) -> torch.Tensor:
        todo = plan.pop(0) if plan else None
        if isinstance(todo, BaseException):
            raise todo
        out = real(*inputs)
        changed: torch.Tensor = out if todo is None else todo(out)
        return changed

    monkeypatch.setattr(sd15, "denoiser", lambda lane: forward)
    yield plan
    assert not plan


def test_a_step_that_runs_out_of_memory_has_not_happened(sd15: StableDiffusion15, faulty: list[Any]) -> None:
    import torch

    undisturbed = finished(sd15, entered(sd15, wish(), wish(seed=2)))
    rows = entered(sd15, wish(), wish(seed=2))
    sd15.step(rows)
    faulty.append(torch.OutOfMemoryError("CUDA out of memory"))
    with pytest.raises(OutOfMemory):
        sd15.step(rows)
    assert [row.step for row in rows] == [1, 1]
    # Ancestral rows draw at every step: had the failed one drawn, the pictures would differ.
    again = finished(sd15, rows)
    assert max(difference(*pair) for pair in zip(undisturbed, again, strict=True)) == 0


def test_rows_can_go_on_in_smaller_forwards_after_a_failed_one(sd15: StableDiffusion15, faulty: list[Any]) -> None:
    import torch

    undisturbed = finished(sd15, entered(sd15, wish(), wish(seed=2)))
    rows = entered(sd15, wish(), wish(seed=2))
    faulty.append(torch.OutOfMemoryError("CUDA out of memory"))
    with pytest.raises(OutOfMemory):
        sd15.step(rows)
    sd15.step(rows[:1])
    sd15.step(rows[1:])
    again = finished(sd15, rows)
    assert max(difference(*pair) for pair in zip(undisturbed, again, strict=True)) <= 1


def test_the_cpu_allocators_failure_is_out_of_memory_too(sd15: StableDiffusion15, faulty: list[Any]) -> None:
    rows = entered(sd15, wish())
    faulty.append(RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory"))
    with pytest.raises(OutOfMemory):
        sd15.step(rows)
    finished(sd15, rows)


def test_any_other_fault_keeps_its_type(sd15: StableDiffusion15, faulty: list[Any]) -> None:
    rows = entered(sd15, wish())
    faulty.append(RuntimeError("shapes differ"))
    with pytest.raises(RuntimeError, match="shapes differ"):
        sd15.step(rows)
    finished(sd15, rows)


def test_a_row_that_is_not_finite_is_named_and_its_neighbour_keeps_its_picture(
    sd15: StableDiffusion15, faulty: list[Any]
) -> None:
    (alone,) = finished(sd15, entered(sd15, wish(seed=2)))
    rows = entered(sd15, wish(), wish(seed=2))

    def poison(out: torch.Tensor) -> torch.Tensor:
        out[0, 0, 0, 0] = float("nan")
        return out

    faulty.append(poison)
    assert sd15.step(rows) == rows[:1]
    results = finished(sd15, rows)
    assert isinstance(results[0], NonFinite)
    assert difference(results[1], alone) <= 1


def test_a_slot_that_held_something_not_finite_is_clean_for_the_next_row(
    sd15: StableDiffusion15, faulty: list[Any]
) -> None:
    (before,) = finished(sd15, entered(sd15, wish()))
    rows = entered(sd15, wish())
    faulty.append(lambda out: out * float("inf"))
    sd15.step(rows)
    sd15.leave(rows[0])
    (after,) = finished(sd15, entered(sd15, wish()))
    assert difference(before, after) == 0


@pytest.mark.parametrize("reproducible", [False, True])
def test_a_row_that_cannot_enter_leaves_nothing_behind(
    sd15: StableDiffusion15, monkeypatch: pytest.MonkeyPatch, reproducible: bool
) -> None:
    import torch

    def fail(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(sd15, "_begin", fail)
        for _ in range(sd15.slots + 1):
            with pytest.raises(OutOfMemory):
                entered(sd15, wish(reproducible=reproducible))
    assert not any(lane.alone for lane in sd15.pools)
    assert all(pool.empty for pool in sd15.pools.values())
    finished(sd15, entered(sd15, wish(reproducible=reproducible)))


def test_a_decoder_without_memory_is_asked_for_fewer_rows(
    sd15: StableDiffusion15, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    expected = finished(sd15, entered(sd15, wish(samples=4)))
    own = sd15.vaes.own
    real = own.decode

    def decode(latents: torch.Tensor, *, tiled: bool = False) -> torch.Tensor:
        if len(latents) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(latents, tiled=tiled)

    monkeypatch.setattr(own, "decode", decode)
    results = finished(sd15, entered(sd15, wish(samples=4)))
    assert max(difference(*pair) for pair in zip(expected, results, strict=True)) <= 1


def test_a_picture_that_cannot_be_decoded_whole_is_decoded_in_tiles(
    sd15: StableDiffusion15, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    expected = finished(sd15, entered(sd15, wish()))
    own = sd15.vaes.own
    real = own.decode

    def decode(latents: torch.Tensor, *, tiled: bool = False) -> torch.Tensor:
        if not tiled:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(latents, tiled=tiled)

    with monkeypatch.context() as patch:
        patch.setattr(own, "decode", decode)
        results = finished(sd15, entered(sd15, wish()))
    assert difference(expected[0], results[0]) <= 1
    finished(sd15, entered(sd15, wish()))
    assert not own.module.use_tiling


def test_a_picture_larger_than_a_tile_is_decoded_in_tiles(
    sd15: StableDiffusion15, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[bool] = []
    module = sd15.vaes.own.module
    real = module.decode

    def decode(latents: torch.Tensor, **options: bool) -> torch.Tensor:
        seen.append(module.use_tiling)
        return real(latents, **options)

    monkeypatch.setattr("pipelines.diffusion.TILE_PIXELS", 64 * 64 - 1)
    monkeypatch.setattr(module, "decode", decode)
    finished(sd15, entered(sd15, wish()))
    assert seen == [True]


def test_a_request_the_sampler_refuses_does_not_touch_its_neighbours(sd15: StableDiffusion15) -> None:
    prepared = sd15.prepare([wish(steps=151), wish()])
    assert isinstance(prepared[0], InvalidRequest)
    assert isinstance(prepared[1], list)


def test_texts_are_encoded_once(sd15: StableDiffusion15) -> None:
    sd15.prepare([wish(prompt="never seen before")])
    hits, misses = sd15.cache.hits, sd15.cache.misses
    sd15.prepare([wish(prompt="never seen before")])
    assert (sd15.cache.hits, sd15.cache.misses) == (hits + 2, misses)


def test_guidance_of_one_takes_one_entry(sd15: StableDiffusion15) -> None:
    prepared = sd15.prepare([wish(guidance=1.0), wish(guidance=1.01)])
    assert [row.entries for rows in prepared if isinstance(rows, list) for row in rows] == [1, 2]


def test_reproducible_rows_get_lanes_of_their_own(sd15: StableDiffusion15) -> None:
    prepared = sd15.prepare([wish(reproducible=True, samples=2), wish()])
    lanes = [row.lane for rows in prepared if isinstance(rows, list) for row in rows]
    assert len(set(lanes)) == 3
    assert len({lane.group for lane in lanes}) == 1


def toy(sample: torch.Tensor, timestep: torch.Tensor, conditioning: Any) -> torch.Tensor:
    return 0.3 * sample.tanh() + 1e-3 * timestep.view(-1, 1, 1, 1) + conditioning["text"].mean((1, 2)).view(-1, 1, 1, 1)


def pool_and_parts(rows: int) -> tuple[Any, list[Any]]:
    """Rows of two samplers, every other with guidance, in a pool of their own."""
    import torch

    from pipelines.block import RowStep
    from pipelines.slots import SlotPool
    from schedulers.table import compile_table

    model = {
        "_class_name": "PNDMScheduler",
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "clip_sample": False,
    }
    generator = torch.Generator().manual_seed(0)
    pool = SlotPool(rows, (4, 8, 8), torch.device("cpu"))
    parts = []
    for number in range(rows):
        name = ("EulerDiscreteScheduler", "DPMSolverMultistepScheduler")[number % 2]
        table = compile_table(name, model, 10 + number)
        text = torch.randn(2, 7, 5, generator=generator)
        slot = pool.take({"text": text[0]}, {"text": text[1]} if number % 2 else None)
        pool.latents[slot] = torch.randn(4, 4, 8, 8, generator=generator)
        parts.append(
            RowStep(
                slot=slot,
                guidance=3.0 + number if number % 2 else None,
                timestep=float(table.timesteps[2]),
                input_scale=float(table.input_scale[2]),
                matrix=table.matrices[2],
                norm_scaled=False,
            )
        )
    return pool, parts


def test_padding_changes_no_row() -> None:
    import torch

    from pipelines.block import StepBlock
    from pipelines.step import denoise

    exact, parts = pool_and_parts(5)
    padded, _ = pool_and_parts(5)
    for pool, entries, rows in ((exact, 7, 5), (padded, 12, 12)):
        block = StepBlock(entries=entries, rows=rows, device=torch.device("cpu"))
        block.fill(parts, scratch=pool.scratch)
        denoise(toy, torch.float32, pool, block)
    assert torch.equal(exact.latents[:5], padded.latents[:5])


def test_a_block_refuses_more_rows_than_it_has_places() -> None:
    import torch

    from pipelines.block import StepBlock

    pool, parts = pool_and_parts(3)
    block = StepBlock(entries=3, rows=3, device=torch.device("cpu"))
    with pytest.raises(ValueError, match="4 entries of 3 rows do not fit 3 of 3"):
        block.fill(parts, scratch=pool.scratch)


def test_a_step_launches_as_many_operations_for_sixteen_rows_as_for_one() -> None:
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    from pipelines.block import StepBlock
    from pipelines.step import denoise

    class Counter(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            self.count += 1
            return func(*args, **(kwargs or {}))

    counts = []
    for rows in (1, 16):
        pool, parts = pool_and_parts(rows)
        block = StepBlock(entries=2 * rows, rows=rows, device=torch.device("cpu"))
        block.fill(parts, scratch=pool.scratch)
        with Counter() as counter:
            denoise(toy, torch.float32, pool, block)
        counts.append(counter.count)
    assert counts[0] == counts[1] > 10
