"""ModelsLab's img2img and inpaint: pictures in every form, sizes, strength, and what is refused."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import io
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import httpx2
import pytest
from PIL import Image

from pipelines.request import Task

pytestmark = pytest.mark.anyio

Serve = Callable[..., AbstractAsyncContextManager[Any]]
SMALL = {"model_id": "sd15", "prompt": "a red bridge", "num_inference_steps": 10}


def picture(size: tuple[int, int] = (96, 80), colour: str = "red", kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, kind)
    return buffer.getvalue()


def text(data: bytes) -> str:
    return base64.b64encode(data).decode()


IMAGE, MASK = text(picture()), text(picture(colour="white"))


async def call(api: Any, path: str, **fields: Any) -> httpx2.Response:
    answer: httpx2.Response = await api.client.post(f"/api/v6/images/{path}", json={"key": api.key, **SMALL, **fields})
    return answer


async def img2img(api: Any, **fields: Any) -> dict[str, Any]:
    answer = await call(api, "img2img", **{"init_image": IMAGE, **fields})
    assert (answer.status_code, answer.json()["status"]) == (200, "success")
    body: dict[str, Any] = answer.json()
    return body


async def inpaint(api: Any, **fields: Any) -> dict[str, Any]:
    answer = await call(api, "inpaint", **{"init_image": IMAGE, "mask_image": MASK, **fields})
    assert (answer.status_code, answer.json()["status"]) == (200, "success")
    body: dict[str, Any] = answer.json()
    return body


async def refusal(api: Any, path: str, **fields: Any) -> tuple[int, str, dict[str, list[str]]]:
    answer = await call(api, path, **fields)
    body = answer.json()
    assert (body["status"], body["messege"], body["output"]) == ("error", body["message"], [])
    assert "id" not in body
    return answer.status_code, body["message"], body.get("errors", {})


@asynccontextmanager
async def gallery(answers: dict[str, bytes]) -> AsyncIterator[tuple[str, list[str]]]:
    """A web server on the loopback: its address, and the paths that were asked for. A value may be a redirect."""
    asked: list[str] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        path = (await reader.readuntil(b"\r\n\r\n")).decode().split(" ", 2)[1]
        asked.append(path)
        body = answers.get(path)
        if body is None:
            writer.write(b"HTTP/1.0 404 Not Found\r\n\r\ninternal details")
        elif body.startswith(b"http://"):
            writer.write(b"HTTP/1.0 302 Found\r\nLocation: " + body + b"\r\n\r\n")
        else:
            writer.write(b"HTTP/1.0 200 OK\r\n\r\n" + body)
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", asked


def asked_size(api: Any) -> tuple[int, int]:
    request = api.executor.requests[-1]
    return request.width, request.height


# Pictures


async def test_img2img_starts_from_the_stored_picture(api: Any) -> None:
    body = await img2img(api, negative_prompt="blurry", strength=0.5, seed=3, samples=2, track_id=7)
    request = api.executor.requests[-1]
    assert (request.task, request.mask, request.strength) == (Task.IMG2IMG, None, 0.5)
    assert (request.prompt, request.negative_prompt, request.seed, request.samples) == ("a red bridge", "blurry", 3, 2)
    pixels = api.parts.inputs.read(request.image)
    assert pixels.shape == (80, 96, 3) and pixels[0, 0].tolist() == [255, 0, 0]
    assert (body["meta"]["init_image"], body["meta"]["strength"], body["track_id"]) == ("base64", 0.5, 7)
    assert "mask_image" not in body["meta"] and "warning" not in body
    assert len(body["output"]) == 2


async def test_inpaint_repaints_by_the_stored_mask(api: Any) -> None:
    body = await inpaint(api)
    request = api.executor.requests[-1]
    assert (request.task, request.strength) == (Task.INPAINT, 0.7)
    assert api.parts.inputs.read(request.mask).min() == 255
    meta = body["meta"]
    assert [meta[key] for key in ("init_image", "mask_image", "strength")] == ["base64", "base64", 0.7]
    assert "warning" not in body


async def test_text2img_has_neither(api: Any) -> None:
    meta = (await api.text2img()).json()["meta"]
    assert not {"init_image", "mask_image", "strength"} & set(meta)


@pytest.mark.parametrize(
    "source",
    [
        IMAGE,
        f"data:image/png;base64,{IMAGE}",
        [IMAGE],
        [None, "", f"data:;base64,{IMAGE}"],
        text(picture(kind="WEBP")),
        text(picture(kind="JPEG")),
        IMAGE.replace("+", "-").replace("/", "_").rstrip("="),
    ],
)
async def test_a_picture_may_be_sent_in_any_form(api: Any, source: object) -> None:
    for fields in ({"init_image": source}, {"init_image": None, "image": source}):
        body = await img2img(api, **fields)
        assert (body["meta"]["W"], body["meta"]["H"]) == (96, 80)
        assert body["meta"]["init_image"] == "base64"


async def test_of_several_pictures_the_first_is_used_and_the_others_are_named(api: Any) -> None:
    body = await img2img(api, init_image=[IMAGE, MASK], init_image_2=MASK, mask_image=MASK)
    assert body["warning"] == "Not applied: init_image_2, mask_image, init_image after the first."


async def test_a_form_may_bring_pictures(api: Any) -> None:
    fields = {"key": api.key, **SMALL, "init_image": IMAGE, "strength": "0.25"}
    answers = [
        await api.client.post("/api/v6/images/img2img", data=fields),
        await api.client.post("/api/v6/images/img2img", data=fields, files={"extra": ("x.bin", b"\0")}),
    ]
    assert [answer.json()["meta"]["strength"] for answer in answers] == [0.25, 0.25]


async def test_urls_are_fetched_and_echoed(serve: Serve) -> None:
    async with (
        gallery({"/a.png?token=1": picture((64, 128)), "/m": picture(colour="white")}) as (site, asked),
        serve(allow_private_hosts=("127.0.0.1",)) as api,
    ):
        body = await inpaint(api, init_image=f"{site}/a.png?token=1", mask_image=[f" {site}/m "])
        assert sorted(asked) == ["/a.png?token=1", "/m"]
        assert (body["meta"]["W"], body["meta"]["H"]) == (64, 128)
        assert body["meta"]["init_image"] == f"{site}/a.png?token=1"
        assert api.parts.inputs.read(api.executor.requests[-1].image).shape == (128, 64, 3)


async def test_a_job_is_stored_without_its_pictures(api: Any) -> None:
    body = await img2img(api, init_image=text(picture((64, 64), "blue", "JPEG")))
    job = await api.parts.jobs.get(body["id"])
    assert job is not None and len(repr(job)) < 2_000
    fetched = (await api.fetch(body["id"])).json()
    assert fetched["meta"] == body["meta"]


async def test_pictures_are_stored_before_the_job_is_acknowledged(api: Any) -> None:
    api.executor.hold()
    answer = await call(api, "img2img", init_image=IMAGE, instant_response="yes")
    body = answer.json()
    assert (answer.status_code, body["status"], body["meta"]["init_image"]) == (200, "processing", "base64")
    stored = list((api.parts.settings.data / "inputs").iterdir())
    assert [file.name for file in stored] == [f"{hashlib.sha256(stored[0].read_bytes()).hexdigest()}.png"]
    api.executor.release()
    assert (await api.fetch(body["id"], wait=10)).json()["status"] == "success"


# What is refused

UNABLE = "Unable to fetch image from provided URL"


@pytest.mark.parametrize("value", [None, "", " ", [], [None, ""]])
async def test_pictures_are_required(api: Any, value: object) -> None:
    required = (400, "init_image is required", {"init_image": ["The init_image field is required."]})
    assert await refusal(api, "img2img", init_image=value) == required
    assert await refusal(api, "inpaint", init_image=value, mask_image=MASK) == required
    assert (await refusal(api, "inpaint", init_image=IMAGE, mask_image=value))[1] == "mask_image is required"


@pytest.mark.parametrize("value", [5, True, {"url": "x"}, [5], [[IMAGE]]])
async def test_a_picture_is_a_string(api: Any, value: object) -> None:
    assert (await refusal(api, "img2img", init_image=value))[:2] == (400, "init_image must be a string")


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1/a.png",
        "http://localhost:8000/a.png",
        "http://169.254.169.254/latest/meta-data/",
        "http://0x7f.1/",
        "http://[::ffff:127.0.0.1]/",
        "http://user:pass@10.0.0.1/",
        "https://8.8.8.8:22/",
        "file:///etc/passwd",
        "ftp://example.com/a.png",
        "http://",
    ],
)
async def test_private_and_odd_addresses_are_never_fetched(api: Any, url: str) -> None:
    assert await refusal(api, "img2img", init_image=url) == (400, UNABLE, {"init_image": [UNABLE]})
    assert await refusal(api, "inpaint", init_image=IMAGE, mask_image=url) == (400, UNABLE, {"mask_image": [UNABLE]})


async def test_missing_unreachable_and_forbidden_pictures_read_the_same(serve: Serve) -> None:
    async with gallery({"/secret.png": picture()}) as (inside, seen), gallery({}) as (outside, _):
        port = outside.rpartition(":")[2]
        async with gallery({"/hop": f"{inside}/secret.png".encode()}) as (hop, _):
            allowed = (f"127.0.0.1:{port}", f"127.0.0.1:{hop.rpartition(':')[2]}")
            async with serve(allow_private_hosts=allowed) as api:
                for url in (f"{outside}/none.png", f"{hop}/hop", f"{inside}/secret.png", "http://127.0.0.1:1/a.png"):
                    assert await refusal(api, "img2img", init_image=url) == (400, UNABLE, {"init_image": [UNABLE]})
        assert seen == []


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("not a picture!", "The picture is neither a URL nor base64."),
        (text(b"GIF89a"), "The file is no PNG, JPEG or WebP picture."),
        (text(picture()[:-30]), "The picture is damaged or truncated."),
        ("data:image/png;base64", "The data URI holds no data."),
    ],
)
async def test_what_is_no_picture_is_refused_with_its_reason(api: Any, source: str, message: str) -> None:
    text = f"init_image: {message}"
    assert await refusal(api, "img2img", init_image=source) == (400, text, {"init_image": [text]})
    assert (await refusal(api, "inpaint", init_image=IMAGE, mask_image=source))[1] == f"mask_image: {message}"


async def test_nothing_is_fetched_for_a_call_that_cannot_be_drawn(serve: Serve) -> None:
    async with gallery({"/a": picture()}) as (site, asked), serve(allow_private_hosts=("127.0.0.1",)) as api:
        for fields in ({"model_id": "none"}, {"strength": "much"}, {"webhook": "http://10.0.0.1/"}, {"key": "wrong"}):
            assert (await refusal(api, "img2img", **{"init_image": f"{site}/a", **fields}))[0] in (400, 401)
        assert asked == []


async def test_a_body_longer_than_the_limit_is_refused(api: Any) -> None:
    assert (await refusal(api, "img2img", init_image="A" * 300_000))[0] == 413


# Sizes and strength


async def test_img2img_keeps_the_pictures_size(api: Any) -> None:
    for fields in ({}, {"width": None, "height": ""}):
        await img2img(api, **fields)
        assert asked_size(api) == (96, 80)


async def test_img2img_takes_width_and_height_together_only(api: Any) -> None:
    assert "warning" not in await img2img(api, width=128, height="64")
    assert asked_size(api) == (128, 64)
    body = await img2img(api, width=128)
    assert (asked_size(api), body["warning"]) == ((96, 80), "width 128 was not used: it needs the other side.")


async def test_inpaint_takes_each_side_for_itself(api: Any) -> None:
    for fields, size in (({}, (96, 80)), ({"width": 128}, (128, 80)), ({"width": 128, "height": 64}, (128, 64))):
        assert "warning" not in await inpaint(api, **fields)
        assert asked_size(api) == size


@pytest.mark.parametrize(
    ("model", "size", "used"),
    [
        ("sd15", (100, 90), (96, 88)),
        ("flux", (100, 90), (96, 80)),
        ("sd15", (4096, 1024), (1024, 256)),
        ("sd15", (1, 1), (64, 64)),
        ("sd15", (1, 4000), (64, 1024)),
    ],
)
async def test_a_size_that_does_not_fit_is_scaled_and_named(
    api: Any, model: str, size: tuple[int, int], used: tuple[int, int]
) -> None:
    body = await img2img(api, model_id=model, init_image=text(picture(size)))
    assert asked_size(api) == used == (body["meta"]["W"], body["meta"]["H"])
    assert body["warning"] == f"The input's size {size[0]} x {size[1]} was changed to {used[0]} x {used[1]}."


@pytest.mark.parametrize(
    ("asked", "used", "warning"),
    [
        ({}, 0.7, None),
        ({"strength": ""}, 0.7, None),
        ({"strength": "0.35"}, 0.35, None),
        ({"prompt_strength": 0.4}, 0.4, None),
        ({"strength": 0.3, "prompt_strength": 0.4}, 0.3, None),
        ({"strength": 1}, 1.0, None),
        ({"strength": 7}, 1.0, "strength 7 was lowered to 1."),
        ({"strength": 0}, 0.1, "strength 0 was raised to 0.1."),
        ({"strength": -1}, 0.1, "strength -1 was raised to 0.1."),
        ({"strength": 0.05}, 0.1, "strength 0.05 was raised to 0.1."),
    ],
)
async def test_strength_draws_one_step_at_least(
    api: Any, asked: dict[str, Any], used: float, warning: str | None
) -> None:
    body = await img2img(api, **asked)
    assert (body["meta"]["strength"], body.get("warning")) == (used, warning)
    assert api.executor.requests[-1].strength == used


async def test_a_prompt_may_be_left_out(api: Any) -> None:
    assert (await img2img(api, prompt=None))["meta"]["prompt"] == ""
    assert (await inpaint(api, prompt=""))["meta"]["prompt"] == ""


async def test_the_schemas_of_all_three_are_in_openapi(api: Any) -> None:
    paths = (await api.client.get("/openapi.json", headers={"key": api.key})).json()["paths"]
    required = {
        path.rpartition("/")[2]: paths[path]["post"]["requestBody"]["content"]["application/json"]["schema"]["required"]
        for path in (f"/api/v6/images/{task}" for task in Task)
    }
    assert required == {
        "text2img": ["prompt"],
        "img2img": ["init_image"],
        "inpaint": ["init_image", "mask_image"],
    }
