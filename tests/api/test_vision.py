"""``POST /v1/vision``: pictures in every form, tasks by name and token, what is refused, and what /docs says."""

from __future__ import annotations

import asyncio
import base64
import io
import json
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import httpx2
import numpy as np
import pytest
from PIL import Image

from pipelines.errors import InvalidRequest
from pipelines.florence2_tasks import TASKS, Takes
from pipelines.vision import VisionRequest, VisionTask
from server.engine.executors.stub import StubExecutor
from server.keys import Scope
from tests.receiver import receiving

pytestmark = pytest.mark.anyio

Serve = Callable[..., AbstractAsyncContextManager[Any]]
RED = (200, 10, 10)


def picture(size: tuple[int, int] = (96, 80), mode: str = "RGB", kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    colour = (*RED, 255) if mode == "RGBA" else RED
    image = Image.new("RGBA" if mode == "RGBA" else "RGB", size, colour)
    if mode == "RGBA":
        image.putalpha(0)
    if mode == "P":
        image = image.convert("P", palette=Image.Palette.ADAPTIVE)
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def text(data: bytes) -> str:
    return base64.b64encode(data).decode()


IMAGE = text(picture())


async def look(api: Any, key: str | None = None, **fields: Any) -> httpx2.Response:
    body = {"image": IMAGE, **fields}
    answer: httpx2.Response = await api.client.post(
        "/v1/vision", json=body, headers={"Authorization": f"Bearer {key or api.key}"}
    )
    return answer


async def asked(api: Any, **fields: Any) -> VisionRequest:
    answer = await look(api, **fields)
    assert answer.status_code == 200, answer.text
    request: VisionRequest = api.executor.questions[-1]
    return request


async def refusal(api: Any, **fields: Any) -> tuple[int, str, str]:
    answer = await look(api, **fields)
    error = answer.json()["error"]
    assert list(answer.json()) == ["error"]
    return answer.status_code, error["code"], error["message"]


async def test_a_caption_is_what_is_asked_for_by_default(api: Any) -> None:
    answer = await look(api)
    body = answer.json()
    assert body.pop("id") > 0
    assert body.pop("seconds") >= 0
    assert (answer.status_code, body) == (
        200,
        {
            "state": "succeeded",
            "task": "caption",
            "model": "florence-2-base",
            "note": "A demo model answers.",
            "answer": {"text": "caption: "},
            "warnings": [],
        },
    )
    request = api.executor.questions[0]
    assert (request.beams, request.max_new_tokens, request.prompt, request.region) == (3, 1024, "", None)


@pytest.mark.parametrize("task", VisionTask)
async def test_every_task_goes_by_name_and_by_token(api: Any, task: VisionTask) -> None:
    takes = TASKS[task].takes
    more: dict[str, Any] = {}
    if takes is Takes.TEXT:
        more = {"prompt": " a red bridge "}
    elif takes is Takes.REGION:
        more = {"region": [0, 8, 48, 80]}
    by_name = await asked(api, task=task.value, **more)
    assert by_name == await asked(api, task=TASKS[task].token, **more)
    assert by_name.task is task
    assert by_name.prompt == ("a red bridge" if takes is Takes.TEXT else "")
    assert by_name.region == ((0, 100, 500, 999) if takes is Takes.REGION else None)


async def test_a_region_may_be_told_in_the_models_own_places(api: Any) -> None:
    prompt = "<loc_1><loc_20><loc_300><loc_999>"
    assert (await asked(api, task="region_to_ocr", prompt=prompt)).region == (1, 20, 300, 999)


async def test_a_picture_comes_as_a_file_with_the_fields_of_a_form(api: Any) -> None:
    answer = await api.client.post(
        "/v1/vision",
        headers={"X-API-Key": api.key},
        data={"task": "region_to_category", "region": "0, 8, 48,80", "beams": "1"},
        files={"image": ("car.png", picture(), "image/png")},
    )
    assert answer.status_code == 200, answer.text
    request = api.executor.questions[0]
    assert (request.region, request.beams) == ((0, 100, 500, 999), 1)
    assert request.image == (await asked(api)).image


async def test_a_picture_comes_as_base64_data_uri_or_url(serve: Serve) -> None:
    async def send(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        data = picture()
        writer.write(b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: %d\r\n\r\n" % len(data) + data)
        writer.close()

    server = await asyncio.start_server(send, "127.0.0.1", 0)
    async with server, serve(allow_private_hosts=["127.0.0.1"]) as api:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/car.png"
        sources = (IMAGE, f"data:image/png;base64,{IMAGE}", url)
        assert len({(await asked(api, image=source)).image for source in sources}) == 1


async def test_pictures_are_upright_flat_and_in_colour_when_they_are_looked_at(api: Any) -> None:
    turned = Image.Exif()
    turned[0x0112] = 6
    pictures = {
        "turned": (picture((40, 20), kind="JPEG", exif=turned, quality=95), (20, 40), RED),
        "palette": (picture((30, 20), mode="P"), (30, 20), RED),
        "alpha": (picture((30, 20), mode="RGBA"), (30, 20), (255, 255, 255)),
        "pixel": (picture((1, 1)), (1, 1), RED),
        "long": (picture((8192, 3)), (8192, 3), RED),
    }
    for name, (data, size, colour) in pictures.items():
        request = await asked(api, image=text(data), task="region_to_ocr", region=[0, 0, *size])
        assert request.region == (0, 0, 999, 999), name
        pixels = api.parts.inputs.read(request.image)
        assert pixels.shape == (size[1], size[0], 3), name
        assert np.abs(pixels.astype(int) - colour).max() <= 3, name


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"task": "draw"}, "Unknown task 'draw'. There are: caption, "),
    ({"task": 5}, "task must be a text."),
    ({"task": "phrase_grounding"}, "phrase_grounding needs a prompt: the text to look for."),
    ({"task": "phrase_grounding", "prompt": "  "}, "phrase_grounding needs a prompt: the text to look for."),
    ({"prompt": "a cat"}, "caption takes no prompt."),
    ({"region": [0, 0, 5, 5]}, "caption takes no region."),
    ({"task": "region_to_ocr"}, "region_to_ocr needs a region"),
    (
        {"task": "region_to_ocr", "region": [0, 0, 5, 5], "prompt": "<loc_1><loc_2><loc_3><loc_4>"},
        "region_to_ocr needs a region",
    ),
    ({"task": "region_to_ocr", "prompt": "<loc_1><loc_2><loc_3>"}, "is no region"),
    ({"task": "region_to_ocr", "prompt": "<loc_1><loc_2><loc_3><loc_1000>"}, "is no region"),
    ({"task": "region_to_ocr", "prompt": "<loc_9><loc_2><loc_3><loc_4>"}, "left must come before its right"),
    ({"task": "region_to_ocr", "region": [0, 0, 97, 5]}, "is not inside the picture's 96 x 80 pixels."),
    ({"task": "region_to_ocr", "region": [-1, 0, 9, 5]}, "is not inside the picture's 96 x 80 pixels."),
    ({"task": "region_to_ocr", "region": [9, 9, 3, 10]}, "left must come before its right"),
    ({"task": "region_to_ocr", "region": [1, 2, 3]}, "region must be four numbers"),
    ({"task": "region_to_ocr", "region": "1,2,3,x"}, "region must be four numbers"),
    ({"task": "region_to_ocr", "region": [1, 2, 3, True]}, "region must be four numbers"),
    ({"task": "phrase_grounding", "prompt": "x" * 10_001}, "The prompt has 10001 characters"),
    ({"beams": 0}, "beams is 0, and must be 1 to 8."),
    ({"beams": 9}, "beams is 9, and must be 1 to 8."),
    ({"beams": 1.5}, "beams must be a whole number."),
    ({"beams": True}, "beams must be a whole number."),
    ({"max_new_tokens": 1025}, "max_new_tokens is 1025, and must be 1 to 1024."),
    ({"model": "sd15"}, "sd15 draws pictures and looks at none."),
    ({"model": "florence-3"}, "Model not found: florence-3"),
    ({"image": None}, "image is required"),
    ({"image": "nothing"}, "image: "),
    ({"image": text(b"no picture")}, "image: The file is no PNG, JPEG or WebP picture."),
    ({"image": text(picture((8193, 1)))}, "image: The picture has 8193 x 1 pixels"),
    ({"image": text(picture()[:-40])}, "image: The picture is damaged or truncated."),
    ({"image": "http://127.0.0.1/x.png"}, "image: Unable to fetch image from provided URL"),
    ({"webhook": "http://127.0.0.1/x"}, "webhook: "),
    ({"promt": "a cat"}, "Unknown field 'promt': did you mean prompt?"),
]


async def test_what_cannot_be_answered_is_refused_with_the_reason(api: Any) -> None:
    for fields, message in REFUSED:
        status, _, said = await refusal(api, **fields)
        assert (status, message in said) == (400, True), (fields, said)
    assert not api.executor.questions


async def test_a_key_comes_before_everything_else(api: Any) -> None:
    for headers in ({}, {"key": "wrong-key-0123456789"}):
        answer = await api.client.post("/v1/vision", json={"task": "draw"}, headers=headers)
        assert answer.status_code == 401
        assert answer.json()["error"]["code"] in ("missing_key", "invalid_key")
    reader = await api.parts.keys.add("reader", (Scope.MODELS_WRITE,))
    assert (await look(api, key=reader)).status_code == 403


async def test_what_takes_long_is_answered_with_a_job(serve: Serve) -> None:
    async with serve(StubExecutor(held=True), sync_wait_s=0) as api:
        answer = await look(api, task="ocr")
        body = answer.json()
        assert (answer.status_code, body["state"]) == (202, "queued")
        assert body["eta_s"] >= 1
        assert body["url"] == answer.headers["location"] == f"http://images.test/v1/jobs/{body['id']}"
        api.executor.release()
        await api.parts.service.wait(body["id"], 10)
        job = (await api.client.get(body["url"], headers={"key": api.key})).json()
    assert (job["state"], job["outputs"]) == ("succeeded", [])
    assert job["result"]["answers"] == [{"text": "ocr: "}]
    assert (job["request"]["kind"], job["request"]["task"]) == ("vision", "ocr")


async def test_what_fails_later_says_why(api: Any) -> None:
    api.executor.fail_next(InvalidRequest("The prompt is too long: 2000 tokens, at most 445 are read"))
    answer = await look(api, task="phrase_grounding", prompt="a cat")
    assert answer.status_code == 400
    assert answer.json()["error"] == {
        "code": "invalid_request",
        "message": "The prompt is too long: 2000 tokens, at most 445 are read",
    }
    api.executor.fail_next(RuntimeError("/secret"))
    answer = await look(api)
    assert answer.status_code == 500
    assert "/secret" not in answer.text


async def test_a_question_survives_a_restart(serve: Serve) -> None:
    async with serve(StubExecutor(held=True), sync_wait_s=0) as api:
        job_id = (await look(api, task="ocr")).json()["id"]
    async with serve() as api:
        job = await api.parts.service.wait(job_id, 10)
    assert job.result["answers"] == [{"text": "ocr: "}]


async def test_a_webhook_is_told_the_answer(serve: Serve) -> None:
    async with receiving("200 OK") as receiver, serve(allow_private_hosts=["127.0.0.1"]) as api:
        job_id = (await look(api, webhook=receiver.url)).json()["id"]
        await receiver.wait_for(1)
    told = json.loads(receiver.bodies[0])
    assert (told["id"], told["state"], told["result"]["answers"]) == (job_id, "succeeded", [{"text": "caption: "}])


async def test_a_question_is_unknown_to_an_api_of_pictures(api: Any) -> None:
    job_id = (await look(api)).json()["id"]
    answer = await api.fetch(job_id)
    assert (answer.status_code, answer.json()["message"]) == (404, "Request not found")


async def test_a_model_that_looks_at_pictures_draws_none(api: Any) -> None:
    answer = await api.text2img(model_id="florence-2-base")
    assert answer.status_code == 400
    assert "POST /v1/vision" in answer.json()["message"]


async def test_the_docs_have_every_task_with_an_example_that_works(api: Any) -> None:
    schema = (await api.client.get("/openapi.json", headers={"key": api.key})).json()
    described = schema["paths"]["/v1/vision"]["post"]
    body = described["requestBody"]["content"]["application/json"]
    answers = described["responses"]["200"]["content"]["application/json"]["examples"]
    assert set(body["examples"]) == set(answers) == {task.value for task in VisionTask}
    assert set(body["schema"]["properties"]["task"]["enum"]) == set(body["examples"])
    for task, example in body["examples"].items():
        assert TASKS[VisionTask(task)].token in body["schema"]["properties"]["task"]["description"]
        request = await asked(api, **{**example["value"], "image": text(picture((640, 480)))})
        assert request.task == task
    assert "multipart/form-data" in described["requestBody"]["content"]
