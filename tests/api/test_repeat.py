"""Records in pictures, and requests that are drawn again by them."""

from __future__ import annotations

import asyncio
import base64
import io
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import fields, replace
from typing import Any

import httpx2
import numpy as np
import orjson
import pytest
from PIL import Image
from safetensors.numpy import save_file

from pipelines.draft import ImageDraft
from pipelines.request import ImageRequest
from server.api.native.repeat import _DECIDED, _SAME
from server.keys import Scope
from server.storage.formats import read_texts

pytestmark = pytest.mark.anyio

Serve = Callable[..., AbstractAsyncContextManager[Any]]


def picture(seed: int = 0) -> str:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (64, 64, 3), np.uint8)).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


async def read(api: Any, link: str) -> dict[str, Any]:
    texts = read_texts(Image.open(io.BytesIO((await api.client.get(link)).content)))
    return texts | {"latentd": orjson.loads(texts["latentd"])}


async def repeat(api: Any, record: dict[str, Any], key: str | None = None, **more: Any) -> httpx2.Response:
    body = {"request": record["request"], "inputs_of": record["job"], **more}
    answer: httpx2.Response = await api.client.post("/v1/jobs", json=body, headers={"key": key or api.key})
    return answer


async def finish(api: Any, answer: httpx2.Response) -> dict[str, Any]:
    assert answer.status_code == 200, answer.text
    for _ in range(1000):
        job: dict[str, Any] = (await api.client.get(f"/v1/jobs/{answer.json()['id']}", headers={"key": api.key})).json()
        if job["state"] == "succeeded":
            return job
        await asyncio.sleep(0.01)
    raise AssertionError(job)


def test_every_value_of_a_request_can_be_said_again() -> None:
    # A new field of requests needs one of the same name in drafts, or a line in ``repeat``.
    names = {field.name for field in fields(ImageRequest)}
    assert names - _SAME - {*_DECIDED} == {"model"}
    assert {*_DECIDED} <= {field.name for field in fields(ImageDraft)}


@pytest.mark.parametrize("output_format", ["png", "jpeg", "webp"])
async def test_pictures_say_how_they_were_drawn(api: Any, output_format: str) -> None:
    asked = {"prompt": "a bridge, 橋", "samples": 2, "seed": 7, "output_format": output_format}
    body = (await api.text2img(**asked, webhook="https://example.com/?secret=s")).json()
    texts = await read(api, body["output"][1])
    assert texts["parameters"].startswith("a bridge, 橋\nSteps: 31, Sampler: Euler, ")
    assert "Seed: 8, Size: 64x64, Model: sd15" in texts["parameters"]
    record = texts["latentd"]
    assert (record["job"], record["request"]["seed"], record["request"]["samples"]) == (body["id"], 8, 1)
    assert api.key not in str(texts) and "secret" not in str(texts)


async def test_they_can_be_told_not_to(serve: Serve) -> None:
    async with serve(picture_parameters=False) as api:
        body = (await api.text2img()).json()
        image = Image.open(io.BytesIO((await api.client.get(body["output"][0])).content))
        assert read_texts(image) == {}


async def test_a_record_is_drawn_again_to_the_value(api: Any) -> None:
    asked = {
        "negative_prompt": "ugly", "seed": 2**63 - 1, "samples": 2, "scheduler": "DPM++ 2M SDE Karras",
        "num_inference_steps": 12, "guidance_scale": 3.25, "clip_skip": 2, "lora_model": "a,b",
        "lora_strength": "0.45,-1",
        "reproducible": "yes",
    }  # fmt: skip
    body = (await api.text2img(**asked)).json()
    record = (await read(api, body["output"][1]))["latentd"]
    job = await finish(api, await repeat(api, record))
    assert (job["request"], job["warnings"]) == (record["request"], [])
    files = [(await api.client.get(link)).content for link in (body["output"][1], job["outputs"][0])]
    old, new = (np.asarray(Image.open(io.BytesIO(data))) for data in files)
    assert np.array_equal(old, new)


async def test_values_no_call_can_say_are_drawn_again_too(api: Any) -> None:
    record = {
        "job": None,
        "request": (await read(api, (await api.text2img()).json()["output"][0]))["latentd"]["request"],
    }
    record["request"] |= {"guidance": 0.0, "negative_prompt": "", "spacing": "trailing", "sigmas": "beta", "prompt": ""}
    job = await finish(api, await repeat(api, record, output_format="webp"))
    assert (job["request"], job["warnings"]) == (record["request"], [])
    assert job["outputs"][0].endswith(".webp")


@pytest.mark.parametrize("task", ["img2img", "inpaint"])
async def test_inputs_are_drawn_from_again(api: Any, task: str) -> None:
    call = {"key": api.key, "model_id": "sd15", "prompt": "x", "init_image": picture(), "mask_image": picture(1)}
    body = (await api.client.post(f"/api/v6/images/{task}", json=call | {"strength": 0.5})).json()
    record = (await read(api, body["output"][0]))["latentd"]
    job = await finish(api, await repeat(api, record))
    assert (job["request"], job["warnings"]) == (record["request"], [])
    assert job["request"]["image"] is not None


async def test_a_picture_that_was_made_larger_is_made_so_again(api: Any) -> None:
    call = {"key": api.key, "init_image": picture(), "scale": 4, "model_id": "RealESRGAN_x4plus"}
    body = (await api.client.post("/api/v6/image_editing/super_resolution", json=call)).json()
    record = (await read(api, body["output"][0]))["latentd"]
    job = await finish(api, await repeat(api, record))
    assert (job["request"], job["warnings"]) == (record["request"], [])
    assert (job["request"]["model"], job["request"]["width"]) == ("upscaler:RealESRGAN_x4plus", 256)
    refusal = await repeat(api, {"job": None, "request": record["request"] | {"image": None}})
    assert refusal.json()["error"]["message"] == "request must have an image"


async def test_inputs_that_are_gone_or_of_others_are_said_to_be_gone(api: Any) -> None:
    call = {"key": api.key, "model_id": "sd15", "prompt": "x", "init_image": picture()}
    body = (await api.client.post("/api/v6/images/img2img", json=call)).json()
    record = (await read(api, body["output"][0]))["latentd"]
    other = await api.parts.keys.add("other", [Scope.GENERATE])
    refusals = [await repeat(api, record, key=other), await repeat(api, {**record, "job": None})]
    await api.parts.inputs.sweep(before=4e9, needed=())
    refusals.append(await repeat(api, record))
    for answer in refusals:
        assert answer.status_code == 404
        assert answer.json()["error"] == {
            "code": "input_gone",
            "message": "An input image of this request is no longer stored.",
        }


async def test_a_vae_is_used_again_as_long_as_it_is_there(api: Any) -> None:
    file = api.parts.settings.data / "vaes" / "soft.safetensors"
    save_file({"decoder.conv_in.weight": np.zeros(4, np.float32)}, file)
    record = (await read(api, (await api.text2img(vae="soft")).json()["output"][0]))["latentd"]
    job = await finish(api, await repeat(api, record))
    assert (job["request"]["vae"], job["warnings"]) == ("soft", [])
    file.unlink()
    job = await finish(api, await repeat(api, record))
    assert job["warnings"] == ["VAE not found: soft: the model's own was used.", "Not as recorded: vae."]


async def test_what_this_server_draws_otherwise_is_named(api: Any) -> None:
    request = replace(
        ImageRequest(model="sd15", prompt="x", width=70, height=64, steps=500, guidance=5, seed=1), safety="blur"
    )
    job = await finish(api, await repeat(api, {"job": None, "request": request.to_json()}))
    assert "width 70 was lowered to 64." in job["warnings"]
    assert job["warnings"][-1] == "Not as recorded: width, steps, safety."


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tomorrow": 1}, "request: this server does not know tomorrow"),
        ({"steps": "many"}, "request: steps = 'many' is not usable"),
        ({"prompt": None}, "request: prompt = None is not usable"),
        ({"seed": -1}, "request must have a seed from 0 to 2^63 - 1"),
        ({"seed": 2**63}, "request must have a seed from 0 to 2^63 - 1"),
        ({"spacing": "wide"}, "request must have a spacing of leading, trailing, linspace"),
        ({"prompt": "x" * 10_001}, "request must have prompts of at most 10000 characters"),
        ({"loras": [["a", 1]] * 17}, "request must have at most 16 LoRAs"),
        ({"embeddings": ["a"] * 17}, "request must have at most 16 embeddings"),
        ({"embeddings": ["a" * 1_001]}, "request must have names of at most 1000 characters"),
        ({"guidance": "nan"}, "request must have finite numbers"),
        ({"loras": [["a", "inf"]]}, "request must have finite numbers"),
        # What another request's second pass starts from goes by such a name.
        ({"image": "0.1.0"}, "request must have images named by their digests"),
        ({"mask": ""}, "request must have images named by their digests"),
        ({"ip_adapter_image": "../x"}, "request must have images named by their digests"),
        ({"model": "nothing"}, "Model not found: nothing"),
    ],
)
async def test_what_is_no_request_is_refused(api: Any, change: dict[str, Any], message: str) -> None:
    request = ImageRequest(model="sd15", prompt="x", width=64, height=64, steps=2, guidance=5, seed=1)
    answer = await repeat(api, {"job": None, "request": request.to_json() | change})
    assert answer.status_code == 400
    assert message in answer.json()["error"]["message"]


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b'{"request": 5}', b'{"request": {}, "output_format": 5}'])
async def test_what_is_no_body_is_refused(api: Any, body: bytes) -> None:
    answer = await api.client.post("/v1/jobs", content=body, headers={"key": api.key})
    assert answer.status_code == 400


async def test_priority_is_not_the_callers_to_choose(api: Any) -> None:
    request = ImageRequest(model="sd15", prompt="x", width=64, height=64, steps=2, guidance=5, seed=1, priority=9)
    job = await finish(api, await repeat(api, {"job": None, "request": request.to_json()}))
    assert (job["request"]["priority"], job["warnings"]) == (0, [])
