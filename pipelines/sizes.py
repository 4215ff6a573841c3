"""Sizes of pictures inside a model's limits."""

from __future__ import annotations

from math import sqrt

from pipelines.model import Limits


def fit(width: int, height: int, limits: Limits) -> tuple[int, int]:
    """The nearest size that the limits allow: multiples by rounding down, too many pixels by scaling both sides.

    >>> fit(1000, 1001, Limits(multiple=16))
    (992, 992)
    """
    low = -(-limits.min_side // limits.multiple) * limits.multiple
    high = max(limits.max_side // limits.multiple * limits.multiple, low)

    def side(length: float) -> int:
        # The upper bound comes first: int() of a side like 1e18 is fine, its multiples need no further care.
        return max(min(int(length), high) // limits.multiple * limits.multiple, low)

    width, height = side(width), side(height)
    if width * height > limits.max_pixels:
        scale = sqrt(limits.max_pixels / (width * height))
        width, height = side(width * scale), side(height * scale)
    # A side that could not shrink below the minimum leaves its share to the other one.
    if width * height > limits.max_pixels:
        if width >= height:
            width = side(limits.max_pixels / height)
        else:
            height = side(limits.max_pixels / width)
    return width, height


def scale_into(width: int, height: int, limits: Limits) -> tuple[int, int]:
    """An input's size, scaled as a whole until it fits, then rounded by ``fit``; one that fits is only rounded.

    >>> scale_into(4000, 1000, Limits())
    (1024, 256)
    """
    scale = min(1.0, limits.max_side / max(width, height), sqrt(limits.max_pixels / (width * height)))
    # A side below the minimum is worth more pixels than asked for: nothing smaller can be drawn.
    scale = max(scale, limits.min_side / min(width, height))
    return fit(round(width * scale), round(height * scale), limits)
