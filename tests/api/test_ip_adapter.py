"""IP-Adapters as clients ask for them: ids, scales, pictures in every form, and what is refused."""

from __future__ import annotations

import base64
import io
from typing import Any

import pytest
from PIL import Image

from pipelines.ip_adapter import IP_ADAPTERS

pytestmark = pytest.mark.anyio

ID = "ip-adapter_sd15"


def picture(colour: str = "red") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (40, 24), colour).save(buffer, "PNG")
    return buffer.getvalue()


def text(data: bytes) -> str:
    return base64.b64encode(data).decode()


RED = text(picture())


async def drawn(api: Any, **fields: Any) -> tuple[dict[str, Any], Any]:
    """The answer, and the request that was drawn."""
    answer = await api.text2img(**fields)
    body = answer.json()
    assert (answer.status_code, body["status"]) == (200, "success"), body
    return body, api.executor.requests[-1]


def adapter_of(meta: dict[str, Any]) -> tuple[Any, Any, Any]:
    return meta["ip_adapter_id"], meta["ip_adapter_scale"], meta["ip_adapter_image"]


@pytest.mark.parametrize(
    ("given", "scale", "warning"),
    [
        ({}, 0.6, None),
        ({"ip_adapter_scale": None}, 0.6, None),
        ({"ip_adapter_scale": "0.25"}, 0.25, None),
        ({"ip_adapter_scale": 0}, 0.0, None),
        ({"ip_adapter_scale": 7}, 1.0, "ip_adapter_scale 7 was lowered to 1."),
        ({"ip_adapter_scale": "-0.5"}, 0.0, "ip_adapter_scale -0.5 was raised to 0."),
    ],
)
async def test_an_adapter_has_a_scale_between_0_and_1(
    api: Any, given: dict[str, object], scale: float, warning: str | None
) -> None:
    body, request = await drawn(api, ip_adapter_id=ID, ip_adapter_image=RED, **given)
    assert (request.ip_adapter, request.ip_adapter_scale) == (ID, scale)
    assert adapter_of(body["meta"]) == (ID, scale, "base64")
    assert body.get("warning") == warning


async def test_the_picture_is_stored_whatever_form_it_came_in(api: Any) -> None:
    _, first = await drawn(api, ip_adapter_id=ID, ip_adapter_image=RED)
    _, same = await drawn(api, ip_adapter_id=ID, ip_adapter_image=[f"data:image/png;base64,{RED}"])
    _, other = await drawn(api, ip_adapter_id=ID, ip_adapter_image=text(picture("blue")))
    assert first.ip_adapter_image == same.ip_adapter_image != other.ip_adapter_image
    assert api.parts.inputs.read(first.ip_adapter_image).shape == (24, 40, 3)
    form = {"key": api.key, "prompt": "x", "model_id": "sd15", "ip_adapter_id": ID, "ip_adapter_image": RED}
    answer = await api.client.post("/api/v6/images/text2img", data=form)
    assert answer.json()["status"] == "success"
    assert api.executor.requests[-1].ip_adapter_image == first.ip_adapter_image


async def test_img2img_takes_two_pictures(api: Any) -> None:
    fields = {"init_image": text(picture("blue")), "ip_adapter_id": ID, "ip_adapter_image": RED, "prompt": "x"}
    body = (await api.client.post("/api/v6/images/img2img", json={"key": api.key, **fields})).json()
    request = api.executor.requests[-1]
    assert request.image is not None and request.image != request.ip_adapter_image
    assert (body["meta"]["init_image"], body["meta"]["ip_adapter_image"]) == ("base64", "base64")


async def test_without_an_adapter_nothing_is_said_of_one(api: Any) -> None:
    for nothing in ({}, {"ip_adapter_id": "none", "ip_adapter_image": "null", "ip_adapter_scale": 0.6}):
        body, request = await drawn(api, **nothing)
        assert adapter_of(body["meta"]) == (None, 0.6, None)
        assert (request.ip_adapter, request.ip_adapter_image) == (None, None)
        assert "warning" not in body


@pytest.mark.parametrize(
    ("fields", "field", "message"),
    [
        ({"ip_adapter_id": ID}, "ip_adapter_image", "ip_adapter_image is required"),
        ({"ip_adapter_image": RED}, "ip_adapter_id", "ip_adapter_id is required"),
        ({"ip_adapter_id": "x", "ip_adapter_image": RED}, "ip_adapter_id", "IP-Adapter not found: x"),
        (
            {"ip_adapter_id": "ip-adapter_sdxl", "ip_adapter_image": RED},
            "ip_adapter_id",
            "IP-Adapter ip-adapter_sdxl is for sdxl models, not for sd15",
        ),
        (
            {"ip_adapter_id": ID, "ip_adapter_image": "!"},
            "ip_adapter_image",
            "ip_adapter_image: The picture is neither a URL nor base64.",
        ),
        ({"ip_adapter_id": ID, "ip_adapter_image": 7}, "ip_adapter_image", "ip_adapter_image must be a string"),
        ({"ip_adapter_id": ID, "ip_adapter_image": RED, "ip_adapter_scale": "much"}, "ip_adapter_scale", None),
    ],
)
async def test_what_is_refused(api: Any, fields: dict[str, object], field: str, message: str | None) -> None:
    answer = await api.text2img(**fields)
    body = answer.json()
    assert (answer.status_code, list(body["errors"])) == (400, [field])
    assert message is None or body["message"] == message


@pytest.mark.parametrize(
    ("fields", "warning"),
    [
        (
            {"ip_adapter_id": ID, "ip_adapter_image": "http://127.0.0.1/never-fetched.png", "ip_adapter_scale": 1},
            "ip_adapter was not used: flux takes no picture as a prompt.",
        ),
        ({"ip_adapter_id": ID}, "ip_adapter was not used: flux takes no picture as a prompt."),
        ({"ip_adapter_image": "http://127.0.0.1/never-fetched.png"}, "Not applied: ip_adapter_image."),
    ],
)
async def test_flux_takes_none_and_says_so(api: Any, fields: dict[str, object], warning: str) -> None:
    body, request = await drawn(api, model_id="flux", **fields)
    assert body["warning"] == warning
    assert adapter_of(body["meta"]) == (None, 0.6, None)
    assert request.ip_adapter is None


async def test_the_schema_names_the_five_ids(api: Any) -> None:
    document = (await api.client.get("/openapi.json", headers={"Authorization": f"Bearer {api.key}"})).json()
    body = document["paths"]["/api/v6/images/text2img"]["post"]["requestBody"]
    properties = body["content"]["application/json"]["schema"]["properties"]
    # Null is "not given", as for every field.
    assert {*properties["ip_adapter_id"]["enum"]} == {*IP_ADAPTERS, None} and "ip_adapter_image" in properties
