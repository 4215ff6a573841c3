"""Pictures that clients send: fetched or unpacked, decoded, and stored as plain PNG under the hash of their content."""

from __future__ import annotations

import asyncio
import binascii
import hashlib
import os
import re
import threading
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pybase64
from numpy.typing import NDArray
from PIL import Image

from pipelines.errors import Error, InvalidRequest
from server.decoder import Decoder
from server.errors import BodyTooLarge, RefusedAddress, Unavailable
from server.net import Guard
from server.percent import percent_decoded
from server.pixels import Kind, Refused
from server.storage.disk import make_folder, write_file
from server.storage.png import encode_png

_HASH = re.compile(r"[0-9a-f]{64}")
#: No character of base64 stands in front of "://", so whatever has one is meant as an address.
_URL = re.compile(r"\s*[a-z][a-z0-9+.-]*://", re.IGNORECASE)
#: The URL-safe alphabet of RFC 4648 to the usual one; line breaks and padding are left out.
_ALPHABET = bytes.maketrans(b"-_", b"+/")
_NOT_DATA = b" \t\r\n\f\v="
_ACCEPT = "image/png,image/jpeg,image/webp;q=0.9,*/*;q=0.1"


def is_url(source: str) -> bool:
    """Whether a string names a picture instead of holding one."""
    return _URL.match(source) is not None


class BadInput(InvalidRequest):
    """What the client sent as a picture is none that can be used."""


class UnfetchableInput(InvalidRequest):
    """The URL of a picture gives no picture; one text for refused, unreachable and missing."""

    def __init__(self) -> None:
        super().__init__("Unable to fetch image from provided URL")


class InputGone(Error):
    """A stored input is not there any more, or not whole."""

    code = "input_gone"

    def __init__(self) -> None:
        super().__init__("An input image of this request is no longer stored.")


@dataclass(frozen=True, kw_only=True)
class StoredInput:
    """An input as requests name it."""

    #: SHA-256 (hex) of the stored file: ``ImageRequest.image`` or ``.mask``.
    digest: str
    #: Pixels, upright.
    width: int
    height: int


class Inputs:
    """Stores what clients send, and gives the engine its pixels. ``start`` before use; nothing to close."""

    def __init__(
        self,
        guard: Guard,
        folder: Path,
        *,
        max_bytes: int = 25 * 1024 * 1024,
        max_side: int = 8192,
        max_pixels: int = 16_800_000,
        fetch_timeout_s: float = 20.0,
        max_fetches: int = 16,
        decoder: Decoder | None = None,
    ) -> None:
        self._guard = guard
        self._folder = folder
        self._max_bytes = max_bytes
        self._fetch_timeout_s = fetch_timeout_s
        # Each may hold max_bytes while it lasts.
        self._fetches = asyncio.Semaphore(max_fetches)
        self._decoder = decoder or Decoder(max_side=max_side, max_pixels=max_pixels)
        self._threads = ThreadPoolExecutor(max_workers=2, thread_name_prefix="inputs")
        self._ages = threading.Lock()

    async def start(self) -> None:
        """Makes the folder. Raises ``Unavailable`` if that fails."""
        try:
            await asyncio.to_thread(make_folder, self._folder)
        except OSError as error:
            raise Unavailable("The folder of input images cannot be made") from error

    async def store(self, source: str | bytes, kind: Kind) -> StoredInput:
        """Stores a picture durably: http(s) URL, data URI or base64 in a string, or a file's bytes.

        Base64 may be of either alphabet, with or without padding and white space. The file's type is what its bytes
        say; see ``pixels.decode`` for how it becomes plain pixels. Raises ``BadInput``, ``UnfetchableInput``, or
        ``Unavailable`` for a full disk.
        """
        data = await self._read(source)
        if not data:
            raise BadInput("The picture is empty.")
        try:
            pixels = await self._decoder.decode(data, kind)
        except Refused as error:
            raise BadInput(str(error)) from None
        return await self.keep(pixels)

    async def keep(self, pixels: NDArray[np.uint8]) -> StoredInput:
        """Stores pixels of our own making: (height, width, 3), of a mask (height, width). Raises ``Unavailable``."""
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, self._put, pixels)
        except OSError as error:
            raise Unavailable("The server cannot store images") from error

    def read(self, digest: str) -> NDArray[np.uint8]:
        """uint8 (height, width, 3), for masks three equal channels; see ``pipelines.inputs.ReadInput``.

        Raises ``InputGone``.
        """
        try:
            # Decoded in this process: the file is our own writing.
            with Image.open(self._path(digest), formats=("PNG",)) as image:
                return np.array(image.convert("RGB"))
        except (OSError, ValueError) as error:
            raise InputGone from error

    async def find(self, digest: str) -> StoredInput:
        """An input that is stored already, and counts as used now. Raises ``InputGone``."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._find, digest)

    async def sweep(self, *, before: float, needed: Collection[str]) -> int:
        """Deletes what was last stored or found before this Unix time and is not needed; returns how many."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._sweep, before, needed)

    async def _read(self, source: str | bytes) -> bytes:
        if isinstance(source, bytes):
            data = source
        elif is_url(source):
            data = await self._fetch(source.strip())
        else:
            # Long texts take their time, which the event loop has not.
            unpacked = asyncio.get_running_loop().run_in_executor(self._threads, self._unpack, source.strip())
            data = await unpacked
        if len(data) > self._max_bytes:
            raise self._too_large()
        return data

    async def _fetch(self, url: str) -> bytes:
        try:
            async with self._fetches:
                return await self._guard.get(
                    url, max_bytes=self._max_bytes, timeout_s=self._fetch_timeout_s, accept=_ACCEPT
                )
        except BodyTooLarge:
            raise self._too_large() from None
        except RefusedAddress as error:
            raise UnfetchableInput from error

    def _unpack(self, text: str) -> bytes:
        raw = text.encode(errors="replace")
        if text[:5].lower() == "data:":
            head, comma, body = raw.partition(b",")
            if not comma:
                raise BadInput("The data URI holds no data.")
            # Some clients escape + and = as if they built a query.
            raw = percent_decoded(body)
            if not head.rstrip().lower().endswith(b";base64"):
                return raw
        packed = raw.translate(_ALPHABET, _NOT_DATA)
        if len(packed) * 3 // 4 > self._max_bytes:
            raise self._too_large()
        try:
            return pybase64.b64decode(packed + b"=" * (-len(packed) % 4), validate=True)
        except binascii.Error:
            raise BadInput("The picture is neither a URL nor base64.") from None

    def _put(self, pixels: NDArray[np.uint8]) -> StoredInput:
        data = encode_png(pixels)
        digest = hashlib.sha256(data).hexdigest()
        path = self._path(digest)
        if not self._touch(path):
            write_file(path, data)
        return StoredInput(digest=digest, width=pixels.shape[1], height=pixels.shape[0])

    def _touch(self, path: Path) -> bool:
        """As young as its latest use; False if it is not there."""
        # Never between a sweep's look at the age and its deleting.
        with self._ages:
            try:
                os.utime(path)
            except FileNotFoundError:
                return False
        return True

    def _find(self, digest: str) -> StoredInput:
        try:
            path = self._path(digest)
            if not self._touch(path):
                raise InputGone
            with Image.open(path, formats=("PNG",)) as image:
                return StoredInput(digest=digest, width=image.width, height=image.height)
        except (OSError, ValueError) as error:
            raise InputGone from error

    def _sweep(self, before: float, needed: Collection[str]) -> int:
        deleted = 0
        for path in self._folder.glob("*.png"):
            if _HASH.fullmatch(path.stem) and path.stem not in needed:
                with self._ages:
                    if path.lstat().st_mtime < before:
                        path.unlink()
                        deleted += 1
        return deleted

    def _path(self, digest: str) -> Path:
        if not _HASH.fullmatch(digest):
            raise ValueError(f"no hash of an input: {digest[:100]!r}")
        return self._folder / f"{digest}.png"

    def _too_large(self) -> BadInput:
        return BadInput(f"The picture is larger than {self._max_bytes / 2**20:g} MiB.")
