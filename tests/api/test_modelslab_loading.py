"""ModelsLab: weights that clients bring and take away."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest

from server.keys import Scope
from tests.unit.server.test_shelf import offering, weights

Serve = Callable[..., AbstractAsyncContextManager[Any]]

pytestmark = pytest.mark.anyio

LOAD_MODEL = ["/v3/load_model", "/v1/enterprise/load_model", "/v1/enterprise/images/load_model_v2"]


async def call(api: Any, path: str, **fields: Any) -> Any:
    return await api.client.post(f"/api{path}", json={"key": api.key} | fields)


@pytest.mark.parametrize("path", LOAD_MODEL)
async def test_a_lora_can_be_loaded_and_is_then_listed(serve: Serve, path: str) -> None:
    async with offering(weights()) as url, serve(allow_private_hosts=("127.0.0.1",)) as api:
        fields = {"url": url, "model_id": "toon", "model_category": "stable_diffusion", "model_subcategory": "lora"}
        answer = await call(api, path, **fields, webhook=None, force_load="no")
        assert (answer.status_code, answer.json()["message"]) == (200, "model load started")
        for _ in range(200):
            query = {"key": api.key, "model_subcategory": "lora"}
            found = (await api.client.get("/api/v6/model-search", params=query)).json()["data"]
            if found:
                break
        assert [item["model_id"] for item in found] == ["toon"]


async def test_a_vae_can_be_loaded(serve: Serve) -> None:
    async with offering(weights()) as url, serve(allow_private_hosts=("127.0.0.1",)) as api:
        answer = await call(api, "/v1/enterprise/load_vae", vae_id="sharp", vae_url=url, vae_type="safetensors")
        assert answer.json()["message"] == "VAE load started"


@pytest.mark.parametrize(
    ("url", "kind"),
    [
        ("stabilityai/sd-vae-ft-mse", None),
        ("https://huggingface.co/stabilityai/sd-vae-ft-mse", "diffusers"),
    ],
)
async def test_a_vae_may_be_a_repository(api: Any, monkeypatch: pytest.MonkeyPatch, url: str, kind: str | None) -> None:
    pulled = asyncio.Queue[tuple[str, str]]()
    loop = asyncio.get_running_loop()
    monkeypatch.setattr(api.parts.shelf, "_pull_vae", lambda *pair: loop.call_soon_threadsafe(pulled.put_nowait, pair))
    answer = await call(api, "/v1/enterprise/load_vae", vae_id="mse", vae_url=url, vae_type=kind)
    assert answer.json()["message"] == "VAE load started"
    async with asyncio.timeout(10):
        assert await pulled.get() == ("mse", "stabilityai/sd-vae-ft-mse")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"vae_url": None}, "vae_url is required"),
        ({"vae_type": "diffusers"}, "vae_url must be owner/name on the hub for diffusers"),
        (
            {"vae_type": "pt"},
            "vae_type must be safetensors or diffusers: other formats can run code when they are opened",
        ),
    ],
)
async def test_a_vae_that_cannot_be_loaded_is_refused(api: Any, fields: dict[str, Any], message: str) -> None:
    plain = {"vae_url": "https://example.com/mse.safetensors", "vae_id": "mse"}
    answer = await call(api, "/v1/enterprise/load_vae", **{**plain, **fields})
    assert (answer.status_code, answer.json()["message"], answer.json()["code"]) == (400, message, 400)


@pytest.mark.parametrize("path", LOAD_MODEL)
async def test_errors_of_loading_hold_a_number(api: Any, path: str) -> None:
    plain = await api.parts.keys.add("plain")
    refused = [await call(api, path, key=key) for key in (api.key, "wrong", plain)]
    assert [one.status_code for one in refused] == [400, 401, 403]
    assert [one.json()["code"] for one in refused] == [400, 401, 403]
    assert "code" not in (await call(api, "/v6/images/text2img")).json()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"url": None}, "url is required"),
        ({"model_id": ""}, "model_id is required"),
        (
            {"model_format": "ckpt"},
            "model_format must be safetensors or diffusers: other formats can run code when they are opened",
        ),
        (
            {"model_type": "custom_ckpt"},
            "model_type must be safetensors or diffusers: other formats can run code when they are opened",
        ),
        ({"model_category": "z_image"}, "model_category must be stable_diffusion, stable_diffusion_xl, flux or lora"),
        ({"model_category": "controlnet"}, "controlnet is not available on this server"),
        ({"model_subcategory": "lora", "model_format": "diffusers"}, "A lora must be a safetensors file"),
        ({"model_format": "diffusers"}, "url must be owner/name on the hub for diffusers"),
        ({"url": "ftp://example.com/x"}, "url: The URL must begin with http:// or https://"),
        ({"url": "http://10.0.0.1/x"}, "url: The address in the URL cannot be reached: 10.0.0.1"),
        ({"model_id": "sd15"}, "sd15 is here already, and nothing is overwritten"),
        ({"model_id": "../x"}, "model_id must be 1 to 96 letters, digits, dots, dashes or underscores"),
        ({"webhook": "http://10.0.0.1/"}, "webhook: The address in the URL cannot be reached: 10.0.0.1"),
    ],
)
async def test_what_cannot_be_loaded_is_refused(api: Any, fields: dict[str, Any], message: str) -> None:
    plain = {"url": "https://example.com/toon.safetensors", "model_id": "toon"}
    answer = await call(api, "/v3/load_model", **{**plain, **fields})
    assert (answer.status_code, answer.json()["message"]) == (400, message)


async def test_loading_needs_a_scope(api: Any) -> None:
    plain = await api.parts.keys.add("plain")
    writer = await api.parts.keys.add("writer", (Scope.MODELS_WRITE,))
    for path in ("/v3/load_model", "/v1/enterprise/load_vae"):
        assert (await call(api, path, key=plain)).status_code == 403
        assert (await call(api, path, key=writer)).status_code == 400
    assert (await call(api, "/v1/enterprise/delete_model", key=writer, model_id="sd15")).status_code == 403


async def test_a_model_of_the_configuration_is_not_deleted(api: Any) -> None:
    answer = await call(api, "/v1/enterprise/delete_model", model_id="nothing")
    assert (answer.status_code, answer.json()["message"]) == (400, "Model not found: nothing")
