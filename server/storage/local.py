"""Images in one local folder, temporary ones in a folder of it."""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from server.errors import Unavailable
from server.storage.base import StoredImage
from server.storage.disk import make_folder, write_file
from server.storage.names import TEMPORARY, is_name, media_type


class LocalImageStore:
    """Every file operation runs in a thread: a slow disk never stops the event loop."""

    def __init__(self, root: Path) -> None:
        self._root = root

    async def start(self) -> None:
        """Makes the folders. Raises ``Unavailable`` if that fails."""
        try:
            await asyncio.to_thread(make_folder, self._root)
            await asyncio.to_thread(make_folder, self._root / TEMPORARY)
        except OSError as error:
            raise Unavailable("The image folder cannot be made") from error

    async def put(self, name: str, data: bytes) -> None:
        """Stores durably and at once. Raises ``ValueError`` for a malformed name, ``Unavailable`` for a full disk."""
        if not is_name(name):
            raise ValueError(f"no image name: {name!r}")
        try:
            await asyncio.to_thread(write_file, self._root / name, data)
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

    async def used_bytes(self) -> int:
        """The sizes of all files together."""
        return await asyncio.to_thread(lambda: sum(status.st_size for _, status in self._files("", TEMPORARY)))

    async def temporary(self, *, before: float) -> list[str]:
        """The temporary names that were stored before this Unix time."""
        return await asyncio.to_thread(
            lambda: [name for name, status in self._files(TEMPORARY) if status.st_mtime < before]
        )

    def _files(self, *prefixes: str) -> Iterator[tuple[str, os.stat_result]]:
        for prefix in prefixes:
            with os.scandir(self._root / prefix) as entries:
                for entry in entries:
                    name = f"{prefix}{entry.name}"
                    try:
                        if is_name(name) and entry.is_file(follow_symlinks=False):
                            yield name, entry.stat(follow_symlinks=False)
                    except FileNotFoundError:
                        # Deleted meanwhile.
                        continue

    def _find(self, name: str) -> StoredImage | None:
        path = self._root / name
        try:
            status = path.lstat()
        except FileNotFoundError:
            return None
        if not stat.S_ISREG(status.st_mode):
            return None
        return StoredImage(path=path, size=status.st_size, media_type=media_type(name), modified=status.st_mtime)
