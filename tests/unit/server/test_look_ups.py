"""Look-ups: turns, places that end with the look-up, and threads nobody waits for."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from server.errors import RefusedAddress
from server.look_ups import LookUps, ask_system, registered_name
from server.net import Guard

pytestmark = pytest.mark.anyio

ROOT = Path(__file__).resolve().parents[3]


class Slow:
    """Answers names under ``slow.example`` when released, all others at once."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.release = asyncio.Event()

    async def __call__(self, host: str, port: int) -> list[str]:
        self.asked.append(host)
        if host.endswith("slow.example"):
            await self.release.wait()
        return ["127.0.0.1"]


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_one_clients_slow_names_leave_places_for_others() -> None:
    slow = Slow()
    look_up = LookUps(slow, in_all=4, per_name=2)
    waiting = [asyncio.create_task(look_up(f"{number}.slow.example", 80)) for number in range(6)]
    await settle()
    assert slow.asked == ["0.slow.example", "1.slow.example"]
    assert await look_up("quick.test", 80) == ["127.0.0.1"]
    slow.release.set()
    assert await asyncio.gather(*waiting) == [["127.0.0.1"]] * 6


async def test_who_stops_waiting_frees_no_place() -> None:
    slow = Slow()
    look_up = LookUps(slow, in_all=1, per_name=1)
    first = asyncio.create_task(look_up("a.slow.example", 80))
    second = asyncio.create_task(look_up("b.slow.example", 80))
    third = asyncio.create_task(look_up("c.test", 80))
    await settle()
    for task in (first, second):
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
    await settle()
    assert slow.asked == ["a.slow.example"]
    slow.release.set()
    assert await third == ["127.0.0.1"]
    assert slow.asked == ["a.slow.example", "c.test"]


async def test_a_failed_look_up_frees_its_place() -> None:
    async def fail(host: str, port: int) -> list[str]:
        raise OSError("Name or service not known")

    look_up = LookUps(fail, in_all=1, per_name=1)
    for _ in range(3):
        with pytest.raises(OSError, match="not known"):
            await look_up("a.example", 80)


async def test_the_time_of_a_try_begins_with_its_own_look_up() -> None:
    slow = Slow()
    guard = Guard(resolve=slow)
    url = "http://hook.slow.example/"
    tries = [asyncio.create_task(guard.post(url, b"", {}, timeout_s=0.05)) for _ in range(5)]
    failures = await asyncio.gather(*tries[:4], return_exceptions=True)
    assert {type(one) for one in failures} == {RefusedAddress}
    assert not tries[4].done()
    slow.release.set()
    with pytest.raises(RefusedAddress) as caught:
        await tries[4]
    # Refused for where the name leads, not for being late.
    assert "is refused: 127.0.0.1" in str(caught.value.__cause__)


async def test_the_system_is_asked() -> None:
    assert set(await ask_system("localhost", 80)) <= {"127.0.0.1", "::1"}
    with pytest.raises(OSError, match=r"."):
        await ask_system("a" * 64 + ".invalid", 80)


def test_slow_look_ups_do_not_delay_the_end_of_the_process() -> None:
    script = """
import asyncio, socket, time
from server.look_ups import ask_system
socket.getaddrinfo = lambda *_, **__: time.sleep(60)
async def main():
    try:
        await asyncio.wait_for(ask_system("slow.example", 80), 0.05)
    except TimeoutError:
        pass
asyncio.run(main())
"""
    began = time.monotonic()
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True, timeout=50)
    assert time.monotonic() - began < 30


def test_names_count_by_who_registered_them() -> None:
    assert [registered_name(host) for host in ("a.b.example.org", "example.org", "intranet")] == [
        "example.org",
        "example.org",
        "intranet",
    ]
