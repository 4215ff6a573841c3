"""Pictures as clients send them."""

from __future__ import annotations

import base64
import io

from PIL import Image


def red_png(width: int, height: int) -> str:
    """Base64 of a PNG that is red all over."""
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), "red").save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()
