"""The PNG writer against Pillow's reader."""

from __future__ import annotations

import io

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from server.storage.png import encode_png


def noise(height: int, width: int) -> NDArray[np.uint8]:
    return np.random.default_rng(height * width).integers(0, 256, (height, width, 3), dtype=np.uint8)


def decode(data: bytes) -> Image.Image:
    with Image.open(io.BytesIO(data)) as image:
        image.load()
        return image


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (7, 1), (13, 31), (64, 64), (255, 257)])
def test_pixels_come_back_exactly(size: tuple[int, int]) -> None:
    pixels = noise(*size)
    image = decode(encode_png(pixels))
    assert (image.format, image.mode, image.size) == ("PNG", "RGB", (size[1], size[0]))
    assert np.array_equal(np.asarray(image), pixels)


def test_flat_and_strided_pictures_come_back_exactly() -> None:
    flat = np.full((300, 300, 3), 255, np.uint8)
    strided = noise(64, 64)[::2, ::-3]
    assert np.array_equal(np.asarray(decode(encode_png(flat))), flat)
    assert np.array_equal(np.asarray(decode(encode_png(strided))), strided)


def test_grey_comes_back_exactly() -> None:
    grey = noise(13, 31)[:, :, 0]
    image = decode(encode_png(grey))
    assert (image.mode, image.size) == ("L", (31, 13))
    assert np.array_equal(np.asarray(image), grey)


def test_text_is_kept_in_any_script() -> None:
    text = {"prompt": "a café", "Software": "latentd", "note": "猫 🐈", "long": "x" * 100_000}
    with Image.open(io.BytesIO(encode_png(noise(2, 2), text))) as image:
        assert image.info == text


def test_text_that_png_cannot_hold_is_replaced() -> None:
    with Image.open(io.BytesIO(encode_png(noise(2, 2), {"a": "x\0y", "b": "\ud800"}))) as image:
        assert image.info == {"a": "x\ufffdy", "b": "?"}


@pytest.mark.parametrize("keyword", ["", "x" * 80, " a", "a\0b"])
def test_keywords_against_the_standard_are_refused(keyword: str) -> None:
    with pytest.raises(ValueError, match="keyword"):
        encode_png(noise(1, 1), {keyword: "x"})


@pytest.mark.parametrize(
    "pixels",
    [
        np.zeros((2, 2, 4), np.uint8),
        np.zeros((2, 2, 1), np.uint8),
        np.zeros(4, np.uint8),
        np.zeros((2, 2, 3)),
        np.zeros((0, 2, 3), np.uint8),
    ],
)
def test_other_arrays_are_refused(pixels: NDArray[np.uint8]) -> None:
    with pytest.raises(ValueError, match="not uint8"):
        encode_png(pixels)
