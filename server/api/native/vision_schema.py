"""What /docs says about ``POST /v1/vision``: its fields, its answers, and each task with an example."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from pipelines.florence2_tasks import TASKS
from pipelines.vision import MAX_BEAMS, MAX_NEW_TOKENS, VisionRequest, VisionTask
from server.api.native.vision_call import DEFAULT_MODEL

_IMAGE = "https://example.org/car.jpg"
_CAR = {"label": "car", "box": [34, 160, 597, 371]}
_OUTLINE = {"label": "", "polygons": [[178, 182, 180, 182, 185, 179]]}
_REGION = [34, 160, 597, 371]


@dataclass(frozen=True, kw_only=True)
class Example:
    """One task, as /docs shows it."""

    summary: str
    #: Fields beside image and task.
    fields: Mapping[str, Any] = field(default_factory=dict)
    answer: Mapping[str, Any]


EXAMPLES: Mapping[VisionTask, Example] = MappingProxyType(
    {
        VisionTask.CAPTION: Example(
            summary="One sentence about the picture",
            answer={"text": "A green car parked in front of a yellow building."},
        ),
        VisionTask.DETAILED_CAPTION: Example(
            summary="Some sentences", answer={"text": "The image shows a green car parked on a street. Behind it …"}
        ),
        VisionTask.MORE_DETAILED_CAPTION: Example(
            summary="A paragraph", answer={"text": "The image shows a vintage car. The car is painted turquoise …"}
        ),
        VisionTask.OBJECT_DETECTION: Example(summary="Objects, with boxes", answer={"boxes": [_CAR]}),
        VisionTask.DENSE_REGION_CAPTION: Example(
            summary="Regions, described", answer={"boxes": [{**_CAR, "label": "turquoise car on a street"}]}
        ),
        VisionTask.REGION_PROPOSAL: Example(
            summary="Regions where something is, unnamed", answer={"boxes": [{**_CAR, "label": ""}]}
        ),
        VisionTask.PHRASE_GROUNDING: Example(
            summary="Where what a caption names is",
            fields={"prompt": "A green car parked in front of a yellow building."},
            answer={"boxes": [{**_CAR, "label": "A green car"}]},
        ),
        VisionTask.REFERRING_EXPRESSION_SEGMENTATION: Example(
            summary="The outline of what a text refers to",
            fields={"prompt": "a green car"},
            answer={"outlines": [_OUTLINE]},
        ),
        VisionTask.REGION_TO_SEGMENTATION: Example(
            summary="The outline of what is in a region",
            fields={"region": _REGION},
            answer={"outlines": [_OUTLINE]},
        ),
        VisionTask.OPEN_VOCABULARY_DETECTION: Example(
            summary="Where things of a name are",
            fields={"prompt": "a green car"},
            answer={"boxes": [{**_CAR, "label": "a green car"}], "outlines": []},
        ),
        VisionTask.REGION_TO_CATEGORY: Example(
            summary="What kind of thing is in a region", fields={"region": _REGION}, answer={"text": "car"}
        ),
        VisionTask.REGION_TO_DESCRIPTION: Example(
            summary="What is in a region", fields={"region": _REGION}, answer={"text": "turquoise car"}
        ),
        VisionTask.REGION_TO_OCR: Example(
            summary="The text in a region; here as the model's own places",
            fields={"prompt": "<loc_53><loc_333><loc_933><loc_774>"},
            answer={"text": "VOLKSWAGEN"},
        ),
        VisionTask.OCR: Example(summary="The text in the picture", answer={"text": "STOP"}),
        VisionTask.OCR_WITH_REGION: Example(
            summary="Lines of text, with their corners",
            answer={"quads": [{"label": "STOP", "quad": [64, 48, 128, 48, 128, 96, 64, 96]}]},
        ),
    }
)


def _described(kind: str, description: str, **more: Any) -> dict[str, Any]:
    return {"type": kind, "description": description, **more}


_PICTURE = "PNG, JPEG or WebP, at most 25 MiB, 8192 pixels a side, 16.8 million in all"
_TASKS = "\n".join(f"- `{task}`, `{TASKS[task].token}`: {example.summary}" for task, example in EXAMPLES.items())
_PROPERTIES: dict[str, Any] = {
    "image": _described("string", f"{_PICTURE}: URL, data URI or base64; in a form also a file."),
    "task": _described("string", f"By name or token:\n{_TASKS}", default=VisionTask.CAPTION, enum=list(VisionTask)),
    "prompt": _described("string", "The text to look for, for the tasks that need one; or a region as four <loc_…>."),
    "region": _described(
        "array",
        "Left, top, right and bottom in pixels, for the tasks about a region; in a form with commas.",
        items={"type": "number"},
        minItems=4,
        maxItems=4,
    ),
    "beams": _described(
        "integer",
        "Answers followed at a time; 1 is the fastest.",
        default=VisionRequest.beams,
        minimum=1,
        maximum=MAX_BEAMS,
    ),
    "max_new_tokens": _described(
        "integer", "Longest answer.", default=MAX_NEW_TOKENS, minimum=1, maximum=MAX_NEW_TOKENS
    ),
    "model": _described("string", "Model id or alias.", default=DEFAULT_MODEL),
    "webhook": _described("string", "URL that is told when the job is done."),
}
_BODY = {"type": "object", "required": ["image"], "properties": _PROPERTIES}
_FORM = {**_BODY, "properties": {**_PROPERTIES, "image": _described("string", f"{_PICTURE}.", format="binary")}}

REQUEST_BODY: dict[str, Any] = {
    "required": True,
    "content": {
        "application/json": {
            "schema": _BODY,
            "examples": {
                task.value: {
                    "summary": example.summary,
                    "value": {"image": _IMAGE, "task": task.value, **example.fields},
                }
                for task, example in EXAMPLES.items()
            },
        },
        "multipart/form-data": {"schema": _FORM},
    },
}


def _list(description: str, name: str, numbers: int | None, *, nested: bool = False) -> dict[str, Any]:
    """Things with a label and a place."""
    place: dict[str, Any] = {"type": "array", "items": {"type": "integer"}}
    if numbers is not None:
        place |= {"minItems": numbers, "maxItems": numbers}
    if nested:
        place = {"type": "array", "items": place}
    item = {"type": "object", "properties": {"label": {"type": "string"}, name: place}}
    return {"type": "array", "description": description, "items": item}


_ANSWER = {
    "type": "object",
    "description": "Of these what the task tells; places are pixels of the picture as it was sent.",
    "properties": {
        "text": {"type": "string"},
        "boxes": _list("Left, top, right, bottom.", "box", 4),
        "outlines": _list("The polygons of one thing: x, y, x, y, …", "polygons", None, nested=True),
        "quads": _list("x, y of the four corners of a line of text.", "quad", 8),
    },
}
_ANSWERED = {
    "type": "object",
    "properties": {
        "id": {"type": "integer", "description": "The job's, for /v1/jobs/{id}."},
        "state": {"type": "string", "enum": ["succeeded"]},
        "task": {"type": "string"},
        "model": {"type": "string"},
        "note": {"type": ["string", "null"], "description": "Such as that a demo model answers."},
        "answer": _ANSWER,
        "seconds": {"type": "number"},
        "warnings": {"type": "array", "items": {"type": "string"}},
    },
}
_GOING_ON = {
    "type": "object",
    "properties": {
        "id": {"type": "integer"},
        "state": {"type": "string", "enum": ["queued", "running"]},
        "eta_s": {"type": "number", "description": "Seconds until it is expected to be done."},
        "url": {"type": "string", "format": "uri", "description": "Where to ask again."},
    },
}
RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The answer.",
        "content": {
            "application/json": {
                "schema": _ANSWERED,
                "examples": {
                    task.value: {
                        "summary": example.summary,
                        "value": {
                            "id": 1234,
                            "state": "succeeded",
                            "task": task.value,
                            "model": DEFAULT_MODEL,
                            "note": None,
                            "answer": example.answer,
                            "seconds": 0.4,
                            "warnings": [],
                        },
                    }
                    for task, example in EXAMPLES.items()
                },
            }
        },
    },
    202: {
        "description": "It takes longer than the server waits.",
        "content": {"application/json": {"schema": _GOING_ON}},
    },
}
