"""What answers say of a job that described a picture."""

from __future__ import annotations

from typing import Any

from server.jobs.base import Job


def captions(job: Job) -> list[str]:
    """The text, of a finished job; of one that drew there is none."""
    return [answer["text"] for answer in (job.result or {}).get("answers", ())]


def caption_meta(job: Job) -> dict[str, Any]:
    """Every value that was used."""
    echo = job.echo
    values = {
        "model_id": job.request["model"],
        "length": echo["length"],
        "instant_response": echo["instant_response"],
        "base64": echo["base64"],
        **echo["pictures"],
    }
    note = echo.get("model_note")
    return values if note is None else values | {"model_note": note}
