"""Names to addresses, on threads that one client's slow names cannot all take."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from threading import Thread

#: Host and port to addresses; raises ``OSError`` when there are none.
Resolver = Callable[[str, int], Awaitable[list[str]]]

#: Look-ups in flight, in all and for one registered name.
IN_ALL, PER_NAME = 16, 4


@dataclass(kw_only=True)
class _Name:
    """Free places for one registered name, and how many look-ups hold or want one."""

    places: asyncio.Semaphore
    users: int = 0


class LookUps:
    """Asks a resolver, so many times at once. One event loop."""

    def __init__(self, resolve: Resolver, *, in_all: int = IN_ALL, per_name: int = PER_NAME) -> None:
        self._resolve = resolve
        self._per_name = per_name
        self._places = asyncio.Semaphore(in_all)
        self._names: dict[str, _Name] = {}

    async def __call__(self, host: str, port: int, begin: Callable[[], None] = lambda: None) -> list[str]:
        """The host's addresses. ``begin`` is called when the look-up's own turn comes. Raises ``OSError``.

        Who stops waiting frees nothing: a look-up cannot be stopped, and keeps its place until it ends.
        """
        release = await self._take(registered_name(host))
        begin()
        asking = asyncio.ensure_future(self._resolve(host, port))

        def end(asked: asyncio.Future[list[str]]) -> None:
            release()
            if not asked.cancelled():
                # Nobody may be waiting any more; that is no error of its own.
                asked.exception()

        asking.add_done_callback(end)
        return await asyncio.shield(asking)

    async def _take(self, name: str) -> Callable[[], None]:
        """A place, first among the name's own, then among all; returns what gives it back."""
        entry = self._names.setdefault(name, _Name(places=asyncio.Semaphore(self._per_name)))

        def leave() -> None:
            entry.users -= 1
            if entry.users == 0:
                del self._names[name]

        def release() -> None:
            self._places.release()
            entry.places.release()
            leave()

        entry.users += 1
        try:
            await entry.places.acquire()
            try:
                await self._places.acquire()
            except BaseException:
                entry.places.release()
                raise
        except BaseException:
            leave()
            raise
        return release


def registered_name(host: str) -> str:
    """The last two labels: who owns them makes as many names below as he likes.

    >>> registered_name("a.b.example.org")
    'example.org'
    """
    return ".".join(host.split(".")[-2:])


async def ask_system(host: str, port: int) -> list[str]:
    """The operating system's resolver, on a thread of its own that the end of the process does not wait for."""
    loop = asyncio.get_running_loop()
    found: asyncio.Future[list[str]] = loop.create_future()

    def tell(result: list[str] | OSError) -> None:
        if found.done():
            return
        if isinstance(result, OSError):
            found.set_exception(result)
        else:
            found.set_result(result)

    def look_up() -> None:
        result: list[str] | OSError
        try:
            result = [str(address[0]) for *_, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
        except OSError as error:
            result = error
        except Exception as error:
            result = OSError(f"{host} cannot be looked up: {error}")
        try:
            loop.call_soon_threadsafe(tell, result)
        except RuntimeError:
            # The loop has been closed meanwhile, and nobody asks any more.
            return

    Thread(target=look_up, name="dns", daemon=True).start()
    return await found
