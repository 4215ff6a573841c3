"""What is deleted when, and what is not."""

from __future__ import annotations

import asyncio
import hashlib
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from server.gallery import Gallery
from server.inputs import Inputs
from server.janitor import EXPIRED, Janitor
from server.jobs.base import Job, JobState
from server.jobs.memory import MemoryJobStore
from server.net import Guard
from server.storage.local import LocalImageStore
from server.storage.names import new_name

pytestmark = pytest.mark.anyio

DAY = 24 * 3600.0


@dataclass
class House:
    """Stores, and a janitor whose clock is ``now``."""

    folder: Path
    now: float = 1_000_000_000.0
    jobs: MemoryJobStore = field(default_factory=MemoryJobStore)

    def __post_init__(self) -> None:
        self.images = LocalImageStore(self.folder / "images")
        self.inputs = Inputs(Guard(()), self.folder / "inputs")
        self.gallery = Gallery(self.images)

    def janitor(self, **settings: float) -> Janitor:
        return Janitor(self.jobs, self.images, self.gallery, self.inputs, clock=lambda: self.now, **settings)

    async def add(self, number: int, *, age: float, size: int = 1000, **values: Any) -> Job:
        """A job of two pictures that ended ``age`` seconds ago."""
        outputs = tuple(new_name(index, temporary=bool(values.get("temporary"))) for index in range(2))
        created = self.now - age
        request = values.pop("request", {})
        job = Job(id=number, owner="me", dialect="test", request=request, outputs=outputs, created_at=created, **values)
        await self.jobs.add(job)
        for name in outputs:
            await self.store(name, size, age=age)
        await self.jobs.begin(number, now=created)
        await self.jobs.finish(number, result={}, warnings=(), now=created)
        return job

    async def store(self, name: str, size: int = 1, *, age: float = 0.0) -> None:
        await self.images.put(name, b"x" * size)
        os.utime(self.folder / "images" / name, (self.now - age, self.now - age))

    async def there(self, *jobs: Job) -> list[int]:
        """The ids of those whose files are there; of the others neither file is, and they say that they expired."""
        found = []
        for job in jobs:
            files = [await self.images.get(name) for name in job.outputs]
            stored = await self.jobs.get(job.id)
            assert stored is not None
            if None not in files:
                assert stored.state is JobState.SUCCEEDED
                found.append(job.id)
            else:
                assert files == [None, None]
                assert (stored.state, stored.error_code) == (JobState.EXPIRED, "expired")
                assert stored.error_message == EXPIRED
        return found

    def input(self, text: str, *, age: float) -> str:
        digest = hashlib.sha256(text.encode()).hexdigest()
        path = self.folder / "inputs" / f"{digest}.png"
        path.write_bytes(b"picture")
        os.utime(path, (self.now - age, self.now - age))
        return digest

    def inputs_there(self) -> set[str]:
        return {path.stem for path in (self.folder / "inputs").iterdir()}


@pytest.fixture
async def house(tmp_path: Path) -> House:
    house = House(tmp_path)
    await house.images.start()
    await house.inputs.start()
    return house


async def test_pictures_are_kept_for_ever_unless_told_otherwise(house: House) -> None:
    job = await house.add(1, age=5000 * DAY)
    await house.janitor().sweep()
    assert await house.there(job) == [1]


async def test_pictures_go_when_they_are_old_enough(house: House) -> None:
    jobs = [await house.add(number, age=number * DAY) for number in (1, 2, 3, 4)]
    await house.janitor(retention_days=2.5).sweep()
    assert await house.there(*jobs) == [1, 2]


async def test_more_jobs_than_a_page_go_at_once(house: House) -> None:
    jobs = [await house.add(number, age=3 * DAY) for number in range(1, 206)]
    await house.janitor(retention_days=1).sweep()
    assert await house.there(*jobs) == []


async def test_the_oldest_make_room(house: House) -> None:
    jobs = [await house.add(number, age=100.0 - number) for number in (1, 2, 3, 4, 5)]
    janitor = house.janitor(max_storage_gb=5000e-9)
    await janitor.sweep()
    assert await house.there(*jobs) == [4, 5]
    await janitor.sweep()
    assert await house.there(*jobs) == [4, 5]


async def test_no_more_is_deleted_than_has_to_be(house: House) -> None:
    jobs = [await house.add(number, age=100.0 - number) for number in (1, 2)]
    await house.janitor(max_storage_gb=4000e-9).sweep()
    assert await house.there(*jobs) == [1, 2]


async def test_temporary_pictures_live_a_day(house: House) -> None:
    young = await house.add(1, age=DAY - 1, temporary=True)
    old = await house.add(2, age=DAY + 1, temporary=True)
    lasting = await house.add(3, age=DAY + 1)
    await house.janitor().sweep()
    assert await house.there(young, old, lasting) == [1, 3]


async def test_temporary_files_of_nobody_go_a_little_later(house: House) -> None:
    names = {age: new_name(0, temporary=True) for age in (1.0, DAY + 60, DAY + 4000)}
    for age, name in names.items():
        await house.store(name, age=age)
    await house.janitor().sweep()
    left = [age for age, name in names.items() if await house.images.get(name) is not None]
    assert left == [1.0, DAY + 60]


async def test_unfinished_and_failed_jobs_are_left_alone(house: House) -> None:
    outputs = (new_name(0),)
    for number in (1, 2, 3):
        await house.jobs.add(Job(id=number, owner="me", dialect="test", request={}, outputs=outputs, created_at=1.0))
    await house.jobs.begin(2, now=2.0)
    await house.jobs.cancel(3, now=2.0)
    await house.store(outputs[0], age=5 * DAY)
    await house.janitor(retention_days=1, max_storage_gb=1e-9).sweep()
    assert [job.id for job in await house.jobs.unfinished()] == [1, 2]
    assert await house.images.get(outputs[0]) is not None


async def test_inputs_go_a_day_after_their_last_use(house: House) -> None:
    old, young = house.input("old", age=DAY + 1), house.input("young", age=DAY - 1)
    await house.janitor().sweep()
    assert house.inputs_there() == {young}
    assert old != young


async def test_inputs_can_be_kept_for_ever(house: House) -> None:
    old = house.input("old", age=5000 * DAY)
    await house.janitor(input_retention_days=0).sweep()
    assert house.inputs_there() == {old}


async def test_what_an_unfinished_job_needs_stays_wherever_its_request_names_it(house: House) -> None:
    image, mask, deep, done = (house.input(text, age=90 * DAY) for text in ("image", "mask", "deep", "done"))
    for number, request in ((1, {"image": image, "mask": None}), (2, {"mask": mask, "more": [{"image": deep}]})):
        await house.jobs.add(Job(id=number, owner="me", dialect="test", request=request, created_at=1.0))
    await house.jobs.begin(2, now=2.0)
    await house.add(3, age=90 * DAY, request={"image": done})
    await house.janitor().sweep()
    assert house.inputs_there() == {image, mask, deep}


async def test_an_input_that_was_found_is_young_again(house: House) -> None:
    pixel = bytes.fromhex(
        "89504e470d0a1a0a0000000d4948445200000001000000010800000000"
        "3a7e9b550000000a49444154789c6360000000020001e221bc330000000049454e44ae426082"
    )
    stored = await house.inputs.store(pixel, "image")
    path = house.folder / "inputs" / f"{stored.digest}.png"
    os.utime(path, (1.0, 1.0))
    assert await house.inputs.find(stored.digest) == stored
    assert path.stat().st_mtime > house.now


async def test_one_kind_that_fails_keeps_no_other_from_its_turn(house: House, caplog: pytest.LogCaptureFixture) -> None:
    (house.folder / "images" / "temp").rmdir()
    job, digest = await house.add(1, age=9 * DAY), house.input("old", age=9 * DAY)
    await house.janitor(retention_days=1).sweep()
    assert (await house.there(job), digest in house.inputs_there()) == ([], False)
    assert "sweep_temporary failed" in caplog.text


async def test_it_sweeps_at_the_start_and_again(house: House) -> None:
    janitor = house.janitor(retention_days=1, every_s=0.01)
    first = await house.add(1, age=2 * DAY)
    await janitor.start()
    await gone(house, first)
    second = await house.add(2, age=2 * DAY)
    await gone(house, second)
    await janitor.close()
    third = await house.add(3, age=2 * DAY)
    await asyncio.sleep(0.05)
    assert await house.there(third) == [3]


async def gone(house: House, job: Job) -> None:
    for _ in range(1000):
        stored = await house.jobs.get(job.id)
        if stored is not None and stored.state is JobState.EXPIRED:
            return
        await asyncio.sleep(0.01)
    raise AssertionError(f"job {job.id} is still there")
