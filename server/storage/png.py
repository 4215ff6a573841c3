"""A PNG writer for pictures: 32 times faster than Pillow's default, files 5 % larger (performance.md, 7).

PNG, third edition: https://www.w3.org/TR/png-3/
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping

import numpy as np
from isal import isal_zlib
from numpy.typing import NDArray

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
#: Row filter "up": each byte minus the one above. One numpy subtraction, and nearly the best filter for pictures.
_UP = 2
_EIGHT_BITS = 8
_GREY, _RGB = 0, 2


def encode_png(pixels: NDArray[np.uint8], text: Mapping[str, str] | None = None) -> bytes:
    """A PNG file of pixels, uint8 (height, width, 3) RGB or (height, width) grey, both sides at least 1.

    ``text`` becomes tEXt chunks, or iTXt where Latin-1 does not suffice; keywords are 1 .. 79 Latin-1 characters.
    Raises ``ValueError`` for another shape, type or keyword. Releases the GIL while compressing.
    """
    if pixels.dtype != np.uint8 or pixels.shape[2:] not in ((), (3,)) or pixels.ndim < 2 or pixels.size == 0:
        raise ValueError(f"pixels are {pixels.dtype} {pixels.shape}, not uint8 (height, width, 3) or (height, width)")
    height, width = pixels.shape[:2]
    header = struct.pack(">IIBBBBB", width, height, _EIGHT_BITS, _GREY if pixels.ndim == 2 else _RGB, 0, 0, 0)
    chunks = [_chunk(b"IHDR", header)]
    chunks += [_text_chunk(keyword, value) for keyword, value in (text or {}).items()]
    chunks += [_chunk(b"IDAT", isal_zlib.compress(_filtered(pixels), 1)), _chunk(b"IEND", b"")]
    return _SIGNATURE + b"".join(chunks)


def _filtered(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    rows = pixels.reshape(len(pixels), -1)
    filtered = np.empty((len(rows), 1 + rows.shape[1]), np.uint8)
    filtered[:, 0] = _UP
    filtered[0, 1:] = rows[0]
    np.subtract(rows[1:], rows[:-1], out=filtered[1:, 1:])
    return filtered


def _text_chunk(keyword: str, value: str) -> bytes:
    name = keyword.encode("latin-1", "replace")
    if not 1 <= len(name) <= 79 or "\0" in keyword or keyword != keyword.strip():
        raise ValueError(f"no PNG keyword: {keyword!r}")
    # The chunks end texts with NUL, so a text cannot hold one.
    value = value.replace("\0", "\ufffd")
    try:
        return _chunk(b"tEXt", name + b"\0" + value.encode("latin-1"))
    except UnicodeEncodeError:
        # Not compressed, no language, no translated keyword.
        return _chunk(b"iTXt", name + b"\0\0\0\0\0" + value.encode("utf-8", "replace"))


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(data, zlib.crc32(kind)))
