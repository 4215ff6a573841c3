"""Requests as the job store keeps them."""

from __future__ import annotations

from typing import Any

from pipelines.request import ImageRequest
from pipelines.vision import KIND, VisionRequest


def read_request(values: dict[str, Any]) -> ImageRequest | VisionRequest:
    """The inverse of ``Request.to_json``, whatever was asked for; what bears no mark is a picture's."""
    return VisionRequest.from_json(values) if values.get("kind") == KIND else ImageRequest.from_json(values)
