"""``./latentd replay`` against a real server: pictures of every task are drawn again from their files alone."""

from __future__ import annotations

import base64
import io
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
KEY = "a-key-for-tests-0123456789"
SMALL = {"prompt": "a (red:1.2) bridge, 橋", "width": 64, "height": 64, "num_inference_steps": 4}
CALLS: list[tuple[str, dict[str, Any]]] = [
    ("text2img", {"model_id": "sd15", "samples": 3, "scheduler": "DPM++ 2M SDE Karras", "negative_prompt": "ugly"}),
    ("text2img", {"model_id": "sdxl", "scheduler": "Euler a", "clip_skip": 2}),
    ("text2img", {"model_id": "sdxl-lightning"}),
    ("text2img", {"model_id": "flux", "negative_prompt": "ugly", "true_cfg_scale": 2}),
    ("img2img", {"model_id": "sdxl", "strength": 0.6}),
    ("inpaint", {"model_id": "sd15-inpaint"}),
]


def encoded(pixels: Any) -> str:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def load(file: Path) -> tuple[Any, dict[str, Any]]:
    with Image.open(file) as image:
        return np.asarray(image).astype(int), {str(key): value for key, value in image.info.items()}


def replay(server: Any, file: Path) -> tuple[int, str]:
    command = [sys.executable, "-m", "server", "replay", str(file), "--url", server.address]
    environment = {**os.environ, "LATENTD_API_KEY": KEY}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


def test_pictures_are_drawn_again_from_their_files(serve: Callable[..., Any], tmp_path: Path) -> None:
    server = serve()
    pictures = {
        "init_image": encoded(np.linspace(0, 255, 64 * 64 * 3).reshape(64, 64, 3).astype(np.uint8)),
        "mask_image": encoded(np.pad(np.full((32, 32), 255, np.uint8), 16)),
    }
    for number, (task, call) in enumerate(CALLS):
        answer = server.post(f"/api/v6/images/{task}", **SMALL, **(pictures if task != "text2img" else {}), **call)
        assert answer["status"] == "success", answer
        file = tmp_path / f"{number}.png"
        file.write_bytes(server.get(urlsplit(answer["output"][-1]).path)[1])
        code, said = replay(server, file)
        assert code == 0 and "Not as recorded" not in said, said
        old, new = (load(path)[0] for path in (file, tmp_path / f"{number}.replay.png"))
        assert np.abs(old - new).max() <= 1, (task, call)
    for path in (server.data / "inputs").iterdir():
        path.unlink()
    code, said = replay(server, tmp_path / "5.png")
    assert (code, "An input image of this request is no longer stored." in said) == (1, True)


def test_a_foreign_picture_is_drawn_as_far_as_its_text_goes(serve: Callable[..., Any], tmp_path: Path) -> None:
    server, file = serve(), tmp_path / "foreign.png"
    info = PngImagePlugin.PngInfo()
    info.add_itxt(
        "parameters", "橋\nNegative prompt: bad\nSteps: 3, Sampler: Euler a, Seed: 5, Size: 64x128, Model: v1-5"
    )
    Image.new("RGB", (64, 128)).save(file, pnginfo=info)
    code, said = replay(server, file)
    assert code == 0, said
    pixels, texts = load(tmp_path / "foreign.replay.png")
    assert pixels.shape == (128, 64, 3)
    assert "the server's default draws" in said
    assert texts["parameters"].startswith("橋\nNegative prompt: bad\nSteps: 3, Sampler: Euler a,")
