"""``outpaint``: a picture in the middle of a larger canvas, whose empty part is drawn."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from typing import Any

import numpy as np
from fastapi.responses import Response
from numpy.typing import NDArray
from PIL import Image

from pipelines.complete import check_task
from pipelines.request import Task
from pipelines.sizes import fit
from server.api.deps import check_webhook
from server.api.modelslab.drawing import EDITING, choose_model, complete_call, submit
from server.api.modelslab.pictures import store_pictures
from server.api.modelslab.schemas import json_schema, read_call
from server.api.modelslab.visit import Visit
from server.inputs import Inputs, StoredInput

_WIDTH, _HEIGHT = 1280, 720
_LARGEST_SIDE = 1440
_OVERLAP, _MOST_OVERLAP = 10, 42

#: Documented for this endpoint alone.
OUTPAINTING = replace(EDITING, defaults={"steps": 10, "max_steps": 30, "guidance": 8.0, "strength": 1.0})

_OWN: dict[str, Any] = {
    "image": {"type": "string", "description": "What to draw around: URL, data URI or base64."},
    "width": {"type": "integer", "default": _WIDTH, "maximum": _LARGEST_SIDE, "description": "The canvas' pixels."},
    "height": {"type": "integer", "default": _HEIGHT, "maximum": _LARGEST_SIDE, "description": "The canvas' pixels."},
    "overlap_width": {"type": "integer", "default": _OVERLAP, "minimum": 0, "maximum": _MOST_OVERLAP},
    "num_inference_steps": {"type": "integer", "default": 10, "minimum": 1, "maximum": 30},
    "guidance_scale": {"type": "number", "default": 8},
}
OUTPAINT_SCHEMA = {
    "type": "object",
    "required": ["image"],
    "properties": {**json_schema(Task.TEXT2IMG)["properties"], **_OWN},
}


async def outpaint(visit: Visit) -> Response:
    """Draws around a picture; ``overlap_width`` pixels of its border are drawn anew, so that no seam is seen."""
    until = time.monotonic() + visit.context.sync_wait_s
    call = read_call(visit.fields, visit.options, Task.IMG2IMG)
    check_webhook(visit.context.guard, call.webhook)
    found = choose_model(visit, call.model, OUTPAINTING)
    check_task(Task.INPAINT, found.model)
    overlap = visit.fields.integer("overlap_width")
    asked = [None if side is None else min(side, _LARGEST_SIDE) for side in (call.draft.width, call.draft.height)]
    size = fit(asked[0] or _WIDTH, asked[1] or _HEIGHT, found.model.limits)
    stored = await store_pictures(visit.context.inputs, Task.IMG2IMG, call.pictures)
    assert stored["image"] is not None
    image, mask = await _lay_out(
        visit.context.inputs,
        stored["image"],
        size,
        _OVERLAP if overlap is None else min(max(overlap, 0), _MOST_OVERLAP),
    )
    # What was asked for is fitted once more on its way, to the same size, and a warning then says so.
    draft = replace(call.draft, image=image.digest, image_size=size, mask=mask.digest, width=asked[0], height=asked[1])
    call = replace(call, draft=draft)
    completed = complete_call(visit, call, found, OUTPAINTING)
    return await submit(visit, call, completed, OUTPAINTING, until=until, note=found.model.note)


async def _lay_out(inputs: Inputs, image: str, size: tuple[int, int], overlap: int) -> tuple[StoredInput, StoredInput]:
    """The canvas and its mask, stored."""
    pixels, mask = await asyncio.to_thread(lambda: place(inputs.read(image), size, overlap))
    return await inputs.keep(pixels), await inputs.keep(mask)


def place(
    pixels: NDArray[np.uint8], size: tuple[int, int], overlap: int
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Canvas (height, width, 3) and mask (height, width), uint8, for ``size`` (width, height).

    The picture stands in the middle, made smaller where it is larger than the canvas; its border is drawn out to the
    edges. The mask is white outside the picture and on ``overlap`` of its pixels along each edge that is not the
    canvas' own.
    """
    height, width = pixels.shape[:2]
    scale = min(size[0] / width, size[1] / height, 1.0)
    inner = (max(round(width * scale), 1), max(round(height * scale), 1))
    small = pixels if scale == 1 else np.asarray(Image.fromarray(pixels).resize(inner, Image.Resampling.LANCZOS))
    left, top = ((outer - one) // 2 for outer, one in zip(size, inner, strict=True))
    right, bottom = left + inner[0], top + inner[1]
    canvas = np.pad(small, ((top, size[1] - bottom), (left, size[0] - right), (0, 0)), mode="edge")
    # Of a small picture a core is left, whatever the overlap.
    across, down = min(overlap, (inner[0] - 1) // 2), min(overlap, (inner[1] - 1) // 2)
    mask = np.full((size[1], size[0]), 255, np.uint8)
    rows = slice(top and top + down, bottom if bottom == size[1] else bottom - down)
    columns = slice(left and left + across, right if right == size[0] else right - across)
    mask[rows, columns] = 0
    return canvas, mask
