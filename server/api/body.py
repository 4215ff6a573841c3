"""The fields of a call's body, whatever they travelled in: JSON, form or multipart."""

from __future__ import annotations

import asyncio
import sys

import orjson
import pybase64
from fastapi import Request
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException

from server.errors import BadBody
from server.percent import percent_decoded

_MAX_FIELDS = 1000
#: Of JSON; a call has some dozen values, and a million of them would hold up everyone while they are read.
_MAX_VALUES = 50_000
_INVALID = "Invalid API Request"


async def read_body(request: Request) -> dict[str, object]:
    """By name; an uploaded file becomes base64.

    Raises ``BadBody`` for what is neither JSON object nor form, and ``BodyTooLarge``.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        return await _read_multipart(request)
    # Some editors put the mark in front of files that are then posted.
    data = (await request.body()).removeprefix(b"\xef\xbb\xbf").strip()
    # curl -d calls JSON a form; a form never begins with a brace.
    if kind == "application/x-www-form-urlencoded" and data[:1] not in b"{[":
        return await asyncio.to_thread(_parse_form, data)
    return parse_json(data) if data else {}


def parse_json(data: bytes) -> dict[str, object]:
    """The object in a body of JSON. Raises ``BadBody``."""
    # Between any two values is a comma. Nothing else can be done at the same time as orjson.
    if data.count(b",") > _MAX_VALUES:
        raise BadBody(f"{_INVALID}: the body holds too many values.")
    try:
        # orjson refuses NaN, infinite numbers, lone surrogates and deep nesting, which json lets through.
        fields = orjson.loads(data)
    except orjson.JSONDecodeError:
        raise BadBody(f"{_INVALID}: the body is not valid JSON.") from None
    if not isinstance(fields, dict):
        raise BadBody(f"{_INVALID}: the body is not a JSON object.")
    return fields


def _parse_form(data: bytes) -> dict[str, object]:
    if data.count(b"&") >= _MAX_FIELDS:
        raise BadBody(f"{_INVALID}: the form has too many fields.")
    pairs = (pair.replace(b"+", b" ").partition(b"=") for pair in data.split(b"&"))
    return {_text(name): _text(value) for name, _, value in pairs if value}


def _text(data: bytes) -> str:
    return percent_decoded(data).decode("utf-8", "replace")


async def _read_multipart(request: Request) -> dict[str, object]:
    try:
        # A text may be as long as the whole body, whose length is bounded where it comes in.
        longest = sys.maxsize
        async with request.form(max_files=_MAX_FIELDS, max_fields=_MAX_FIELDS, max_part_size=longest) as form:
            return {name: value if isinstance(value, str) else await _pack(value) for name, value in form.items()}
    except HTTPException:
        raise BadBody(f"{_INVALID}: the form cannot be read.") from None


async def _pack(file: UploadFile) -> str:
    """An uploaded file as what a picture's field holds otherwise; fields that want no picture cannot use it anyway."""
    return pybase64.b64encode(await file.read()).decode("ascii")
