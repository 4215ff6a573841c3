"""Lines of ModelsLab's acceptance list on a server started as a user starts it; line 1 is that of tests/clients."""

from __future__ import annotations

import io
import json
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.api.test_modelslab import SEED_SAMPLE, STRINGS_SAMPLE
from tests.integration.hub import Hub, Repository
from tests.served import KEY, Server

pytestmark = pytest.mark.slow

TEXT2IMG = "/api/v6/images/text2img"
SMALL: dict[str, Any] = {"model_id": "sd15", "prompt": "a red bridge", "width": 64, "height": 64, "seed": 7}
END_S = 120.0


class Receiver:
    """Told by webhooks: what came, where, and one refusal first if wanted."""

    def __init__(self) -> None:
        self.told: list[tuple[str, dict[str, Any]]] = []
        self.refusals = 0
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                outer.told.append((self.path, json.loads(body)))
                outer.refusals -= 1
                self.send_response(500 if outer.refusals >= 0 else 200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                """Nothing: pytest's output is not for this."""

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/hook?secret=canary&a=%2F"

    def wait_for(self, number: int) -> None:
        wait_until(lambda: len(self.told) >= number)


def wait_until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + END_S
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    receiver = Receiver()
    thread = threading.Thread(target=receiver.http.serve_forever)
    thread.start()
    yield receiver
    receiver.http.shutdown()
    thread.join()
    receiver.http.server_close()


def finished(server: Server, answer: dict[str, Any]) -> dict[str, Any]:
    """The answer once it says no longer that it is processing."""
    end = time.monotonic() + END_S
    while answer["status"] == "processing":
        assert time.monotonic() < end
        answer = server.post("/api/v6/images/fetch", request_id=str(answer["id"]), wait=5)
    return answer


def pixels(server: Server, answer: dict[str, Any]) -> bytes:
    return Image.open(io.BytesIO(server.get(answer["output"][0])[1])).tobytes()


def cancel(server: Server, job: int) -> None:
    request = urllib.request.Request(f"{server.address}/v1/jobs/{job}", headers={"key": KEY}, method="DELETE")
    with urllib.request.urlopen(request, timeout=60) as answer:
        assert answer.status == 200


def test_2_and_3_both_samples_succeed_and_ids_are_good_at_once_and_after_a_restart(
    serve: Callable[..., Server],
) -> None:
    server = serve()
    for sample in (SEED_SAMPLE, STRINGS_SAMPLE):
        assert finished(server, server.post(TEXT2IMG, **sample))["status"] == "success"
    begun = [server.post(TEXT2IMG, **SMALL, instant_response="yes", num_inference_steps=50) for _ in range(4)]
    for one in begun:
        assert server.post(f"/api/v6/images/fetch/{one['id']}")["status"] in ("processing", "success")
    server.kill()
    again = serve()
    for one in begun:
        done = finished(again, server_answer := again.post("/api/v6/images/fetch", request_id=one["id"]))
        assert server_answer["id"] == one["id"]
        by_path = again.post(f"/api/v6/images/fetch/{one['id']}")
        status, body = again.get(f"/api/v6/images/fetch/{one['id']}?key={KEY}")
        assert (status, json.loads(body)) == (200, by_path)
        assert done == by_path
        assert done["status"] == "success"


def test_8_webhooks_are_told_success_and_failure_with_track_id_and_query_as_they_were(
    serve: Callable[..., Server], receiver: Receiver
) -> None:
    server = serve(LATENTD_ALLOW_PRIVATE_HOSTS="127.0.0.1")
    receiver.refusals = 1
    done = finished(server, server.post(TEXT2IMG, **SMALL, webhook=receiver.url, track_id=17))
    receiver.wait_for(2)
    assert receiver.told[0] == receiver.told[1]
    path, body = receiver.told[1]
    assert path == "/hook?secret=canary&a=%2F"
    assert (body["status"], body["id"], body["track_id"]) == ("success", done["id"], 17)
    assert body["output"] == done["output"]
    assert server.get(body["output"][0])[0] == 200
    wait_until(lambda: server.post(f"/api/v6/images/fetch/{done['id']}")["webhook_status"] == "delivered")

    long = SMALL | {"width": 768, "height": 768, "samples": 4, "num_inference_steps": 50}
    gone = server.post(TEXT2IMG, **long, webhook=receiver.url, track_id="17", instant_response="yes")
    cancel(server, gone["id"])
    receiver.wait_for(3)
    _, body = receiver.told[2]
    assert (body["status"], body["id"], body["track_id"]) == ("failed", gone["id"], "17")
    assert body["message"] == "The request was cancelled."


def test_a_vae_of_a_repository_draws_once_it_is_there(
    serve: Callable[..., Server], receiver: Receiver, sd15_folder: Path, tmp_path: Path
) -> None:
    folder = sd15_folder / "vae"
    hub = Hub(**{"owner/vae": Repository(files={file.name: file.read_bytes() for file in folder.iterdir()})})
    try:
        server = serve(
            LATENTD_ALLOW_PRIVATE_HOSTS="127.0.0.1",
            HF_ENDPOINT=hub.address,
            HF_HOME=str(tmp_path / "hf"),
            HF_HUB_OFFLINE="0",
            NO_PROXY="*",
            no_proxy="*",
        )
        said = server.post("/api/v1/enterprise/load_vae", vae_id="own", vae_url="owner/vae", webhook=receiver.url)
        assert said["message"] == "VAE load started"
        receiver.wait_for(1)
        assert receiver.told[0][1]["status"] == "success", receiver.told
        drawn = finished(server, server.post(TEXT2IMG, **SMALL, vae="own"))
        plain = finished(server, server.post(TEXT2IMG, **SMALL))
        assert drawn["meta"]["vae"] == "own"
        assert "warning" not in drawn
        # It is the model's own, brought a second time.
        assert pixels(server, drawn) == pixels(server, plain)
    finally:
        hub.close()
