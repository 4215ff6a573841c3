"""ModelsLab: what clients ask about themselves, their uploads, and the server."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipelines.safety import CheckerFiles
from server.api.modelslab.uploads import middle_square
from server.engine.executors.stub import StubExecutor
from server.keys import Scope
from tests.pictures import red_png
from tests.receiver import receiving

Serve = Callable[..., AbstractAsyncContextManager[Any]]

#: 2 x 2 pixels.
BLACK = "iVBORw0KGgoAAAANSUhEUgAAAAIAAAACCAIAAAD91JpzAAAAC0lEQVR4nGNgQAYAAA4AAamRc7EAAAAASUVORK5CYII="

pytestmark = pytest.mark.anyio


async def call(api: Any, path: str, method: str = "POST", key: str | None = None, **fields: Any) -> Any:
    return await api.client.request(method, f"/api{path}", json={"key": key or api.key, **fields})


@pytest.mark.parametrize("method", ["POST", "GET"])
async def test_what_is_not_done_is_counted_per_key(serve: Serve, method: str) -> None:
    async with serve(StubExecutor(held=True), sync_wait_s=0) as api:
        await api.text2img()
        other = await api.parts.keys.add("other")
        text = "1 requests are processing"
        assert (await call(api, "/v6/processing/request_count", method)).json() == {
            "status": "success", "processing_count": 1, "message": text, "messege": text,
        }  # fmt: skip
        foreign = await call(api, "/v6/processing/request_count", method, key=other)
        assert foreign.json()["processing_count"] == 0
        assert (await call(api, "/v3/system_load", method, key=other)).json() == {
            "queue_num": 1, "queue_time": 0, "status": "ok",
        }  # fmt: skip


async def test_assets_come_in_pages_newest_first(api: Any) -> None:
    made = [(await api.text2img(seed=seed)).json() for seed in range(3)]
    first = (await call(api, "/v6/assets_generated", type="image", page="1", per_page=2)).json()
    second = (await call(api, "/v6/assets_generated", type="image", page=2, per_page="2")).json()
    assert [one["id"] for one in first["data"] + second["data"]] == [one["id"] for one in made[::-1]]
    assert second["data"][0]["output"] == made[0]["output"]
    assert (first["status"], first["type"]) == ("success", "image")
    assert first["pagination"] == {"total": 3, "per_page": 2, "current_page": 1, "page": 1, "last_page": 2}
    assert (await call(api, "/v6/assets_generated", type="video")).json()["data"] == []
    other = await api.parts.keys.add("other")
    assert (await call(api, "/v6/assets_generated", key=other)).json()["data"] == []


async def test_stubs_answer(api: Any) -> None:
    wallet = (await call(api, "/wallet_balance")).json()
    assert (wallet["status"], wallet["data"]["currency"]) == ("success", "USD")
    assert wallet["data"]["balance"] > 0
    assert (await call(api, "/subscribed_products", "GET")).json()["data"] == []
    cleared = await call(api, "/v5/clear_cache", "GET")
    assert cleared.json() == {"status": "success", "message": "Cache cleared", "messege": "Cache cleared"}
    assert (await api.client.post("/api/wallet_balance", json={})).status_code == 401


# Uploads


@pytest.mark.parametrize("path", ["/v6/base64_to_url", "/v6/image_editing/base64_to_url"])
@pytest.mark.parametrize("field", ["init_image", "base64_string"])
async def test_base64_becomes_a_link_for_a_day(api: Any, path: str, field: str) -> None:
    body = (await call(api, path, **{field: f"data:image/png;base64,{red_png(3, 2)}"})).json()
    assert (body["status"], type(body["id"]), len(body["output"])) == ("success", int, 1)
    assert body["output"][0].startswith("http://images.test/temp/")
    read = await api.client.get(body["output"][0])
    assert Image.open(io.BytesIO(read.content)).size == (3, 2)


async def test_an_upload_can_be_cropped(api: Any) -> None:
    body = (await call(api, "/v3/base64_crop", image=red_png(6, 4), crop="true")).json()
    assert (body["status"], body["messege"], type(body["request_id"])) == ("success", "image uploaded", int)
    assert Image.open(io.BytesIO((await api.client.get(body["link"])).content)).size == (4, 4)
    whole = (await call(api, "/v3/base64_crop", image=red_png(6, 4), crop="false")).json()
    assert Image.open(io.BytesIO((await api.client.get(whole["link"])).content)).size == (6, 4)


def test_a_square_is_cut_from_the_middle() -> None:
    pixels = np.arange(2 * 4 * 3, dtype=np.uint8).reshape(2, 4, 3)
    assert np.array_equal(middle_square(pixels), pixels[:, 1:3])


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (None, "init_image is required"),
        ("https://example.com/a.png", "init_image must be base64, not a URL"),
        ("AAAA" * 2_000_000, "init_image is larger than 5 MiB"),
        ("bm90aGluZw==", "init_image: The file is no PNG, JPEG or WebP picture."),
    ],
)
async def test_what_is_no_small_picture_is_refused(serve: Serve, source: str | None, message: str) -> None:
    async with serve(max_body_bytes=64 * 2**20) as api:
        answer = await call(api, "/v6/base64_to_url", init_image=source)
        assert (answer.status_code, answer.json()["message"]) == (400, message)


async def test_pictures_can_be_deleted_by_their_owner(api: Any) -> None:
    made = (await api.text2img()).json()
    other = await api.parts.keys.add("other")
    foreign = await call(api, "/v3/delete_image", key=other, request_id=made["id"])
    assert (foreign.status_code, foreign.json()["message"]) == (404, "Request not found")
    answers = [(await call(api, "/v3/delete_image", request_id=str(made["id"]))).json() for _ in range(2)]
    assert answers == [{"status": "success", "message": "image deleted", "messege": "image deleted"}] * 2
    assert (await api.client.get(made["output"][0])).status_code == 404
    fetched = await api.fetch(made["id"])
    assert (fetched.status_code, fetched.json()["message"]) == (404, "The images were deleted.")


async def test_a_deletion_that_the_server_was_killed_in_is_made_good_by_the_next(api: Any) -> None:
    made = (await api.text2img()).json()
    await api.parts.jobs.expire(made["id"], message="The images were deleted.")
    assert (await api.client.get(made["output"][0])).status_code == 200
    assert (await call(api, "/v3/delete_image", request_id=made["id"])).status_code == 200
    assert (await api.client.get(made["output"][0])).status_code == 404


async def test_what_is_being_drawn_is_not_deleted(serve: Serve) -> None:
    async with serve(StubExecutor(held=True), sync_wait_s=0) as api:
        made = (await api.text2img()).json()
        answer = await call(api, "/v3/delete_image", request_id=made["id"])
        assert (answer.status_code, answer.json()["message"]) == (400, "The request is not finished yet")


@pytest.mark.parametrize("path", ["/v3/nsfw_image_check", "/v1/enterprise/images/nsfw_image_check"])
async def test_a_picture_can_be_checked(serve: Serve, path: str) -> None:
    async with serve(checker=CheckerFiles(folder=Path("sd15"))) as api:
        body = (await call(api, path, init_image=red_png(2, 2), threshold="0.5")).json()
        assert (sorted(body), body["has_nsfw_concept"]) == (["has_nsfw_concept", "images"], [True])
        assert (await api.client.get(body["images"])).status_code == 200
        other = (await call(api, path, init_image=BLACK, threshold=0.9)).json()
        assert (other["has_nsfw_concept"], other["warning"]) == ([False], "Not applied: threshold.")
        dead = await call(api, path, init_image="http://127.0.0.1:1/a.png")
        assert (dead.status_code, dead.json()["message"]) == (400, "Unable to fetch image from provided URL")


async def test_without_a_checker_nothing_can_be_checked(api: Any) -> None:
    answer = await call(api, "/v3/nsfw_image_check", init_image=BLACK)
    assert answer.json()["message"] == "nsfw_image_check is not available on this server"


# Enterprise

SEGMENTS = ["", "/images", "/txt2img", "/flux", "/realtime", "/image_editing", "/images/text2img"]


@pytest.mark.parametrize("segment", SEGMENTS)
async def test_verbs_answer_under_every_segment(api: Any, segment: str) -> None:
    async def verb(name: str, **fields: Any) -> Any:
        return (await call(api, f"/v1/enterprise{segment}/{name}", **fields)).json()

    assert (await verb("system_details"))["status"] == "ok"
    assert (await verb("restart_server"))["message"] == "server restarting"
    assert (await verb("update_server"))["message"] == (await verb("update"))["message"] == "server updating"
    assert (await verb("clear_cache"))["message"] == "Cache cleared successfully"
    assert (await verb("verify_model", model_id="SD-1.5"))["message"] == "Model exists on server"


async def test_verbs_have_their_documented_shapes(api: Any) -> None:
    async def verb(name: str, **fields: Any) -> Any:
        return (await call(api, f"/v1/enterprise/{name}", **fields)).json()

    assert await verb("system_details") == {
        "status": "ok", "queue_time": 0, "queue_num": 0, "model_count": 3, "loaded_models": [],
    }  # fmt: skip
    schedulers = await verb("schedulers_list")
    assert list(schedulers) == ["schedulers"] and "UniPCMultistepScheduler" in schedulers["schedulers"]
    models = await verb("get_all_models")
    assert [sorted(one) for one in models["models"]] == [["load_data", "model_id"]] * 3
    synced = await verb("sync_models", sync_key="x")
    assert (synced["message"], synced["model_list"]) == (
        "3 Models synced successfully",
        ["sd15", "flux", "sdxl-lightning"],
    )
    uploaded = await verb("upload_image", base64_image=red_png(2, 2), image_type="png")
    assert (uploaded["message"], uploaded["image_url"][:24]) == ("image uploaded", "http://images.test/temp/")
    for name in ("update_s3", "reset_s3"):
        assert (await verb(name))["message"] == f"{name} is not available on this server"
    assert (await verb("verify_model", model_id="nothing"))["message"] == "Model not found: nothing"


VERBS = """system_details restart_server update_server update clear_cache clear_queue schedulers_list get_all_models
    sync_models verify_model update_s3 reset_s3""".split()


@pytest.mark.parametrize("verb", VERBS)
async def test_verbs_need_the_scope_admin(api: Any, verb: str) -> None:
    plain = await api.parts.keys.add("plain", (Scope.GENERATE, Scope.MODELS_WRITE))
    answer = await call(api, f"/v1/enterprise/{verb}", key=plain, model_id="sd15")
    assert (answer.status_code, answer.json()["status"]) == (403, "error")


async def test_a_cleared_queue_ends_all_that_waits_and_tells_the_webhooks(serve: Serve) -> None:
    held = StubExecutor(held=True)
    async with receiving("200 OK") as receiver, serve(held, sync_wait_s=0, allow_private_hosts=("127.0.0.1",)) as api:
        other = await api.parts.keys.add("other")
        first = (await api.text2img(webhook=receiver.url, track_id=1)).json()["id"]
        second = (await api.text2img(key=other, webhook=receiver.url, track_id="2")).json()["id"]
        answer = (await call(api, "/v1/enterprise/clear_queue")).json()
        assert (answer["message"], answer["cleared"]) == ("Queue cleared, server is restarting", 2)
        fetched = [await api.fetch(first), await api.fetch(second, key=other)]
        assert [(one.status_code, one.json()["status"], one.json()["message"]) for one in fetched] == [
            (503, "error", "The queue was cleared.")
        ] * 2
        async with asyncio.timeout(10):
            await receiver.wait_for(2)
        told = [json.loads(body) for body in receiver.bodies]
        assert {(one["id"], one["status"], one["track_id"]) for one in told} == {
            (first, "failed", 1), (second, "failed", "2"),
        }  # fmt: skip
        api.executor.release()
        after = (await api.text2img()).json()["id"]
        assert (await api.fetch(after, wait=5)).json()["status"] == "success"


async def test_request_count_is_answered_thirty_times_a_minute(api: Any) -> None:
    path, params = "/api/v6/processing/request_count", {"key": api.key}
    answers = [await api.client.get(path, params=params) for _ in range(31)]
    assert [one.status_code for one in answers] == [200] * 30 + [429]
    refused = answers[-1]
    assert refused.json()["message"] == "Rate limit exceeded. Maximum 30 requests per minute."
    assert 0 < int(refused.headers["retry-after"]) <= 60
    assert "x-ratelimit-reset" in refused.headers
    other = await api.parts.keys.add("other")
    assert (await api.client.post(path, json={"key": other})).status_code == 200
