"""Draws a picture again, by what stands inside its file: ``./latentd replay``."""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import orjson
from PIL import Image

from server.parameters import parse
from server.storage.formats import PARAMETERS, RECORD, read_texts

_PAUSE_S = 0.5
_TIMEOUT_S = 60.0
_VERSION = 1


class ReplayError(Exception):
    """Why there is no new picture; one sentence for the user."""


@dataclass(frozen=True, kw_only=True)
class Replayed:
    """A picture that was drawn again."""

    data: bytes
    #: What the server says about values that it did not use as they are.
    warnings: list[str]
    #: Largest difference of two channels, 0 .. 255; None where the sizes differ.
    difference: int | None


def replay(file: Path, client: httpx2.Client, *, say: Callable[[str], None]) -> Replayed:
    """The picture of a record of ours, or else of AUTOMATIC1111's text, drawn on the client's server.

    Blocks until it is drawn. Raises ``ReplayError``.
    """
    texts, old, kind = _open(file)
    if RECORD in texts:
        job = _repeat(client, texts[RECORD], kind)
    elif PARAMETERS in texts:
        job = _draw(client, texts[PARAMETERS], kind, say)
    else:
        raise ReplayError(f"{file} says nothing about how it was drawn.")
    job = _wait(client, job)
    # The links may be of another host, which need not learn the key.
    answer = _call(lambda: httpx2.get(job["outputs"][0], timeout=_TIMEOUT_S))
    new = np.asarray(Image.open(io.BytesIO(answer.content)).convert("RGB"))
    return Replayed(data=answer.content, warnings=job["warnings"], difference=_compare(old, new))


def _open(file: Path) -> tuple[dict[str, str], Any, str]:
    """Texts, pixels, and the kind of file that the new picture is to be: JPEG and WebP change what was drawn."""
    try:
        with Image.open(file, formats=("PNG", "JPEG", "WEBP")) as image:
            return read_texts(image), np.asarray(image.convert("RGB")), str(image.format).lower()
    except OSError as error:
        raise ReplayError(f"{file} cannot be read as a PNG, JPEG or WebP picture: {error}") from None


def _repeat(client: httpx2.Client, text: str, kind: str) -> dict[str, Any]:
    try:
        record = orjson.loads(text)
        if record["version"] != _VERSION:
            raise ReplayError("The picture was drawn by a newer latentd.")
        body = {"request": record["request"], "inputs_of": record["job"], "output_format": kind}
    except (orjson.JSONDecodeError, KeyError, TypeError):
        raise ReplayError("The picture's record is damaged.") from None
    return _answer(client.post, "/v1/jobs", body)


def _draw(client: httpx2.Client, text: str, kind: str, say: Callable[[str], None]) -> dict[str, Any]:
    """Foreign texts give no more than a call does; what they leave open is the server's to choose."""
    fields, unread = parse(text)
    say("No record of latentd's: drawn by AUTOMATIC1111's text, so the picture will differ.")
    if unread:
        say(f"Not used: {', '.join(unread)}.")
    known = {model["id"] for model in _answer(client.get, "/health")["models"]}
    if (model := fields.get("model_id")) is not None and model not in known:
        say(f"There is no model {model!r} here: the server's default draws.")
        del fields["model_id"]
    more = {"instant_response": "yes", "output_format": kind}
    answer = _answer(client.post, "/api/v6/images/text2img", {**fields, **more})
    return {"id": answer["id"]}


def _wait(client: httpx2.Client, job: dict[str, Any]) -> dict[str, Any]:
    while (job := _answer(client.get, f"/v1/jobs/{job['id']}"))["state"] in ("queued", "running"):
        time.sleep(_PAUSE_S)
    if job["state"] != "succeeded":
        raise ReplayError((job["error"] or {}).get("message") or f"The job was {job['state']}.")
    return job


def _answer(method: Callable[..., httpx2.Response], path: str, body: object = None) -> dict[str, Any]:
    response = _call(lambda: method(path) if body is None else method(path, json=body))
    answer: dict[str, Any] = response.json()
    return answer


def _call(send: Callable[[], httpx2.Response]) -> httpx2.Response:
    try:
        response = send()
    except httpx2.HTTPError as error:
        raise ReplayError(f"The server cannot be reached: {error}") from None
    if response.is_error:
        raise ReplayError(f"The server refused: {_reason(response)}")
    return response


def _reason(response: httpx2.Response) -> str:
    """The message in the native API's shape or ModelsLab's; the status where there is neither."""
    try:
        body = response.json()
        return str(body["message"] if "message" in body else body["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return f"status {response.status_code}"


def _compare(old: Any, new: Any) -> int | None:
    return int(np.abs(old.astype(np.int16) - new).max()) if old.shape == new.shape else None
