"""img2img and inpaint over HTTP, on a server started as a user starts it, for every family and form of input."""

from __future__ import annotations

import base64
import io
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
from PIL import Image

pytestmark = pytest.mark.slow

SIDE = 64


def png(pixels: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def picture() -> bytes:
    ramp = np.linspace(0, 255, SIDE).astype(np.uint8)
    return png(np.stack(np.broadcast_arrays(ramp[:, None], ramp[None, :], np.uint8(90)), axis=-1))


def mask() -> bytes:
    pixels = np.zeros((SIDE, SIDE), dtype=np.uint8)
    pixels[16:48, 16:48] = 255
    return png(pixels)


class Files(BaseHTTPRequestHandler):
    """Serves the two pictures."""

    def do_GET(self) -> None:
        body = picture() if self.path == "/picture.png" else mask()
        self.send_response(200)
        self.send_header("Content-Type", "image/png")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Nothing: pytest's output is not for this."""


@pytest.fixture
def files() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), Files)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def forms(address: str) -> dict[str, tuple[str, str]]:
    """Form -> how picture and mask are sent."""
    raw = [base64.b64encode(content).decode() for content in (picture(), mask())]
    return {
        "url": (f"{address}/picture.png", f"{address}/mask.png"),
        "data": (f"data:image/png;base64,{raw[0]}", f"data:image/png;base64,{raw[1]}"),
        "base64": (raw[0], raw[1]),
    }


def pixels_of(server: Any, answer: dict[str, Any]) -> Any:
    assert answer["status"] == "success", answer
    status, body = server.get(urlsplit(answer["output"][0]).path)
    assert status == 200
    return np.asarray(Image.open(io.BytesIO(body))).astype(int)


def test_every_family_takes_pictures_in_every_form(serve: Callable[..., Any], files: str) -> None:
    server = serve(LATENTD_ALLOW_PRIVATE_HOSTS="127.0.0.1", LATENTD_SYNC_WAIT_S="60")
    original = np.asarray(Image.open(io.BytesIO(picture()))).astype(int)
    for model, seed in (("sd15", 1), ("sdxl", 2), ("flux", 3)):
        wish = {"model_id": model, "prompt": "a cat", "num_inference_steps": 4, "seed": seed, "strength": 0.8}
        drawn: dict[str, list[Any]] = {"img2img": [], "inpaint": []}
        for image, painted in forms(files).values():
            drawn["img2img"].append(pixels_of(server, server.post("/api/v6/images/img2img", init_image=image, **wish)))
            drawn["inpaint"].append(
                pixels_of(server, server.post("/api/v6/images/inpaint", init_image=image, mask_image=painted, **wish))
            )
        for task, results in drawn.items():
            assert results[0].shape == (SIDE, SIDE, 3)
            assert all(np.abs(one - results[0]).max() <= 1 for one in results[1:]), (model, task)
        kept = np.ones((SIDE, SIDE), dtype=bool)
        kept[16:48, 16:48] = False
        boxes = original.reshape(8, 8, 8, 8, 3).mean(axis=(1, 3)).repeat(8, axis=0).repeat(8, axis=1)
        assert np.abs(drawn["inpaint"][0] - boxes)[kept].max() <= 1.5
        assert np.abs(drawn["inpaint"][0] - boxes)[~kept].max() > 10
    for model in ("sd15-inpaint", "sdxl-inpaint", "flux-fill"):
        image, painted = forms(files)["base64"]
        body = {"model_id": model, "prompt": "a cat", "num_inference_steps": 3, "init_image": image}
        pixels_of(server, server.post("/api/v6/images/inpaint", mask_image=painted, **body))
        refused = server.post("/api/v6/images/img2img", **body)
        assert refused["status"] == "error" and "inpaint" in refused["message"]
