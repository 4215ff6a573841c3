"""Pictures looked at over HTTP, on a server started as a user starts it, beside pictures that are drawn."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.request import Request, urlopen

import numpy as np
import pytest
from PIL import Image

from pipelines.florence2_tasks import TASKS, Takes
from pipelines.vision import VisionTask

pytestmark = pytest.mark.slow

KEY = "a-key-for-tests-0123456789"
CAPTIONS, PICTURES = 64, 16


def picture(seed: int, size: tuple[int, int] = (64, 48)) -> Image.Image:
    blocks = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(blocks).resize(size, Image.Resampling.NEAREST)


def packed(image: Image.Image, kind: str = "PNG", **options: Any) -> str:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return base64.b64encode(buffer.getvalue()).decode()


def call(address: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    data = None if body is None else json.dumps(body).encode()
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {KEY}"}
    with urlopen(Request(address, data, headers), timeout=300) as answer:
        result: dict[str, Any] = json.loads(answer.read())
        return result


def test_captions_and_pictures_asked_for_at_once_share_the_device(serve: Callable[..., Any]) -> None:
    server = serve(LATENTD_SYNC_WAIT_S="240")
    drawing = {"key": KEY, "model_id": "sd15", "prompt": "a cat", "width": 64, "height": 64}

    def caption(number: int) -> dict[str, Any]:
        return call(server.address + "/v1/vision", {"image": packed(picture(number))})

    def draw(number: int) -> dict[str, Any]:
        # From few steps to many: drawn all the time that captions come in.
        steps = {"num_inference_steps": 10 + 8 * number, "seed": number}
        return call(server.address + "/api/v6/images/text2img", {**drawing, **steps})

    # Demo checkpoints are made and loaded first.
    assert caption(0)["answer"]["text"]
    assert draw(0)["status"] == "success"
    with ThreadPoolExecutor(CAPTIONS + PICTURES) as pool:
        drawn = [pool.submit(draw, number) for number in range(PICTURES)]
        captioned = [pool.submit(caption, number) for number in range(CAPTIONS)]
        assert all(one.result()["status"] == "success" for one in drawn)
        assert all(one.result()["answer"]["text"] for one in captioned)
    jobs = call(f"{server.address}/v1/jobs?limit={CAPTIONS + PICTURES}")["jobs"]
    ends: dict[str, list[float]] = {"native": [], "modelslab": []}
    for job in jobs:
        assert job["state"] == "succeeded"
        ends[job["dialect"]].append(job["finished_at"])
    assert {kind: len(times) for kind, times in ends.items()} == {"native": CAPTIONS, "modelslab": PICTURES}
    assert min(ends["native"]) < max(ends["modelslab"])
    assert min(ends["modelslab"]) < max(ends["native"])


def test_every_task_and_every_kind_of_picture_is_answered(serve: Callable[..., Any]) -> None:
    server = serve(LATENTD_SYNC_WAIT_S="120")

    def look(image: str, task: VisionTask = VisionTask.OBJECT_DETECTION, **fields: Any) -> dict[str, Any]:
        answer: dict[str, Any] = call(server.address + "/v1/vision", {"image": image, "task": task.value, **fields})
        return answer["answer"]

    more: dict[Takes, dict[str, Any]] = {
        Takes.NOTHING: {},
        Takes.TEXT: {"prompt": "a red cat"},
        Takes.REGION: {"region": [0, 0, 32, 40]},
    }
    for task in VisionTask:
        answer = look(packed(picture(1)), task, **more[TASKS[task].takes])
        assert any(answer.values()), task

    upright = picture(2, (20, 40))
    expected = look(packed(upright))
    assert all(0 <= left <= right < 20 and 0 <= top <= bottom < 40 for left, top, right, bottom in boxes(expected))
    turned = Image.Exif()
    turned[0x0112] = 6
    assert look(packed(upright.transpose(Image.Transpose.ROTATE_90), exif=turned)) == expected
    assert look(packed(upright.quantize(16))) == expected
    opaque = upright.copy()
    opaque.putalpha(255)
    assert look(packed(opaque)) == expected

    assert boxes(look(packed(picture(3, (1, 1))))) == [[0, 0, 0, 0]] * 3
    wide = boxes(look(packed(picture(4, (8192, 40)))))
    assert all(0 <= left <= right < 8192 and 0 <= top <= bottom < 40 for left, top, right, bottom in wide)
    assert max(right for _, _, right, _ in wide) > 1000


def boxes(answer: dict[str, Any]) -> list[list[int]]:
    found = [one["box"] for one in answer["boxes"]]
    assert found
    return found
