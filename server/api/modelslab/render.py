"""Answers in ModelsLab's words; every function takes a job as it stands and returns a JSON object."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from pipelines.draft import SafetyRules
from pipelines.errors import Error, InvalidRequest
from pipelines.upscalers import PREFIX
from server.api.modelslab.adapters import used_adapter
from server.api.modelslab.captions import caption_meta, captions
from server.api.modelslab.factors import used_upscale
from server.api.modelslab.loras import used_loras
from server.api.modelslab.unbuilt import used_options
from server.errors import BadBody, QueueFull
from server.inputs import is_url
from server.jobs.base import Job, JobState
from server.service import OPAQUE
from server.storage.names import TEMPORARY, media_type, text_name, url_path

#: Our names of fields, where the wire has others.
_WIRE_NAMES = {
    "model": "model_id",
    "steps": "num_inference_steps",
    "guidance": "guidance_scale",
    "true_cfg": "true_cfg_scale",
    "loras": "lora_model",
    "ip_adapter": "ip_adapter_id",
    "embeddings": "embeddings_model",
}
_PROCESSING = "Try to fetch request after seconds estimated"
_FETCH_TIP = "Poll fetch_result with your key until status is success; add ?wait=10 to be answered when it is done."


def make_echo(
    *,
    track_id: object,
    instant: bool,
    note: str | None,
    pictures: Mapping[str, str],
    safety_type: str,
    family: str,
    base64: bool,
    full_url: bool,
    enhanced: bool,
    style: str | None,
) -> dict[str, Any]:
    """What is stored beside the request so that answers can repeat it; never the key, and of pictures only URLs."""
    return {
        "track_id": track_id,
        "instant_response": _yes_no(instant),
        "model_note": note,
        "pictures": shown_pictures(pictures),
        "safety_type": safety_type,
        "family": family,
        "base64": base64,
        "full_url": full_url,
        "enhanced": enhanced,
        "style": style,
    }


def shown_pictures(pictures: Mapping[str, str]) -> dict[str, str]:
    """What ``meta`` says of the pictures that came, by wire name: their URLs, nothing longer."""
    return {name: source if is_url(source) else "base64" for name, source in pictures.items()}


def success(job: Job) -> dict[str, Any]:
    """A finished job. No ``request_id`` and no ``future_links``: clients would poll or download them again."""
    result = job.result or {}
    links, texts = output_links(job), captions(job)
    return {
        "status": "success",
        "generationTime": round(result.get("seconds", 0.0), 3),
        "id": job.id,
        "output": [*links, *texts],
        "proxy_links": links,
        "nsfw_content_detected": any(result.get("nsfw", ())),
        "webhook_status": job.webhook_state.value,
        "tip": "",
        "meta": meta(job),
        **({"caption": texts[0]} if texts else {}),
        **_track_id(job),
        **_warning(job),
    }


def processing(job: Job, eta_s: float) -> dict[str, Any]:
    """A job that waits or runs; the links start to work when it is done."""
    links = output_links(job)
    return {
        "status": "processing",
        "tip": _FETCH_TIP,
        "tip_1": _FETCH_TIP,
        "eta": round(max(eta_s, 1.0), 1),
        "message": _PROCESSING,
        "messege": _PROCESSING,
        "webhook_status": job.webhook_state.value,
        "id": job.id,
        "fetch_result": f"{job.base_url}/api/v6/{job.echo.get('family', 'images')}/fetch/{job.id}",
        "output": [],
        "proxy_links": [],
        "future_links": links,
        "meta": {
            **meta(job),
            "webhook": job.webhook,
            "track_id": job.echo.get("track_id"),
            "id": str(job.id),
            "is_sdxl": False,
            "output": links,
        },
        **_track_id(job),
        **_warning(job),
    }


def failure(job: Job, status: str) -> dict[str, Any]:
    """A job that failed or was cancelled; ``status`` is "error" or "failed"."""
    message = job.error_message or ("The request was cancelled." if job.state is JobState.CANCELLED else OPAQUE)
    return {
        "status": status,
        "id": job.id,
        "message": message,
        "messege": message,
        "output": [],
        "webhook_status": job.webhook_state.value,
        **_track_id(job),
    }


def webhook(job: Job) -> dict[str, Any]:
    """What the receiver gets: ``track_id`` always, "failed" for whatever did not succeed."""
    track_id = {"track_id": job.echo.get("track_id")}
    if job.state is not JobState.SUCCEEDED:
        body = failure(job, "failed") | track_id
    else:
        body = success(job) | track_id
    # Being told is what is happening.
    del body["webhook_status"]
    return body


def refusal(error: Error) -> dict[str, Any]:
    """A call that became no job. ``message`` is a string and no ``id`` is there: strict clients need both so."""
    message = str(error)
    if isinstance(error, QueueFull) and "rate limit" not in message.lower():
        # Clients search for these words.
        message = f"Rate limit exceeded. {message}"
    body: dict[str, Any] = {"status": "error", "message": message, "messege": message, "output": []}
    if isinstance(error, InvalidRequest) and error.field is not None:
        field = _WIRE_NAMES.get(error.field, error.field)
        text = f"The {field} field is required." if message == f"{field} is required" else message
        body["errors"] = {field: [text]}
    if isinstance(error, QueueFull):
        body["retry_after"] = error.retry_after_s
    if isinstance(error, BadBody):
        body["tip"] = "Send a JSON object as body and Content-Type: application/json."
    return body


def rate_limit_headers(error: QueueFull) -> dict[str, str]:
    """The official CLI backs off until this many epoch seconds."""
    return {"X-RateLimit-Reset": str(int(time.time()) + error.retry_after_s)}


def output_links(job: Job) -> list[str]:
    """Absolute URLs, fixed at submit: of the pictures, or of their base64 text where that was asked for."""
    names = map(text_name, job.outputs) if job.echo.get("base64") else job.outputs
    return [job.base_url + url_path(name) for name in names]


def meta(job: Job) -> dict[str, Any]:
    """Every value that was used, under the names of both generations of the API; what was not applied says so."""
    request, echo = job.request, job.echo
    if not job.outputs:
        return caption_meta(job)
    # A job that waited while the server was told to check everything was checked, whatever it had asked for.
    safety = (job.result or request).get("safety")
    karras = request["sigmas"] == "karras"
    values = {
        "prompt": request["prompt"],
        "model_id": request["model"].removeprefix(PREFIX),
        "negative_prompt": request["negative_prompt"] or "",
        "scheduler": (job.result or {}).get("scheduler") or request["scheduler"],
        "W": request["width"],
        "H": request["height"],
        "width": request["width"],
        "height": request["height"],
        "guidance_scale": request["guidance"],
        "seed": request["seed"],
        "steps": request["steps"],
        "num_inference_steps": request["steps"],
        "n_samples": request["samples"],
        "instant_response": echo.get("instant_response", "no"),
        "use_karras_sigmas": _yes_no(karras),
        "algorithm_type": request["algorithm_type"] or "no",
        "reproducible": _yes_no(request["reproducible"]),
        "clip_skip": request.get("clip_skip", 1),
        "highres_fix": _yes_no(request.get("highres") is not None),
        "upscale": used_upscale(request),
        "vae": request.get("vae"),
        "enhance_prompt": _yes_no(echo.get("enhanced", False)),
        "enhance_style": echo.get("style"),
        "safety_checker": _yes_no(safety is not None),
        "safety_checker_type": safety or echo.get("safety_type", SafetyRules.type),
        **used_options(),
        **used_loras(request.get("loras", ())),
        **used_adapter(request),
        "embeddings": ",".join(request.get("embeddings", ())) or None,
        "temp": _yes_no(job.temporary),
        "base64": _yes_no(echo.get("base64", False)),
        "full_url": _yes_no(echo.get("full_url", False)),
        "output_format": media_type(job.outputs[0]).removeprefix("image/"),
        "outdir": "out",
        "file_prefix": job.outputs[0].removeprefix(TEMPORARY).partition("-")[2],
    }
    values |= echo.get("pictures", {})
    if request.get("image") is not None:
        values["strength"] = request["strength"]
    if request.get("true_cfg", 1.0) > 1:
        values["true_cfg_scale"] = request["true_cfg"]
    note = echo.get("model_note")
    return values if note is None else values | {"model_note": note}


def _yes_no(value: bool) -> str:
    return "yes" if value else "no"


def _track_id(job: Job) -> dict[str, Any]:
    track_id = job.echo.get("track_id")
    return {} if track_id is None else {"track_id": track_id}


def _warning(job: Job) -> dict[str, str]:
    # One text of many sentences: each has to end.
    sentences = [f"{text.rstrip(' .')}." for text in job.warnings]
    return {"warning": " ".join(sentences)} if sentences else {}
