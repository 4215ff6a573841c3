"""Where a picture stands on its canvas."""

from __future__ import annotations

import numpy as np
import pytest

from server.api.modelslab.outpainting import place


def picture(width: int, height: int) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (height, width, 3), np.uint8)


def test_the_picture_stands_in_the_middle_unchanged() -> None:
    pixels = picture(10, 6)
    canvas, mask = place(pixels, (20, 12), 2)
    assert canvas.shape == (12, 20, 3)
    assert np.array_equal(canvas[3:9, 5:15], pixels)
    expected = np.full((12, 20), 255, np.uint8)
    expected[5:7, 7:13] = 0
    assert np.array_equal(mask, expected)


def test_an_edge_of_the_canvas_has_no_seam() -> None:
    _, mask = place(picture(10, 12), (20, 12), 2)
    assert (mask[:, 7:13] == 0).all() and (mask[:, :7] == 255).all() and (mask[:, 13:] == 255).all()


def test_a_picture_larger_than_the_canvas_is_made_smaller_as_a_whole() -> None:
    canvas, mask = place(picture(40, 20), (20, 20), 0)
    assert canvas.shape == (20, 20, 3)
    assert (mask[5:15] == 0).all() and (mask[:5] == 255).all() and (mask[15:] == 255).all()


@pytest.mark.parametrize("size", [(1, 1), (2, 3)])
def test_of_a_tiny_picture_a_core_is_kept(size: tuple[int, int]) -> None:
    assert (place(picture(*size), (32, 32), 42)[1] == 0).any()
