"""Names of stored images: unguessable, and nothing else is ever a file name."""

from __future__ import annotations

import re
import secrets

#: What may be stored, by ending.
MEDIA_TYPES = {"png": "image/png", "jpg": "image/jpeg", "webp": "image/webp"}
#: In front of the names of pictures that are kept for a day only.
TEMPORARY = "temp/"

_PLAIN = r"[0-9]{1,3}-[0-9a-f]{32}"
_NAME = re.compile(rf"({TEMPORARY})?{_PLAIN}\.({'|'.join(MEDIA_TYPES)})")
#: A stored picture as text; no file of its own.
_TEXT_NAME = re.compile(rf"({TEMPORARY})?{_PLAIN}\.base64")


def new_name(index: int, extension: str = "png", *, temporary: bool = False) -> str:
    """``0-<32 hexadecimal digits>.png``: the image's place in its job, 0 .. 999, and 128 random bits.

    Temporary names have ``temp/`` in front.
    """
    name = f"{TEMPORARY if temporary else ''}{index}-{secrets.token_hex(16)}.{extension}"
    if not is_name(name):
        raise ValueError(f"no name for image {index} of kind {extension!r}")
    return name


def is_name(name: str) -> bool:
    """Made by ``new_name``, as far as one can see."""
    return _NAME.fullmatch(name) is not None


def extension(name: str) -> str:
    """Key of ``MEDIA_TYPES``."""
    return name.rpartition(".")[2]


def media_type(name: str) -> str:
    """From the ending, never from the content. Raises ``KeyError`` for what ``is_name`` refuses."""
    return MEDIA_TYPES[extension(name)]


def url_path(name: str) -> str:
    """Where the file is served: ``/generations/0-….png``, temporary ones ``/temp/0-….png``."""
    return f"/{name}" if name.startswith(TEMPORARY) else f"/generations/{name}"


def text_name(name: str) -> str:
    """The picture's name as base64 text, whatever its kind."""
    return f"{name.rpartition('.')[0]}.base64"


def sources(name: str) -> list[str]:
    """The pictures that a text's name can be of: one of each kind; none for a name that ``text_name`` does not make."""
    if _TEXT_NAME.fullmatch(name) is None:
        return []
    return [f"{name.removesuffix('base64')}{kind}" for kind in MEDIA_TYPES]
