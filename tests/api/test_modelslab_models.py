"""ModelsLab: which models and LoRAs there are."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.anyio


def add_lora(data: Path, name: str, **metadata: str) -> None:
    header = json.dumps({"__metadata__": metadata, "w": {"dtype": "U8", "shape": [8], "data_offsets": [0, 8]}}).encode()
    (data / "loras").mkdir(exist_ok=True)
    (data / "loras" / f"{name}.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(8))


async def search(api: Any, path: str = "/v6/model-search", **query: Any) -> Any:
    return (await api.client.get(f"/api{path}", params={"key": api.key, **query})).json()


async def ids(api: Any, **query: Any) -> list[str]:
    return [item["model_id"] for item in (await search(api, **query))["data"]]


@pytest.mark.parametrize("path", ["/v4/dreambooth/model_list", "/v3/dreambooth/model_list"])
async def test_the_model_list_is_a_bare_array(api: Any, path: str) -> None:
    listed = (await api.client.post(f"/api{path}", json={"key": api.key})).json()
    assert listed[0] == {
        "model_id": "sd15",
        "status": "model_ready",
        "created_at": None,
        "instance_prompt": "",
        "model_name": "sd15",
        "description": "A demo model draws.",
        "screenshots": "",
    }
    assert [one["model_id"] for one in listed] == ["sd15", "flux", "sdxl-lightning"]


@pytest.mark.parametrize("path", ["/v6/model-search", "/v7/models"])
async def test_search_finds_models_and_loras(api: Any, tmp_path: Path, path: str) -> None:
    add_lora(tmp_path, "toon", ss_base_model_version="sdxl_base_v1-0")
    found = await search(api, path)
    assert [item["model_id"] for item in found["data"]] == ["flux", "sd15", "sdxl-lightning", "toon"]
    assert found["meta"] == {"total": 4, "per_page": 20, "current_page": 1, "last_page": 1}
    toon = found["data"][-1]
    assert {name: toon[name] for name in ("model_type", "model_subcategory", "model_category", "feature")} == {
        "model_type": "lora",
        "model_subcategory": "lora",
        "model_category": "stable_diffusion_xl",
        "feature": "imagen",
    }


async def test_search_filters(api: Any, tmp_path: Path) -> None:
    add_lora(tmp_path, "toon", ss_base_model_version="sdxl_base_v1-0")
    assert await ids(api, model_subcategory="lora") == ["toon"]
    assert await ids(api, model_subcategory="LORA", base_model="sdxl") == ["toon"]
    assert await ids(api, model_subcategory="lora", base_model="flux") == []
    assert await ids(api, search="LIGHT") == ["sdxl-lightning"]
    assert await ids(api, search="fluxdev") == ["flux"]
    assert await ids(api, base_model="stable_diffusion", tags="inpaint") == ["sd15", "sdxl-lightning"]
    assert await ids(api, feature="video") == []
    assert await ids(api, per_page=3, page=2) == ["toon"]
    assert await ids(api, page=9) == []
    assert await ids(api, sort="newest", per_page="1") == ["toon"]


async def test_one_model_is_found_by_any_name(api: Any, tmp_path: Path) -> None:
    add_lora(tmp_path, "toon")
    assert (await search(api, "/v6/model-search/SD-1.5"))["data"]["model_id"] == "sd15"
    assert (await search(api, "/v7/models/toon"))["data"]["model_subcategory"] == "lora"
    assert (await search(api, "/v7/models/a/b"))["message"] == "Model not found: a/b"


async def test_filters_tags_and_providers_are_listed(api: Any) -> None:
    filters = (await search(api, "/v6/model-search/filters"))["data"]
    assert filters["model_category"] == ["flux", "stable_diffusion"]
    assert filters["feature"] == ["imagen"]
    assert "img2img" in (await search(api, "/v7/models/tags"))["data"]
    assert (await search(api, "/v6/model-search/providers"))["data"] == ["local"]


async def test_nothing_is_trained_here(api: Any) -> None:
    answer = await api.client.post("/api/v3/finetune_list", json={"key": api.key})
    assert answer.json() == {"status": "success", "message": "model list", "messege": "model list", "data": []}


async def test_any_key_may_look_and_a_key_is_needed(api: Any) -> None:
    assert (await api.client.get("/api/v6/model-search")).status_code == 401
    assert (await api.client.post("/api/v4/dreambooth/model_list", json={})).json()["status"] == "error"
