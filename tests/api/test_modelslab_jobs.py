"""ModelsLab jobs that outlive their call: waiting, fetching, failing, restarting, telling."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest

from pipelines.errors import NonFinite, OutOfMemory
from server.engine.executors.stub import StubExecutor
from server.jobs.base import Job, JobState, WebhookState

pytestmark = pytest.mark.anyio

TEXT2IMG = "/api/v6/images/text2img"
Serve = Callable[..., AbstractAsyncContextManager[Any]]


async def test_a_call_that_takes_long_is_answered_processing(serve: Serve) -> None:
    async with serve(StubExecutor(held=True), sync_wait_s=0.01) as api:
        answer = await api.text2img(track_id=3, samples=2, webhook="https://example.com/hook?secret=1", seed=5)
        body = answer.json()
        meta = body["meta"]
        assert (answer.status_code, body["status"]) == (200, "processing")
        assert body["eta"] >= 1
        assert body["message"] == body["messege"] == "Try to fetch request after seconds estimated"
        assert body["fetch_result"] == f"http://images.test/api/v6/images/fetch/{body['id']}"
        assert (body["output"], body["proxy_links"], len(body["future_links"])) == ([], [], 2)
        assert (meta["id"], meta["output"], meta["track_id"]) == (str(body["id"]), body["future_links"], 3)
        assert (meta["webhook"], meta["seed"]) == ("https://example.com/hook?secret=1", 5)
        assert (body["track_id"], body["webhook_status"]) == (3, "pending")
        assert (await api.client.get(body["future_links"][0])).status_code == 404


async def test_every_fetch_agrees_and_the_links_stay(serve: Serve) -> None:
    async with serve(StubExecutor(held=True), sync_wait_s=0.01) as api:
        submitted = (await api.text2img()).json()
        path = f"/api/v6/images/fetch/{submitted['id']}"
        key = {"key": api.key}
        running = await api.fetch(submitted["id"])
        assert (running.status_code, running.json()["status"]) == (200, "processing")
        assert running.json()["future_links"] == submitted["future_links"]
        api.executor.release()
        done = (await api.fetch(str(submitted["id"]), wait=10)).json()
        assert (done["status"], done["output"]) == ("success", submitted["future_links"])
        others = [
            await api.fetch(submitted["id"]),
            await api.client.post(path, json=key),
            await api.client.post(path + "/", json=key),
            await api.client.get(path, params=key),
            await api.client.get(path, headers=key),
        ]
        assert [one.json() for one in others] == [done] * len(others)


async def test_instant_response_does_not_wait(serve: Serve) -> None:
    async with serve(StubExecutor(held=True), sync_wait_s=30) as api:
        body = (await api.text2img(instant_response="yes")).json()
        assert (body["status"], body["meta"]["instant_response"]) == ("processing", "yes")


@pytest.mark.parametrize(
    ("settings", "status", "word"),
    [({}, 500, "error"), ({"failed_status": "failed"}, 500, "failed"), ({"legacy_http_200": True}, 200, "error")],
)
async def test_a_failed_job_says_so(serve: Serve, settings: dict[str, object], status: int, word: str) -> None:
    async with serve(modelslab=settings) as api:
        api.executor.fail_next(NonFinite("The image became NaN."))
        submitted = await api.text2img(track_id=1)
        fetched = await api.fetch(submitted.json()["id"])
        assert (submitted.status_code, submitted.json()["status"]) == (status, "error")
        assert fetched.status_code == status
        assert fetched.json() == {
            "status": word,
            "id": submitted.json()["id"],
            "message": "The image became NaN.",
            "messege": "The image became NaN.",
            "output": [],
            "webhook_status": "",
            "track_id": 1,
        }


async def test_an_unexpected_failure_tells_nothing(api: Any) -> None:
    api.executor.fail_next(RuntimeError("/srv/secret/path"))
    answer = await api.text2img()
    assert answer.status_code == 500
    assert answer.json()["message"] == "Internal server error. Please try again."


async def test_a_full_queue_is_a_rate_limit(serve: Serve) -> None:
    async with serve(StubExecutor(held=True), sync_wait_s=0, max_queued_jobs_per_key=1) as api:
        await api.text2img()
        answer = await api.text2img()
        assert answer.status_code == 429
        assert answer.json() == {
            "status": "error",
            "message": "Rate limit exceeded. Maximum 1 queued requests allowed.",
            "messege": "Rate limit exceeded. Maximum 1 queued requests allowed.",
            "output": [],
            "retry_after": 30,
        }
        assert answer.headers["retry-after"] == "30"
        assert int(answer.headers["x-ratelimit-reset"]) > 1_700_000_000


async def test_a_draining_server_is_unavailable(api: Any) -> None:
    api.parts.service.drain()
    answer = await api.text2img()
    assert (answer.status_code, answer.json()["status"]) == (503, "error")


async def test_the_public_url_is_the_base_of_all_links(serve: Serve) -> None:
    async with serve(public_url="https://images.example.org/x/", sync_wait_s=0) as api:
        body = (await api.text2img()).json()
        assert body["fetch_result"].startswith("https://images.example.org/x/api/v6/images/fetch/")
        assert body["future_links"][0].startswith("https://images.example.org/x/generations/0-")


@pytest.mark.parametrize("host", ['evil"/><script>', "[evil", "evil:port", ""])
async def test_a_host_header_cannot_smuggle_text_into_links(api: Any, host: str) -> None:
    answer = await api.client.post(
        TEXT2IMG,
        json={"key": api.key, "prompt": "x", "width": 64, "height": 64},
        headers={"host": host, "x-forwarded-host": "evil.example"},
    )
    assert answer.json()["output"][0].startswith("http://images.test")
    assert "evil" not in answer.text


async def test_jobs_survive_a_restart_with_their_ids(serve: Serve) -> None:
    async with serve(StubExecutor(held=True), sync_wait_s=0) as api:
        submitted = [(await api.text2img(seed=seed, track_id=seed)).json() for seed in range(3)]
    async with serve() as api:
        answers = [(await api.fetch(one["id"], wait=10)).json() for one in submitted]
    assert [(one["status"], one["id"], one["track_id"], one["meta"]["seed"]) for one in answers] == [
        ("success", submitted[seed]["id"], seed, seed) for seed in range(3)
    ]
    assert [one["output"] for one in answers] == [one["future_links"] for one in submitted]


async def test_many_calls_at_once_are_all_answered(api: Any) -> None:
    answers = await asyncio.gather(*(api.text2img(seed=seed) for seed in range(20)))
    assert [answer.json()["meta"]["seed"] for answer in answers] == list(range(20))
    assert len({answer.json()["id"] for answer in answers}) == 20


# Webhooks


@pytest.fixture
def job() -> Job:
    request = {
        "model": "sd15", "prompt": "x", "negative_prompt": None, "width": 64, "height": 64, "samples": 1, "steps": 2,
        "guidance": 5.0, "seed": 7, "scheduler": None, "sigmas": "default", "algorithm_type": None, "spacing": None,
        "reproducible": False, "priority": 0,
    }  # fmt: skip
    return Job(
        id=134701497, owner="me", dialect="modelslab", request=request, echo={"track_id": None},
        outputs=("0-ab.png",), base_url="http://host", webhook="https://a/", webhook_state=WebhookState.PENDING,
        created_at=1.0,
    )  # fmt: skip


async def test_a_webhook_of_a_success(api: Any, job: Job) -> None:
    result = {"seconds": 3.4219, "seeds": [7], "nsfw": [False], "scheduler": "DDIMScheduler"}
    done = Job(**{**vars(job), "state": JobState.SUCCEEDED, "result": result})
    body = json.loads(api.parts.dialects["modelslab"].webhook_body(done))
    assert body.pop("meta")["scheduler"] == "DDIMScheduler"
    assert body == {
        "status": "success",
        "id": 134701497,
        "output": ["http://host/generations/0-ab.png"],
        "proxy_links": ["http://host/generations/0-ab.png"],
        "generationTime": 3.422,
        "nsfw_content_detected": False,
        "tip": "",
        "track_id": None,
    }


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"state": JobState.FAILED, "error_code": "out_of_memory", "error_message": "No room."}, "No room."),
        ({"state": JobState.CANCELLED}, "The request was cancelled."),
    ],
)
async def test_a_webhook_of_a_failure(api: Any, job: Job, changes: dict[str, Any], message: str) -> None:
    body = json.loads(api.parts.dialects["modelslab"].webhook_body(Job(**{**vars(job), **changes})))
    assert body == {
        "status": "failed",
        "id": 134701497,
        "message": message,
        "messege": message,
        "output": [],
        "track_id": None,
    }


@pytest.mark.parametrize(("fails", "track_id"), [(True, 9), (False, "9"), (False, 9.5)])
async def test_a_webhook_is_delivered(serve: Serve, fails: bool, track_id: object) -> None:
    received: asyncio.Queue[bytes] = asyncio.Queue()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0])
        await received.put(head.split(b"\r\n")[0] + b"\n" + await reader.readexactly(length))
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    receiver = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = receiver.sockets[0].getsockname()[1]
    async with receiver, serve(allow_private_hosts=("127.0.0.1",)) as api:
        if fails:
            api.executor.fail_next(OutOfMemory("No room."))
        hook = f"http://127.0.0.1:{port}/hook?secret=1&x=%2F+a"
        answered = await api.text2img(webhook=hook, track_id=track_id)
        line, _, body = (await asyncio.wait_for(received.get(), 10)).partition(b"\n")
        assert line == b"POST /hook?secret=1&x=%2F+a HTTP/1.1"
        told = json.loads(body)
        assert (told["status"], told["id"]) == ("failed" if fails else "success", answered.json()["id"])
        assert (told["track_id"], type(told["track_id"])) == (track_id, type(track_id))
        # The links work by the time that they are told.
        assert fails or (await api.client.get(told["output"][0])).status_code == 200
        for _ in range(1000):
            fetched = (await api.fetch(answered.json()["id"])).json()
            if fetched["webhook_status"] != "pending":
                break
            await asyncio.sleep(0.01)
        assert fetched["webhook_status"] == "delivered"
