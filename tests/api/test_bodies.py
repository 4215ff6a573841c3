"""Bodies that are long, or of very many parts: nobody else waits while they are read."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any
from urllib.parse import urlencode

import numpy as np
import pytest
from PIL import Image

pytestmark = pytest.mark.anyio

Serve = Callable[..., AbstractAsyncContextManager[Any]]
IMG2IMG = "/api/v6/images/img2img"


def noise() -> bytes:
    """A PNG of two megabytes: noise cannot be packed."""
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (800, 840, 3), np.uint8)).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize("way", ["text of a form", "file of a form", "urlencoded", "json"])
async def test_a_picture_may_be_as_long_as_the_body(serve: Serve, way: str) -> None:
    file = noise()
    fields = {"model_id": "sd15", "prompt": "x", "init_image": base64.b64encode(file).decode()}
    # Several parts make httpx send a form of parts.
    ways: dict[str, dict[str, Any]] = {
        "text of a form": {"files": {name: (None, value) for name, value in fields.items()}},
        "file of a form": {
            "data": {"model_id": "sd15", "prompt": "x"},
            "files": {"init_image": ("x.png", file)},
        },
        "urlencoded": {
            "content": urlencode(fields),
            "headers": {"Content-Type": "application/x-www-form-urlencoded"},
        },
        "json": {"json": fields},
    }
    async with serve(max_body_bytes=8_000_000) as api:
        answer = await api.client.post(IMG2IMG, params={"key": api.key}, **ways[way])
    assert (answer.status_code, answer.json()["status"]) == (200, "success"), answer.text[:300]


@pytest.mark.parametrize("path", [IMG2IMG, "/v1/vision", "/v1/jobs"])
async def test_a_million_values_are_not_read(api: Any, path: str) -> None:
    body = b'{"a": [' + b"1," * 60_000 + b"1]}"
    answer = await api.client.post(path, content=body, headers={"key": api.key})
    assert answer.status_code == 400
    assert "the body holds too many values" in answer.text


async def test_a_form_has_a_thousand_fields_at_most(api: Any) -> None:
    headers = {"Content-Type": "application/x-www-form-urlencoded", "key": api.key}
    answer = await api.client.post(IMG2IMG, content=b"a=1&" * 1_000, headers=headers)
    assert answer.status_code == 400
    assert answer.json()["message"] == "Invalid API Request: the form has too many fields."
