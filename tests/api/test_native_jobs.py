"""The native API: a caller's own jobs."""

from __future__ import annotations

import asyncio
import base64
import io
import json
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest
from PIL import Image

from pipelines.errors import NonFinite
from server.api.native import events
from server.engine.executors.stub import StubExecutor

Serve = Callable[..., AbstractAsyncContextManager[Any]]

pytestmark = pytest.mark.anyio


async def get(api: Any, path: str, key: str | None = None, **query: object) -> Any:
    return await api.client.get(f"/v1/jobs{path}", params=query or None, headers={"key": key or api.key})


def read_events(text: str) -> list[tuple[str, dict[str, Any]]]:
    parts = [part.splitlines() for part in text.split("\n\n") if part.startswith("event:")]
    return [(lines[0].removeprefix("event: "), json.loads(lines[1].removeprefix("data: "))) for lines in parts]


async def test_a_finished_job_shows_what_became_of_it(api: Any) -> None:
    done = (await api.text2img(seed=5, width=70, samples=2)).json()
    body = (await get(api, f"/{done['id']}")).json()
    for name in ("created_at", "started_at", "finished_at"):
        assert body.pop(name) > 1_700_000_000
    assert body.pop("request")["prompt"] == "a red bridge"
    assert body.pop("result")["seeds"] == [5, 6]
    assert body == {
        "id": done["id"],
        "state": "succeeded",
        "step": 62,
        "steps": 62,
        "queue_position": None,
        "eta_s": 0.0,
        "dialect": "modelslab",
        "outputs": done["output"],
        "warnings": ["width 70 was lowered to 64."],
        "error": None,
        "webhook_status": "",
    }


async def test_a_failed_job_names_its_error(api: Any) -> None:
    api.executor.fail_next(NonFinite("The image became NaN."))
    failed = (await api.text2img()).json()
    body = (await get(api, f"/{failed['id']}")).json()
    assert body["error"] == {"code": "non_finite", "message": "The image became NaN."}
    assert (body["state"], body["step"], body["outputs"]) == ("failed", None, [])


async def test_a_waiting_job_knows_its_place(serve: Serve) -> None:
    async with serve(StubExecutor(held=True, delay_s=2), sync_wait_s=0) as api:
        ids = [(await api.text2img()).json()["id"] for _ in range(3)]
        bodies = [(await get(api, f"/{one}")).json() for one in ids]
        assert [(one["state"], one["queue_position"], one["step"], one["steps"]) for one in bodies] == [
            ("queued", place, 0, 31) for place in range(3)
        ]
        assert [one["eta_s"] for one in bodies] == [2, 4, 6]


async def test_jobs_are_listed_newest_first_in_pages(api: Any) -> None:
    ids = [(await api.text2img()).json()["id"] for _ in range(5)]
    first = (await get(api, "", limit=2)).json()
    second = (await get(api, "", limit=2, cursor=first["next_cursor"])).json()
    third = (await get(api, "", limit=2, cursor=second["next_cursor"])).json()
    listed = [job["id"] for page in (first, second, third) for job in page["jobs"]]
    assert listed == ids[::-1]
    assert third["next_cursor"] is None


async def test_a_list_can_be_of_some_states(serve: Serve) -> None:
    async with serve(StubExecutor(held=True), sync_wait_s=0) as api:
        waiting = (await api.text2img()).json()["id"]
        cancelled = (await api.text2img()).json()["id"]
        await api.client.delete(f"/v1/jobs/{cancelled}", headers={"key": api.key})

        async def ids(state: str) -> list[int]:
            return [job["id"] for job in (await get(api, "", state=state)).json()["jobs"]]

        assert await ids("queued,running") == [waiting]
        assert await ids("Cancelled") == [cancelled]
        assert await ids("succeeded") == []
        assert await ids("") == [cancelled, waiting]


async def test_a_waiting_job_is_cancelled_at_once_and_once(serve: Serve) -> None:
    async with serve(StubExecutor(held=True), sync_wait_s=0) as api:
        job = (await api.text2img()).json()["id"]
        answers = [await api.client.delete(f"/v1/jobs/{job}", headers={"key": api.key}) for _ in range(2)]
        assert [(one.status_code, one.json()["state"]) for one in answers] == [(200, "cancelled")] * 2
        assert (await get(api, f"/{job}")).json()["error"] is None
        fetched = (await api.fetch(job)).json()
        assert (fetched["status"], fetched["message"]) == ("error", "The request was cancelled.")


async def test_what_has_ended_is_not_cancelled(api: Any) -> None:
    job = (await api.text2img()).json()["id"]
    answer = await api.client.delete(f"/v1/jobs/{job}", headers={"key": api.key})
    assert (answer.status_code, answer.json()["state"]) == (200, "succeeded")


@pytest.mark.parametrize("method", ["GET", "DELETE"])
async def test_foreign_and_unknown_jobs_are_one(api: Any, method: str) -> None:
    other = await api.parts.keys.add("other")
    job = (await api.text2img()).json()["id"]
    answers = [
        await api.client.request(method, f"/v1/jobs/{id_}", headers={"authorization": f"Bearer: {other}"})
        for id_ in (job, 1, "x", 10**30)
    ]
    assert {one.status_code for one in answers} == {404}
    assert {one.text for one in answers} == {'{"error":{"code":"not_found","message":"Job not found"}}'}
    assert (await get(api, "", key=other)).json() == {"jobs": [], "next_cursor": None}
    assert (await get(api, "", key=other, cursor=job)).json()["jobs"] == []
    assert (await get(api, f"/{job}/events", key=other)).status_code == 404


@pytest.mark.parametrize(
    ("path", "code", "word"),
    [("?limit=0", 400, "limit"), ("?limit=x", 400, "limit"), ("?state=done", 400, "'done'"), ("?cursor=x", 400, "cur"),
     ("/1/nothing", 404, "Not found")],
)  # fmt: skip
async def test_errors_have_one_shape(api: Any, path: str, code: int, word: str) -> None:
    answer = await get(api, path)
    assert answer.status_code == code
    assert word in answer.json()["error"]["message"]


async def test_a_key_is_needed(api: Any) -> None:
    answer = await api.client.get("/v1/jobs")
    assert (answer.status_code, answer.json()["error"]["code"]) == (401, "missing_key")


# Events


async def test_events_tell_progress_and_then_the_result(serve: Serve) -> None:
    async with serve(StubExecutor(delay_s=0.2), sync_wait_s=0) as api:
        job = (await api.text2img()).json()["id"]
        answer = await get(api, f"/{job}/events")
        told = read_events(answer.text)
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert [name for name, _ in told] == ["progress"] * (len(told) - 1) + ["result"]
        assert told[0][1].keys() == {"state", "step", "steps", "queue_position", "eta_s"}
        assert told[-1][1] == (await get(api, f"/{job}")).json()


async def test_previews_come_when_they_are_asked_for(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "_LOOK_S", 0.05)
    async with serve(StubExecutor(delay_s=0.5), sync_wait_s=0) as api:
        job = (await api.text2img(width=128)).json()["id"]
        told = read_events((await get(api, f"/{job}/events", previews="1")).text)
        shown = [body for name, body in told if name == "preview"]
        assert len(shown) >= 1
        assert told[-1][0] == "result"
        assert (shown[0]["index"], shown[0]["step"]) == (0, 1)
        data = base64.b64decode(shown[0]["image"].removeprefix("data:image/jpeg;base64,"), validate=True)
        image = Image.open(io.BytesIO(data))
        assert (image.format, image.size) == ("JPEG", (16, 8))


async def test_previews_are_ones_own_and_asked_for_with_yes_or_no(serve: Serve) -> None:
    async with serve(StubExecutor(held=True), sync_wait_s=0) as api:
        job = (await api.text2img()).json()["id"]
        other = await api.parts.keys.add("other")
        assert (await get(api, f"/{job}/events", key=other, previews="1")).status_code == 404
        wrong = await get(api, f"/{job}/events", previews="maybe")
        assert (wrong.status_code, wrong.json()["error"]["message"]) == (400, "previews must be true or false")


async def test_events_of_what_has_ended_are_its_result(api: Any) -> None:
    job = (await api.text2img()).json()["id"]
    assert [name for name, _ in read_events((await get(api, f"/{job}/events")).text)] == ["result"]


async def test_a_cancelled_job_ends_its_events(serve: Serve) -> None:
    async with serve(StubExecutor(held=True), sync_wait_s=0) as api:
        job = (await api.text2img()).json()["id"]
        listening = asyncio.create_task(get(api, f"/{job}/events"))
        await asyncio.sleep(0.05)
        await api.client.delete(f"/v1/jobs/{job}", headers={"key": api.key})
        async with asyncio.timeout(5):
            told = read_events((await listening).text)
        assert (told[-1][0], told[-1][1]["state"]) == ("result", "cancelled")


async def listen(api: Any, job_id: int) -> AsyncIterator[bytes]:
    job = await api.parts.service.get(job_id, "bootstrap")
    return events.tell(api.parts.service, job)


async def test_silence_is_broken_by_heartbeats(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "_LOOK_S", 0.01)
    monkeypatch.setattr(events, "_HEARTBEAT_S", 0.02)
    async with serve(StubExecutor(held=True), sync_wait_s=0) as api:
        stream = await listen(api, (await api.text2img()).json()["id"])
        told = [await anext(stream) for _ in range(4)]
        assert told[0].startswith(b"event: progress\n")
        assert told[-1] == b": still here\n\n"


async def test_a_server_that_shuts_down_ends_the_events(serve: Serve) -> None:
    async with serve(StubExecutor(held=True), sync_wait_s=0) as api:
        stream = await listen(api, (await api.text2img()).json()["id"])
        assert (await anext(stream)).startswith(b"event: progress")
        api.parts.service.drain()
        assert [part async for part in stream] == []


async def test_who_stops_listening_stops_nothing(serve: Serve) -> None:
    async with serve(StubExecutor(held=True), sync_wait_s=0) as api:
        job = (await api.text2img()).json()["id"]
        async for _ in await listen(api, job):
            break
        api.executor.release()
        assert (await api.fetch(job, wait=5)).json()["status"] == "success"
