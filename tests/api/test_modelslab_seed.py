"""The API's own OpenAPI document as a test: our answers fit it, and whatever it lets clients send is drawn."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest

from pipelines.errors import NonFinite
from server.engine.executors.stub import StubExecutor

jsonschema = pytest.importorskip("jsonschema")

Serve = Callable[..., AbstractAsyncContextManager[Any]]

pytestmark = pytest.mark.anyio

#: Published by ModelsLab under the MIT licence.
DOCUMENT = json.loads((Path(__file__).parent / "modelslab_openapi.json").read_text())
SCHEMAS = DOCUMENT["components"]["schemas"]
#: The page's own examples, which its schema refuses: nulls, "no", more steps than 20.
EXAMPLES: list[dict[str, Any]] = [
    {
        "model_id": "flux",
        "prompt": "ultra realistic close up portrait ((beautiful pale cyberpunk female with heavy black eyeliner)), "
        "blue eyes, shaved side haircut, hyper detail, cinematic lighting, magic neon, dark red city, Canon EOS R3, "
        "nikon, f/1.4, ISO 200, 1/160s, 8K, RAW, unedited, symmetrical balance, in-frame, 8K",
        "negative_prompt": "blurry, low quality, distorted, deformed",
        "width": 512,
        "height": 512,
        "samples": 1,
        "num_inference_steps": 31,
        "safety_checker": "no",
        "seed": None,
        "guidance_scale": 7.5,
        "clip_skip": 2,
        "webhook": None,
        "track_id": None,
    },
    {
        "model_id": "flux",
        "prompt": "ultra realistic portrait of a cyberpunk woman, blue eyes, cinematic lighting, 8K",
        "negative_prompt": "blurry, low quality, distorted",
        "width": 512,
        "height": 512,
        "samples": 1,
        "num_inference_steps": 31,
        "guidance_scale": 7.5,
    },
]


def check(answer: Any, name: str) -> None:
    """Whole, formats included, against one of the document's schemas."""
    schema = {**SCHEMAS[name], "components": DOCUMENT["components"]}
    jsonschema.validate(answer, schema, format_checker=jsonschema.FormatChecker())


def values(name: str, schema: dict[str, Any]) -> Iterator[object]:
    """Default, extremes and every word of a property, and one value where it says nothing."""
    if "$ref" in schema:
        schema = SCHEMAS[schema["$ref"].rpartition("/")[2]]
    found = [schema[key] for key in ("default", "minimum", "maximum") if key in schema] + schema.get("enum", [])
    if schema.get("type") == "boolean":
        found += [True, False]
    if schema.get("nullable") or name == "seed":
        found += [None]
    if schema.get("format") == "uri":
        found += ["https://example.com/a"]
    yield from found or [1 if schema.get("type") == "integer" else "a"]


REQUEST = SCHEMAS["CommonImageGenerationParams"]["properties"] | SCHEMAS["TextToImageRequest"]["properties"]
SENT = [
    (name, value)
    for name, schema in REQUEST.items()
    # The picture comes along below: one at example.com would have to be fetched.
    if name not in ("key", "model_id", "ip_adapter_image")
    for value in values(name, schema)
]
#: 2 x 2 pixels, black: an IP-Adapter means nothing without.
PIXELS = "iVBORw0KGgoAAAANSUhEUgAAAAIAAAACCAIAAAD91JpzAAAAC0lEQVR4nGNgQAYAAA4AAamRc7EAAAAASUVORK5CYII="


@pytest.mark.parametrize("example", EXAMPLES)
async def test_the_pages_own_examples_succeed(api: Any, example: dict[str, Any]) -> None:
    answer = await api.client.post("/api/v6/images/text2img", json={"key": api.key, **example})
    assert answer.json()["status"] == "success"
    check(answer.json(), "ImageGenerationSuccessResponse")


async def test_a_processing_answer_fits(serve: Serve) -> None:
    async with serve(StubExecutor(held=True), sync_wait_s=0) as api:
        answer = (await api.text2img(webhook="https://example.com/a", track_id="x")).json()
        check(answer, "ImageGenerationProcessingResponse")
        assert set(answer) >= set(SCHEMAS["ImageGenerationProcessingResponse"]["properties"])


async def test_error_answers_fit(serve: Serve) -> None:
    async with serve(StubExecutor(held=True), sync_wait_s=0, max_queued_jobs_per_key=1) as api:
        await api.text2img()
        refused = [
            await api.text2img(),
            await api.text2img(prompt=""),
            await api.text2img(key="wrong"),
            await api.text2img(model_id="nothing"),
            await api.fetch(1),
        ]
    async with serve() as api:
        api.executor.fail_next(NonFinite("The image became NaN."))
        refused.append(await api.text2img())
    assert [one.status_code for one in refused] == [429, 400, 401, 400, 404, 500]
    for one in refused:
        check(one.json(), "ImageGenerationErrorResponse")


async def test_every_value_that_the_document_allows_is_drawn(api: Any) -> None:
    refused = {}
    for name, value in SENT:
        along = {"ip_adapter_image": PIXELS} if name == "ip_adapter_id" else {}
        if "sdxl" in str(value):
            # There is no SDXL model here; Flux has no adapters, and names them in its warning.
            along["model_id"] = "flux"
        answer = await api.text2img(**{name: value}, **along)
        if answer.status_code != 200 or answer.json()["status"] not in ("success", "processing"):
            refused[name, value] = answer.text
        else:
            check(answer.json(), "ImageGenerationSuccessResponse")
    assert len(SENT) > 70
    assert refused == {}


# Our own document


async def test_our_document_has_every_field_and_its_examples_fit(api: Any) -> None:
    document = (await api.client.get("/openapi.json", params={"key": api.key})).json()
    post = document["paths"]["/api/v6/images/text2img"]["post"]
    body = post["requestBody"]["content"]["application/json"]
    ours = body["schema"]["properties"]
    assert (ours["guidance_scale"]["minimum"], ours["guidance_scale"]["maximum"]) == (1, 20)
    for path, operations in document["paths"].items():
        for operation in operations.values():
            content = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
            if path.startswith("/api/") and content:
                jsonschema.Draft202012Validator.check_schema(content["schema"])
                jsonschema.validate(content.get("example", {"request_id": 1} | _least(content)), content["schema"])


def _least(content: dict[str, Any]) -> dict[str, str]:
    return dict.fromkeys(content["schema"].get("required", ()), "x")


@pytest.mark.parametrize("example", EXAMPLES)
async def test_our_document_allows_the_pages_own_examples(api: Any, example: dict[str, Any]) -> None:
    document = (await api.client.get("/openapi.json", params={"key": api.key})).json()
    post = document["paths"]["/api/v6/images/text2img"]["post"]
    jsonschema.validate(example, post["requestBody"]["content"]["application/json"]["schema"])


async def test_our_answers_fit_our_document(serve: Serve) -> None:
    async with serve(StubExecutor(held=True), sync_wait_s=0) as api:
        document = (await api.client.get("/openapi.json", params={"key": api.key})).json()
        responses = document["paths"]["/api/v6/images/text2img"]["post"]["responses"]
        processing = (await api.text2img()).json()
        api.executor.release()
        success = (await api.fetch(processing["id"], wait=5)).json()
        refused = (await api.text2img(prompt=None)).json()
    for answer, status in ((processing, "200"), (success, "200"), (refused, "400")):
        jsonschema.validate(answer, responses[status]["content"]["application/json"]["schema"])
