"""Tells callers that their job is done: a few tries, spread out, then no more."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from urllib.parse import urlsplit

from server.errors import RefusedAddress
from server.net import Answer, Guard

logger = logging.getLogger(__name__)

#: Client errors that may pass: request timeout, too early, too many requests.
_PASSING = frozenset({408, 425, 429})
#: A receiver may put us off for this long, in seconds, and no longer.
_LONGEST_RETRY_AFTER_S = 60.0


@dataclass(kw_only=True)
class _Host:
    """Free places towards one host, and how many deliveries hold or want one."""

    places: asyncio.Semaphore
    users: int = 0


class Webhooks:
    """Delivers bodies in tasks of its own. Tries at once, then after each of ``delays_s``."""

    def __init__(
        self,
        guard: Guard,
        *,
        timeout_s: float = 15.0,
        delays_s: tuple[float, ...] = (1.0, 5.0, 25.0),
        max_per_host: int = 4,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._guard = guard
        self._timeout_s = timeout_s
        self._delays_s = delays_s
        self._max_per_host = max_per_host
        self._sleep = sleep
        self._clock = clock
        self._hosts: dict[str, _Host] = {}
        self._tasks: set[asyncio.Task[bool]] = set()

    def send(self, url: str, body: bytes, headers: Mapping[str, str] | None = None) -> asyncio.Task[bool]:
        """Begins a delivery; the task's result says whether the receiver took it (answered 2xx).

        Client errors are final, except 408, 425 and 429; everything else is tried again. ``Retry-After`` lengthens a
        pause, up to 60 s. ``close`` cancels the task: the delivery is then neither made nor given up.
        """
        all_headers = {"content-type": "application/json", **(headers or {})}
        task = asyncio.create_task(self._deliver(url, body, all_headers), name="webhook")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def close(self) -> None:
        """Cancels what has not been delivered and waits until nothing is in flight."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _deliver(self, url: str, body: bytes, headers: Mapping[str, str]) -> bool:
        host = _host(url)
        for number, pause_s in enumerate((*self._delays_s, None), start=1):
            answer = await self._try(host, url, body, headers)
            if answer is not None and 200 <= answer.status < 300:
                return True
            final = pause_s is None or (answer is not None and _is_final(answer.status))
            outcome = "unreachable" if answer is None else f"status {answer.status}"
            logger.warning("webhook to %s: try %d: %s%s", host, number, outcome, ", given up" if final else "")
            if pause_s is None or final:
                return False
            await self._sleep(max(pause_s, self._retry_after(answer)))
        return False

    async def _try(self, host: str, url: str, body: bytes, headers: Mapping[str, str]) -> Answer | None:
        """The answer, or None when there was none."""
        async with self._place(host):
            try:
                return await self._guard.post(url, body, headers, timeout_s=self._timeout_s)
            except RefusedAddress as error:
                # Only host and cause: paths and queries of webhooks hold secrets.
                logger.info("webhook to %s: %s", host, error.__cause__ or error)
                return None
            except Exception:
                logger.exception("webhook to %s: not sent", host)
                return None

    @asynccontextmanager
    async def _place(self, host: str) -> AsyncIterator[None]:
        """One of the host's places, so that hanging receivers hold up only each other."""
        entry = self._hosts.setdefault(host, _Host(places=asyncio.Semaphore(self._max_per_host)))
        entry.users += 1
        try:
            async with entry.places:
                yield
        finally:
            entry.users -= 1
            if entry.users == 0:
                del self._hosts[host]

    def _retry_after(self, answer: Answer | None) -> float:
        """Seconds the receiver asks for (RFC 9110, 10.2.3: a number or a date), 0 .. 60."""
        text = answer.retry_after.strip() if answer else ""
        if text.isascii() and text.isdigit():
            seconds = float(text[:6])
        else:
            try:
                seconds = parsedate_to_datetime(text).timestamp() - self._clock()
            except (ValueError, TypeError, OverflowError):
                seconds = 0.0
        return min(max(seconds, 0.0), _LONGEST_RETRY_AFTER_S)


def _is_final(status: int) -> bool:
    return 400 <= status < 500 and status not in _PASSING


def _host(url: str) -> str:
    """``host:port`` in lower case: what may be logged, and whose places a delivery takes."""
    try:
        parts = urlsplit(url)
        return f"{(parts.hostname or '?').lower()}:{parts.port or parts.scheme}"
    except ValueError:
        return "?"
