"""Florence-2's words for the tasks: its tokens, what each is spelled out as, and how it answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, auto
from types import MappingProxyType

from pipelines.errors import InvalidRequest
from pipelines.vision import VisionTask


class Takes(Enum):
    """What a task takes beside the picture."""

    NOTHING = auto()
    TEXT = auto()
    REGION = auto()


class Form(Enum):
    """How an answer is built."""

    TEXT = auto()
    #: A label, then boxes of four places each; over and over.
    BOXES = auto()
    #: As ``BOXES``, without labels.
    BARE_BOXES = auto()
    #: As ``BOXES``; labels that stand for nothing in the picture are left out.
    PHRASES = auto()
    #: Polygons of one thing.
    OUTLINE = auto()
    #: ``BOXES``, or labels with polygons.
    BOXES_OR_OUTLINES = auto()
    #: A line of text, then its four corners.
    QUADS = auto()


@dataclass(frozen=True, kw_only=True)
class FlorenceTask:
    """One task."""

    #: What other programs call it by, ``<OD>``.
    token: str
    #: What the network reads, with ``{}`` for the text or the region.
    words: str
    takes: Takes = Takes.NOTHING
    form: Form = Form.TEXT


TASKS: Mapping[VisionTask, FlorenceTask] = MappingProxyType(
    {
        VisionTask.CAPTION: FlorenceTask(token="<CAPTION>", words="What does the image describe?"),
        VisionTask.DETAILED_CAPTION: FlorenceTask(
            token="<DETAILED_CAPTION>", words="Describe in detail what is shown in the image."
        ),
        VisionTask.MORE_DETAILED_CAPTION: FlorenceTask(
            token="<MORE_DETAILED_CAPTION>", words="Describe with a paragraph what is shown in the image."
        ),
        VisionTask.OBJECT_DETECTION: FlorenceTask(
            token="<OD>", words="Locate the objects with category name in the image.", form=Form.BOXES
        ),
        VisionTask.DENSE_REGION_CAPTION: FlorenceTask(
            token="<DENSE_REGION_CAPTION>",
            words="Locate the objects in the image, with their descriptions.",
            form=Form.BOXES,
        ),
        VisionTask.REGION_PROPOSAL: FlorenceTask(
            token="<REGION_PROPOSAL>", words="Locate the region proposals in the image.", form=Form.BARE_BOXES
        ),
        VisionTask.PHRASE_GROUNDING: FlorenceTask(
            token="<CAPTION_TO_PHRASE_GROUNDING>",
            words="Locate the phrases in the caption: {}",
            takes=Takes.TEXT,
            form=Form.PHRASES,
        ),
        VisionTask.REFERRING_EXPRESSION_SEGMENTATION: FlorenceTask(
            token="<REFERRING_EXPRESSION_SEGMENTATION>",
            words="Locate {} in the image with mask",
            takes=Takes.TEXT,
            form=Form.OUTLINE,
        ),
        VisionTask.REGION_TO_SEGMENTATION: FlorenceTask(
            token="<REGION_TO_SEGMENTATION>",
            words="What is the polygon mask of region {}",
            takes=Takes.REGION,
            form=Form.OUTLINE,
        ),
        VisionTask.OPEN_VOCABULARY_DETECTION: FlorenceTask(
            token="<OPEN_VOCABULARY_DETECTION>",
            words="Locate {} in the image.",
            takes=Takes.TEXT,
            form=Form.BOXES_OR_OUTLINES,
        ),
        VisionTask.REGION_TO_CATEGORY: FlorenceTask(
            token="<REGION_TO_CATEGORY>", words="What is the region {}?", takes=Takes.REGION
        ),
        VisionTask.REGION_TO_DESCRIPTION: FlorenceTask(
            token="<REGION_TO_DESCRIPTION>", words="What does the region {} describe?", takes=Takes.REGION
        ),
        VisionTask.REGION_TO_OCR: FlorenceTask(
            token="<REGION_TO_OCR>", words="What text is in the region {}?", takes=Takes.REGION
        ),
        VisionTask.OCR: FlorenceTask(token="<OCR>", words="What is the text in the image?"),
        VisionTask.OCR_WITH_REGION: FlorenceTask(
            token="<OCR_WITH_REGION>", words="What is the text in the image, with regions?", form=Form.QUADS
        ),
    }
)

#: What ComfyUI's node calls a task otherwise than by its token.
_OTHER_NAMES = {"region_caption": VisionTask.OBJECT_DETECTION}


def find_task(name: str) -> VisionTask:
    """The task of this name or token, with or without brackets, whatever its case.

    Raises ``InvalidRequest``, which lists the names.
    """
    wanted = name.strip().lower()
    if wanted.startswith("<") and wanted.endswith(">"):
        wanted = wanted[1:-1]
    if wanted in _OTHER_NAMES:
        return _OTHER_NAMES[wanted]
    for task, row in TASKS.items():
        if wanted in (task.value, row.token[1:-1].lower()):
            return task
    raise InvalidRequest(f"Unknown task {name[:60]!r}. There are: {', '.join(VisionTask)}", field="task")
