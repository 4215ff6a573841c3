"""Drives a real server over HTTP, as a client of the ModelsLab API would, on a data folder of its own."""

from __future__ import annotations

import io
import json
import os
import queue
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

LAUNCHER = Path(__file__).resolve().parent.parent / "latentd"
KEY = secrets.token_hex(16)
#: Nothing here takes longer than this on two slow cores, or it hangs.
LIMIT_S = 180.0

#: The request of the API's own documentation, word for word but for the key.
DOCUMENTED: dict[str, Any] = json.loads(
    """
{
    "key": "your_api_key",
    "model_id": "flux",
    "prompt": "ultra realistic close up portrait ((beautiful pale cyberpunk female with heavy black eyeliner)), blue eyes, shaved side haircut, hyper detail, cinematic lighting, magic neon, dark red city, Canon EOS R3, nikon, f/1.4, ISO 200, 1/160s, 8K, RAW, unedited, symmetrical balance, in-frame, 8K",
    "negative_prompt": "blurry, low quality, distorted, deformed",
    "width": 512,
    "height": 512,
    "samples": 1,
    "num_inference_steps": 31,
    "safety_checker": "no",
    "seed": null,
    "guidance_scale": 7.5,
    "clip_skip": 2,
    "webhook": null,
    "track_id": null
}
"""  # noqa: E501
) | {"key": KEY}
SMALL = DOCUMENTED | {"width": 256, "height": 256, "num_inference_steps": 4, "seed": 12345}


class Server:
    """``./latentd serve`` in a process group of its own."""

    def __init__(self, data: Path, **settings: str) -> None:
        self._data = data
        self._log = data.with_suffix(".log")
        self._settings = settings
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        self._port = str(port)
        self.url = f"http://127.0.0.1:{port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("LATENTD_")}
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [LAUNCHER, "serve", "--port", self._port, "--data", self._data],
                env={**inherited, "LATENTD_API_KEY": KEY, **self._settings},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        wait_until(self._is_ready, what="the server is ready")

    def _is_ready(self) -> bool:
        assert self._process is not None
        if self._process.poll() is not None:
            raise AssertionError(f"the server ended with status {self._process.returncode}")
        try:
            return get(f"{self.url}/ready")[0] == 200
        except urllib.error.HTTPError:
            return False
        except OSError:
            return False

    def close(self) -> None:
        if self._process is None:
            return
        for number in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(self._process.pid, number)
                self._process.wait(30)
            except ProcessLookupError:
                return
            except subprocess.TimeoutExpired:
                continue
            return

    def output(self) -> str:
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    def draw(self, body: dict[str, Any]) -> dict[str, Any]:
        return post(f"{self.url}/api/v6/images/text2img", body)

    def pictures(self, body: dict[str, Any]) -> list[NDArray[np.int16]]:
        answer = self.draw(body)
        assert answer["status"] == "success", answer
        return [download(url) for url in answer["output"]]


def wait_until(condition: Callable[[], bool], *, what: str) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < deadline, f"waited {LIMIT_S:.0f} s in vain until {what}"
        time.sleep(0.1)


def get(url: str) -> tuple[int, bytes]:
    with urllib.request.urlopen(url, timeout=LIMIT_S) as answer:
        return answer.status, answer.read()


def post(url: str, body: dict[str, Any]) -> dict[str, Any]:
    """The answer's JSON, whatever its status."""
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=LIMIT_S) as answer:
            text = answer.read()
    except urllib.error.HTTPError as error:
        text = error.read()
    result: dict[str, Any] = json.loads(text)
    return result


def download(url: str) -> NDArray[np.int16]:
    """Pixels (height, width, channel)."""
    image = Image.open(io.BytesIO(get(url)[1]))
    assert image.format == "PNG", image.format
    # Signed, so that differences of levels can be taken.
    return np.asarray(image.convert("RGB")).astype(np.int16)


def same(left: NDArray[np.int16], right: NDArray[np.int16]) -> bool:
    """Equal to one 8-bit level: what is promised for a picture alone and in any batch."""
    return left.shape == right.shape and int(np.abs(left - right).max()) <= 1


@contextmanager
def webhook_receiver() -> Iterator[tuple[str, queue.Queue[dict[str, Any]]]]:
    received: queue.Queue[dict[str, Any]] = queue.Queue()

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            length = int(self.headers["Content-Length"])
            received.put(json.loads(self.rfile.read(length)))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *arguments: Any) -> None:
            """Nothing: the checks say what arrived."""

    http = ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
    threading.Thread(target=http.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{http.server_port}/hook", received
    finally:
        http.shutdown()
        http.server_close()


def check_the_documented_request_draws_a_picture(server: Server) -> None:
    answer = server.draw(DOCUMENTED)
    assert answer["status"] == "success", answer
    assert answer["meta"]["model_id"] == "flux", answer
    [url] = answer["output"]
    pixels = download(url)
    assert pixels.shape == (512, 512, 3), pixels.shape
    assert pixels.std() > 10, "the picture is flat"


def check_the_same_seed_draws_the_same_picture(server: Server) -> None:
    [first], [second] = server.pictures(SMALL), server.pictures(SMALL)
    assert same(first, second)
    [other] = server.pictures(SMALL | {"seed": 54321})
    assert not same(first, other)


def check_numbers_may_be_strings(server: Server) -> None:
    strings = {name: value if value is None else str(value) for name, value in SMALL.items()}
    [first], [second] = server.pictures(SMALL), server.pictures(strings)
    assert same(first, second)


def check_three_samples_are_three_pictures(server: Server) -> None:
    pictures = server.pictures(SMALL | {"samples": 3})
    assert len(pictures) == 3
    assert not any(same(pictures[left], pictures[right]) for left, right in [(0, 1), (0, 2), (1, 2)])


def check_a_webhook_is_told(server: Server) -> None:
    with webhook_receiver() as (url, received):
        answer = server.draw(SMALL | {"webhook": url, "track_id": "smoke-1"})
        told = received.get(timeout=LIMIT_S)
    assert told["status"] == "success", told
    assert (told["id"], told["track_id"]) == (answer["id"], "smoke-1"), told
    assert download(told["output"][0]).shape == (256, 256, 3)


def check_a_wrong_key_is_refused(server: Server) -> None:
    answer = server.draw(SMALL | {"key": "not-a-key-of-this-server"})
    assert answer["status"] == "error", answer
    assert "output" not in answer or answer["output"] == [], answer


def check_an_impatient_server_answers_processing_and_fetch_succeeds(server: Server) -> None:
    answer = server.draw(SMALL)
    assert answer["status"] == "processing", answer
    assert answer["output"] == [], answer
    fetched: dict[str, Any] = {}

    def done() -> bool:
        fetched.update(post(answer["fetch_result"], {"key": KEY}))
        assert fetched["status"] in ("processing", "success"), fetched
        return bool(fetched["status"] == "success")

    wait_until(done, what="fetch says success")
    assert fetched["id"] == answer["id"], fetched
    assert fetched["output"] == answer["future_links"], fetched
    assert download(fetched["output"][0]).shape == (256, 256, 3)


PATIENT: list[Callable[[Server], None]] = [
    check_the_documented_request_draws_a_picture,
    check_the_same_seed_draws_the_same_picture,
    check_numbers_may_be_strings,
    check_three_samples_are_three_pictures,
    check_a_webhook_is_told,
    check_a_wrong_key_is_refused,
]
IMPATIENT: list[Callable[[Server], None]] = [check_an_impatient_server_answers_processing_and_fetch_succeeds]


def run(server: Server, checks: list[Callable[[Server], None]]) -> int:
    """The number of checks that pass; what fails is shown with what the server printed."""
    passed = 0
    try:
        server.start()
        for check in checks:
            began = time.monotonic()
            try:
                check(server)
            except Exception:
                traceback.print_exc(file=sys.stdout)
                print(f"FAILED {check.__name__}")
            else:
                passed += 1
                print(f"ok {check.__name__} ({time.monotonic() - began:.1f} s)")
    except Exception:
        traceback.print_exc(file=sys.stdout)
        print("FAILED to start the server")
    finally:
        server.close()
    if passed < len(checks):
        print(f"--- the server's output\n{server.output()}---")
    return passed


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        # Both on one data folder: the second finds database and checkpoints as the first has left them.
        data = Path(folder) / "data"
        patient = Server(data, LATENTD_SYNC_WAIT_S="120", LATENTD_ALLOW_PRIVATE_HOSTS="127.0.0.1")
        passed = run(patient, PATIENT)
        passed += run(Server(data, LATENTD_SYNC_WAIT_S="0"), IMPATIENT)
    failed = len(PATIENT) + len(IMPATIENT) - passed
    print(f"{passed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
