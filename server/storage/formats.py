"""The kinds of files that pictures are stored as, each with what was asked for written inside."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from server.storage.png import encode_png

#: PNG keyword of what AUTOMATIC1111 and the tools around it read; in EXIF it is the comment.
PARAMETERS = "parameters"
#: PNG keyword of our own record; in EXIF it is the maker's note.
RECORD = "latentd"

# Exif 3.0, 4.6.3: the sub-directory, and in it UserComment, which begins with the name of its character set.
_EXIF, _USER_COMMENT, _MAKER_NOTE = 0x8769, 0x9286, 0x927C
_UNICODE = b"UNICODE\0"
#: A JPEG segment holds no more.
_LONGEST_EXIF = 65_000


@dataclass(frozen=True, kw_only=True)
class Encoding:
    """How a picture becomes a file."""

    #: Key of ``ENCODERS``.
    extension: str = "png"
    #: JPEG and WebP: 1 .. 100.
    quality: int = 92
    #: Texts by PNG keyword, ``PARAMETERS`` and ``RECORD``.
    text: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))


def encode(pixels: NDArray[np.uint8], encoding: Encoding) -> bytes:
    """A file of pixels, uint8 (height, width, 3) RGB. Raises ``ValueError`` for pixels that the format cannot hold."""
    return ENCODERS[encoding.extension](pixels, encoding)


def _encode_png(pixels: NDArray[np.uint8], encoding: Encoding) -> bytes:
    return encode_png(pixels, encoding.text)


def _encode_jpeg(pixels: NDArray[np.uint8], encoding: Encoding) -> bytes:
    return _encode_with_pillow(pixels, "JPEG", encoding)


def _encode_webp(pixels: NDArray[np.uint8], encoding: Encoding) -> bytes:
    return _encode_with_pillow(pixels, "WEBP", encoding)


def _encode_with_pillow(pixels: NDArray[np.uint8], kind: str, encoding: Encoding) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, quality=encoding.quality, exif=_exif(encoding.text))
    return file.getvalue()


def _exif(text: Mapping[str, str]) -> bytes:
    """EXIF with the texts; without any where they would not fit."""
    if not text:
        return b""
    exif = Image.Exif()
    exif[_EXIF] = {
        _USER_COMMENT: _UNICODE + text.get(PARAMETERS, "").encode("utf-16-be", "replace"),
        _MAKER_NOTE: text.get(RECORD, "").encode("utf-8", "replace"),
    }
    packed = exif.tobytes()
    return packed if len(packed) <= _LONGEST_EXIF else b""


def read_texts(image: Image.Image) -> dict[str, str]:
    """The texts of an opened picture, by PNG keyword, of whatever kind it is; what cannot be read is left out."""
    if image.format == "PNG":
        image.load()
        found = {key: value for key, value in image.info.items() if isinstance(value, str)}
        return {key: found[key] for key in (PARAMETERS, RECORD) if key in found}
    inner = image.getexif().get_ifd(_EXIF)
    comment, note = inner.get(_USER_COMMENT), inner.get(_MAKER_NOTE)
    texts = {}
    if isinstance(comment, bytes) and comment.startswith(_UNICODE):
        texts[PARAMETERS] = comment.removeprefix(_UNICODE).decode("utf-16-be", "replace")
    if isinstance(note, bytes):
        texts[RECORD] = note.decode("utf-8", "replace")
    return texts


#: File endings (``names.MEDIA_TYPES``) and what writes such a file.
ENCODERS: dict[str, Callable[[NDArray[np.uint8], Encoding], bytes]] = {
    "png": _encode_png,
    "jpg": _encode_jpeg,
    "webp": _encode_webp,
}
