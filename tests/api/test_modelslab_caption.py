"""``caption``: a picture in, its description out, in ModelsLab's words."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest

from pipelines.errors import NonFinite
from server.engine.executors.stub import StubExecutor
from tests.pictures import red_png
from tests.receiver import receiving

pytestmark = pytest.mark.anyio

jsonschema = pytest.importorskip("jsonschema")

Serve = Callable[..., AbstractAsyncContextManager[Any]]

PATH = "/api/v6/image_editing/caption"
PATHS = [
    f"/api{family}/image_editing/{word}"
    for family in ("/v6", "/v1", "/v1/enterprise")
    for word in ("caption", "img_to_text")
]
RED = red_png(40, 24)
SAMPLE: dict[str, Any] = {
    "init_image": RED, "length": "normal", "base64": False, "webhook": None, "track_id": None,
}  # fmt: skip
STRINGS: dict[str, Any] = {
    "init_image": RED, "length": "Normal", "base64": "false", "webhook": "", "track_id": "", "prompt": "",
}  # fmt: skip


async def ask(api: Any, path: str = PATH, **fields: Any) -> Any:
    return await api.client.post(path, json={"key": api.key, **fields})


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("fields", [SAMPLE, STRINGS])
async def test_every_path_answers_the_caption_as_a_list_of_one_text(
    api: Any, path: str, fields: dict[str, Any]
) -> None:
    answer = await ask(api, path, **fields)
    body = answer.json()
    assert body.pop("id") > 0
    assert body.pop("generationTime") >= 0
    assert (answer.status_code, body) == (
        200,
        {
            "status": "success",
            "output": ["detailed_caption: "],
            "caption": "detailed_caption: ",
            "proxy_links": [],
            "nsfw_content_detected": False,
            "webhook_status": "",
            "tip": "",
            "meta": {
                "model_id": "florence-2-base",
                "length": "normal",
                "instant_response": "no",
                "base64": "no",
                "init_image": "base64",
                "model_note": "A demo model answers.",
            },
        },
    )


@pytest.mark.parametrize(
    ("length", "task"),
    [
        (None, "detailed_caption"), ("", "detailed_caption"),
        ("short", "caption"), ("LONG", "more_detailed_caption"),
    ],
)  # fmt: skip
async def test_the_length_chooses_what_is_asked(api: Any, length: object, task: str) -> None:
    body = (await ask(api, init_image=RED, length=length)).json()
    assert body["caption"] == f"{task}: "
    assert "warning" not in body


@pytest.mark.parametrize("length", ["endless", 3, ["short"]])
async def test_an_unknown_length_is_the_default_with_a_warning(api: Any, length: object) -> None:
    body = (await ask(api, init_image=RED, length=length)).json()
    assert (body["caption"], body["meta"]["length"]) == ("detailed_caption: ", "normal")
    assert "normal is used; there are short, normal, long." in body["warning"]


@pytest.mark.parametrize(
    "fields",
    [
        {"init_image": f"data:image/png;base64,{RED}"},
        {"init_image": [RED]},
        {"image": RED},
        {"url": RED},
        {"init_image": RED, "base64": "yes"},
    ],
)
async def test_the_picture_comes_in_any_form(serve: Serve, fields: dict[str, Any]) -> None:
    async with serve(modelslab={"base64_mode": "inline"}) as api:
        body = (await ask(api, **fields)).json()
        assert (body["status"], body["output"]) == ("success", ["detailed_caption: "])
        (question,) = api.executor.questions
        assert (api.parts.inputs.read(question.image) == (255, 0, 0)).all()


async def test_the_picture_may_be_a_file_of_a_form(api: Any) -> None:
    files = {"init_image": ("a.png", base64.b64decode(RED), "image/png")}
    answer = await api.client.post(PATH, data={"key": api.key, "length": "short"}, files=files)
    assert answer.json()["output"] == ["caption: "]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "init_image is required"),
        ({"init_image": 3}, "init_image must be a string"),
        ({"init_image": "http://127.0.0.1:1/a.png"}, "Unable to fetch image from provided URL"),
        ({"init_image": RED, "model_id": "nothing"}, "Model not found: nothing"),
        ({"init_image": RED, "model_id": "sd15"}, "sd15 draws pictures and looks at none."),
        ({"init_image": RED, "webhook": "ftp://example.com"}, "webhook: "),
    ],
)
async def test_what_is_missing_or_wrong_is_named(api: Any, fields: dict[str, Any], message: str) -> None:
    answer = await ask(api, **fields)
    body = answer.json()
    assert (answer.status_code, body["status"], body["output"]) == (400, "error", [])
    assert body["message"] == body["messege"]
    assert body["message"].startswith(message)
    assert api.executor.questions == []


async def test_it_is_fetched_by_id_and_then_the_same(serve: Serve) -> None:
    async with serve(StubExecutor(held=True), sync_wait_s=0) as api:
        waiting = (await ask(api, init_image=RED, track_id=7)).json()
        where = f"http://images.test/api/v6/image_editing/fetch/{waiting['id']}"
        assert (waiting["status"], waiting["fetch_result"], waiting["track_id"]) == ("processing", where, 7)
        assert (waiting["output"], waiting["future_links"], waiting["meta"]["output"]) == ([], [], [])
        api.executor.release()
        done = (await api.fetch(waiting["id"], wait=5)).json()
        assert (done["status"], done["output"], done["track_id"]) == ("success", ["detailed_caption: "], 7)
        again = [
            await ask(api, where.removeprefix("http://images.test")),
            await ask(api, "/api/v6/image_editing/fetch", request_id=str(waiting["id"])),
            await api.client.get(where, headers={"key": api.key}),
        ]
        assert [one.json() for one in again] == [done] * 3


async def test_instant_response_does_not_wait(api: Any) -> None:
    body = (await ask(api, init_image=RED, instant_response="yes")).json()
    assert (body["status"], body["meta"]["instant_response"]) == ("processing", "yes")


async def test_a_caption_that_failed_answers_an_error(api: Any) -> None:
    api.executor.fail_next(NonFinite("The answer became NaN."))
    answer = await ask(api, init_image=RED)
    assert (answer.status_code, answer.json()["message"]) == (500, "The answer became NaN.")


async def test_the_webhook_is_told_the_caption_or_the_failure(serve: Serve) -> None:
    async with receiving("200 OK") as receiver, serve(allow_private_hosts=("127.0.0.1",)) as api:
        first = (await ask(api, init_image=RED, webhook=receiver.url, track_id="a")).json()
        api.executor.fail_next(NonFinite("The answer became NaN."))
        second = (await ask(api, init_image=RED, webhook=receiver.url, track_id=9)).json()
        async with asyncio.timeout(10):
            await receiver.wait_for(2)
        told = {body["id"]: body for body in map(json.loads, receiver.bodies)}
    assert told[first["id"]]["output"] == ["detailed_caption: "]
    assert (told[first["id"]]["status"], told[first["id"]]["track_id"]) == ("success", "a")
    failed = told[second["id"]]
    assert (failed["status"], failed["message"], failed["track_id"]) == ("failed", "The answer became NaN.", 9)


async def test_other_apis_answers_about_pictures_are_not_fetched_here(api: Any) -> None:
    headers = {"key": api.key}
    job = (await api.client.post("/v1/vision", json={"image": RED}, headers=headers)).json()["id"]
    assert (await api.fetch(job)).status_code == 404


async def test_a_foreign_caption_is_unknown(api: Any) -> None:
    job = (await ask(api, init_image=RED)).json()["id"]
    other = await api.parts.keys.add("other")
    assert (await api.fetch(job, key=other)).status_code == 404


async def test_the_answer_fits_our_document(api: Any) -> None:
    document = (await api.client.get("/openapi.json", params={"key": api.key})).json()
    post = document["paths"][PATH]["post"]
    jsonschema.validate(SAMPLE, post["requestBody"]["content"]["application/json"]["schema"])
    schema = post["responses"]["200"]["content"]["application/json"]["schema"]
    jsonschema.validate((await ask(api, **SAMPLE)).json(), schema, format_checker=jsonschema.FormatChecker())
