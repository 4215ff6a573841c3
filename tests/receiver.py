"""A receiver of webhooks for tests."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Receiver:
    """A server on 127.0.0.1 that answers with each status in turn, the last one for ever."""

    def __init__(self, *statuses: str) -> None:
        self.statuses = list(statuses)
        self.bodies: list[bytes] = []
        self.release = asyncio.Event()
        self.release.set()
        self.arrived = asyncio.Condition()
        self.url = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        body = await reader.readexactly(length)
        async with self.arrived:
            self.bodies.append(body)
            self.arrived.notify_all()
        await self.release.wait()
        status = self.statuses.pop(0) if len(self.statuses) > 1 else self.statuses[0]
        writer.write(f"HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n".encode())
        writer.close()

    async def wait_for(self, number: int) -> None:
        async with self.arrived:
            await self.arrived.wait_for(lambda: len(self.bodies) >= number)


@asynccontextmanager
async def receiving(*statuses: str) -> AsyncIterator[Receiver]:
    receiver = Receiver(*statuses)
    server = await asyncio.start_server(receiver.serve, "127.0.0.1", 0)
    async with server:
        receiver.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/hook?token=canary"
        yield receiver
        receiver.release.set()
