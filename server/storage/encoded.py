"""Stored pictures as base64 text: what ``.base64`` links and inline answers hold."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pybase64

from server.storage.base import ImageStore


async def read_encoded(images: ImageStore, name: str) -> bytes | None:
    """RFC 4648 base64 of the file, ASCII, with padding and without line breaks; None for an unknown name."""
    stored = await images.get(name)
    return None if stored is None else await asyncio.to_thread(_encode, stored.path)


def _encode(path: Path) -> bytes | None:
    try:
        return pybase64.b64encode(path.read_bytes())
    except FileNotFoundError:
        # Deleted since it was looked up.
        return None
