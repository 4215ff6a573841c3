"""What cannot be drawn is refused in ModelsLab's own shape: a 4xx, never a 422, never a 5xx."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import httpx2
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from server.keys import Scope

pytestmark = pytest.mark.anyio

TEXT2IMG = "/api/v6/images/text2img"
Serve = Callable[..., AbstractAsyncContextManager[Any]]


def check_error(answer: httpx2.Response, status: int, message: str) -> dict[str, Any]:
    body: dict[str, Any] = answer.json()
    assert (answer.status_code, body["message"]) == (status, message)
    assert (body["status"], body["messege"], body["output"]) == ("error", message, [])
    assert "id" not in body and "detail" not in body
    return body


@pytest.mark.parametrize("prompt", [None, "", "   "])
async def test_a_prompt_is_required(api: Any, prompt: str | None) -> None:
    body = check_error(await api.text2img(prompt=prompt), 400, "prompt is required")
    assert body["errors"] == {"prompt": ["The prompt field is required."]}


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("prompt", 5, "prompt must be a string"),
        ("prompt", ["a"], "prompt must be a string"),
        ("prompt", {"a": 1}, "prompt must be a string"),
        ("prompt", "x" * 100_000, "prompt must be at most 10000 characters long"),
        ("negative_prompt", 5, "negative_prompt must be a string"),
        ("model_id", 5, "model_id must be a string"),
        ("width", "wide", "width must be a number"),
        ("width", [64], "width must be a number"),
        ("width", True, "width must be a number"),
        ("height", "nan", "height must be a number"),
        ("height", 10**30, "height is out of range"),
        ("height", "9" * 300, "height is out of range"),
        ("height", "9" * 5000, "height must be a number"),
        ("samples", {}, "samples must be a number"),
        ("num_inference_steps", "inf", "num_inference_steps must be a number"),
        ("steps", -(2**63), "num_inference_steps is out of range"),
        ("guidance_scale", "1e400", "guidance_scale must be a number"),
        ("guidance_scale", "NaN", "guidance_scale must be a number"),
        ("guidance_scale", False, "guidance_scale must be a number"),
        ("seed", 2**63, "seed must be less than 2^63"),
        ("seed", str(2**64), "seed must be less than 2^63"),
        ("seed", 10**40, "seed must be less than 2^63"),
        ("seed", [1], "seed must be an integer"),
        ("scheduler", 7, "scheduler must be a string"),
        ("scheduler", "e" * 2000, "scheduler must be at most 1000 characters long"),
        ("use_karras_sigmas", "perhaps", "The use_karras_sigmas field must be true or false"),
        ("reproducible", [], "The reproducible field must be true or false"),
        ("instant_response", 7, "The instant_response field must be true or false"),
        ("track_id", {"a": 1}, "track_id must be a string"),
        ("track_id", "x" * 1001, "track_id must be at most 1000 characters long"),
        ("webhook", 5, "webhook must be a string"),
        ("webhook", "ftp://a/b", "webhook: The URL must begin with http:// or https://"),
        ("webhook", "http://127.0.0.1/x", "webhook: The address in the URL cannot be reached: 127.0.0.1"),
        ("webhook", "http://169.254.169.254/", "webhook: The address in the URL cannot be reached: 169.254.169.254"),
        ("webhook", "not a url", "webhook: The URL must begin with http:// or https://"),
        ("model_id", "nothing", "Model not found: nothing"),
        ("model_id", "../../etc/passwd", "Model not found: ../../etc/passwd"),
    ],
)
async def test_a_field_that_cannot_be_used_is_named(api: Any, field: str, value: object, message: str) -> None:
    check_error(await api.text2img(**{field: value}), 400, message)
    assert api.executor.requests == []


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"{", "not valid JSON"),
        (b"not json", "not valid JSON"),
        (b'{"seed": NaN}', "not valid JSON"),
        (b'{"guidance_scale": Infinity}', "not valid JSON"),
        (b'{"guidance_scale": 1e999}', "not valid JSON"),
        (b'{"prompt": "\\ud800"}', "not valid JSON"),
        (b'{"prompt": "\xff"}', "not valid JSON"),
        (b'{"a": ' + b"[" * 50_000 + b"]" * 50_000 + b"}", "not valid JSON"),
        (b"[]", "not a JSON object"),
        (b'["key", "prompt"]', "not a JSON object"),
        (b"null", "not a JSON object"),
        (b"5", "not a JSON object"),
        (b'"prompt"', "not a JSON object"),
    ],
)
async def test_a_body_that_is_no_object_is_refused(api: Any, body: bytes, reason: str) -> None:
    for kind in ("application/json", "text/plain", ""):
        answer = await api.client.post(TEXT2IMG, content=body, headers={"key": api.key, "content-type": kind})
        error = check_error(answer, 400, f"Invalid API Request: the body is {reason}.")
        assert "JSON" in error["tip"]


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"--x\r\nbroken", "multipart/form-data; boundary=x"),
        (b"anything", "multipart/form-data"),
        (b"&".join(b"a%d=1" % number for number in range(2000)), "application/x-www-form-urlencoded"),
    ],
)
async def test_a_broken_form_is_refused(api: Any, content: bytes, kind: str) -> None:
    answer = await api.client.post(TEXT2IMG, content=content, headers={"key": api.key, "content-type": kind})
    assert (answer.status_code, answer.json()["status"]) == (400, "error")


async def test_a_body_that_is_too_long_is_not_read(api: Any) -> None:
    async def drip() -> Any:
        while True:
            yield b" " * 100_000

    limit = api.parts.settings.max_body_bytes
    for content in (b"{" + b" " * limit, drip()):
        answer = await api.client.post(TEXT2IMG, content=content)
        check_error(answer, 413, f"The request body is larger than {limit} bytes.")


async def test_keys_are_asked_for_and_checked(api: Any) -> None:
    check_error(await api.text2img(key=None), 401, "API key required")
    check_error(await api.client.post(TEXT2IMG), 401, "API key required")
    for wrong in ("wrong", 12345, "x" * 5000, "ltd_" + "0" * 49, "\x00"):
        check_error(await api.text2img(key=wrong), 401, "Invalid API key")


async def test_a_key_needs_the_scope(api: Any) -> None:
    admin = await api.parts.keys.add("operator", [Scope.ADMIN])
    check_error(await api.text2img(key=admin), 403, "This API key lacks the scope generate.")


async def test_a_revoked_key_is_refused(api: Any) -> None:
    key = await api.parts.keys.add("guest")
    assert (await api.text2img(key=key)).status_code == 200
    (listed,) = await api.parts.keys.list()
    await api.parts.keys.revoke(listed.id)
    check_error(await api.text2img(key=key), 401, "Invalid API key")


async def test_foreign_unknown_and_malformed_ids_get_the_same_answer(api: Any) -> None:
    mine = (await api.text2img()).json()["id"]
    stranger = await api.parts.keys.add("stranger")
    foreign = await api.fetch(mine, key=stranger)
    body = check_error(foreign, 404, "Request not found")
    for malformed in (mine + 1, "x", "-1", 2**63, 2**64, "9" * 400, 1.5, [mine], {"a": 1}, True, "１２"):
        answer = await api.fetch(malformed)
        assert (answer.status_code, answer.json()) == (404, body)
    for path in ("1", "x", "9" * 400, "%00", "-1", "undefined"):
        answer = await api.client.get(f"/api/v6/images/fetch/{path}", params={"key": api.key})
        assert (answer.status_code, answer.json()) == (404, body)


async def test_a_fetch_without_an_id_is_refused(api: Any) -> None:
    check_error(await api.fetch(None), 400, "request_id is required")


async def test_legacy_mode_refuses_with_200(serve: Serve) -> None:
    async with serve(modelslab={"legacy_http_200": True}) as api:
        check_error(await api.text2img(prompt=""), 200, "prompt is required")
        check_error(await api.text2img(key="wrong"), 200, "Invalid API key")
        check_error(await api.client.get("/api/v6/nothing"), 200, "Not found")


async def test_strict_sizes_are_refused_instead_of_rounded(serve: Serve) -> None:
    async with serve(modelslab={"strict_sizes": True}) as api:
        check_error(await api.text2img(width=100), 400, "width must be between 256 and 1024")
        check_error(await api.text2img(width=256, height=260), 400, "height must be divisible by 8")


async def test_unknown_paths_and_methods_answer_in_shape(api: Any) -> None:
    for path in ("/api", "/api/v6/images/nothing", "/api/v9/x", "/api/wallet_balance/x", "/api/Unknown"):
        check_error(await api.client.post(path, json={"key": api.key}), 404, "Not found")
    refused = await api.client.delete(TEXT2IMG)
    check_error(refused, 405, "Method not allowed")
    assert refused.headers["allow"] == "POST"


async def test_a_crash_of_ours_tells_nothing(api: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    async def explode(*_: object, **__: object) -> None:
        raise RuntimeError("/srv/secret")

    monkeypatch.setattr(api.parts.jobs, "add", explode)
    check_error(await api.text2img(), 500, "Internal server error. Please try again.")


_WORDS = st.sampled_from(["yes", "1e9", ""])
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | _WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
_NAMES = """prompt negative_prompt model_id width height samples num_inference_steps guidance_scale seed scheduler
    use_karras_sigmas algorithm_type clip_skip lora_model lora_strength upscale webhook track_id safety_checker vae W
    instant_response base64 request_id id wait reproducible highres_fix embeddings_model""".split()
_BODIES = st.dictionaries(st.sampled_from(_NAMES), _JSON, max_size=8) | _JSON


def test_arbitrary_bodies_are_answered_in_shape(serve: Serve) -> None:
    with asyncio.Runner() as runner:
        serving = serve(sync_wait_s=0.0, max_queued_jobs_per_key=10**6)
        api = runner.run(serving.__aenter__())

        @settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck), database=None)
        @given(_BODIES, st.booleans())
        def fuzz(body: object, with_prompt: bool) -> None:
            if with_prompt and isinstance(body, dict):
                body = {"width": 64, "height": 64, "prompt": "x", **body}
            content = json.dumps(body).encode()
            for path in (TEXT2IMG, "/api/v6/images/fetch"):
                answer = runner.run(api.client.post(path, content=content, headers={"key": api.key}))
                check_shape(answer)

        fuzz()
        runner.run(serving.__aexit__(None, None, None))


def check_shape(answer: httpx2.Response) -> None:
    body = answer.json()
    if answer.status_code == 200:
        assert body["status"] in ("success", "processing")
        assert isinstance(body["output"], list) and isinstance(body["id"], int)
    else:
        assert answer.status_code in (400, 401, 404)
        assert body["status"] == "error"
        assert isinstance(body["message"], str) and body["message"] == body["messege"]
