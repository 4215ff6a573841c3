"""``super_resolution``: a picture in, a larger one out, and nothing drawn."""

from __future__ import annotations

import base64
import io
from typing import Any

import httpx2
import pytest
from PIL import Image

from tests.api.conftest import KEY, Api, Serve

pytestmark = pytest.mark.anyio


def png_uri(width: int, height: int) -> str:
    stream = io.BytesIO()
    Image.new("RGB", (width, height), (200, 30, 60)).save(stream, "PNG")
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()


PATH = "/api/v6/image_editing/super_resolution"


async def enlarge(api: Api, **fields: Any) -> httpx2.Response:
    return await api.client.post(PATH, json={"key": KEY, "init_image": png_uri(40, 24), **fields})


@pytest.mark.parametrize(
    ("fields", "model", "factor"),
    [
        ({}, "realesr-general-x4v3", 3),
        ({"model_id": "RealESRGAN_x4plus", "scale": "4"}, "RealESRGAN_x4plus", 4),
        ({"model_id": "realesrgan_X2PLUS", "scale": 2}, "RealESRGAN_x2plus", 2),
        ({"model_id": "ultra_resolution", "scale": 8}, "RealESRGAN_x4plus", 8),
        ({"model_id": "RealESRGAN_x4plus_anime_6B", "scale": 1}, "RealESRGAN_x4plus_anime_6B", 1),
    ],
)
async def test_a_picture_is_made_larger_by_the_named_upscaler(
    api: Api, fields: dict[str, Any], model: str, factor: int
) -> None:
    answer = await enlarge(api, **fields)
    body = answer.json()
    assert (answer.status_code, body["status"], len(body["output"])) == (200, "success", 1)
    assert (body["meta"]["model_id"], body["meta"]["W"], body["meta"]["H"]) == (model, 40 * factor, 24 * factor)
    assert "warning" not in body
    (request,) = api.executor.requests
    assert request.model == f"upscaler:{model}"
    assert (request.width, request.height, request.prompt) == (40 * factor, 24 * factor, "")


async def test_an_upscaler_that_is_not_known_is_refused(api: Api) -> None:
    answer = await enlarge(api, model_id="../../etc/passwd")
    assert (answer.status_code, answer.json()["message"]) == (400, "Model not found: ../../etc/passwd")
    assert api.executor.requests == []


async def test_an_upscaler_is_no_model_that_draws(api: Api) -> None:
    answer = await api.text2img(model_id="upscaler:RealESRGAN_x4plus")
    assert answer.status_code == 400


@pytest.mark.parametrize(("name", "uri"), [("init_image", None), ("scale", "large")])
async def test_what_is_missing_or_wrong_is_named(api: Api, name: str, uri: object) -> None:
    answer = await enlarge(api, **{name: uri})
    assert answer.status_code == 400
    assert name in answer.json()["message"]


async def test_faces_are_not_enhanced_and_the_answer_says_so(api: Api) -> None:
    assert (await enlarge(api, face_enhance=True)).json()["warning"] == "Not applied: face_enhance."
    assert "warning" not in (await enlarge(api, face_enhance="false")).json()


async def test_a_scale_beyond_the_range_is_lowered(api: Api) -> None:
    body = (await enlarge(api, scale=9)).json()
    assert body["warning"] == "scale 9 was lowered to 8: 8 times and 33.6 million pixels are the most."
    assert body["meta"]["W"] == 320


async def test_it_is_fetched_as_what_it_is(serve: Serve) -> None:
    async with serve(sync_wait_s=0.0) as api:
        body = (await enlarge(api)).json()
        assert body["status"] == "processing"
        assert "/v6/image_editing/fetch/" in body["fetch_result"]
        assert (await api.fetch(body["id"], wait=5)).json()["status"] == "success"


@pytest.mark.parametrize(
    "path",
    ["/v3/super_resolution", "/v1/enterprise/super_resolution", "/v1/enterprise/images/super_resolution",
     "/v1/enterprise/super_resolution/make"],
)  # fmt: skip
async def test_older_paths_take_a_url_field_and_answer_one_link(api: Api, path: str) -> None:
    fields = {"key": KEY, "url": png_uri(40, 24), "scale": "2"}
    body = (await api.client.post(f"/api{path}", json=fields)).json()
    assert (body["status"], body["output"]) == ("success", body["proxy_links"][0])
    refused = await api.client.post(f"/api{path}", json={"key": KEY})
    assert (refused.status_code, refused.json()["output"]) == (400, [])


async def test_the_editing_path_of_old_answers_a_list(api: Api) -> None:
    fields = {"key": KEY, "url": png_uri(40, 24)}
    body = (await api.client.post("/api/v1/image_editing/super_resolution", json=fields)).json()
    assert body["output"] == body["proxy_links"]
