"""A call of ``/v1/vision``, read from the fields of its body."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import cast

import orjson

from pipelines.errors import InvalidRequest
from pipelines.florence2_tasks import find_task
from pipelines.question import Question, check
from pipelines.vision import VisionTask

#: Answers where a call names no model.
DEFAULT_MODEL = "florence-2-base"
FIELDS = ("image", "task", "prompt", "region", "beams", "max_new_tokens", "model", "webhook")


@dataclass(frozen=True, kw_only=True)
class Call:
    """What was asked for, and of whom."""

    question: Question
    #: URL, data URI or base64.
    image: str
    #: Id or alias.
    model: str
    webhook: str | None


def read_call(fields: Mapping[str, object]) -> Call:
    """Raises ``InvalidRequest``, which names the field. What is null or empty counts as left out."""
    given = {name: value for name, value in fields.items() if value is not None and value != ""}
    for name in given:
        if name not in FIELDS:
            near = get_close_matches(name, FIELDS, n=1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(FIELDS)}."
            raise InvalidRequest(f"Unknown field {name[:60]!r}: {hint}", field=name[:60])
    task = _text(given, "task")
    question = Question(
        task=VisionTask.CAPTION if task is None else find_task(task),
        prompt=_text(given, "prompt"),
        region=_region(given.get("region")),
        beams=_whole(given, "beams"),
        max_new_tokens=_whole(given, "max_new_tokens"),
    )
    # Before anything is fetched for it.
    check(question)
    image = _text(given, "image")
    if image is None:
        raise InvalidRequest("image is required: a file, a URL, a data URI or base64.", field="image")
    return Call(
        question=question,
        image=image,
        model=_text(given, "model") or DEFAULT_MODEL,
        webhook=_text(given, "webhook"),
    )


def _text(fields: Mapping[str, object], name: str) -> str | None:
    value = fields.get(name)
    if value is not None and not isinstance(value, str):
        raise InvalidRequest(f"{name} must be a text.", field=name)
    return value


def _whole(fields: Mapping[str, object], name: str) -> int | None:
    """A form has only texts."""
    value = fields.get(name)
    if isinstance(value, str) and value.strip().isascii() and value.strip().isdigit() and len(value) < 10:
        value = int(value)
    if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
        raise InvalidRequest(f"{name} must be a whole number.", field=name)
    return value


def _region(value: object) -> tuple[float, float, float, float] | None:
    """Four numbers in a list, or with commas in a text."""
    if value is None:
        return None
    if isinstance(value, str):
        try:
            value = orjson.loads(f"[{value.strip().removeprefix('[').removesuffix(']')}]")
        except orjson.JSONDecodeError:
            value = None
    if (
        not isinstance(value, list)
        or len(value) != 4
        or not all(isinstance(one, int | float) and not isinstance(one, bool) for one in value)
    ):
        raise InvalidRequest("region must be four numbers: left, top, right, bottom.", field="region")
    return cast(tuple[float, float, float, float], tuple(value))
