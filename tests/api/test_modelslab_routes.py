"""ModelsLab's route table: every path that real clients call leads somewhere, and to the same place."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest
from starlette.routing import compile_path

from pipelines.errors import BrokenCheckpoint
from server.api.modelslab.endpoints import ENDPOINTS
from server.api.modelslab.segments import SEGMENTS
from server.engine.executors.stub import StubExecutor

Serve = Callable[..., AbstractAsyncContextManager[Any]]

pytestmark = pytest.mark.anyio

PROMPT = {"prompt": "a red bridge", "width": 64, "height": 64, "seed": 1}
STRINGS = {"prompt": "a red bridge", "width": "64", "height": "64", "seed": "1", "num_inference_steps": "31"}

TEXT2IMG = """/v6/images/text2img /v6/images/text2img/text2img /v4/dreambooth /v3/dreambooth /v4/dreambooth/text2img
    /v7/images/text-to-image /v1/enterprise/text2img /v1/enterprise/images/text2img /v1/enterprise/txt2img/text2img
    /v1/enterprise/images/text2img/text2img /v6/realtime/text2img /v3/text2img /v1/enterprise/realtime/text2img
    /v1/enterprise/flux/text2img""".split()
IMG2IMG = """/v6/images/img2img /v6/images/text2img/img2img /v4/dreambooth/img2img /v7/images/image-to-image
    /v6/realtime/img2img /v3/img2img /v1/enterprise/img2img /v1/enterprise/flux/img2img""".split()
INPAINT = """/v6/images/inpaint /v6/images/text2img/inpaint /v4/dreambooth/inpaint /v7/images/inpaint
    /v6/realtime/inpaint /v3/inpaint /v1/enterprise/inpaint /v6/image_editing/inpaint /v6/image_editing/inpainting
    /v1/enterprise/image_editing/inpaint /v6/image_editing/object_removal /v6/image_editing/object_remover""".split()
FETCH = """/v6/images/fetch /v6/realtime/fetch /v6/image_editing/fetch /v7/images/fetch /v3/fetch /v4/dreambooth/fetch
    /v3/dreambooth/fetch /v1/enterprise/fetch /v1/enterprise/images/fetch /v1/enterprise/realtime/fetch
    /v1/enterprise/image_editing/fetch /v1/enterprise/flux/fetch /v6/images/text2img/fetch""".split()
RELOAD = ["/v6/images/model_reload", "/v4/dreambooth/model_reload", "/v3/dreambooth/model_reload"]
UNAVAILABLE = {
    "removebg_mask": ["/v6/image_editing/removebg_mask", "/v6/image_editing/removebg"],
    "mask_creator": ["/v6/image_editing/mask_creator", "/v6/image_editing/create_mask"],
    "qwen_edit": ["/v6/image_editing/qwen_edit"],
    "controlnet": ["/v6/images/controlnet", "/v5/controlnet", "/v1/enterprise/controlnet", "/v4/dreambooth/controlnet"],
}
#: 2 x 2 pixels, black.
PIXELS = "iVBORw0KGgoAAAANSUhEUgAAAAIAAAACCAIAAAD91JpzAAAAC0lEQVR4nGNgQAYAAA4AAamRc7EAAAAASUVORK5CYII="


async def call(api: Any, path: str, fields: dict[str, Any] | None = None, method: str = "POST") -> Any:
    return await api.client.request(method, f"/api{path}", json={"key": api.key, **(fields or {})})


@pytest.mark.parametrize("fields", [PROMPT, STRINGS])
async def test_every_path_of_text2img_draws_the_same(api: Any, fields: dict[str, Any]) -> None:
    bodies = [(await call(api, path, fields)).json() for path in TEXT2IMG]
    assert [body["status"] for body in bodies] == ["success"] * len(bodies)
    for body in bodies:
        body["meta"].pop("file_prefix")
        body["meta"].pop("model_note", None)
    flux = bodies.pop()
    assert flux["meta"]["model_id"] == "flux"
    assert [body["meta"] for body in bodies] == [bodies[0]["meta"]] * len(bodies)


@pytest.mark.parametrize("strength", [0.5, "0.5"])
@pytest.mark.parametrize("path", IMG2IMG)
async def test_every_path_of_img2img_starts_from_the_image(api: Any, path: str, strength: object) -> None:
    body = (await call(api, path, {"prompt": "x", "init_image": [PIXELS], "strength": strength})).json()
    assert (body["status"], body["meta"]["strength"], body["meta"]["init_image"]) == ("success", 0.5, "base64")


#: A value for every field that some endpoint needs, of the type that it is documented with.
ANYTHING: dict[str, Any] = {
    **PROMPT,
    "init_image": PIXELS,
    "image": PIXELS,
    "mask_image": PIXELS,
    "base64_string": PIXELS,
    "base64_image": PIXELS,
    "strength": 0.5,
    "scale": 2,
    "samples": 1,
    "num_inference_steps": 3,
    "guidance_scale": 7.5,
    "safety_checker": False,
    "crop": True,
    "threshold": 0.5,
    "page": 1,
    "per_page": 5,
    "request_id": 1,
}


@pytest.mark.parametrize("endpoint", ENDPOINTS, ids=lambda endpoint: endpoint.name)
async def test_every_endpoint_and_alias_takes_strings_as_it_takes_native_types(api: Any, endpoint: Any) -> None:
    strings = {name: str(value) for name, value in ANYTHING.items()}
    for path in endpoint.paths:
        filled = path.replace(":path}", "}").format(segment="flux", request_id=1, model_id="sd15")
        for method in endpoint.methods:
            native, text = [await call(api, filled, fields, method) for fields in (ANYTHING, strings)]
            assert native.status_code == text.status_code < 500, (method, filled, native.text, text.text)
            shapes = [sorted(one) if isinstance(one, dict) else type(one) for one in (native.json(), text.json())]
            assert shapes[0] == shapes[1], (method, filled)


@pytest.mark.parametrize("path", INPAINT)
async def test_every_path_of_inpaint_repaints(api: Any, path: str) -> None:
    body = (await call(api, path, {"prompt": "x", "init_image": PIXELS, "mask_image": PIXELS})).json()
    assert body["status"] == "success"
    assert api.executor.requests[-1].mask is not None


async def test_editing_documents_other_defaults(api: Any) -> None:
    fields = {"image": PIXELS, "mask_image": PIXELS, "guidance_scale": 9}
    asked = (await call(api, "/v6/image_editing/inpaint", fields | {"prompt": "x"})).json()["meta"]
    silent = (await call(api, "/v6/image_editing/object_removal", fields | {"guidance_scale": None})).json()["meta"]
    assert (asked["steps"], asked["guidance_scale"], asked["strength"]) == (30, 5, 0.7)
    assert (silent["prompt"], silent["guidance_scale"]) == ("", 5)


@pytest.mark.parametrize("method", ["POST", "GET"])
async def test_every_fetch_finds_the_job(api: Any, method: str) -> None:
    job = (await call(api, "/v6/images/text2img", PROMPT)).json()["id"]
    answers = [await call(api, f"{path}/{job}", method=method) for path in FETCH]
    assert [one.json().get("id") for one in answers] == [job] * len(FETCH)
    if method == "POST":
        answers = [await call(api, path, {"request_id": str(job)}) for path in FETCH]
        assert [one.json().get("id") for one in answers] == [job] * len(FETCH)


@pytest.mark.parametrize("family", ["images", "realtime"])
async def test_the_link_to_fetch_is_of_the_family(serve: Serve, family: str) -> None:
    async with serve(StubExecutor(held=True), sync_wait_s=0) as api:
        body = (await call(api, f"/v6/{family}/text2img", PROMPT)).json()
        assert body["fetch_result"] == f"http://images.test/api/v6/{family}/fetch/{body['id']}"
        again = await api.client.post(body["fetch_result"], json={"key": api.key})
        assert again.json()["status"] == "processing"


@pytest.mark.parametrize(("name", "path"), [(name, path) for name, paths in UNAVAILABLE.items() for path in paths])
async def test_what_is_not_there_says_so_after_the_key(api: Any, name: str, path: str) -> None:
    answer = await call(api, path)
    text = f"{name} is not available on this server"
    assert answer.status_code == 400
    assert answer.json() == {"status": "error", "message": text, "messege": text, "output": []}
    assert (await api.client.post(f"/api{path}", json={})).status_code == 401


async def test_a_segment_may_name_a_model(api: Any) -> None:
    answer = await call(api, "/v1/enterprise/qwen/text2img", PROMPT)
    assert (answer.status_code, answer.json()["message"]) == (400, "Model not found: qwen")
    own = await call(api, "/v1/enterprise/qwen/text2img", PROMPT | {"model_id": "sd15"})
    assert own.json()["meta"]["model_id"] == "sd15"


async def test_an_unknown_segment_is_not_found(api: Any) -> None:
    answer = await call(api, "/v1/enterprise/nothing/text2img", PROMPT)
    assert (answer.status_code, answer.json()["status"]) == (404, "error")


async def test_a_trailing_slash_is_tolerated(api: Any) -> None:
    body = (await call(api, "/v6/images/text2img/", PROMPT)).json()
    assert (await call(api, f"/v6/images/fetch/{body['id']}/")).json()["output"] == body["output"]


def test_no_path_has_two_owners() -> None:
    seen: dict[tuple[str, str], str] = {}
    for endpoint in ENDPOINTS:
        for path in endpoint.paths:
            for method in endpoint.methods:
                assert (method, path) not in seen, (path, seen[method, path], endpoint.name)
                seen[method, path] = endpoint.name


def test_no_path_is_hidden_by_an_earlier_placeholder() -> None:
    paths = [path for endpoint in ENDPOINTS for path in endpoint.paths]
    for index, path in enumerate(paths):
        pattern = compile_path(path)[0]
        hidden = [later for later in paths[index + 1 :] if "{segment}" not in later and pattern.match(later)]
        assert [later for later in hidden if later.split("/")[3] in SEGMENTS] == []


# Endpoints that others do not have


async def test_outpaint_draws_around_the_picture(api: Any) -> None:
    fields = {"image": PIXELS, "prompt": "a meadow", "width": "128", "height": 96, "overlap_width": "64"}
    body = (await call(api, "/v6/image_editing/outpaint", fields)).json()
    request = api.executor.requests[-1]
    assert (body["status"], request.width, request.height, request.strength) == ("success", 128, 96, 1.0)
    assert (body["meta"]["steps"], body["meta"]["guidance_scale"]) == (10, 8)
    image, mask = (api.parts.inputs.read(digest) for digest in (request.image, request.mask))
    assert image.shape == mask.shape == (96, 128, 3)
    assert (image == 0).all()
    assert (mask[47:49, 63:65] == 0).all() and (mask == 255).sum() == mask.size - 12


async def test_outpaint_has_a_size_of_its_own_and_limits(api: Any) -> None:
    asked = {"image": PIXELS, "prompt": "x", "num_inference_steps": 99, "width": 9999, "height": 256}
    silent = (await call(api, "/v6/image_editing/outpainting", {"image": PIXELS})).json()["meta"]
    large = (await call(api, "/v1/enterprise/image_editing/outpaint", asked)).json()
    assert (silent["width"], silent["height"]) == (1024, 720)
    assert (large["meta"]["width"], large["meta"]["steps"]) == (1024, 30)
    assert large["warning"] == "width 1440 was lowered to 1024. steps 99 was lowered to 30."


async def test_model_reload_answers_success_when_the_model_is_there(api: Any) -> None:
    answers = [await call(api, path, {"model_id": "SD-1.5"}) for path in RELOAD]
    assert {one.status_code for one in answers} == {200}
    assert answers[0].json() == {
        "status": "success", "message": "model loaded", "messege": "model loaded", "model_id": "sd15",
    }  # fmt: skip


async def test_model_reload_answers_processing_while_the_model_is_loaded(serve: Serve) -> None:
    async with serve(StubExecutor(held=True), sync_wait_s=0.01) as api:
        answers = [(await call(api, RELOAD[0], {"model_id": "sd15"})).json() for _ in range(2)]
        assert [(one["status"], one["message"]) for one in answers] == [("processing", "model load started")] * 2
        api.executor.release()
        await asyncio.sleep(0.05)
        assert (await call(api, RELOAD[0], {"model_id": "sd15"})).json()["status"] == "success"


async def test_model_reload_says_what_is_wrong(api: Any) -> None:
    api.executor.fail_next(BrokenCheckpoint("model sd15: unet is damaged"))
    broken = await call(api, RELOAD[0], {"model_id": "sd15"})
    unknown = await call(api, RELOAD[0], {"model_id": "nothing"})
    silent = await call(api, RELOAD[0])
    assert (broken.status_code, broken.json()["message"]) == (500, "model sd15: unet is damaged")
    assert (unknown.status_code, unknown.json()["message"]) == (400, "Model not found: nothing")
    assert (silent.status_code, silent.json()["message"]) == (400, "model_id is required")


async def test_pictures_may_be_uploaded_as_files(api: Any) -> None:
    png = base64.b64decode(PIXELS)
    fields = {"key": api.key, "prompt": "x", "width": "64", "height": "64"}
    files = {"init_image": ("a.png", png, "image/png"), "mask_image": ("b", png, "application/octet-stream")}
    answer = await api.client.post("/api/v6/images/inpaint", data=fields, files=files)
    assert (answer.status_code, answer.json()["meta"]["init_image"]) == (200, "base64")
    assert api.parts.inputs.read(api.executor.requests[-1].image).shape == (2, 2, 3)
