"""What /openapi.json says of an endpoint: the body that it takes in all its spellings, and what it answers."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from server.api.modelslab.schemas import FLAGS

_NUMBERS = MappingProxyType({"integer": ["integer", "string", "null"], "number": ["number", "string", "null"]})
_PICTURE = ["string", "array", "null"]
#: Fields that come as more than their own type says.
_LOOSER: Mapping[str, list[str]] = MappingProxyType(
    {
        "track_id": ["string", "integer", "number", "boolean", "null"],
        "seed": ["integer", "string", "null"],
        "request_id": ["integer", "string"],
        "lora_model": ["string", "array", "null"],
        "lora_strength": ["string", "number", "array", "null"],
        "embeddings_model": ["string", "array", "null"],
        "init_image": _PICTURE,
        "mask_image": _PICTURE,
        "image": _PICTURE,
        **{name: ["string", "boolean", "integer", "null"] for name in FLAGS},
    }
)

_LINKS = {"type": "array", "items": {"type": "string", "format": "uri"}}
_ID = {"type": "integer", "description": "Of the request; 1 to 2^52 - 1."}
_WEBHOOK = {"type": "string", "enum": ["", "pending", "delivered", "failed"]}
_META = {"type": "object", "description": "Every value that was used.", "additionalProperties": True}
_WARNING = {"type": "string", "description": "What was done otherwise than asked."}
_MESSAGE = {"type": "string"}
_COMMON = {"id": _ID, "output": _LINKS, "proxy_links": _LINKS, "webhook_status": _WEBHOOK, "meta": _META}

_SUCCESS: dict[str, Any] = {
    "type": "object",
    "required": ["status", "id", "output", "meta"],
    "properties": {
        "status": {"type": "string", "enum": ["success"]},
        "generationTime": {"type": "number", "description": "Seconds."},
        **_COMMON,
        "nsfw_content_detected": {"type": "boolean"},
        "tip": {"type": "string"},
        "warning": _WARNING,
    },
}
_PROCESSING = {
    "type": "object",
    "required": ["status", "id", "eta", "fetch_result", "future_links"],
    "properties": {
        "status": {"type": "string", "enum": ["processing"]},
        "eta": {"type": "number", "description": "Seconds until it is expected to be done."},
        "fetch_result": {"type": "string", "format": "uri"},
        "future_links": _LINKS,
        "message": _MESSAGE,
        "messege": _MESSAGE,
        **_COMMON,
        "tip": {"type": "string"},
        "warning": _WARNING,
    },
}
_ERROR = {
    "type": "object",
    "required": ["status", "message", "messege"],
    "properties": {
        "status": {"type": "string", "enum": ["error", "failed"]},
        "message": _MESSAGE,
        "messege": _MESSAGE,
        "errors": {"type": "object", "description": "Of fields: what is wrong with them."},
    },
}
#: What the endpoints that draw answer, and fetching.
DRAWN: Mapping[str, Any] = MappingProxyType({"oneOf": [_SUCCESS, _PROCESSING]})
_CAPTIONED = {
    **_SUCCESS,
    "properties": {
        **_SUCCESS["properties"],
        "output": {"type": "array", "items": {"type": "string"}, "description": "The caption."},
        "caption": {"type": "string", "description": "The same."},
    },
}
#: What the endpoint that describes pictures answers.
CAPTIONED: Mapping[str, Any] = MappingProxyType({"oneOf": [_CAPTIONED, _PROCESSING]})
_ERRORS = {"400": "A field is missing or wrong.", "401": "No key, or an unknown one.", "429": "Too much waits."}


def describe(path: str, schema: Mapping[str, Any], answer: Mapping[str, Any], example: Mapping[str, Any]) -> Any:
    """An operation's part of the document; ``schema`` of the body with the types that the pages give."""
    shown: dict[str, Any] = {"schema": dict(answer)} if answer else {}
    described: dict[str, Any] = {
        "responses": {"200": {"description": "Done, or on its way.", "content": {"application/json": shown}}}
    }
    for status, reason in _ERRORS.items():
        described["responses"][status] = {"description": reason, "content": {"application/json": {"schema": _ERROR}}}
    if schema:
        body: dict[str, Any] = {"schema": _tolerant(schema)}
        described["requestBody"] = {"content": {"application/json": body | ({"example": example} if example else {})}}
    names = [part[1:-1].partition(":")[0] for part in path.split("/") if part.startswith("{")]
    if names:
        described["parameters"] = [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in names
        ]
    return described


def _tolerant(schema: Mapping[str, Any]) -> dict[str, Any]:
    """Numbers and flags in any spelling, null for what is not given."""
    properties = {name: _loosened(name, one) for name, one in schema["properties"].items()}
    return {**schema, "properties": properties, "additionalProperties": True}


def _loosened(name: str, one: Mapping[str, Any]) -> dict[str, Any]:
    kind = one.get("type", "string")
    types = _LOOSER.get(name) or _NUMBERS.get(kind) or [kind, "null"]
    return {**one, "type": types} | ({"enum": [*one["enum"], None]} if "enum" in one else {})
