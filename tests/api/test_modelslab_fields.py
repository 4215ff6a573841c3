"""Every request field of the ModelsLab pages, given a value: what becomes of the picture, or what ``meta`` says."""

from __future__ import annotations

import base64
import dataclasses
import io
from dataclasses import dataclass
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
#: All that section 2 of the contract lists.
DOCUMENTED = """
    prompt negative_prompt model_id width height samples num_inference_steps steps guidance_scale seed safety_checker
    safety_checker_type enhance_prompt enhance_style scheduler use_karras_sigmas algorithm_type vae lora_model
    lora_strength embeddings_model clip_skip multi_lingual panorama self_attention tomesd free_u highres_fix watermark
    full_url instant_response temp upscale init_image mask_image strength base64 ip_adapter_id ip_adapter_scale
    ip_adapter_image webhook track_id injected_noise_alpha sigma_threshold true_cfg_scale use_cfg_zero_star
    use_zero_init zero_steps key""".split()
#: Other names that it mentions for them.
ALIASES = "guidance embeddings prompt_strength".split()


def png(pixels: NDArray[np.uint8]) -> str:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def filled(*colour: int) -> NDArray[np.uint8]:
    return np.full((SIDE, SIDE, 3), colour, dtype=np.uint8)


HALF = np.zeros((SIDE, SIDE), dtype=np.uint8)
HALF[:, SIDE // 2 :] = 255
RED, BLUE, RIGHT = png(filled(230, 10, 10)), png(filled(10, 20, 230)), png(HALF)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One field, given."""

    field: str
    value: Any
    #: What is sent beside it, and without it for the picture to compare with.
    beside: dict[str, Any] = dataclasses.field(default_factory=dict)
    task: str = "text2img"
    #: Whether the picture is another one than without the field; None: it is not looked at.
    changes: bool | None = False
    #: Parts of the answer, and of its ``meta``.
    body: dict[str, Any] = dataclasses.field(default_factory=dict)
    meta: dict[str, Any] = dataclasses.field(default_factory=dict)
    warning: str | None = None
    status: int = 200

    @property
    def id(self) -> str:
        return f"{self.field}={str(self.value)[:20]}"


def unbuilt(name: str, value: Any, *, echoed: bool = True, **more: Any) -> Row:
    """Accepted, not done, and not claimed."""
    meta = {name: "no"} if echoed else {}
    return Row(field=name, value=value, meta=meta, warning=f"Not applied: {name}.", **more)


#: Accepted, and nothing is done.
NOT_DONE = "tomesd multi_lingual panorama self_attention free_u watermark".split()
FLUX = {"model_id": "flux"}
LORA = {"lora_model": "paint"}
START = {"init_image": BLUE, "strength": 0.5}
MASKED = {**START, "mask_image": RIGHT, "strength": 1}
#: A picture that the demo's checker flags: it starts from red and hardly changes.
FLAGGED = {"init_image": RED, "strength": 0.05, "num_inference_steps": 20}
ADAPTER = {"ip_adapter_id": "ip-adapter_sd15", "ip_adapter_image": RED}
DPM = {"scheduler": "DPMSolverMultistepScheduler"}
TEXT = "sensitive_content_text"
UNUSED = "Not used by flux: negative_prompt (without true_cfg)."

ROWS = (
    Row(field="prompt", value="a (blue:1.4) bridge", changes=True, meta={"prompt": "a (blue:1.4) bridge"}),
    Row(field="negative_prompt", value="cars", changes=True, meta={"negative_prompt": "cars"}),
    Row(field="negative_prompt", value="cars", beside=FLUX, meta={"negative_prompt": "cars"}, warning=UNUSED),
    Row(field="model_id", value="sdxl", changes=True, meta={"model_id": "sdxl"}),
    Row(field="width", value="130", changes=True, meta={"W": 128, "width": 128}, warning="lowered to 128"),
    Row(field="height", value=128, changes=True, meta={"H": 128, "height": 128}),
    Row(field="samples", value="2", meta={"n_samples": 2}),
    Row(field="num_inference_steps", value="3", changes=True, meta={"num_inference_steps": 3, "steps": 3}),
    Row(field="steps", value=5, changes=True, meta={"steps": 5}, beside={"num_inference_steps": None}),
    Row(field="guidance_scale", value="2.5", changes=True, meta={"guidance_scale": 2.5}),
    Row(field="guidance", value=2.5, changes=True, meta={"guidance_scale": 2.5}),
    Row(field="seed", value="8", changes=True, meta={"seed": 8}),
    Row(
        field="safety_checker",
        value="yes",
        task="img2img",
        beside=FLAGGED,
        changes=True,
        meta={"safety_checker": "yes", "safety_checker_type": TEXT},
        body={"nsfw_content_detected": True},
    ),
    Row(
        field="safety_checker_type",
        value="black",
        task="img2img",
        beside={**FLAGGED, "safety_checker": True},
        changes=True,
        meta={"safety_checker_type": "black"},
    ),
    Row(field="enhance_prompt", value="yes", changes=True, meta={"enhance_prompt": "yes"}),
    Row(field="enhance_prompt", value=None, meta={"enhance_prompt": "no", "prompt": "a red bridge"}),
    Row(field="enhance_style", value="Line Art", changes=True, meta={"enhance_style": "line-art"}),
    Row(
        field="scheduler",
        value="DDIM",
        changes=True,
        meta={"scheduler": "DDIMScheduler"},
    ),
    Row(field="use_karras_sigmas", value=True, beside=DPM, changes=True, meta={"use_karras_sigmas": "yes"}),
    Row(
        field="algorithm_type",
        value="dpmsolver+++",
        beside=DPM,
        changes=True,
        meta={"algorithm_type": "sde-dpmsolver++"},
    ),
    Row(field="vae", value="swapped", changes=True, meta={"vae": "swapped"}),
    Row(field="vae", value="nowhere", meta={"vae": None}, warning="VAE not found: nowhere"),
    Row(field="lora_model", value="paint", changes=True, meta={"lora": "paint", "lora_strength": 1.0}),
    Row(field="lora_strength", value="0.25", beside=LORA, changes=True, meta={"lora_strength": 0.25}),
    Row(
        field="embeddings_model",
        value="mood",
        beside={"prompt": "a mood"},
        changes=True,
        meta={"embeddings": "mood"},
    ),
    Row(field="embeddings", value="mood", beside={"prompt": "a mood"}, changes=True, meta={"embeddings": "mood"}),
    Row(field="clip_skip", value="2", changes=True, meta={"clip_skip": 2}),
    Row(field="clip_skip", value=2, beside=FLUX, meta={"clip_skip": 1}, warning="Not used by flux: clip_skip."),
    *(unbuilt(name, "yes") for name in NOT_DONE),
    Row(
        field="highres_fix",
        value="yes",
        beside={"width": 520, "height": 520, "num_inference_steps": 1, "guidance_scale": 1},
        changes=True,
        meta={"highres_fix": "yes"},
    ),
    Row(field="highres_fix", value="yes", meta={"highres_fix": "no"}, warning="in one pass"),
    Row(field="full_url", value="yes", meta={"full_url": "yes"}),
    Row(
        field="instant_response",
        value="yes",
        changes=None,
        meta={"instant_response": "yes"},
        body={"status": "processing", "output": []},
    ),
    Row(field="temp", value="yes", meta={"temp": "yes"}),
    Row(field="base64", value="yes", changes=None, meta={"base64": "yes"}),
    Row(field="upscale", value="2", changes=True, meta={"upscale": "2", "W": SIDE}, warning="with Lanczos"),
    Row(field="upscale", value="1", meta={"upscale": "no"}),
    Row(field="init_image", value=RED, task="img2img", beside=START, changes=True, meta={"init_image": "base64"}),
    Row(field="mask_image", value=png(255 - HALF), task="inpaint", beside=MASKED, changes=True),
    Row(field="strength", value="0.9", task="img2img", beside=START, changes=True, meta={"strength": 0.9}),
    Row(
        field="prompt_strength",
        value=0.9,
        task="img2img",
        beside={**START, "strength": None},
        changes=True,
        meta={"strength": 0.9},
    ),
    Row(field="ip_adapter_id", value=ADAPTER["ip_adapter_id"], beside=ADAPTER, changes=None, meta=ADAPTER | {
        "ip_adapter_scale": 0.6, "ip_adapter_image": "base64"}),
    Row(field="ip_adapter_scale", value="1", beside=ADAPTER, changes=True, meta={"ip_adapter_scale": 1.0}),
    Row(field="ip_adapter_image", value=BLUE, beside=ADAPTER, changes=True, meta={"ip_adapter_image": "base64"}),
    Row(field="webhook", value="http://127.0.0.1:9/told?secret=1", body={"webhook_status": "pending"}),
    Row(field="track_id", value=17, body={"track_id": 17}),
    unbuilt("injected_noise_alpha", "0.5", echoed=False, beside=FLUX),
    unbuilt("sigma_threshold", 0.3, echoed=False, beside=FLUX),
    Row(
        field="true_cfg_scale",
        value="4",
        beside={**FLUX, "negative_prompt": "cars"},
        changes=True,
        meta={"true_cfg_scale": 4},
    ),
    # Not used is what it is, documented default or not.
    Row(field="use_cfg_zero_star", value="no", beside=FLUX),
    unbuilt("use_zero_init", True, echoed=False, beside=FLUX),
    unbuilt("zero_steps", 2, echoed=False, beside=FLUX),
    Row(field="key", value="not a key", status=401, changes=None, body={"message": "Invalid API key"}),
)  # fmt: skip


def test_no_documented_field_is_without_a_row() -> None:
    assert {row.field for row in ROWS} == {*DOCUMENTED, *ALIASES}
    assert len(set(DOCUMENTED)) == len(DOCUMENTED) == 49


@pytest.mark.parametrize("value", [True, "YES", 1, 2.5, [1], {"a": 1}, "perhaps"])
async def test_what_is_not_done_may_be_asked_for_in_any_form(api: Any, value: object) -> None:
    body = (await api.text2img(**dict.fromkeys(NOT_DONE, value))).json()
    assert {body["meta"][name] for name in NOT_DONE} == {"no"}
    assert body["warning"] == f"Not applied: {', '.join(NOT_DONE)}."


@pytest.mark.parametrize("value", [False, "No", 0, "0", "", None, "none"])
async def test_what_is_not_done_may_be_declined_in_any_form(api: Any, value: object) -> None:
    body = (await api.text2img(**dict.fromkeys(NOT_DONE, value))).json()
    assert {body["meta"][name] for name in NOT_DONE} == {"no"}
    assert "warning" not in body


class Server:
    """The real thing on demo models, without sockets."""

    def __init__(self, client: httpx2.AsyncClient) -> None:
        self._client = client
        self._without: dict[str, NDArray[np.uint8]] = {}

    async def call(self, row: Row, sent: dict[str, Any]) -> httpx2.Response:
        basis = {"key": KEY, "model_id": "sd15", "prompt": "a red bridge", "seed": 7, "num_inference_steps": 4}
        size = {"width": SIDE, "height": SIDE}
        return await self._client.post(f"/api/v6/images/{row.task}", json={**basis, **size, **sent})

    async def picture(self, body: dict[str, Any]) -> NDArray[np.uint8]:
        """The first one."""
        answer = await self._client.get(urlsplit(body["output"][0]).path)
        assert answer.status_code == 200
        return np.asarray(Image.open(io.BytesIO(answer.content)))

    async def without(self, row: Row) -> NDArray[np.uint8]:
        """The picture that is drawn when the field is not given, or is as ``beside`` says."""
        key = f"{row.task} {sorted(row.beside.items(), key=str)}"
        if key not in self._without:
            self._without[key] = await self.picture((await self.call(row, row.beside)).json())
        return self._without[key]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A LoRA, an embedding and a VAE."""
    import torch
    from safetensors.torch import save_file

    from pipelines import demo
    from pipelines.demo.vae import swapped

    source = torch.Generator().manual_seed(1)
    folder = demo.ensure("sd15", tmp_path / "demo")
    swapped(folder, tmp_path / "vaes" / "swapped")
    layer, width = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q", _width(folder, "unet")
    (tmp_path / "loras").mkdir()
    (tmp_path / "embeddings").mkdir()
    pair = {
        f"unet.{layer}.lora_A.weight": torch.randn(4, width, generator=source),
        f"unet.{layer}.lora_B.weight": torch.randn(width, 4, generator=source),
    }
    save_file(pair, tmp_path / "loras" / "paint.safetensors")
    vectors = torch.randn(2, _width(folder, "text_encoder"), generator=source)
    save_file({"emb_params": vectors}, tmp_path / "embeddings" / "mood.safetensors")
    return tmp_path


def _width(folder: Path, component: str) -> int:
    import json

    config = json.loads((folder / component / "config.json").read_text())
    width: int = config["block_out_channels"][0] if component == "unet" else config["hidden_size"]
    return width


async def fault(server: Server, row: Row) -> str | None:
    """What of the row is not so."""
    answer = await server.call(row, {**row.beside, row.field: row.value})
    body = answer.json()
    if answer.status_code != row.status:
        return f"status {answer.status_code}: {body}"
    meta = body.get("meta", {})
    for said, expected in ((body, row.body), (meta, row.meta)):
        wrong = {name: said.get(name) for name, value in expected.items() if said.get(name) != value}
        if wrong:
            return f"{wrong}, not {expected}"
    warning = body.get("warning")
    if (row.warning or "") not in (warning or "") or (warning is not None) != (row.warning is not None):
        return f"warning {warning}"
    if row.changes is None:
        return None
    before, after = await server.without(row), await server.picture(body)
    changed = before.shape != after.shape or bool((before != after).any())
    return None if changed == row.changes else f"the picture has {'' if changed else 'not '}changed"


async def test_every_field_does_what_its_row_says(data: Path) -> None:
    settings = Settings(
        data=data,
        api_key=SecretStr(KEY),
        threads=1,
        sync_wait_s=60,
        allow_private_hosts=("127.0.0.1",),
        webhook_delays_s=(),
    )
    app = build_app(settings)
    transport = httpx2.ASGITransport(app=app)
    async with (
        app.router.lifespan_context(app),
        httpx2.AsyncClient(transport=transport, base_url="http://images.test", timeout=60) as client,
    ):
        server = Server(client)
        faults = {row.id: await fault(server, row) for row in ROWS}
    assert {name: said for name, said in faults.items() if said} == {}
