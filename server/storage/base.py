"""The contract of an image store: "success" is said only after the picture can be read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True, kw_only=True)
class StoredImage:
    """An object that can be read."""

    path: Path
    size: int
    #: From the name's ending, never from the content.
    media_type: str
    #: Unix seconds of the storing.
    modified: float


class ImageStore(Protocol):
    """Bytes by name. Names are made by ``names.new_name``; anything else is refused."""

    async def start(self) -> None:
        """Makes the folder or checks the bucket."""

    async def put(self, name: str, data: bytes) -> None:
        """Stores durably and at once: nobody sees half of it. Overwriting with a re-run's bytes is allowed."""

    async def get(self, name: str) -> StoredImage | None:
        """None for an unknown or malformed name."""

    async def delete(self, name: str) -> None:
        """Removes it; nothing happens if it is not there."""

    async def used_bytes(self) -> int:
        """The sizes of all files together; looks at each one."""

    async def temporary(self, *, before: float) -> list[str]:
        """The temporary names that were stored before this Unix time."""
