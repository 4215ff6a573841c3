"""Images in one local folder."""

from __future__ import annotations

import asyncio
import os
import secrets
import stat
from pathlib import Path

from server.errors import Unavailable
from server.storage.base import StoredImage
from server.storage.names import is_name, media_type

#: What a crash between writing and renaming leaves behind; ``start`` removes it.
_UNFINISHED = ".tmp"


class LocalImageStore:
    """Every file operation runs in a thread: a slow disk never stops the event loop."""

    def __init__(self, root: Path) -> None:
        self._root = root

    async def start(self) -> None:
        """Makes the folder. Raises ``Unavailable`` if that fails."""
        try:
            await asyncio.to_thread(self._make_root)
        except OSError as error:
            raise Unavailable("The image folder cannot be made") from error

    async def put(self, name: str, data: bytes) -> None:
        """Stores durably and at once. Raises ``ValueError`` for a malformed name, ``Unavailable`` for a full disk."""
        if not is_name(name):
            raise ValueError(f"no image name: {name!r}")
        try:
            await asyncio.to_thread(self._write, name, data)
        except OSError as error:
            raise Unavailable("The server cannot store images") from error

    async def get(self, name: str) -> StoredImage | None:
        """None for an unknown or malformed name, and for anything but a plain file."""
        if not is_name(name):
            return None
        return await asyncio.to_thread(self._find, name)

    async def delete(self, name: str) -> None:
        """Removes it; nothing happens if it is not there."""
        if is_name(name):
            await asyncio.to_thread((self._root / name).unlink, missing_ok=True)

    def _make_root(self) -> None:
        self._root.mkdir(parents=True, exist_ok=True)
        for unfinished in self._root.glob(f".*{_UNFINISHED}"):
            unfinished.unlink(missing_ok=True)

    def _write(self, name: str, data: bytes) -> None:
        # Random, because a re-run may store the same name at the same time.
        unfinished = self._root / f".{name}.{secrets.token_hex(8)}{_UNFINISHED}"
        try:
            with unfinished.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            # Replaces a symlink that someone planted under the name instead of following it.
            unfinished.replace(self._root / name)
        except BaseException:
            unfinished.unlink(missing_ok=True)
            raise
        self._sync_root()

    def _sync_root(self) -> None:
        # A rename is durable only once its directory is.
        folder = os.open(self._root, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def _find(self, name: str) -> StoredImage | None:
        path = self._root / name
        try:
            status = path.lstat()
        except FileNotFoundError:
            return None
        if not stat.S_ISREG(status.st_mode):
            return None
        return StoredImage(path=path, size=status.st_size, media_type=media_type(name))
