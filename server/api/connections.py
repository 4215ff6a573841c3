"""The edge of the edge: one connection, whose client has to get on with its request."""

from __future__ import annotations

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol


class Connection(H11Protocol):
    """uvicorn's protocol with receive deadlines, which it has none of (its issue 157).

    h11 rather than httptools: it bounds the length of a head (``h11_max_incomplete_event_size``) and tells whose turn
    it is. A client whose request is late is hung up on.
    """

    #: Seconds for the first line and the headers, from the connection's or the request's first byte.
    head_s = 10.0
    #: Seconds in which a body ends or grows by ``least_bytes``: a slow line passes, a drip does not.
    body_s = 30.0
    least_bytes = 16 * 1024

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._deadline: asyncio.TimerHandle | None = None
        self._in_body = False
        self._received = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """The client has something to say, soon."""
        super().connection_made(transport)
        self._expect(self.head_s)

    def data_received(self, data: bytes) -> None:
        """More of a head, of a body, or the end of the request."""
        super().data_received(data)
        self._received += len(data)
        state = self.conn.their_state
        if state not in (h11.IDLE, h11.SEND_BODY) or self.transport.is_closing():
            self._relax()
        elif self._deadline is None or self._in_body is not (state is h11.SEND_BODY):
            self._in_body = state is h11.SEND_BODY
            self._expect(self.body_s if self._in_body else self.head_s)

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing more is expected."""
        self._relax()
        super().connection_lost(exc)

    def _expect(self, seconds: float) -> None:
        self._relax()
        self._received = 0
        self._deadline = self.loop.call_later(seconds, self._check)

    def _relax(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _check(self) -> None:
        # While reading is paused it is the server that is slow.
        if self._in_body and (self.flow.read_paused or self._received >= self.least_bytes):
            self._expect(self.body_s)
        else:
            self._deadline = None
            self.transport.close()
