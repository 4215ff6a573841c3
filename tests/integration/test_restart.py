"""Nothing acknowledged is ever lost: the server is killed, or stopped, and started again."""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
from PIL import Image

pytestmark = pytest.mark.slow

TEXT2IMG = "/api/v6/images/text2img"
FETCH = "/api/v6/images/fetch"
JOBS = 7


def wish(number: int) -> dict[str, Any]:
    return {
        "model_id": "sd15",
        "prompt": f"{number} dogs",
        "negative_prompt": "ugly",
        "width": 128,
        "height": 128,
        "num_inference_steps": 40,
        "seed": 100 + number,
        # Draws at every step: a picture begun anew must draw the same noise again.
        "scheduler": "EulerAncestralDiscreteScheduler",
        "instant_response": "yes",
    }


def pixels(server: Any, url: str) -> Any:
    # Links carry the address of the submit; every start of these tests takes a port of its own.
    status, body = server.get(urlsplit(url).path)
    assert status == 200
    return np.asarray(Image.open(io.BytesIO(body))).astype(int)


def states(server: Any) -> dict[str, int]:
    text = server.get("/metrics?key=a-key-for-tests-0123456789")[1].decode()
    rows = [line for line in text.splitlines() if line.startswith("latentd_jobs{")]
    return {line.split('"')[1]: int(float(line.split()[-1])) for line in rows}


def wait_for(server: Any, job_id: int) -> dict[str, Any]:
    end = time.monotonic() + 120
    while time.monotonic() < end:
        answer: dict[str, Any] = server.post(f"{FETCH}/{job_id}")
        if answer["status"] != "processing":
            return answer
        time.sleep(0.2)
    raise AssertionError(f"job {job_id} did not finish")


def wait_until_two_run(server: Any) -> None:
    end = time.monotonic() + 60
    while time.monotonic() < end:
        found = states(server)
        if found["running"] == 2 and found["queued"] == JOBS - 2:
            return
        time.sleep(0.02)
    raise AssertionError(states(server))


@pytest.mark.parametrize("how", ["kill", "stop"])
def test_jobs_of_a_server_that_went_down_finish_in_the_next_one(serve: Callable[..., Any], how: str) -> None:
    # One row per forward and two slots: two jobs run, the others wait.
    server = serve(LATENTD_MAX_ROWS="1")
    ids = [server.post(TEXT2IMG, **wish(number))["id"] for number in range(JOBS)]
    wait_until_two_run(server)
    if how == "kill":
        server.kill()
    else:
        assert server.stop() == 0
    server = serve(LATENTD_MAX_ROWS="1")
    answers = [wait_for(server, job_id) for job_id in ids]
    assert [(answer["status"], answer["id"]) for answer in answers] == [("success", job_id) for job_id in ids]

    undisturbed = serve("other")
    for number, answer in enumerate(answers):
        calm = undisturbed.post(TEXT2IMG, **{**wish(number), "instant_response": "no"})
        if calm["status"] == "processing":
            calm = wait_for(undisturbed, calm["id"])
        difference = np.abs(pixels(server, answer["output"][0]) - pixels(undisturbed, calm["output"][0]))
        assert difference.max() <= 1
