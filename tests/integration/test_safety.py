"""Pictures of every family are checked on the device thread, and only those that ask for it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines import demo
from pipelines.base import Pixels
from pipelines.errors import BrokenCheckpoint, Error
from pipelines.model import ModelSpec
from pipelines.request import ImageRequest
from pipelines.safety import REPLACEMENTS, Checked, CheckerFiles
from server.engine.executors.base import Outcome
from server.engine.executors.local import LocalExecutor

pytestmark = pytest.mark.anyio

SIDE = 64
COLOURS = {"red": (255, 0, 0), "blue": (20, 60, 200)}


def read_input(name: str) -> Pixels:
    return np.full((SIDE, SIDE, 3), COLOURS[name], dtype=np.uint8)


def wish(model: str, image: str, safety: str | None, **changes: Any) -> ImageRequest:
    """Ends where it starts: of 100 steps one is drawn, with the least noise."""
    values: dict[str, Any] = {"prompt": "a cat", "width": SIDE, "height": SIDE, "guidance": 1.0, "seed": 1}
    drawn = {"steps": 100, "strength": 0.01, "scheduler": "DDIMScheduler" if model == "sd15" else None}
    return ImageRequest(**{**values, **drawn, "model": model, "image": image, "safety": safety, **changes})


@asynccontextmanager
async def executor_of(folder: Path, checker: CheckerFiles | None) -> AsyncIterator[LocalExecutor]:
    def spec(name: str) -> ModelSpec:
        return ModelSpec(id=name, family=name, folder=folder / name, demo=name)

    executor = LocalExecutor(spec, device="cpu", read_input=read_input, checker_files=lambda: checker)
    try:
        yield executor
    finally:
        await executor.close()


@pytest.mark.parametrize("family", ["sd15", "sdxl", "flux"])
async def test_rows_are_checked_together_and_only_those_that_ask(
    family: str, demo_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checker = CheckerFiles(folder=demo_folder / "sd15", demo="sd15")
    looked: list[int] = []
    async with executor_of(demo_folder, checker) as executor:
        check = executor.checker.check

        def counted(pictures: Sequence[Pixels], replacements: Sequence[str]) -> list[Checked | Error]:
            looked.append(len(pictures))
            return check(pictures, replacements)

        monkeypatch.setattr(executor.engine, "_check", counted)
        asked = [wish(family, "red", name) for name in REPLACEMENTS]
        requests = [*asked, wish(family, "red", None), wish(family, "blue", "black"), wish(family, "blue", None)]
        generations = [executor.submit(request) for request in requests]
        await executor.start()
        *flagged, unchecked, fine, plain = [(await one.outcome()).pictures[0] for one in generations]
    assert looked == [len(REPLACEMENTS) + 1]
    assert [one.nsfw for one in flagged] == [True] * len(REPLACEMENTS)
    assert not unchecked.nsfw and not fine.nsfw
    for name, one in zip(REPLACEMENTS, flagged, strict=True):
        assert np.abs(one.pixels.astype(int) - REPLACEMENTS[name](unchecked.pixels)).max() <= 1, name
    assert np.array_equal(fine.pixels, plain.pixels)


async def test_the_samples_of_a_request_are_judged_one_by_one(demo_folder: Path) -> None:
    checker = CheckerFiles(folder=demo_folder / "sd15", demo="sd15")
    async with executor_of(demo_folder, checker) as executor:
        await executor.start()
        both = await executor.submit(wish("sd15", "red", "black", samples=2, reproducible=True)).outcome()
    assert [one.nsfw for one in both.pictures] == [True, True]


async def test_a_picture_from_elsewhere_can_be_judged(demo_folder: Path) -> None:
    checker = CheckerFiles(folder=demo_folder / "sd15", demo="sd15")
    async with executor_of(demo_folder, checker) as executor:
        await executor.start()
        assert [await executor.inspect(read_input(colour)) for colour in ("red", "blue")] == [True, False]
    async with executor_of(demo_folder, None) as executor:
        await executor.start()
        with pytest.raises(BrokenCheckpoint):
            await executor.inspect(read_input("red"))


async def test_without_a_checker_what_asks_for_it_fails_and_its_neighbours_are_drawn(demo_folder: Path) -> None:
    demo.ensure("sd15", demo_folder)
    async with executor_of(demo_folder, None) as executor:
        asked, plain = (executor.submit(wish("sd15", "blue", safety)) for safety in ("blur", None))
        await executor.start()
        with pytest.raises(BrokenCheckpoint, match="cannot be checked"):
            await asked.outcome()
        assert isinstance(await plain.outcome(), Outcome)


async def test_another_checker_is_taken_when_it_is_there(demo_folder: Path, tmp_path: Path) -> None:
    files = [CheckerFiles(folder=tmp_path / "nothing"), CheckerFiles(folder=demo.ensure("sd15", demo_folder))]
    async with executor_of(demo_folder, None) as executor:
        executor.checker.files = lambda: files[0]
        await executor.start()
        request = wish("sd15", "red", "black")
        with pytest.raises(BrokenCheckpoint, match="safety_checker"):
            await executor.submit(request).outcome()
        del files[0]
        outcome = await executor.submit(replace(request, seed=2)).outcome()
    assert outcome.pictures[0].nsfw


async def test_the_checker_counts_in_the_budget_and_leaves_for_a_model(demo_folder: Path) -> None:
    checker = CheckerFiles(folder=demo_folder / "sd15", demo="sd15")
    async with executor_of(demo_folder, checker) as executor:
        models = executor.engine.models
        budget = sum(map(executor._weigh, ("sdxl", "sd15"))) + 1000
        # Both models, without the checker's 0.1 MB.
        executor._budget_gb = budget / 1e9
        await executor.start()
        for family in ("sdxl", "sd15"):
            await executor.submit(wish(family, "blue", None)).outcome()
        before = models.names
        await executor.submit(wish("sd15", "blue", "blur")).outcome()
        assert (before, models.names) == (("sdxl", "sd15"), ("sd15",))
        assert executor.checker.bytes() > 1000
