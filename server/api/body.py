"""The fields of a call's body, whatever they travelled in: JSON, form or multipart."""

from __future__ import annotations

from urllib.parse import parse_qsl

import orjson
import pybase64
from fastapi import Request
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException

from server.errors import BadBody

_MAX_FIELDS = 1000
_INVALID = "Invalid API Request"


async def read_body(request: Request) -> dict[str, object]:
    """By name; an uploaded file becomes base64.

    Raises ``BadBody`` for what is neither JSON object nor form, and ``BodyTooLarge``.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        return await _read_multipart(request)
    return _parse(await request.body(), is_form=kind == "application/x-www-form-urlencoded")


def _parse(data: bytes, *, is_form: bool) -> dict[str, object]:
    # Some editors put the mark in front of files that are then posted.
    data = data.removeprefix(b"\xef\xbb\xbf").strip()
    if not data:
        return {}
    # curl -d calls JSON a form; a form never begins with a brace.
    if is_form and data[:1] not in b"{[":
        return _parse_form(data)
    try:
        # orjson refuses NaN, infinite numbers, lone surrogates and deep nesting, which json lets through.
        fields = orjson.loads(data)
    except orjson.JSONDecodeError:
        raise BadBody(f"{_INVALID}: the body is not valid JSON.") from None
    if not isinstance(fields, dict):
        raise BadBody(f"{_INVALID}: the body is not a JSON object.")
    return fields


def _parse_form(data: bytes) -> dict[str, object]:
    try:
        return dict(parse_qsl(data.decode("utf-8", "replace"), max_num_fields=_MAX_FIELDS))
    except ValueError:
        raise BadBody(f"{_INVALID}: the form has too many fields.") from None


async def _read_multipart(request: Request) -> dict[str, object]:
    try:
        async with request.form(max_files=_MAX_FIELDS, max_fields=_MAX_FIELDS) as form:
            return {name: value if isinstance(value, str) else await _pack(value) for name, value in form.items()}
    except HTTPException:
        raise BadBody(f"{_INVALID}: the form cannot be read.") from None


async def _pack(file: UploadFile) -> str:
    """An uploaded file as what a picture's field holds otherwise; fields that want no picture cannot use it anyway."""
    return pybase64.b64encode(await file.read()).decode("ascii")
