"""Delivery of webhooks: tries, pauses, places per host, closing, and what is logged."""

from __future__ import annotations

import asyncio
import logging
from email.utils import formatdate

import pytest

from server.net import Guard
from server.webhooks import Webhooks
from tests.receiver import receiving

pytestmark = pytest.mark.anyio


class Pauses:
    """A sleep that takes no time and remembers."""

    def __init__(self) -> None:
        self.taken: list[float] = []

    async def __call__(self, seconds: float) -> None:
        self.taken.append(seconds)


def webhooks(pauses: Pauses | None = None, now: float = 0.0) -> Webhooks:
    return Webhooks(Guard(["127.0.0.1"]), sleep=pauses or Pauses(), clock=lambda: now)


async def deliver(*statuses: str, now: float = 0.0) -> tuple[bool, int, list[float]]:
    """Whether it was delivered, how often it was tried, and the pauses between."""
    pauses = Pauses()
    async with receiving(*statuses) as receiver:
        delivered = await webhooks(pauses, now).send(receiver.url, b'{"id":1}')
    assert set(receiver.bodies) == {b'{"id":1}'}
    return delivered, len(receiver.bodies), pauses.taken


@pytest.mark.parametrize("status", ["200 OK", "201 Created", "204 No Content"])
async def test_success_needs_one_try(status: str) -> None:
    assert await deliver(status) == (True, 1, [])


async def test_tries_are_spread_until_delivered() -> None:
    assert await deliver("500 No", "302 Found", "200 OK") == (True, 3, [1.0, 5.0])


async def test_after_the_last_pause_it_is_given_up() -> None:
    assert await deliver("503 No") == (False, 4, [1.0, 5.0, 25.0])


@pytest.mark.parametrize("status", ["400 Bad", "401 Who", "404 Lost", "410 Gone"])
async def test_client_errors_are_final(status: str) -> None:
    assert await deliver(status) == (False, 1, [])


@pytest.mark.parametrize("status", ["408 Slow", "425 Early", "429 Many"])
async def test_passing_client_errors_are_not_final(status: str) -> None:
    assert await deliver(status, "200 OK") == (True, 2, [1.0])


@pytest.mark.parametrize(
    ("header", "pause"),
    [
        ("30", 30.0),
        ("3600", 60.0),
        ("9" * 5000, 60.0),
        ("0", 1.0),
        ("-5", 1.0),
        ("soon", 1.0),
        (formatdate(1_000_020, usegmt=True), 20.0),
        (formatdate(999_000, usegmt=True), 1.0),
    ],
)
async def test_retry_after_lengthens_the_pause_up_to_a_minute(header: str, pause: float) -> None:
    answer = f"503 No\r\nRetry-After: {header}"
    assert await deliver(answer, "200 OK", now=1_000_000.0) == (True, 2, [pause])


async def test_unreachable_receivers_are_tried_again() -> None:
    pauses = Pauses()
    assert not await webhooks(pauses).send("http://127.0.0.1:1/", b"")
    assert pauses.taken == [1.0, 5.0, 25.0]


async def test_at_most_four_are_in_flight_per_host() -> None:
    async with receiving("200 OK") as slow, receiving("200 OK") as quick:
        slow.release.clear()
        hooks = webhooks()
        hanging = [hooks.send(slow.url, b"%d" % number) for number in range(10)]
        await slow.wait_for(4)
        assert await hooks.send(quick.url, b"")
        assert len(slow.bodies) == 4
        slow.release.set()
        assert await asyncio.gather(*hanging) == [True] * 10
        assert len(slow.bodies) == 10


async def test_close_cancels_what_is_not_delivered() -> None:
    async with receiving("200 OK") as receiver:
        receiver.release.clear()
        hooks = webhooks()
        tasks = [hooks.send(receiver.url, b"") for _ in range(6)]
        await receiver.wait_for(4)
        await hooks.close()
        assert all(task.cancelled() for task in tasks)


async def test_query_and_path_are_never_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    await deliver("200 OK")
    await deliver("500 No")
    await deliver("404 No")
    await webhooks().send("http://127.0.0.1:1/hook?token=canary", b"")
    await webhooks().send("http://[broken/hook?token=canary", b"")
    assert "webhook to 127.0.0.1" in caplog.text
    assert "canary" not in caplog.text
    assert "hook?" not in caplog.text
