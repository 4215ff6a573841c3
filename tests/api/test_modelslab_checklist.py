"""The acceptance list of the ModelsLab contract, line by line; lines 1 and 9 are other files' (clients, safety)."""

from __future__ import annotations

import asyncio
import base64
import io
import json
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest
from PIL import Image

from server.engine.executors.stub import StubExecutor
from tests.api.test_modelslab import SEED_SAMPLE, STRINGS_SAMPLE
from tests.pictures import red_png
from tests.receiver import receiving

Serve = Callable[..., AbstractAsyncContextManager[Any]]

pytestmark = pytest.mark.anyio


async def call(api: Any, path: str, **fields: Any) -> Any:
    return await api.client.post(f"/api{path}", json={"key": api.key} | fields)


@pytest.mark.parametrize("sample", [SEED_SAMPLE, STRINGS_SAMPLE])
async def test_2_both_samples_succeed(api: Any, sample: dict[str, Any]) -> None:
    assert (await call(api, "/v6/images/text2img", **sample)).json()["status"] == "success"


async def test_3_a_job_is_there_before_its_id_is_answered_and_after_a_restart(serve: Serve) -> None:
    async with serve(StubExecutor(held=True), sync_wait_s=0) as api:
        ids = [one.json()["id"] for one in await asyncio.gather(*(api.text2img() for _ in range(5)))]
        fetched = await asyncio.gather(*(call(api, f"/v6/images/fetch/{one}") for one in ids))
        assert [one.json()["status"] for one in fetched] == ["processing"] * 5
    async with serve() as api:
        for one in ids:
            done = (await call(api, "/v6/images/fetch", request_id=str(one), wait=10)).json()
            by_path = (await call(api, f"/v6/images/fetch/{one}")).json()
            by_get = await api.client.get(f"/api/v6/images/fetch/{one}", params={"key": api.key})
            assert done["status"] == "success"
            assert done == by_path == by_get.json()


@pytest.mark.parametrize(
    ("fields", "status", "message"),
    [
        ({"key": ""}, 401, "API key required"),
        ({"key": "wrong"}, 401, "Invalid API key"),
        ({"prompt": None}, 400, "prompt is required"),
        ({"prompt": 1}, 400, "prompt must be a string"),
        ({"model_id": "nothing"}, 400, "Model not found: nothing"),
    ],
)
async def test_4_errors_are_those_of_the_table(api: Any, fields: dict[str, Any], status: int, message: str) -> None:
    answer = await api.text2img(**fields)
    assert (answer.status_code, answer.json()["status"]) == (status, "error")
    assert answer.json()["message"] == answer.json()["messege"] == message


async def test_4_an_empty_call_bad_json_a_dead_picture_and_a_full_queue(serve: Serve) -> None:
    async with serve(StubExecutor(held=True), sync_wait_s=0, max_queued_jobs_per_key=1) as api:
        post = api.client.post
        await api.text2img()
        answers = [
            await post("/api/v6/images/text2img", json={}),
            await post("/api/v6/images/text2img", content=b"{", headers={"key": api.key}),
            await call(api, "/v6/images/img2img", prompt="x", init_image="http://127.0.0.1:1/a.png"),
            await api.text2img(),
        ]
    assert [one.status_code for one in answers] == [401, 400, 400, 429]
    bodies = [one.json() for one in answers]
    assert [body["message"] for body in bodies] == [
        "API key required",
        "Invalid API Request: the body is not valid JSON.",
        "Unable to fetch image from provided URL",
        "Rate limit exceeded. Maximum 1 queued requests allowed.",
    ]
    assert all(body["message"] == body["messege"] and "detail" not in body for body in bodies)


async def test_5_base64_output_is_a_url_of_text(api: Any) -> None:
    body = (await api.text2img(base64="yes", width=128, height=64)).json()
    assert body["output"][0].endswith(".base64")
    read = await api.client.get(body["output"][0])
    assert read.headers["content-type"].startswith("text/plain")
    assert Image.open(io.BytesIO(base64.b64decode(read.text, validate=True))).size == (128, 64)


@pytest.mark.parametrize("form", ["{}", "data:image/png;base64,{}", "list"])
async def test_5_init_image_comes_in_any_form(api: Any, form: str) -> None:
    raw = red_png(64, 64)
    source = [raw] if form == "list" else form.format(raw)
    body = (await call(api, "/v6/images/img2img", prompt="x", init_image=source)).json()
    assert (body["status"], body["meta"]["init_image"]) == ("success", "base64")


async def test_6_img2img_keeps_the_init_size(api: Any) -> None:
    meta = (await call(api, "/v6/images/img2img", prompt="x", init_image=red_png(192, 128))).json()["meta"]
    assert (meta["W"], meta["H"]) == (192, 128)


async def test_7_what_is_out_of_range_is_clamped_and_shown(api: Any) -> None:
    fields = {"lora_model": "a,b,c", "lora_strength": "0.5,0.2", "scheduler": "Foo", "samples": 9}
    body = (await api.text2img(**fields, num_inference_steps=500, width=1004, height=512)).json()
    meta = body["meta"]
    assert body["status"] == "success"
    assert (meta["lora"], meta["lora_strength"], meta["steps"]) == ("a,b,c", "0.5,0.2,1", 50)
    assert (meta["n_samples"], meta["width"]) == (4, 1000)
    assert "Unknown scheduler 'Foo'" in body["warning"]


@pytest.mark.parametrize("track_id", [17, "17"])
async def test_8_the_webhook_is_told_again_after_an_error(serve: Serve, track_id: object) -> None:
    settings: dict[str, Any] = {"allow_private_hosts": ("127.0.0.1",), "webhook_delays_s": (0.01,)}
    async with receiving("500 No", "200 OK") as receiver, serve(**settings) as api:
        job = (await api.text2img(webhook=receiver.url, track_id=track_id)).json()["id"]
        async with asyncio.timeout(10):
            await receiver.wait_for(2)
        told = [json.loads(body) for body in receiver.bodies]
        assert told[0] == told[1]
        assert (told[0]["status"], told[0]["id"], told[0]["track_id"]) == ("success", job, track_id)
        assert type(told[0]["track_id"]) is type(track_id)
        for _ in range(1000):
            state = (await api.fetch(job)).json()["webhook_status"]
            if state != "pending":
                break
            await asyncio.sleep(0.01)
        assert state == "delivered"


@pytest.mark.parametrize("segment", ["", "images/", "txt2img/", "flux/"])
async def test_10_enterprise_verbs_answer_everywhere(api: Any, segment: str) -> None:
    verbs = "system_details restart_server update_server clear_cache clear_queue get_all_models".split()
    answers = [await call(api, f"/v1/enterprise/{segment}{verb}") for verb in verbs]
    assert [one.json()["status"] for one in answers] == ["ok", *["success"] * 5]
    drawn = await call(api, f"/v1/enterprise/{segment}text2img", prompt="x", width=64, height=64)
    fetched = await call(api, f"/v1/enterprise/{segment}fetch/{drawn.json()['id']}")
    assert fetched.json()["status"] == "success"
