"""How what a client asks about a picture becomes a request: every value decided, or a reason why it cannot be."""

from __future__ import annotations

import re
from dataclasses import dataclass
from math import isfinite

from pipelines.draft import Decided
from pipelines.errors import InvalidRequest
from pipelines.florence2_answers import Size, find_places, to_places
from pipelines.florence2_tasks import TASKS, Takes
from pipelines.model import ModelSpec
from pipelines.vision import BINS, MAX_BEAMS, MAX_NEW_TOKENS, VisionRequest, VisionTask

#: Longer than any text whose tokens the network has positions for.
MAX_PROMPT = 10_000
_PLACES = re.compile(r"\s*(<loc_\d{1,3}>\s*){4}")


@dataclass(frozen=True, kw_only=True)
class Question:
    """What a client asked for, already of the right types; None means not asked for."""

    task: VisionTask = VisionTask.CAPTION
    #: A text, or four places ``<loc_0>`` … ``<loc_999>`` for a task about a region.
    prompt: str | None = None
    #: Left, top, right and bottom in pixels of the picture.
    region: tuple[float, float, float, float] | None = None
    beams: int | None = None
    max_new_tokens: int | None = None


def check_model(model: ModelSpec) -> None:
    """Raises ``InvalidRequest`` for a model that cannot be asked."""
    if model.tasks:
        raise InvalidRequest(f"{model.id} draws pictures and looks at none.", field="model")


def check(question: Question) -> None:
    """Raises ``InvalidRequest`` for what is wrong whatever the picture is, so that none is fetched for it."""
    text = (question.prompt or "").strip()
    takes = TASKS[question.task].takes
    if len(text) > MAX_PROMPT:
        raise InvalidRequest(f"The prompt has {len(text)} characters, at most {MAX_PROMPT} are read.", field="prompt")
    if takes is Takes.TEXT and not text:
        raise InvalidRequest(f"{question.task} needs a prompt: the text to look for.", field="prompt")
    if takes is Takes.NOTHING and text:
        raise InvalidRequest(f"{question.task} takes no prompt.", field="prompt")
    if takes is not Takes.REGION and question.region is not None:
        raise InvalidRequest(f"{question.task} takes no region.", field="region")
    if takes is Takes.REGION:
        _check_region(question, text)
    _check_range("beams", question.beams, MAX_BEAMS)
    _check_range("max_new_tokens", question.max_new_tokens, MAX_NEW_TOKENS)


def decide(question: Question, model: ModelSpec, *, image: str, size: Size) -> Decided:
    """The request about a stored picture of ``size`` (width, height). Raises ``InvalidRequest``."""
    check_model(model)
    check(question)
    takes = TASKS[question.task].takes
    return Decided(
        request=VisionRequest(
            model=model.id,
            task=question.task,
            image=image,
            prompt=(question.prompt or "").strip() if takes is Takes.TEXT else "",
            region=_region(question, size) if takes is Takes.REGION else None,
            beams=VisionRequest.beams if question.beams is None else question.beams,
            max_new_tokens=MAX_NEW_TOKENS if question.max_new_tokens is None else question.max_new_tokens,
        )
    )


def _check_region(question: Question, text: str) -> None:
    if (question.region is None) == (not text):
        raise InvalidRequest(
            f"{question.task} needs a region: left, top, right and bottom in pixels, or as a prompt of four <loc_…>.",
            field="region",
        )
    if text and not _PLACES.fullmatch(text):
        raise InvalidRequest(
            f"The prompt {text[:60]!r} is no region: four times <loc_0> to <loc_{BINS - 1}> are.", field="prompt"
        )


def _check_range(name: str, value: int | None, most: int) -> None:
    if value is not None and not 1 <= value <= most:
        raise InvalidRequest(f"{name} is {value}, and must be 1 to {most}.", field=name)


def _region(question: Question, size: Size) -> tuple[int, int, int, int]:
    if question.region is None:
        left, top, right, bottom = find_places(question.prompt or "")
        places = left, top, right, bottom
    else:
        inside = all(isfinite(at) and at >= 0 for at in question.region)
        if not inside or question.region[2] > size[0] or question.region[3] > size[1]:
            raise InvalidRequest(
                f"The region {list(question.region)} is not inside the picture's {size[0]} x {size[1]} pixels.",
                field="region",
            )
        places = to_places(question.region, size)
    if places[0] > places[2] or places[1] > places[3]:
        raise InvalidRequest("The region's left must come before its right, its top before its bottom.", field="region")
    return places
