"""Options as a client meets them: a LoRA that comes while the server runs, and what replaces a flagged picture."""

from __future__ import annotations

import base64
import io
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from pydantic import SecretStr

from server.app import build_app
from server.config import Settings

pytestmark = [
    pytest.mark.anyio,
    #: diffusers' Euler schedulers make numpy arrays of tensors in a way that numpy 2 deprecates.
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]

KEY = "canary-0123456789abcdef"
SIDE = 64
#: The part of a request's path behind the version, and its fields -> the answer.
Call = Callable[..., Awaitable[dict[str, Any]]]


def red_png() -> str:
    """Near the red that the demo's checker flags, with a brighter line through it."""
    pixels = np.full((SIDE, SIDE, 3), (230, 10, 10), dtype=np.uint8)
    pixels[SIDE // 2] = (255, 60, 60)
    target = io.BytesIO()
    Image.fromarray(pixels).save(target, "PNG")
    return f"data:image/png;base64,{base64.b64encode(target.getvalue()).decode()}"


async def served(data: Path, use: Callable[[Call, httpx2.AsyncClient], Awaitable[None]]) -> None:
    """The real thing on demo models, without sockets."""
    app = build_app(Settings(data=data, api_key=SecretStr(KEY), threads=1, sync_wait_s=60))
    transport = httpx2.ASGITransport(app=app)
    async with (
        app.router.lifespan_context(app),
        httpx2.AsyncClient(transport=transport, base_url="http://images.test", timeout=60) as client,
    ):

        async def call(task: str = "text2img", **fields: Any) -> dict[str, Any]:
            sent = {"key": KEY, "model_id": "sd15", "prompt": "a red bridge", "seed": 7, "num_inference_steps": 4}
            sent |= {"width": SIDE, "height": SIDE, **fields}
            body: dict[str, Any] = (await client.post(f"/api/v6/images/{task}", json=sent)).json()
            return body

        await use(call, client)


async def picture(client: httpx2.AsyncClient, body: dict[str, Any]) -> NDArray[np.int16]:
    answer = await client.get(urlsplit(body["output"][0]).path)
    assert answer.status_code == 200
    return np.asarray(Image.open(io.BytesIO(answer.content))).astype(np.int16)


def save_lora(model: Path, path: Path) -> None:
    """For one layer of the model in this folder."""
    import torch
    from safetensors.torch import save_file

    from pipelines.weight_file import WeightFile

    name = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_q"
    file = WeightFile.open(model / "unet" / "diffusion_pytorch_model.safetensors", "sd15")
    outputs, inputs = file.tensors[f"{name}.weight"].shape
    source = torch.Generator().manual_seed(1)
    down, up = torch.randn(4, inputs, generator=source), 5 * torch.randn(outputs, 4, generator=source)
    save_file({f"unet.{name}.lora_A.weight": down, f"unet.{name}.lora_B.weight": up}, path)


async def test_a_lora_that_is_copied_in_while_the_server_runs_is_used_by_the_next_request(tmp_path: Path) -> None:
    async def use(call: Call, client: httpx2.AsyncClient) -> None:
        plain = await picture(client, await call())
        folder = tmp_path / "loras"
        folder.mkdir(exist_ok=True)
        save_lora(tmp_path / "demo" / "sd15", tmp_path / "paint.safetensors")
        whole = (tmp_path / "paint.safetensors").read_bytes()
        for content in (None, whole[:100], whole[:-1]):
            if content is not None:
                (folder / "paint.safetensors").write_bytes(content)
            refused = await call(lora_model="paint")
            assert (refused["status"], refused["message"]) == ("error", "LoRA not found: paint")
        (folder / "paint.safetensors").write_bytes(whole)
        painted = await call(lora_model="paint")
        assert painted["meta"]["lora"] == "paint"
        assert np.abs(await picture(client, painted) - plain).max() > 1
        assert (await picture(client, await call()) == plain).all()
        (folder / "paint.safetensors").unlink()
        assert (await call(lora_model="paint"))["status"] == "error"

    await served(tmp_path, use)


async def test_each_safety_type_replaces_a_flagged_picture_as_it_says(tmp_path: Path) -> None:
    async def use(call: Call, client: httpx2.AsyncClient) -> None:
        # It starts from the picture and hardly changes it.
        flagged = {"init_image": red_png(), "strength": 0.05, "num_inference_steps": 20}
        drawn = await picture(client, await call("img2img", **flagged))
        seen = {}
        for kind in ("black", "blur", "pixelate", "sensitive_content_text"):
            body = await call("img2img", **flagged, safety_checker="yes", safety_checker_type=kind)
            assert body["nsfw_content_detected"] is True, body
            seen[kind] = await picture(client, body)
            assert seen[kind].shape == drawn.shape
        assert not seen["black"].any()
        for kind in ("blur", "pixelate"):
            # The same colours on the whole, and what stood out does less.
            assert np.abs(seen[kind].mean(axis=(0, 1)) - drawn.mean(axis=(0, 1))).max() < 8
            assert contrast(seen[kind]) < contrast(drawn)
        assert len(np.unique(seen["pixelate"][:, 0], axis=0)) <= 12
        text = seen["sensitive_content_text"]
        assert (text[0, 0] == text[0, 0, 0]).all() and text[0, 0, 0] < 64
        assert text.max() > 200 and np.abs(text - drawn).max() > 100
        blue = {"prompt": "a blue door"}
        unchecked, checked = await call(**blue), await call(**blue, safety_checker="yes")
        assert checked["nsfw_content_detected"] is False
        assert (await picture(client, checked) == await picture(client, unchecked)).all()

    await served(tmp_path, use)


def contrast(pixels: NDArray[np.int16]) -> int:
    """The largest step between neighbouring rows."""
    return int(np.abs(np.diff(pixels, axis=0)).max())
