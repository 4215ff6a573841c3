"""What ``replay`` asks a server for, and what it says when there is nothing to ask."""

from __future__ import annotations

import json
from pathlib import Path

import httpx2
import numpy as np
import pytest
from PIL import Image

from server.replay import ReplayError, replay
from server.storage.formats import PARAMETERS, RECORD, Encoding, encode


def offline(request: httpx2.Request) -> httpx2.Response:
    if request.url.path == "/health":
        return httpx2.Response(200, json={"models": [{"id": "sd15"}]})
    body = json.loads(request.content)
    return httpx2.Response(400, json={"error": {"message": json.dumps({"path": request.url.path, "body": body})}})


CLIENT = httpx2.Client(transport=httpx2.MockTransport(offline), base_url="http://images.test")


def asked(file: Path, **texts: str) -> dict[str, object]:
    """What the server was sent; it refuses all, and says so."""
    file.write_bytes(encode(np.zeros((8, 8, 3), np.uint8), Encoding(extension=file.suffix[1:], text=texts)))
    with pytest.raises(ReplayError, match=r"The server refused: (.*)") as caught:
        replay(file, CLIENT, say=lambda text: None)
    found: dict[str, object] = json.loads(str(caught.value).removeprefix("The server refused: "))
    return found


@pytest.mark.parametrize(("extension", "kind"), [("png", "png"), ("jpg", "jpeg"), ("webp", "webp")])
def test_a_record_is_sent_as_it_is(tmp_path: Path, extension: str, kind: str) -> None:
    record = json.dumps({"version": 1, "job": 7, "request": {"prompt": "x"}})
    body = {"request": {"prompt": "x"}, "inputs_of": 7, "output_format": kind}
    sent = asked(tmp_path / f"a.{extension}", **{RECORD: record, PARAMETERS: "other"})
    assert sent == {"path": "/v1/jobs", "body": body}


@pytest.mark.parametrize(("model", "sent"), [("sd15", {"model_id": "sd15"}), ("other", {})])
def test_a_foreign_text_becomes_a_call(tmp_path: Path, model: str, sent: dict[str, str]) -> None:
    found = asked(tmp_path / "a.png", **{PARAMETERS: f"x\nSteps: 3, Model: {model}"})
    body = {"prompt": "x", "num_inference_steps": "3", "instant_response": "yes", "output_format": "png", **sent}
    assert found == {"path": "/api/v6/images/text2img", "body": body}


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ("{", "The picture's record is damaged."),
        ("[]", "The picture's record is damaged."),
        ('{"version": 1}', "The picture's record is damaged."),
        ('{"version": 2}', "The picture was drawn by a newer latentd."),
    ],
)
def test_a_record_that_cannot_be_used_says_why(tmp_path: Path, record: str, message: str) -> None:
    file = tmp_path / "a.png"
    file.write_bytes(encode(np.zeros((8, 8, 3), np.uint8), Encoding(text={RECORD: record})))
    with pytest.raises(ReplayError, match=message):
        replay(file, CLIENT, say=lambda text: None)


def test_a_file_without_texts_says_so(tmp_path: Path) -> None:
    file = tmp_path / "a.png"
    Image.new("RGB", (8, 8)).save(file)
    with pytest.raises(ReplayError, match="says nothing about how it was drawn"):
        replay(file, CLIENT, say=lambda text: None)


@pytest.mark.parametrize("content", [None, b"", b"no picture"])
def test_what_is_no_picture_says_so(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(ReplayError, match="cannot be read"):
        replay(tmp_path / "a.png", CLIENT, say=lambda text: None)
