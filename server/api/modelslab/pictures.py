"""The pictures that a call brings along, stored before the call becomes a job."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import TypedDict

from pipelines.errors import InvalidRequest
from pipelines.request import Task
from server.inputs import BadInput, Inputs, StoredInput, UnfetchableInput
from server.pixels import Kind

#: Wire names of the pictures that a task needs, with what they are.
NEEDED: dict[Task, dict[str, Kind]] = {
    Task.TEXT2IMG: {},
    Task.IMG2IMG: {"init_image": "image"},
    Task.INPAINT: {"init_image": "image", "mask_image": "mask"},
}
#: Wire names of the pictures that every task takes.
OPTIONAL: dict[str, Kind] = {"ip_adapter_image": "image"}


class DraftInputs(TypedDict):
    """The fields of ``ImageDraft`` that come of stored pictures."""

    image: str | None
    image_size: tuple[int, int] | None
    mask: str | None
    ip_adapter_image: str | None


async def store_pictures(inputs: Inputs, task: Task, sources: Mapping[str, str]) -> DraftInputs:
    """Stores what the task takes. Raises ``InvalidRequest``, whose field is the wire name."""
    kinds = {**NEEDED[task], **{name: kind for name, kind in OPTIONAL.items() if name in sources}}
    stored = await asyncio.gather(*(store_picture(inputs, name, sources[name], kind) for name, kind in kinds.items()))
    by_name = dict(zip(kinds, stored, strict=True))
    image, mask, prompt = (by_name.get(name) for name in ("init_image", "mask_image", "ip_adapter_image"))
    return {
        "image": image.digest if image else None,
        "image_size": (image.width, image.height) if image else None,
        "mask": mask.digest if mask else None,
        "ip_adapter_image": prompt.digest if prompt else None,
    }


async def store_picture(inputs: Inputs, name: str, source: str, kind: Kind) -> StoredInput:
    """Stores one picture. Raises ``InvalidRequest``, whose field is its wire ``name``."""
    try:
        return await inputs.store(source, kind)
    except UnfetchableInput as error:
        # The whole of the documented text, and nothing else.
        raise InvalidRequest(str(error), field=name) from error
    except BadInput as error:
        raise InvalidRequest(f"{name}: {error}", field=name) from None
