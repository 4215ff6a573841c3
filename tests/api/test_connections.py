"""Connections that never come to the point, against a real listener."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import uvicorn
from starlette.types import Receive, Scope, Send

from server.api.connections import Connection

pytestmark = pytest.mark.anyio

PATIENT = 30.0


class Hasty(Connection):
    head_s = 0.2
    body_s = 0.2
    least_bytes = 100


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers with the length of the body; under /slow after longer than a client may take."""
    length = 0
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        length += len(message.get("body", b""))
        more = message.get("more_body", False)
    await asyncio.sleep(0.5 if scope["path"] == "/slow" else 0.0)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"%d bytes" % length})


@asynccontextmanager
async def listening(protocol: type[Connection] = Hasty) -> AsyncIterator[int]:
    config = uvicorn.Config(
        app, port=0, http=protocol, ws="none", lifespan="off", log_config=None, h11_max_incomplete_event_size=64 * 1024
    )
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server._serve())
    while not server.started:  # noqa: ASYNC110 (uvicorn has no event for it)
        await asyncio.sleep(0.01)
    try:
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        await serving


async def talk(port: int, *parts: bytes, pause_s: float = 0.0) -> bytes:
    """All that comes back until the server hangs up; what it no longer reads is not sent."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        async with asyncio.timeout(PATIENT):
            answer = asyncio.create_task(reader.read())
            for part in parts:
                if answer.done():
                    break
                writer.write(part)
                await writer.drain()
                await asyncio.sleep(pause_s)
            return await answer
    except ConnectionError:
        return b""
    finally:
        writer.close()


HEAD = b"POST / HTTP/1.1\r\nHost: here\r\nConnection: close\r\n"


async def test_a_plain_request_is_answered() -> None:
    async with listening() as port:
        answer = await talk(port, HEAD + b"Content-Length: 5\r\n\r\nabcde")
    assert answer.startswith(b"HTTP/1.1 200") and b"5 bytes" in answer


@pytest.mark.parametrize("headers", [b"X: " + b"a" * 2_000_000, b"X-A: b\r\n" * 200_000])
async def test_a_long_head_is_refused(headers: bytes) -> None:
    async with listening(Connection) as port:
        answer = await talk(port, HEAD, headers, b"\r\n\r\n")
    assert b" 200 " not in answer


@pytest.mark.parametrize(
    ("parts", "pause_s"),
    [
        ((), 0.0),
        ((b"GET / HT",), 0.0),
        (tuple(bytes([byte]) for byte in b"GET / HTTP/1.1\r\n" + b"X-Very-Long: " + b"a" * 500), 0.02),
        ((HEAD + b"Content-Length: 500\r\n\r\n",), 0.0),
        ((HEAD + b"Content-Length: 500\r\n\r\n", *[b"a"] * 500), 0.02),
        ((HEAD + b"Transfer-Encoding: chunked\r\n\r\n", *[b"1\r\na\r\n"] * 50), 0.1),
    ],
    ids=["silent", "half a line", "dripping head", "no body", "dripping body", "dripping chunks"],
)
async def test_who_drips_is_hung_up_on(parts: tuple[bytes, ...], pause_s: float) -> None:
    began = time.monotonic()
    async with listening() as port:
        assert await talk(port, *parts, pause_s=pause_s) == b""
    assert time.monotonic() - began < 4


async def test_a_slow_body_that_gets_on_is_taken() -> None:
    parts = [b"a" * 100] * 10
    async with listening() as port:
        answer = await talk(port, HEAD + b"Content-Length: 1000\r\n\r\n", *parts, pause_s=0.06)
    assert b"1000 bytes" in answer


async def test_a_connection_that_is_kept_gets_its_time_anew() -> None:
    async with listening() as port:
        request = b"POST / HTTP/1.1\r\nHost: here\r\nContent-Length: 2\r\n\r\nab"
        last = HEAD + b"Content-Length: 2\r\n\r\nab"
        answer = await talk(port, request, request, request, last, pause_s=0.15)
    assert answer.count(b"2 bytes") == 4


async def test_a_slow_answer_is_not_the_clients_fault() -> None:
    async with listening() as port:
        answer = await talk(port, HEAD.replace(b"/ ", b"/slow ") + b"Content-Length: 2\r\n\r\n", b"ab")
    assert b"2 bytes" in answer
