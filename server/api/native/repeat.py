"""``POST /v1/jobs``: draws a request that was decided once before, as records in pictures hold it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from math import isfinite
from typing import Any

from fastapi import Request
from pydantic import TypeAdapter, ValidationError

from pipelines.complete import choose_safety
from pipelines.draft import Completed, Defaults, ImageDraft
from pipelines.errors import InvalidRequest
from pipelines.finishing import choose_upscale
from pipelines.request import ImageRequest
from pipelines.upscalers import PREFIX, Upscaling
from schedulers.registry import SPACINGS
from server.api.body import parse_json
from server.api.deps import base_url
from server.api.dialect import Context
from server.config import describe
from server.inputs import InputGone, StoredInput
from server.jobs.base import Job
from server.keys import ApiKey
from server.outputs import Outputs, parse_format

_REQUEST = TypeAdapter(ImageRequest)
_NAMES = frozenset(field.name for field in fields(ImageRequest))
#: What a draft takes as the request has it.
_SAME = frozenset(field.name for field in fields(ImageDraft)) & _NAMES
#: What changes no pixel, and is for others to decide.
_LEFT_OUT = frozenset({"priority"})
#: Values that a draft takes as yes or no, because the server decides the rest.
_DECIDED = ("safety", "highres")

_PROMPT_LIMIT = 10_000
_NAME_LIMIT = 1_000
_MAX_LORAS = 16
_MAX_EMBEDDINGS = 16
_SEEDS = 2**63
_DIGEST = re.compile(r"[0-9a-f]{64}")

BODY: dict[str, Any] = {
    "type": "object",
    "required": ["request"],
    "properties": {
        "request": {"type": "object", "description": "Every value, as GET /v1/jobs/{id} shows it."},
        "inputs_of": {
            "type": ["integer", "null"],
            "description": "A job of the caller's own, whose input pictures the request names by their digests.",
        },
        "output_format": {"type": "string", "enum": ["png", "jpeg", "webp"], "default": "png"},
    },
}


@dataclass(frozen=True, kw_only=True)
class Repeat:
    """A call, read."""

    request: ImageRequest
    inputs_of: object
    outputs: Outputs


async def repeat(context: Context, caller: ApiKey, request: Request) -> Job:
    """Stores the job. Warnings name whatever is not as it was. Raises ``InvalidRequest``, ``InputGone`` …"""
    call = _read(await request.body())
    stored = await _find_inputs(context, caller, call)
    completed = _complete(context, call.request, stored.get(call.request.image or ""))
    warnings = (*completed.warnings, *_differences(call.request, completed))
    return await context.service.submit(
        replace(completed, warnings=warnings),
        owner=caller.id,
        dialect="native",
        echo={},
        base_url=base_url(request, context.public_url),
        outputs=call.outputs,
    )


def _read(data: bytes) -> Repeat:
    body = parse_json(data)
    values = body.get("request")
    if not isinstance(values, dict):
        raise InvalidRequest("request must be an object", field="request")
    name = body.get("output_format", "png")
    if not isinstance(name, str):
        raise InvalidRequest("output_format must be a string", field="output_format")
    outputs = Outputs(extension=parse_format(name, field="output_format"))
    return Repeat(request=_read_request(values), inputs_of=body.get("inputs_of"), outputs=outputs)


def _read_request(values: Mapping[str, object]) -> ImageRequest:
    if unknown := sorted(set(values) - _NAMES):
        # Of a newer latentd: to leave it out would draw another picture.
        raise InvalidRequest(f"request: this server does not know {unknown[0][:100]}", field="request")
    try:
        request = _REQUEST.validate_python(values)
    except ValidationError as error:
        raise InvalidRequest(describe(error, where="request"), field="request") from None
    loras = [name for name, _ in request.loras]
    names = (request.scheduler, request.algorithm_type, request.vae, *loras, *request.embeddings)
    inputs = (request.image, request.mask, request.ip_adapter_image)
    numbers = [value for value in vars(request).values() if isinstance(value, float)]
    limits = {
        # The engine knows pictures by other names, too: those that other requests are drawing from.
        "images named by their digests": all(name is None or _DIGEST.fullmatch(name) for name in inputs),
        "finite numbers": all(isfinite(value) for value in (*numbers, *(strength for _, strength in request.loras))),
        f"prompts of at most {_PROMPT_LIMIT} characters": max(len(request.prompt), len(request.negative_prompt or ""))
        <= _PROMPT_LIMIT,
        f"names of at most {_NAME_LIMIT} characters": all(len(name or "") <= _NAME_LIMIT for name in names),
        f"at most {_MAX_LORAS} LoRAs": len(request.loras) <= _MAX_LORAS,
        f"at most {_MAX_EMBEDDINGS} embeddings": len(request.embeddings) <= _MAX_EMBEDDINGS,
        "a seed from 0 to 2^63 - 1": 0 <= request.seed < _SEEDS,
        f"a spacing of {', '.join(SPACINGS)}": request.spacing in (None, *SPACINGS),
    }
    for wanted, kept in limits.items():
        if not kept:
            raise InvalidRequest(f"request must have {wanted}", field="request")
    return request


async def _find_inputs(context: Context, caller: ApiKey, call: Repeat) -> dict[str, StoredInput]:
    """The inputs by digest. Knowing a digest is no permission, for pictures carry it: the caller sent it once."""
    wanted = _digests(call.request.to_json())
    if not wanted:
        return {}
    own = await context.service.get(call.inputs_of, caller.id)
    if own is None or not wanted <= _digests(own.request):
        raise InputGone
    return {digest: await context.inputs.find(digest) for digest in wanted}


def _complete(context: Context, request: ImageRequest, image: StoredInput | None) -> Completed:
    draft = _draft(request, image)
    if request.model.startswith(PREFIX):
        return _enlarge(context, request, draft)
    found = context.catalog.resolve(request.model)
    completed = context.complete(draft, found.model, Defaults())
    return replace(completed, warnings=(*found.warnings, *completed.warnings))


def _enlarge(context: Context, request: ImageRequest, draft: ImageDraft) -> Completed:
    """A picture that was made larger, and not drawn."""
    if draft.image is None or draft.image_size is None:
        raise InvalidRequest("request must have an image", field="request")
    warnings: list[str] = []
    upscaling = Upscaling(
        upscaler=context.catalog.get(request.model).id,
        image=draft.image,
        size=draft.image_size,
        factor=choose_upscale(request.width // draft.image_size[0], draft.image_size, warnings),
        seed=request.seed,
        safety=choose_safety(draft, context.safety_rules(), warnings),
    )
    return Completed(request=upscaling.request(), warnings=tuple(warnings))


def _digests(values: Mapping[str, object]) -> set[str]:
    return {value for value in values.values() if isinstance(value, str) and _DIGEST.fullmatch(value)}


def _draft(request: ImageRequest, image: StoredInput | None) -> ImageDraft:
    values = vars(request)
    same = {name: values[name] for name in _SAME - {*_LEFT_OUT, *_DECIDED}}
    return ImageDraft(
        **same,
        image_size=None if image is None else (image.width, image.height),
        safety=request.safety is not None,
        safety_type=request.safety,
        highres=request.highres is not None,
    )


def _differences(asked: ImageRequest, completed: Completed) -> list[str]:
    used = vars(completed.request)
    names = [name for name, value in vars(asked).items() if used[name] != value and name not in _LEFT_OUT]
    return [f"Not as recorded: {', '.join(names)}."] if names else []
