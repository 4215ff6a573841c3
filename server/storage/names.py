"""Names of stored images: unguessable, and nothing else is ever a file name."""

from __future__ import annotations

import re
import secrets

#: What may be stored, by ending.
MEDIA_TYPES = {"png": "image/png", "jpg": "image/jpeg", "webp": "image/webp"}

_NAME = re.compile(rf"[0-9]{{1,3}}-[0-9a-f]{{32}}\.({'|'.join(MEDIA_TYPES)})")


def new_name(index: int, extension: str = "png") -> str:
    """``0-<32 hexadecimal digits>.png``: the image's place in its job, 0 .. 999, and 128 random bits."""
    name = f"{index}-{secrets.token_hex(16)}.{extension}"
    if not is_name(name):
        raise ValueError(f"no name for image {index} of kind {extension!r}")
    return name


def is_name(name: str) -> bool:
    """Made by ``new_name``, as far as one can see."""
    return _NAME.fullmatch(name) is not None


def media_type(name: str) -> str:
    """From the ending, never from the content. Raises ``KeyError`` for what ``is_name`` refuses."""
    return MEDIA_TYPES[name.rpartition(".")[2]]
