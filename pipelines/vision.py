"""Pictures looked at instead of drawn: what is asked of one, and what is answered."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

#: ``to_json`` marks requests of this kind with it; those of pictures, which are older, have no mark.
KIND = "vision"
#: Tokens of one answer; the published networks have positions for no more.
MAX_NEW_TOKENS = 1024
#: Beams of one answer: each costs as much as a picture more in the call.
MAX_BEAMS = 8
#: Places along a side that a region's corners are told in.
BINS = 1000


class VisionTask(StrEnum):
    """What can be asked of a picture."""

    CAPTION = "caption"
    DETAILED_CAPTION = "detailed_caption"
    MORE_DETAILED_CAPTION = "more_detailed_caption"
    OBJECT_DETECTION = "object_detection"
    DENSE_REGION_CAPTION = "dense_region_caption"
    REGION_PROPOSAL = "region_proposal"
    #: Where what a caption names is.
    PHRASE_GROUNDING = "phrase_grounding"
    #: The outline of what an expression refers to.
    REFERRING_EXPRESSION_SEGMENTATION = "referring_expression_segmentation"
    REGION_TO_SEGMENTATION = "region_to_segmentation"
    OPEN_VOCABULARY_DETECTION = "open_vocabulary_detection"
    REGION_TO_CATEGORY = "region_to_category"
    REGION_TO_DESCRIPTION = "region_to_description"
    REGION_TO_OCR = "region_to_ocr"
    OCR = "ocr"
    OCR_WITH_REGION = "ocr_with_region"


@dataclass(frozen=True, kw_only=True)
class VisionRequest:
    """One question about one picture: every value decided."""

    #: ``ModelSpec.id``, never an alias.
    model: str
    task: VisionTask
    #: SHA-256 (hex) of the picture's stored form; see ``pipelines.inputs``.
    image: str
    #: For the tasks that take a text; "" for the others.
    prompt: str = ""
    #: For the tasks that take a region: left, top, right and bottom in ``BINS`` of the picture's width and height.
    region: tuple[int, int, int, int] | None = None
    #: Answers followed at a time while the best one is looked for; 1 is the fastest. 1 .. ``MAX_BEAMS``.
    beams: int = 3
    #: 1 .. ``MAX_NEW_TOKENS``.
    max_new_tokens: int = MAX_NEW_TOKENS
    #: Larger goes first.
    priority: int = 0

    @property
    def rows(self) -> int:
        """See ``Request.rows``."""
        return 1

    @property
    def pictures(self) -> int:
        """See ``Request.pictures``."""
        return 0

    @property
    def calls(self) -> int:
        """See ``Request.calls``: one does everything."""
        return 1

    @property
    def shape(self) -> tuple[int, ...]:
        """See ``Request.shape``: what answers that grow together must have in common."""
        return self.beams, self.max_new_tokens

    def to_json(self) -> dict[str, Any]:
        """Plain values for the job store."""
        return {"kind": KIND, **asdict(self)}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> VisionRequest:
        """The inverse of ``to_json``."""
        known = {name: value for name, value in values.items() if name != "kind"}
        region = known.get("region")
        return cls(**{**known, "task": VisionTask(known["task"]), "region": None if region is None else tuple(region)})


@dataclass(frozen=True, kw_only=True)
class Box:
    """A rectangle with what is in it; "" where that is not said."""

    label: str
    #: Left, top, right, bottom.
    box: tuple[int, int, int, int]


@dataclass(frozen=True, kw_only=True)
class Outline:
    """The polygons that make up one thing."""

    label: str
    #: Each x, y, x, y, …
    polygons: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, kw_only=True)
class Quad:
    """A line of text, which may lie askew."""

    label: str
    #: x, y of its four corners.
    quad: tuple[int, int, int, int, int, int, int, int]


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a model says of a picture, in pixels of the picture as it was sent; None: the task says nothing of it."""

    text: str | None = None
    boxes: tuple[Box, ...] | None = None
    outlines: tuple[Outline, ...] | None = None
    quads: tuple[Quad, ...] | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain values, without what the task says nothing of."""
        return {name: value for name, value in asdict(self).items() if value is not None}
