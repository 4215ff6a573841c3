"""Decodes strangers' pictures, each in a limited process of its own: a decoder's bug costs one request."""

from __future__ import annotations

import asyncio
import logging
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from server import pixels
from server.pixels import DAMAGED, HEADER, Kind, Refused

logger = logging.getLogger(__name__)

#: All that the process inherits: what an interpreter may need to start, and no secret.
_ENVIRONMENT = ("PATH", "LD_LIBRARY_PATH")
_CHANNELS = {b"R": 3, b"L": 1}


class Decoder:
    """At most ``processes`` at a time, each for ``timeout_s`` seconds at most.

    A process per picture, not a pool that is kept: starting one costs 50 ms, and leaves nothing of one client's picture
    to the next, no memory that grows, and nothing to close.
    """

    def __init__(self, *, max_side: int, max_pixels: int, processes: int = 4, timeout_s: float = 30.0) -> None:
        self._max_side = max_side
        self._max_pixels = max_pixels
        self._timeout_s = timeout_s
        self._waiting = ThreadPoolExecutor(max_workers=processes, thread_name_prefix="decode")

    async def decode(self, data: bytes, kind: Kind) -> NDArray[np.uint8]:
        """uint8, (height, width, 3) of an image, (height, width) of a mask; see ``pixels.decode``.

        Raises ``Refused``.
        """
        return await asyncio.get_running_loop().run_in_executor(self._waiting, self._run, data, kind)

    def _run(self, data: bytes, kind: Kind) -> NDArray[np.uint8]:
        arguments = [kind, str(self._max_side), str(self._max_pixels)]
        try:
            ended = subprocess.run(
                # Isolated: no variables, no user's packages, and the folder of the script is no place to import from.
                [sys.executable, "-I", pixels.__file__, *arguments],
                input=data,
                capture_output=True,
                timeout=self._timeout_s,
                cwd="/",
                env={name: os.environ[name] for name in _ENVIRONMENT if name in os.environ},
                # Ctrl-C is for the server, which lets what is running end.
                start_new_session=True,
            )
        except subprocess.TimeoutExpired:
            raise Refused(DAMAGED) from None
        if ended.returncode or len(ended.stdout) < HEADER.size:
            logger.warning("a picture's decoder ended with %d: %s", ended.returncode, ended.stderr[-500:])
            raise Refused(DAMAGED)
        return self._pixels(ended.stdout)

    def _pixels(self, answer: bytes) -> NDArray[np.uint8]:
        """What the process answered, none of it believed: a decoder that was taken over could say anything."""
        mode, width, height = HEADER.unpack_from(answer)
        body = memoryview(answer)[HEADER.size :]
        if mode == b"!":
            raise Refused(bytes(body).decode(errors="replace"))
        if not body or max(width, height) > self._max_side or len(body) != width * height * _CHANNELS.get(mode, 0):
            logger.warning("a picture's decoder answered %r %d x %d in %d bytes", mode, width, height, len(body))
            raise Refused(DAMAGED)
        return np.frombuffer(body, np.uint8).reshape((height, width, 3) if mode == b"R" else (height, width))
