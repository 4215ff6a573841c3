"""The files that calls leave: formats, base64, temporary ones; and how they are read."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from server.engine.executors.stub import StubExecutor

pytestmark = pytest.mark.anyio

Serve = Callable[..., AbstractAsyncContextManager[Any]]


def size_of(data: bytes) -> tuple[int, int]:
    image = Image.open(io.BytesIO(data))
    image.load()
    return image.size


@pytest.mark.parametrize(
    ("asked", "ending", "media_type", "kind", "echoed"),
    [
        (None, ".png", "image/png", "PNG", "png"),
        ("PNG", ".png", "image/png", "PNG", "png"),
        ("jpeg", ".jpg", "image/jpeg", "JPEG", "jpeg"),
        ("jpg", ".jpg", "image/jpeg", "JPEG", "jpeg"),
        ("image/webp", ".webp", "image/webp", "WEBP", "webp"),
    ],
)
async def test_pictures_come_in_the_format_asked_for(
    api: Any, asked: str | None, ending: str, media_type: str, kind: str, echoed: str
) -> None:
    body = (await api.text2img(output_format=asked)).json()
    answer = await api.client.get(body["output"][0])
    assert body["output"][0].endswith(ending)
    assert (body["meta"]["output_format"], body["meta"]["file_prefix"].endswith(ending)) == (echoed, True)
    assert (answer.status_code, answer.headers["content-type"]) == (200, media_type)
    assert Image.open(io.BytesIO(answer.content)).format == kind


async def test_a_format_that_is_not_there_is_refused(api: Any) -> None:
    answer = await api.text2img(output_format="gif")
    assert (answer.status_code, answer.json()["message"]) == (400, "output_format must be png, jpeg or webp")


async def test_quality_is_a_setting(serve: Serve) -> None:
    sizes = []
    for quality in (5, 100):
        async with serve(picture_quality=quality) as api:
            body = (await api.text2img(output_format="jpeg", width=256, height=256)).json()
            sizes.append(len((await api.client.get(body["output"][0])).content))
    assert sizes[0] < sizes[1]


@pytest.mark.parametrize("output_format", ["png", "jpeg", "webp"])
async def test_base64_is_links_to_plain_text(api: Any, output_format: str) -> None:
    body = (await api.text2img(base64="yes", output_format=output_format, samples=2)).json()
    assert (len(body["output"]), body["proxy_links"], body["meta"]["base64"]) == (2, body["output"], "yes")
    for link in body["output"]:
        assert link.startswith("http://images.test/generations/") and link.endswith(".base64")
        answer = await api.client.get(link)
        assert answer.headers["content-type"].startswith("text/plain")
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert size_of(base64.b64decode(answer.text, validate=True)) == (64, 64)
        unchanged = await api.client.get(link, headers={"if-none-match": answer.headers["etag"]})
        assert (unchanged.status_code, unchanged.content) == (304, b"")


async def test_base64_links_of_the_future_begin_to_work(serve: Serve) -> None:
    async with serve(StubExecutor(held=True), sync_wait_s=0) as api:
        running = (await api.text2img(base64=True)).json()
        assert (await api.client.get(running["future_links"][0])).status_code == 404
        api.executor.release()
        done = (await api.fetch(running["id"], wait=10)).json()
        assert done["output"] == running["future_links"]
        assert (await api.client.get(done["output"][0])).status_code == 200


async def test_base64_can_be_inline(serve: Serve) -> None:
    async with serve(modelslab={"base64_mode": "inline"}) as api:
        body = (await api.text2img(base64="yes")).json()
        fetched = (await api.fetch(body["id"])).json()
        plain = (await api.text2img()).json()
        assert size_of(base64.b64decode(body["output"][0], validate=True)) == (64, 64)
        assert fetched == body
        assert (await api.client.get(body["proxy_links"][0])).text == body["output"][0]
        assert plain["output"][0].endswith(".png")


async def test_temporary_pictures_have_their_own_path(api: Any) -> None:
    body = (await api.text2img(temp="yes")).json()
    link = body["output"][0]
    answer = await api.client.get(link)
    assert link.startswith("http://images.test/temp/0-")
    assert (body["meta"]["temp"], f"0-{body['meta']['file_prefix']}") == ("yes", link.rpartition("/")[2])
    assert (answer.status_code, size_of(answer.content)) == (200, (64, 64))
    assert "max-age=3600" in answer.headers["cache-control"]
    assert (await api.client.get(link.replace("/temp/", "/generations/"))).status_code == 404
    text = (await api.text2img(temp="yes", base64="yes")).json()["output"][0]
    assert text.startswith("http://images.test/temp/")
    assert (await api.client.get(text)).status_code == 200


async def test_a_flag_that_is_neither_yes_nor_no_is_refused_in_the_documented_words(api: Any) -> None:
    answer = await api.text2img(temp="perhaps")
    assert answer.json()["message"] == "The temp field must be true or false"


async def test_full_url_is_what_links_always_are(api: Any) -> None:
    body = (await api.text2img(full_url="yes")).json()
    assert ("warning" in body, body["meta"]["full_url"]) == (False, "yes")


# Reading files


@pytest.fixture
async def picture(api: Any) -> tuple[str, bytes]:
    link = (await api.text2img()).json()["output"][0]
    return link, (await api.client.get(link)).content


async def test_a_part_of_a_file_can_be_had(api: Any, picture: tuple[str, bytes]) -> None:
    link, data = picture
    for text, part in (("bytes=0-7", data[:8]), ("bytes=8-", data[8:]), ("bytes=-4", data[-4:])):
        answer = await api.client.get(link, headers={"range": text})
        start = len(data) - len(part) if text != "bytes=0-7" else 0
        assert (answer.status_code, answer.content, answer.headers["content-type"]) == (206, part, "image/png")
        assert answer.headers["content-range"] == f"bytes {start}-{start + len(part) - 1}/{len(data)}"
        assert answer.headers["content-length"] == str(len(part))


async def test_a_part_that_is_not_there_cannot(api: Any, picture: tuple[str, bytes]) -> None:
    link, data = picture
    answer = await api.client.get(link, headers={"range": f"bytes={len(data)}-"})
    assert (answer.status_code, answer.headers["content-range"]) == (416, f"bytes */{len(data)}")
    assert answer.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize(
    "headers", [{"range": "pages=1-2"}, {"range": "bytes=0-1,4-5"}, {"range": "bytes=0-1", "if-range": '"other"'}]
)
async def test_what_is_no_part_of_this_file_is_answered_with_all_of_it(
    api: Any, picture: tuple[str, bytes], headers: dict[str, str]
) -> None:
    answer = await api.client.get(picture[0], headers=headers)
    assert (answer.status_code, answer.content) == (200, picture[1])


async def test_a_file_is_sent_once(api: Any, picture: tuple[str, bytes]) -> None:
    first = await api.client.get(picture[0])
    assert first.headers["accept-ranges"] == "bytes"
    for headers in (
        {"if-none-match": first.headers["etag"]},
        {"if-modified-since": first.headers["last-modified"]},
    ):
        again = await api.client.get(picture[0], headers=headers)
        assert (again.status_code, again.content) == (304, b"")
        assert (again.headers["etag"], "immutable" in again.headers["cache-control"]) == (first.headers["etag"], True)
    part = await api.client.get(picture[0], headers={"range": "bytes=0-3", "if-range": first.headers["etag"]})
    assert part.status_code == 206


async def test_head_tells_the_size_and_sends_nothing(api: Any, picture: tuple[str, bytes]) -> None:
    answer = await api.client.head(picture[0], headers={"range": "bytes=0-3"})
    assert (answer.status_code, answer.content) == (200, b"")
    assert answer.headers["content-length"] == str(len(picture[1]))
    assert answer.headers["content-type"] == "image/png"


@pytest.mark.parametrize("name", ["..%2fapi_key", "%2e%2e/api_key", "temp/../../api_key", ".base64", "0-..base64"])
@pytest.mark.parametrize("folder", ["generations", "temp"])
async def test_nothing_else_can_be_read(api: Any, tmp_path: Path, folder: str, name: str) -> None:
    (tmp_path / "api_key").write_text("secret")
    answer = await api.client.get(f"/{folder}/{name}")
    assert answer.status_code == 404
    assert "secret" not in answer.text


# Expiry


@pytest.mark.parametrize(
    ("settings", "status", "word"),
    [({}, 404, "error"), ({"failed_status": "failed"}, 404, "failed"), ({"legacy_http_200": True}, 200, "error")],
)
async def test_a_job_whose_pictures_were_deleted_says_so(
    serve: Serve, settings: dict[str, object], status: int, word: str
) -> None:
    async with serve(modelslab=settings, max_storage_gb=1e-9) as api:
        body = (await api.text2img()).json()
        await api.parts.janitor.sweep()
        fetched = await api.fetch(body["id"])
        assert (fetched.status_code, fetched.json()["status"], fetched.json()["id"]) == (status, word, body["id"])
        assert fetched.json()["message"] == "The images of this request have expired and were deleted."
        assert (await api.client.get(body["output"][0])).status_code == 404
        own = (await api.client.get(f"/v1/jobs/{body['id']}", headers={"x-api-key": api.key})).json()
        assert (own["state"], own["outputs"], own["error"]["code"]) == ("expired", [], "expired")
