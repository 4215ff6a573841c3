"""Files of pictures: what Pillow reads back of them."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from server.storage.formats import ENCODERS, PARAMETERS, RECORD, Encoding, encode, read_texts
from server.storage.names import MEDIA_TYPES

#: Smooth, so that lossy formats come close.
PIXELS = np.linspace(0, 255, 48 * 32 * 3).reshape(48, 32, 3).astype(np.uint8)
TEXTS = {PARAMETERS: "eine Brücke, 橋\nSteps: 3, Seed: 7", RECORD: '{"index":0}'}


def open_(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data))


def test_every_kind_of_file_has_its_writer() -> None:
    assert ENCODERS.keys() == MEDIA_TYPES.keys()


@pytest.mark.parametrize("extension", MEDIA_TYPES)
@pytest.mark.parametrize("texts", [{}, TEXTS])
def test_a_file_is_of_its_kind_and_holds_the_picture_and_the_texts(extension: str, texts: dict[str, str]) -> None:
    image = open_(encode(PIXELS, Encoding(extension=extension, text=texts)))
    assert Image.MIME[image.format or ""] == MEDIA_TYPES[extension]
    assert np.abs(np.asarray(image.convert("RGB")).astype(int) - PIXELS).max() <= (0 if extension == "png" else 40)
    assert read_texts(image) == texts


@pytest.mark.parametrize("extension", ["jpg", "webp"])
def test_quality_costs_bytes(extension: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    sizes = [len(encode(noise, Encoding(extension=extension, quality=quality))) for quality in (10, 60, 95)]
    assert sizes == sorted(sizes)


def test_texts_too_long_for_a_jpeg_are_left_out() -> None:
    image = open_(encode(PIXELS, Encoding(extension="jpg", text={PARAMETERS: "橋" * 40_000, RECORD: "{}"})))
    assert read_texts(image) == {}


def test_what_others_wrote_is_no_reason_to_fail() -> None:
    exif = Image.Exif()
    exif[0x8769] = {0x9286: b"ASCII\0\0\0a bridge", 0x927C: "a text"}
    file = io.BytesIO()
    Image.fromarray(PIXELS).save(file, "JPEG", exif=exif)
    assert read_texts(open_(file.getvalue())).get(PARAMETERS) is None
