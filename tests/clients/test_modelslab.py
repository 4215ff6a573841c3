"""Public client libraries of the ModelsLab API, unmodified apart from the address, against a real server."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.served import Server

pytestmark = pytest.mark.clients

SIDE = 64


def picture(level: int) -> str:
    buffer = io.BytesIO()
    Image.fromarray(np.full((SIDE, SIDE, 3), level, dtype=np.uint8)).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


@pytest.fixture
def server(serve: Callable[..., Server]) -> Server:
    return serve()


@pytest.fixture
def pictures() -> dict[str, str]:
    return {"PICTURE": picture(90), "MASK": picture(255)}


def size(server: Server, answer: dict[str, Any]) -> tuple[int, int]:
    """Of the one picture that an answer leads to."""
    assert answer["status"] == "success", answer
    (url,) = answer["output"]
    status, body = server.get(url)
    assert status == 200
    return Image.open(io.BytesIO(body)).size


def test_the_official_sdk_draws_fetches_and_fails(
    server: Server, drive: Callable[..., Any], pictures: dict[str, str]
) -> None:
    answers = drive("modelslab_py_driver.py", server, **pictures)
    calls = answers["sync"]
    for name in ("text2img", "img2img", "inpaint", "fetched"):
        assert size(server, calls[name]) == (SIDE, SIDE)
    assert size(server, calls["realtime"]) == (SIDE, SIDE)
    assert size(server, calls["super_resolution"]) == (2 * SIDE, 2 * SIDE)
    assert (calls["later"]["status"], calls["later"]["track_id"]) == ("processing", "t-1")
    assert calls["fetched"]["id"] == calls["later"]["id"]
    assert "no-such-model" in calls["unknown_model"] and "status code 400" in calls["unknown_model"]
    assert calls["enterprise"]["status"] == "ok"
    assert size(server, answers["async"]["text2img"]) == (SIDE, SIDE)
    assert answers["async"]["later"]["status"] == "processing"
    assert size(server, answers["async"]["fetched"]) == (SIDE, SIDE)


def test_the_older_sdk_sends_strings_and_nulls(
    server: Server, drive: Callable[..., Any], pictures: dict[str, str]
) -> None:
    answers = drive("modelslab_driver.py", server, **pictures)
    for name in ("img2img", "inpaint"):
        assert size(server, answers[name]) == (SIDE, SIDE)
    assert answers["text2img"]["status"] == answers["fetched"]["status"] == "success"
    assert answers["reload"]["status"] in ("success", "processing")
    assert "sd15" in [model["model_id"] for model in answers["models"]]
    assert answers["cropped"]["status"] == answers["deleted"]["status"] == "success"
    assert answers["update_s3"]["status"] == "error" and "not available" in answers["update_s3"]["message"]
    # This method takes the picture's address, which is base64 here; its answer is a URL as a string.
    assert answers["super_resolution"]["status"] == "success"


def test_a_client_of_2023_downloads_its_pictures(serve: Callable[..., Server], drive: Callable[..., Any]) -> None:
    # It cannot poll (a name in it means two things), so a busy machine must not make it.
    server = serve(LATENTD_SYNC_WAIT_S="300")
    png = b"\x89PNG\r\n\x1a\n".hex()
    assert drive("stable_diffusion_api_driver.py", server) == {"realtime": png, "community": png}
